"""What was found of a basin."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from netdyn.basins.change import Influences
from netdyn.basins.curve import Curve


@dataclass(frozen=True)
class BasinResult:
    """How wide a basin is, with its interval and what stands behind it.

    σ is a noise level: per input component in the input's own units (sample basin), or in units of each weight tensor's
    population standard deviation (weight basin).

    Attributes:
        radius: The σ at which accuracy has fallen to ``accuracy``; 0 if it starts below, inf if it stays above.
        interval: Confidence interval of ``radius``.
        level: Confidence level of the interval, 0.95 unless too few rays allow less.
        accuracy: The accuracy that defines the radius (absolute, also with ``relative=True``).
        clean: Accuracy without noise.
        floor: What noise leaves of the accuracy: 1/K or, if larger, that at ``high`` (sample basin only).
        censored: Share of samples still right at ``high``; in a weight basin, of rays still above ``accuracy`` there.
        high: The highest noise level.
        forwards: Forward passes per sample.
        curve: The curve behind :meth:`accuracy_at`.
        radii: The σ at which each ray is first lost: ``[rays, samples]`` (sample basin with ``per_ray``, else None) or
            ``[rays]`` (weight basin). 0 where wrong without noise, inf where still right at ``high``.
        per_class: Radius of each class ``[classes]``, NaN where the class is absent; None if not asked for.
        class_intervals: Interval of each class's radius ``[classes, 2]``, likewise (sample basin only).
        class_sizes: Number of different samples of each class ``[classes]``, likewise; copies of a sample count as one.
        per_sample: Radius of each sample ``[samples]`` (sample basin with ``per_ray`` and at least 8 rays).
        per_layer: Radius of each weight tensor, disturbed alone (weight basin with ``layers="each"``).
        noise_classes: Share of each class among the predictions at ``high`` ``[classes]`` (sample basin).
        realised: Spread of the noise that reached each weight tensor at ``radius`` over the spread asked for (weight
            basin with a finite radius): 1, unless low precision rounds it.
        influences: What a later evaluation on the same rays is compared with; None where the radius is 0 or inf.
        noise_at: The modules whose outputs the noise falls on; empty where it falls on inputs or weights.
    """

    radius: float
    interval: tuple[float, float]
    level: float
    accuracy: float
    clean: float
    floor: float
    censored: float
    high: float
    forwards: float
    curve: Curve = field(repr=False)
    radii: Tensor | None = field(default=None, repr=False)
    per_class: Tensor | None = None
    class_intervals: Tensor | None = None
    class_sizes: Tensor | None = None
    per_sample: Tensor | None = None
    per_layer: dict[str, float] | None = None
    noise_classes: Tensor | None = None
    realised: dict[str, float] | None = None
    influences: Influences | None = field(default=None, repr=False)
    noise_at: tuple[str, ...] = ()

    @property
    def class_curves(self) -> tuple[Curve | None, ...]:
        """For each class the curve of its samples; None where it is absent."""
        return self.curve.classes

    def accuracy_at(self, sigma: Tensor | float) -> Tensor:
        """Accuracy under noise of level ``sigma``, float64 of the shape of ``sigma``.

        The falling curve nearest to what was measured: exact near the radius, where most was asked.
        """
        return self.curve.at(sigma)

    def spread(self) -> Tensor:
        """Noise levels at which answers turn wrong, for a histogram: the rays' own, else quantiles of the curve."""
        if self.radii is not None:
            return self.radii.flatten()
        shares = torch.linspace(0, self.clean, 258, dtype=torch.float64)[1:-1].flip(0)
        found = self.curve.crossings(shares)
        return found[(found > 0) & found.isfinite()]
