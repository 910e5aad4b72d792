"""Write down what hangs on some objects, and put it back.

From a module, a data set or any other object everything is followed that its code can reach by attribute: modules,
plain objects, containers, bound methods, closures and partial functions. Nothing is copied that need not be:
attributes are kept by reference, containers as shallow copies; only tensors that are not parameters, arrays and random
generators are duplicated. What is put back is put back in place, so that whoever holds a piece sees it as it was.
"""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, is_lazy

from netdyn._utils.distributed import is_shard

Restore = Callable[[], object]

#: Tensors and arrays above this size are taken for data, and containers above this length for lists of data.
LARGEST_BYTES, LONGEST = 1 << 24, 10_000
#: Packages whose objects are not followed: they lead to threads, to files, and to everything else.
_FOREIGN = frozenset(
    (
        *("lightning", "pytorch_lightning", "lightning_fabric", "torch", "numpy", "tensorboard", "netdyn"),
        *("threading", "_thread", "queue", "multiprocessing", "concurrent", "asyncio"),
        *("logging", "_io", "io", "functools", "builtins"),
    )
)
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def _tensor_kept(tensor: Tensor) -> Restore:
    """Put a tensor's storage, values and place in a graph back, but only if somebody changed them.

    A write in place raises the tensor's version, which would break a backward pass that still waits for it: a tensor
    that nobody touched is left alone. (Versions do not tell who did: batch normalisation writes without raising them.)
    """
    alias, values, gradient = tensor.detach(), tensor.detach().clone(), tensor.requires_grad

    def restore() -> None:
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if tensor.requires_grad != gradient:
                tensor.detach_().requires_grad_(gradient)
            if tensor.data_ptr() != alias.data_ptr() or tensor.shape != alias.shape:
                tensor.data = alias
            if not _same(alias, values):
                tensor.detach().copy_(values)

    return restore


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same values, NaN being the same as NaN."""
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _parameter_kept(parameter: Parameter) -> Restore:
    """Put a parameter's values, flag and gradient back, but only if somebody changed them.

    Few forwards write to their parameters (an embedding with a largest norm does), and those that do raise the version.
    """
    gradient, wanted = parameter.grad, parameter.requires_grad
    plain = _is_plain(parameter)
    alias, version = (parameter.detach(), parameter._version) if plain else (parameter, 0)
    values = alias.clone() if plain else None

    def restore() -> None:
        if values is not None and (parameter.data_ptr() != alias.data_ptr() or parameter._version != version):
            with torch.no_grad():
                parameter.data = alias
                parameter.copy_(values)
        if parameter.requires_grad != wanted:
            parameter.requires_grad_(wanted)
        if parameter.grad is not gradient:
            parameter.grad = gradient

    return restore


def _array_kept(array: np.ndarray[Any, Any]) -> Restore:
    before = array.copy()

    def restore() -> None:
        if array.tobytes() != before.tobytes():
            array[...] = before

    return restore


def _generator_kept(generator: Any) -> Restore:
    if isinstance(generator, torch.Generator):
        return functools.partial(generator.set_state, generator.get_state())
    if isinstance(generator, random.Random):
        return functools.partial(generator.setstate, generator.getstate())
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator._bit_generator
    state = bits.state

    def restore() -> None:
        bits.state = state

    return restore


def _dict_kept(content: dict[Any, Any]) -> Restore:
    before = dict(content)

    def restore() -> None:
        same = len(content) == len(before) and all(
            a is b and content[a] is before[b] for a, b in zip(content, before, strict=True)
        )
        if not same:
            content.clear()
            for key in before:  # one by one: the update of a Counter would add
                content[key] = before[key]

    return restore


def _list_kept(content: list[Any]) -> Restore:
    before = list(content)

    def restore() -> None:
        content[:] = before

    return restore


def _set_kept(content: set[Any] | deque[Any]) -> Restore:
    before = list(content)

    def restore() -> None:
        content.clear()
        content.update(before) if isinstance(content, set) else content.extend(before)

    return restore


class Snapshot:
    """What hangs on some objects, and how to put each piece back."""

    def __init__(self, *things: Any) -> None:
        self._seen: dict[int, Any] = {}  # keeps what it has seen alive, so that no number is given twice
        self._undo: list[Restore] = []
        # Flags are written down as a list: one may differ from its parent's.
        self._modes: list[tuple[nn.Module, bool]] = []
        todo = list(things)
        while todo:
            value = todo.pop()
            if id(value) not in self._seen and not isinstance(value, str | bytes | int | float | type(None) | type):
                self._seen[id(value)] = value
                kept, members = self._look_at(value)
                if kept is not None:
                    self._undo.append(kept)
                todo += members

    def _look_at(self, value: Any) -> tuple[Restore | None, list[Any]]:
        """How to put a value back, and where it leads."""
        if isinstance(value, nn.Module):
            self._modes.append((value, value.training))
            # Registered buffers are states, of any size.
            buffers = [buffer for buffer in value._buffers.values() if buffer is not None and _is_plain(buffer)]
            self._undo += [_tensor_kept(buffer) for buffer in buffers if buffer.nbytes > LARGEST_BYTES]
            return None, [value.__dict__]
        if isinstance(value, Tensor):
            if isinstance(value, Parameter):
                return _parameter_kept(value), []
            return _tensor_kept(value) if _is_plain(value) and value.nbytes <= LARGEST_BYTES else None, []
        if isinstance(value, np.ndarray):
            plain = value.nbytes <= LARGEST_BYTES and value.flags.writeable and not value.dtype.hasobject
            return _array_kept(value) if plain else None, []
        if isinstance(value, _GENERATORS):
            return _generator_kept(value), []
        kept, members = _contents(value)
        return kept, [*members, *_attributes(value)]

    def restore(self) -> None:
        """Put everything back."""
        for module, training in self._modes:
            if module.training != training:
                module.training = training
        with ExitStack() as undo:  # one that fails must not keep the others from their work
            for restore in reversed(self._undo):
                undo.callback(restore)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has a storage of its own to compare and write to; sparse, lazy, sharded, meta ones have not."""
    return tensor.layout == torch.strided and not (
        tensor.is_meta or tensor.is_mkldnn or is_lazy(tensor) or is_shard(tensor)
    )


