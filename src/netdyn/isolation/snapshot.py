"""Save the state of some objects and all that their code can reach by attribute, and put it back in place."""

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
from netdyn.isolation.shadow import LARGEST_BYTES, LONGEST, SYSTEM, is_foreign

Restore = Callable[[], object]

_ABSENT = object()
_SIMPLE = (str, bytes, int, float, type(None), type)
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def _save_tensor(tensor: Tensor) -> Restore:
    """Put a tensor's storage, values and place in a graph back, but only if they have changed."""
    # A needless write would break a backward pass that still needs the tensor. The tensor's version does not show each
    # change: batch normalisation writes without raising it.
    alias, values, gradient = tensor.detach(), tensor.detach().clone(), tensor.requires_grad

    def restore() -> None:
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if tensor.requires_grad != gradient:
                tensor.detach_().requires_grad_(gradient)
            if tensor.data_ptr() != alias.data_ptr() or tensor.shape != alias.shape:
                tensor.data = alias
            same = torch.equal(alias, values) or ((alias == values) | ((alias != alias) & (values != values))).all()
            if not same:  # NaN is the same as NaN
                tensor.detach().copy_(values)

    return restore


def _save_parameter(parameter: Parameter) -> Restore:
    """Put a parameter's values (as an embedding with a largest norm changes them), flag and gradient back."""
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


def _save_array(array: np.ndarray[Any, Any]) -> Restore:
    before = array.copy()

    def restore() -> None:
        if array.tobytes() != before.tobytes():
            array[...] = before

    return restore


def _save_generator(generator: Any) -> Restore:
    if isinstance(generator, torch.Generator):
        before = generator.get_state()
        return lambda: None if torch.equal(generator.get_state(), before) else generator.set_state(before)
    if isinstance(generator, random.Random):
        state = generator.getstate()
        return lambda: None if generator.getstate() == state else generator.setstate(state)
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator._bit_generator
    kept = bits.state
    return lambda: None if repr(bits.state) == repr(kept) else setattr(bits, "state", kept)


def _save_dict(content: dict[Any, Any]) -> Restore:
    before = dict(content)

    def restore() -> None:
        pairs = zip(content, before, strict=True)
        if len(content) != len(before) or not all(a is b and content[a] is before[b] for a, b in pairs):
            content.clear()
            for key in before:  # one by one, since the update of a Counter adds
                content[key] = before[key]

    return restore


def _save_list(content: list[Any]) -> Restore:
    before = list(content)
    return lambda: None if _same(content, before) else content.__setitem__(slice(None), before)


def _save_set(content: set[Any] | deque[Any]) -> Restore:
    before = list(content)

    def restore() -> None:
        # A reader elsewhere would not survive a rewriting.
        if not _same(list(content), before):
            content.clear()
            content.update(before) if isinstance(content, set) else content.extend(before)

    return restore


def _same(members: list[Any], before: list[Any]) -> bool:
    return len(members) == len(before) and all(a is b for a, b in zip(members, before, strict=False))


def save_class(kind: type) -> Restore:
    """Put back the attributes of a class that are no methods, where others have taken their place."""
    before = dict(vars(kind))

    def restore() -> None:
        for name, value in list(vars(kind).items()):
            kept = before.get(name, _ABSENT)
            if value is not kept and not (callable(value) or hasattr(value, "__get__")):
                delattr(kind, name) if kept is _ABSENT else setattr(kind, name, kept)

    return restore


class Snapshot:
    """The state of some objects and of all that they lead to."""

    def __init__(self, *things: Any) -> None:
        self._seen: dict[int, Any] = {}  # keeps the objects alive, so that each has its own id
        self._undo: list[Restore] = []
        self._modes: list[tuple[nn.Module, bool]] = []  # a child's flag may differ from its parent's
        todo = list(things)
        while todo:
            value = todo.pop()
            if id(value) not in self._seen and not issubclass(type(value), _SIMPLE):
                self._seen[id(value)] = value
                try:
                    restore, members = self._save(value)
                except Exception:  # an object that cannot be looked at
                    continue
                if restore is not None:
                    self._undo.append(restore)
                todo += members

    def _save(self, value: Any) -> tuple[Restore | None, list[Any]]:
        """A function that puts a value back, and the objects that the value leads to."""
        if isinstance(value, nn.Module):
            self._modes.append((value, value.training))
            # Registered buffers are state, whatever their size.
            buffers = [buffer for buffer in value._buffers.values() if buffer is not None and _is_plain(buffer)]
            self._undo += [_save_tensor(buffer) for buffer in buffers if buffer.nbytes > LARGEST_BYTES]
            return None, [value.__dict__]
        if isinstance(value, Tensor):
            if isinstance(value, Parameter):
                return _save_parameter(value), []
            return _save_tensor(value) if _is_plain(value) and value.nbytes <= LARGEST_BYTES else None, []
        if isinstance(value, np.ndarray):
            plain = value.nbytes <= LARGEST_BYTES and value.flags.writeable and not value.dtype.hasobject
            return _save_array(value) if plain else None, []
        if isinstance(value, _GENERATORS):
            return _save_generator(value), []
        restore, members = _contents(value)
        return restore, [*members, *_attributes(value)]

    def restore(self) -> None:
        """Put everything back."""
        for module, training in self._modes:
            if module.training != training:
                module.training = training
        with ExitStack() as undo:  # all of them run, also if one fails
            for restore in reversed(self._undo):
                undo.callback(restore)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has a storage to compare and write to, unlike sparse, lazy, sharded and meta tensors."""
    return tensor.layout == torch.strided and not (
        tensor.is_meta or tensor.is_mkldnn or is_lazy(tensor) or is_shard(tensor)
    )


def _contents(value: Any) -> tuple[Restore | None, list[Any]]:
    """A function that puts a container back, and its members (or what is bound to a function)."""
    if isinstance(value, dict):
        return _save_dict(value), list(value.values()) if len(value) < LONGEST else []
    if isinstance(value, list):
        return _save_list(value), list(value) if len(value) < LONGEST else []
    if isinstance(value, set | deque):
        return _save_set(value), list(value) if len(value) < LONGEST else []
    if isinstance(value, tuple):
        return None, list(value) if len(value) < LONGEST else []
    if isinstance(value, types.MethodType):
        return None, [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        return None, [value.__defaults__, value.__kwdefaults__, *map(_cell, value.__closure__ or ())]
    if isinstance(value, functools.partial):
        return None, [value.func, value.args, value.keywords]
    return None, []


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _attributes(value: Any) -> list[Any]:
    """The attributes of an object of the user's own class, or of any data set."""
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict) or isinstance(value, types.ModuleType | types.FunctionType):
        return []
    # Trainers, loggers and callbacks lead to everything else, also those of the user's own class.
    kind = type(value)
    away = any(base.__name__ in ("Trainer", "Logger", "Callback") and is_foreign(base) for base in kind.__mro__)
    own = not (is_foreign(kind) or kind.__module__.partition(".")[0] in SYSTEM or away)
    return [attributes] if own or isinstance(value, torch.utils.data.Dataset) else []
