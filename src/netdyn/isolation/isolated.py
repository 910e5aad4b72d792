"""Put back what the network's own ``forward`` changes: counters, caches, metrics and random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from netdyn._utils.distributed import reshard
from netdyn.isolation.snapshot import Snapshot


@contextmanager
def rng_restored() -> Iterator[None]:
    """Afterwards put back the global generators of torch (CPU, initialised CUDA devices, MPS), NumPy and Python."""
    with ExitStack() as undo:
        undo.callback(random.setstate, random.getstate())
        undo.callback(np.random.set_state, np.random.get_state(legacy=False))  # noqa: NPY002
        undo.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            undo.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        if torch.backends.mps.is_available():
            undo.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
        yield


@contextmanager
def restored(*things: Any) -> Iterator[None]:
    """Afterwards put back the state of some objects, see :class:`Snapshot`, and the global random generators."""
    with ExitStack() as undo:
        undo.enter_context(rng_restored())
        undo.callback(Snapshot(*things).restore)
        yield


def _silence_logging(module: nn.Module) -> None:
    """Let ``self.log`` in a ``forward`` do nothing. It is replaced on the instance, which the snapshot undoes."""
    if any(base.__name__ == "LightningModule" for base in type(module).__mro__):
        module.__dict__.update(dict.fromkeys(("log", "log_dict"), lambda *args, **kwargs: None))


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode without gradients; afterwards it and all generators are as they were found."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}. It is the first argument.")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError(
            "The model has lazy parameters without a shape yet. Run it on a batch first: the forward pass that makes "
            "them cannot be undone."
        )
    with ExitStack() as undo:
        # Whole weights gathered from shards must be neither saved nor left behind.
        reshard(model)
        undo.enter_context(restored(model))
        undo.callback(reshard, model)
        # Compiled modules run eagerly, so that no new graph is made.
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.no_grad())
        for module in model.modules():
            _silence_logging(module)
            # The flag is set directly, since train() and eval() recurse and may be overridden.
            if module.training:
                module.training = False
        yield