def _contents(value: Any) -> tuple[Restore | None, list[Any]]:
    """How to put a container back, and what is in it (or bound to a function)."""
    if isinstance(value, dict):
        return _dict_kept(value), list(value.values()) if len(value) < LONGEST else []
    if isinstance(value, list):
        return _list_kept(value), list(value) if len(value) < LONGEST else []
    if isinstance(value, set | deque):
        return _set_kept(value), list(value) if len(value) < LONGEST else []
    if isinstance(value, tuple):
        return None, list(value) if len(value) < LONGEST else []
    if isinstance(value, types.MethodType):
        return None, [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        cells = value.__closure__ or ()
        return None, [value.__defaults__, value.__kwdefaults__, *map(_cell, cells)]
    if isinstance(value, functools.partial):
        return None, [value.func, value.args, value.keywords]
    return None, []


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _attributes(value: Any) -> list[Any]:
    """The attributes of an object of the user's own, or of a data set of anybody's."""
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict) or isinstance(value, types.ModuleType | types.FunctionType):
        return []
    own = type(value).__module__.partition(".")[0] not in _FOREIGN and not _leads_away(value)
    return [attributes] if own or isinstance(value, torch.utils.data.Dataset) else []


def _leads_away(value: Any) -> bool:
    """Whether this is somebody's own kind of trainer, logger or callback, which lead to everything there is."""
    return any(
        base.__name__ in ("Trainer", "Logger", "Callback") and base.__module__.partition(".")[0] in _FOREIGN
        for base in type(value).__mro__
    )
