"""Hooks that only look at a network, which must not see the passes of a measurement."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

#: Packages whose hooks observe: they write down weights, outputs and gradients.
KNOWN = ("wandb", "comet_ml", "neptune", "mlflow", "clearml", "aim", "swanlab", "dvclive", "trackio")
#: The dictionaries of hooks that run in a forward or a backward pass.
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def is_observer(hook: Any, given: Sequence[Any] = ()) -> bool:
    """Whether a hook is one of a package that observes, or is ``given`` as one: itself, or by its module's name."""
    while isinstance(hook, functools.partial):
        if any(hook is each for each in given):
            return True
        hook = hook.func
    function = getattr(hook, "__func__", hook)  # of a method
    module = getattr(function, "__module__", None) or type(function).__module__
    names = [*KNOWN, *(each for each in given if isinstance(each, str))]
    if any(f"{module}.".startswith(f"{name}.") for name in names):
        return True
    return any(hook is each or function is each or (callable(each) and hook == each) for each in given)


def observers(modules: Iterable[nn.Module], given: Sequence[Any] = ()) -> Iterator[tuple[nn.Module, str, int]]:
    """The observing hooks of some modules: the module, the dictionary that has the hook, and its key there."""
    for module in modules:
        for name in _HOOKS:
            for key, hook in list(module.__dict__.get(name, {}).items()):
                if is_observer(hook, given):
                    yield module, name, key
