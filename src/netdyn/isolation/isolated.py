"""Measure a network without touching it: on a shadow, or in place with guards where it cannot be copied."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pickle import dumps
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from netdyn._utils import checks
from netdyn._utils.distributed import is_sharded, reshard
from netdyn.isolation.observers import observers
from netdyn.isolation.shadow import Shadows, defines
from netdyn.isolation.snapshot import Snapshot, save_class
from netdyn.isolation.wrappers import unwrapped


@contextmanager
def rng_restored() -> Iterator[None]:
    """Afterwards put back the global generators of torch (CPU, initialised CUDA devices, MPS), NumPy and Python.

    One that has not moved is not written to.
    """

    def keep(get: Callable[[], Any], put: Callable[[Any], object], same: Callable[[Any, Any], Any]) -> None:
        before = get()
        undo.callback(lambda: None if same(get(), before) else put(before))

    with ExitStack() as undo:
        keep(random.getstate, random.setstate, lambda a, b: a == b)
        # Its form depends on the kind of generator, and holds arrays.
        keep(lambda: np.random.get_state(legacy=False), np.random.set_state, lambda a, b: dumps(a) == dumps(b))  # noqa: NPY002
        keep(torch.get_rng_state, torch.set_rng_state, torch.equal)
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            for generator in torch.cuda.default_generators:
                # Whenever a state is set by value, also an equal one, cuDNN's dropout between recurrent layers begins
                # anew, with a seed that it draws. So another state takes this one's place meanwhile.
                undo.callback(generator.graphsafe_set_state, generator.graphsafe_get_state())
                generator.graphsafe_set_state(generator.clone_state())
        if torch.backends.mps.is_available():
            keep(torch.mps.get_rng_state, torch.mps.set_rng_state, torch.equal)
        yield


@contextmanager
def restored(*things: Any) -> Iterator[None]:
    """Afterwards put back the state of some objects, see :class:`Snapshot`, and the global random generators."""
    with ExitStack() as undo:
        undo.enter_context(rng_restored())
        undo.callback(Snapshot(*things).restore)
        yield


@contextmanager
def shadowed(*things: Any, observer_hooks: Sequence[Any] = (), quiet: bool = False) -> Iterator[list[Any]]:
    """Copies of some objects, see :class:`Shadows`; afterwards put back what copies share, as far as it can be.

    These are the global random generators, and the attributes of the user's classes. What else is shared and may have a
    state is named in a warning, unless ``quiet``. A module that cannot be copied is put back instead, with all else.
    """
    with ExitStack() as undo:
        if any(isinstance(thing, nn.Module) and _cannot_be_copied(thing) for thing in things):
            undo.enter_context(restored(*things))
            yield list(things)
            return
        undo.enter_context(rng_restored())
        # Copies of what was made in inference mode are plain tensors.
        undo.enter_context(torch.inference_mode(False))
        shadows = Shadows(observer_hooks)
        twins = [shadows.of(thing, getattr(thing, "__name__", "")) for thing in things]
        if not quiet:
            _warn_of_shared(shadows.named)
        for kind in shadows.classes:
            undo.callback(save_class(kind))
        for module in shadows.modules:
            _quieten(module)
        yield twins


def name_shared(model: nn.Module, *functions: Any) -> None:
    """Name what :func:`isolated` shares and may have a state, in one warning."""
    with shadowed(unwrapped(model)[0], *functions):
        pass


def _warn_of_shared(named: dict[str, str]) -> None:
    """Name what is shared with copies, and cannot be put back."""
    if named:
        shown = ", ".join(f"{where or 'the network'} ({kind})" for where, kind in named.items())
        checks.warn(
            f"netdyn cannot copy {shown}: what a measurement changes there stays changed, and training may go on "
            "otherwise than without it. Keep such objects out of `forward`, or measure a copy of the network."
        )


def _quieten(module: nn.Module) -> None:
    """Let ``self.log`` in the ``forward`` of a LightningModule do nothing."""
    if any(base.__name__ == "LightningModule" for base in type(module).__mro__):
        module.__dict__.update(dict.fromkeys(("log", "log_dict"), lambda *args, **kwargs: None))


def _cannot_be_copied(model: nn.Module) -> bool:
    """Whether a network must be measured in place: its weights are spread over processes, or copies end something."""
    sharded = ("FullyShardedDataParallel", "DeepSpeedEngine")
    return any(
        is_sharded(module) or type(module).__name__ in sharded or defines(type(module), "__del__")
        for module in model.modules()
    )


@contextmanager
def isolated(model: nn.Module, *functions: Any, observer_hooks: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
    """A network to measure in place of a model, in eval mode without gradients, and copies of the user's ``functions``.

    The network is a copy, see :class:`Shadows`, of what is inside of wrappers; hooks that only observe are left out. A
    model that cannot be copied is measured itself, and put back afterwards.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}. It is the first argument.")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError(
            "The model has lazy parameters without a shape yet. Run it on a batch first: the forward pass that makes "
            "them cannot be undone."
        )
    inside, _ = unwrapped(model)
    with ExitStack() as undo:
        own: tuple[Any, ...] = (inside, *functions)
        if _cannot_be_copied(inside):
            # Whole weights gathered from shards must be neither saved nor left behind.
            reshard(inside)
            undo.enter_context(restored(*own))
            undo.callback(reshard, inside)
            for module in inside.modules():
                _quieten(module)
            for module, name, key in list(observers(inside.modules(), observer_hooks)):
                del module.__dict__[name][key]
        else:
            own = tuple(undo.enter_context(shadowed(*own, observer_hooks=observer_hooks)))
        # Compiled functions run eagerly, so that no new graph is made.
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.no_grad())
        for module in own[0].modules():
            # The flag is set directly, since train() and eval() recurse and may be overridden.
            if module.training:
                module.training = False
        yield own
