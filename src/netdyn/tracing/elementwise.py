"""Modules of a user's own that turn out to be one activation.

A module without parameters, buffers and children that uses activations, keeps its input's shape and acts element by
element is one activation itself: what is inside it is not read again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netdyn.tracing.site import Site


@dataclass(frozen=True)
class Candidate:
    """A running module that may turn out to be one activation.

    Attributes:
        module: The module.
        site: Its site, but for the output.
        argument: What it was called with, and might overwrite.
        copied: A copy of that, in a straight-through run at the same place of the graph.
        first: Where the sites inside it begin.
    """

    module: nn.Module
    site: Site
    argument: Tensor
    copied: Tensor
    first: int


def may_be_activation(module: nn.Module) -> bool:
    """A leaf of somebody's own making without parameters and buffers (torch's own are seen as functions)."""
    own = not type(module).__module__.startswith("torch.nn.")
    return own and not (module._modules or module._parameters or module._buffers)


def acts_by_element(module: nn.Module, argument: Tensor, output: Tensor) -> bool:
    """Whether half of a module's outputs stay as they are when the inputs of the other half change."""
    moved = torch.arange(argument.numel(), device=output.device).reshape(argument.shape) % 2 == 1
    other = module.forward(torch.where(moved, argument + 1, argument))
    return bool(((other == output) | moved | output.isnan()).all())
