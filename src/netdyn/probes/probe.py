"""The samples that a network is measured on, as one fixed set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from netdyn._utils.random import Contents
from netdyn._utils.trees import Inputs, map_tensors


@dataclass(frozen=True)
class Probe:
    """A fixed set of samples: inputs, as the model takes them, and targets ``[samples, …]``."""

    inputs: Inputs
    target: Tensor
    taken: str = ""  # from which parts of the data, for a person, where this is no matter of course

    @cached_property
    def contents(self) -> Contents:
        """What seeds the samples' noise, and which of them are copies; made at the first use."""
        return Contents.of(self.inputs)

    def to(self, device: torch.device) -> Probe:
        """The same probe on a device."""
        return Probe(map_tensors(lambda tensor: tensor.to(device), self.inputs), self.target.to(device), self.taken)


def device_of(model: nn.Module) -> torch.device | None:
    """The device of a model's first parameter; None without parameters."""
    weight = next(model.parameters(), None)
    return None if weight is None else weight.device
