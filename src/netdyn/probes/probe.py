"""The samples that a network is measured on, and what the host has to know of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from netdyn._utils.trees import Inputs, fingerprints, map_tensors


@dataclass(frozen=True)
class Probe:
    """A fixed set of samples: inputs as the model takes them, and targets ``[samples]``.

    What is known of them on the host is found once, since a probe stays as it is.
    """

    inputs: Inputs
    target: Tensor

    @cached_property
    def at_hand(self) -> Tensor:
        """The targets on the host."""
        return self.target.cpu()

    @cached_property
    def digests(self) -> list[bytes]:
        """Of each sample's content, which seeds its noise."""
        return fingerprints(self.inputs)

    def look(self, contents: bool) -> None:
        """Find now what the host has to know, with the ``contents`` or without, so that nobody waits for it later.

        Who cannot be read so is spoken of by the measure that needs it.
        """
        with contextlib.suppress(Exception):
            _ = self.at_hand
            _ = self.digests if contents else None

    def to(self, device: torch.device) -> Probe:
        """The same probe on a device."""
        return Probe(map_tensors(lambda tensor: tensor.to(device), self.inputs), self.target.to(device))
