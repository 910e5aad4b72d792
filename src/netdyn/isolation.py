"""Leave the model and every random generator as found.

A measurement may run the network's own ``forward``, and with it whatever the author put there: counters, caches,
metrics, random numbers, calls to ``self.log``. Everything that such code can reach from the module is written down
before and put back after, also when the measurement raises. Nothing is copied that need not be: attributes are kept by
reference, containers as shallow copies, and only tensors that are not parameters (buffers, metric states, caches) are
cloned.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from netdyn.shards import reshard

Restore = Callable[[], object]


@contextmanager
def rng_kept() -> Iterator[None]:
    """Put torch's (CPU and every initialised accelerator), NumPy's and Python's global generators back afterwards."""
    with ExitStack() as undo:
        undo.callback(random.setstate, random.getstate())
        undo.callback(np.random.set_state, np.random.get_state(legacy=False))  # noqa: NPY002
        undo.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            undo.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        if torch.backends.mps.is_available():
            undo.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
        yield


def _tensor_kept(tensor: Tensor) -> Restore:
    """Put a tensor's values back in place, but only if somebody wrote to it.

    A write in place raises the tensor's version, which would break a backward pass that still waits for it: a tensor
    that nobody touched is left alone. Inference tensors count no versions, and may be written in inference mode only.
    """
    before = tensor.detach().clone()
    version = None if tensor.is_inference() else tensor._version

    def restore() -> None:
        if version is not None and tensor._version == version:
            return
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if tensor.shape != before.shape:
                tensor.resize_(before.shape)
            tensor.detach().copy_(before)

    return restore


def _generator_kept(generator: Any) -> Restore:
    if isinstance(generator, torch.Generator):
        torch_state = generator.get_state()
        return partial(generator.set_state, torch_state)
    if isinstance(generator, random.Random):
        python_state = generator.getstate()
        return partial(generator.setstate, python_state)
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator._bit_generator
    numpy_state = bits.state

    def restore() -> None:
        bits.state = numpy_state

    return restore


def _dict_kept(content: dict[Any, Any]) -> Restore:
    before = dict(content)

    def restore() -> None:
        same = len(content) == len(before) and all(
            a is b and content[a] is before[b] for a, b in zip(content, before, strict=True)
        )
        if not same:
            content.clear()
            content.update(before)

    return restore


def _list_kept(content: list[Any]) -> Restore:
    before = list(content)

    def restore() -> None:
        content[:] = before

    return restore


def _set_kept(content: set[Any] | deque[Any]) -> Restore:
    before = content.copy()

    def restore() -> None:
        content.clear()
        content.update(before) if isinstance(content, set) else content.extend(before)

    return restore


_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


class _Snapshot:
    """What hangs on the modules, and how to put each piece back."""

    def __init__(self, model: nn.Module) -> None:
        self._seen: set[int] = set()
        self._undo: list[Restore] = []
        modules = list(model.modules())
        # Written down as a list: a module may appear under several names, and one flag may differ from its parent's.
        self._modes = [(module, module.training) for module in modules]
        for module in modules:
            self._write_down(module.__dict__)

    def _write_down(self, value: Any) -> None:
        if isinstance(value, Parameter | nn.Module) or id(value) in self._seen:
            return
        kept: Restore | None = None
        members: list[Any] = []
        if isinstance(value, Tensor):
            kept = _tensor_kept(value)
        elif isinstance(value, _GENERATORS):
            kept = _generator_kept(value)
        elif isinstance(value, dict):
            kept, members = _dict_kept(value), list(value.values())
        elif isinstance(value, list):
            kept, members = _list_kept(value), value
        elif isinstance(value, set | deque):
            kept, members = _set_kept(value), list(value)
        elif isinstance(value, tuple):
            members = list(value)
        else:
            return
        self._seen.add(id(value))
        if kept is not None:
            self._undo.append(kept)
        for member in members:
            self._write_down(member)

    def restore(self) -> None:
        for module, training in self._modes:
            if module.training != training:
                _set_mode(module, training)
        for undo in self._undo:
            undo()


def _set_mode(module: nn.Module, training: bool) -> None:
    """Set the flag itself: ``train()`` and ``eval()`` may be overridden, and recurse."""
    module.training = training


def _ignore(*args: Any, **kwargs: Any) -> None:
    return None


def _silence_logging(module: nn.Module) -> None:
    """Let ``self.log`` in a ``forward`` do nothing: shadow it on the instance, which the snapshot undoes."""
    for name in ("log", "log_dict"):
        if callable(getattr(type(module), name, None)):
            module.__dict__[name] = _ignore


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode without gradients; afterwards it and all generators are as they were found.

    Kept: training flags (also mixed ones), attributes and the contents of their lists, dicts, sets and deques, buffers
        (also
    non-persistent ones), metric states, the module's own random generators, the global generators, hooks. Compiled
    modules run eagerly meanwhile, so that no new graph is made.

    Args:
        model: The module to protect, with all its children.
    """
    with ExitStack() as undo:
        undo.enter_context(rng_kept())
        reshard(model)
        undo.callback(_Snapshot(model).restore)
        undo.callback(reshard, model)
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.no_grad())
        for module in model.modules():
            _silence_logging(module)
            if module.training:
                _set_mode(module, False)
        yield
