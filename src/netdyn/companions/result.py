"""All companions of one evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Companions:
    """The quantities of related work on one network and probe.

    Attributes:
        layers: Quantity → layer → number.
        network: Quantity → number of the whole network.
        units: Quantity → layer → number of each unit ``[units]``.
        left_out: Quantity → why the network, or a part of it, has none.
    """

    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    network: dict[str, float] = field(default_factory=dict)
    units: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    left_out: dict[str, str] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """Tag → number."""
        of_layers = {f"companions/{q}/{name}": v for q, own in self.layers.items() for name, v in own.items()}
        return of_layers | {f"companions/{name}": value for name, value in self.network.items()}

    def histograms(self) -> dict[str, Tensor]:
        """Tag → number of each unit."""
        return {f"companions/{q}/{name}": values for q, own in self.units.items() for name, values in own.items()}
