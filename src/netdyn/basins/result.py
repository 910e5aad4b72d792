"""What was found of a basin."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from netdyn.basins.curve import Curve


@dataclass(frozen=True)
class BasinResult:
    """How wide a basin is, with its interval and the rays behind it.

    σ is a noise level: per input component in the input's own units (sample basin), or in units of each weight tensor's
    population standard deviation (weight basin).

    Attributes:
        radii: T of every ray: ``[rays, samples]`` (sample basin) or ``[rays]`` (weight basin). 0 where wrong without
            noise, inf where censored.
        radius: The σ at which accuracy has fallen to ``accuracy``; 0 if it starts below, inf if it stays above.
        interval: Confidence interval of ``radius``.
        level: Confidence level of the interval, 0.95 unless too few rays allow less.
        accuracy: The accuracy that defines the radius (absolute, also with ``relative=True``).
        clean: Accuracy without noise.
        floor: Accuracy that noise cannot push below: the larger of 1/K and the accuracy at ``high`` (NaN if not
            measured).
        censored: Share of rays that are right at every σ visited.
        reentry: Measured accuracy at the uncorrected radius minus ``accuracy``: the share of rays that come back.
        realised: Spread of the noise that reached each weight tensor at ``radius`` over the spread asked for (weight
            basin with a finite radius): 1, unless low precision rounds it.
        per_class: Radius of each class ``[classes]``, NaN where the class is absent.
        per_sample: Radius of each sample ``[samples]`` (sample basin with at least 8 rays).
        per_layer: Radius of each weight tensor, disturbed alone (weight basin with ``layers="each"``).
        noise_classes: Share of each class among the predictions at ``high`` ``[classes]`` (sample basin).
        high: The highest noise level of the search.
        forwards: Forward passes a sample.
        curve: The curve behind :meth:`accuracy_at`.
    """

    radii: Tensor = field(repr=False)
    radius: float
    interval: tuple[float, float]
    level: float
    accuracy: float
    clean: float
    floor: float
    censored: float
    reentry: float
    per_class: Tensor
    high: float
    forwards: float
    curve: Curve = field(repr=False)
    per_sample: Tensor | None = None
    per_layer: dict[str, float] | None = None
    noise_classes: Tensor | None = None
    realised: dict[str, float] | None = None

    @property
    def class_curves(self) -> tuple[Curve | None, ...]:
        """For each class the curve of its samples, as :attr:`curve` is that of all; None where it is absent."""
        return self.curve.classes

    def accuracy_at(self, sigma: Tensor | float) -> Tensor:
        """Accuracy under noise of level ``sigma``, float64 of the shape of ``sigma``.

        For a sample basin this is the share of rays not yet lost, which lies a little below the accuracy measured at
        ``sigma``, because a ray that is lost can come back.
        """
        return self.curve.at(sigma)
