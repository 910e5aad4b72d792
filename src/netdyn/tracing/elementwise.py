"""Modules of the user's own that are one activation: the activations inside are then not read separately."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netdyn.tracing.site import Site


@dataclass(frozen=True)
class Candidate:
    """A running module that may turn out to be one activation."""

    module: nn.Module
    site: Site  #: without the output
    argument: Tensor  #: the input, which the module may overwrite
    copied: Tensor  #: a copy of the input, in a straight-through run at the same place in the graph
    first: int  #: number of sites that were held when the module began; later ones are inside it
    first_value: int = 0  #: the same for the values of element-wise operations, in a survey


def may_be_activation(module: nn.Module) -> bool:
    """Whether it has no parameters, buffers or children, and is not torch's (those are seen as functions)."""
    own = not type(module).__module__.startswith("torch.nn.")
    return own and not (module._modules or module._parameters or module._buffers)


def acts_by_element(module: nn.Module, argument: Tensor, output: Tensor) -> bool:
    """Whether half of the outputs stay the same if the inputs of the other half change."""
    # The Thue–Morse sequence has no period: both halves hold samples of a unit, and units of a sample, for every shape.
    parity = torch.arange(argument.numel(), device=output.device)
    for shift in (32, 16, 8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    moved = (parity & 1).bool().reshape(argument.shape)
    other = module.forward(torch.where(moved, argument + 1, argument))
    return bool(((other == output) | moved | output.isnan()).all())
