"""The part of a report that is put in words: what the rules of findings and the printed table may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from netdyn.basins.result import BasinResult
from netdyn.modes.phases import Phase


class Layer(Protocol):
    """What is said of a layer; NaN where it was not measured, or nothing can be said."""

    @property
    def name(self) -> str:
        """The layer's name."""

    @property
    def units(self) -> int:
        """Number of its units."""

    @property
    def sampled(self) -> int:
        """Number of units measured."""

    @property
    def opt_fraction(self) -> float:
        """Share of order-preserving units."""

    @property
    def npt_fraction(self) -> float:
        """Share of the others."""

    @property
    def constant_fraction(self) -> float:
        """Share of units with a constant local field."""

    @property
    def rpd_gradient(self) -> float:
        """Slope of the rank probability distribution."""

    @property
    def transfer_order(self) -> float:
        """Share of pairs of samples whose order the activation keeps."""

    @property
    def affine_defect(self) -> float:
        """How much of the pathway depends on the sample."""

    @property
    def tail_accuracy(self) -> float:
        """Accuracy when every activation from this layer upward is the identity."""


class Measured(Protocol):
    """What is said of a network."""

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers, in order of execution."""

    @property
    def sample_basin(self) -> BasinResult | None:
        """The basin in sample space, None if it was not measured."""

    @property
    def weight_basin(self) -> BasinResult | None:
        """The basin in weight space, None if it was not measured."""

    @property
    def accuracy(self) -> float:
        """Accuracy on the probe, NaN where numbers are predicted."""

    @property
    def val_accuracy(self) -> float | None:
        """Accuracy on the validation probe, None without one."""

    @property
    def samples(self) -> int:
        """Number of samples in the probe."""

    @property
    def num_classes(self) -> int:
        """Number of classes; 1 where there are none."""

    @property
    def alpha(self) -> float:
        """Share of OPT units that an untrained network is allowed to show."""

    @property
    def functional_depth(self) -> float:
        """First layer from which on the network acts linearly."""

    @property
    def batchnorm_gap(self) -> float:
        """Accuracy with the statistics of a batch minus accuracy with running ones."""

    @property
    def phase(self) -> Phase:
        """How the layers' gradients run from the first to the last."""


def percent(share: float) -> str:
    """A share in percent, with decimals only where it has them: 50%, 62.5%, 0.3%.

    >>> [percent(share) for share in (0.5, 0.625, 0.00312, 1.0)]
    ['50%', '62.5%', '0.312%', '100%']
    """
    return f"{100 * share:.3g}%"
