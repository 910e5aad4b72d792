"""From what happened along rays to a basin's radius, its interval and its curve.

A *ray* is one direction of noise; walking out along it, the network is right up to some noise level T. Here T is known
up to a cell of a grid that is regular in log σ: ``cells [rays, samples]`` holds LOST_CLEAN (wrong without noise, T =
0), the number of the cell that T lies in, or the last cell: right at every σ visited, *censored*, T = inf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

LOST_CLEAN = -1
#: Confidence level of the intervals.
LEVEL = 0.95


@dataclass(frozen=True)
class Grid:
    """Noise levels between ``low`` and ``high``: 2^levels cells of equal width in log σ.

    The cells are those that bisection of [low, high] ends in, so that a search started anywhere ends in the same one.
    """

    low: float
    high: float
    levels: int

    @classmethod
    def over(cls, low: float, high: float, rel_tol: float) -> Grid:
        """The coarsest grid whose cells are no wider than (1 + rel_tol)².

        >>> Grid.over(1e-3, 1e1, 0.05).levels
        7
        """
        widest = 2 * math.log1p(rel_tol)
        return cls(low, high, max(1, math.ceil(math.log2(math.log(high / low) / widest) - 1e-9)))

    @property
    def cells(self) -> int:
        """Number of cells, the last one meaning *censored*."""
        return 1 << self.levels

    def edges(self) -> Tensor:
        """The cells' edges, float64 ``[cells + 1]``; edge j is the lower edge of cell j."""
        ratio = math.log(self.high / self.low) / self.cells
        return self.low * torch.exp(ratio * torch.arange(self.cells + 1, dtype=torch.float64))

    def position(self, sigma: float) -> float:
        """Where ``sigma`` lies between edges, in cells from ``low``."""
        return self.cells * math.log(sigma / self.low) / math.log(self.high / self.low)

    def radii(self, cells: Tensor) -> Tensor:
        """T for each ray: the geometric middle of its cell, 0 where lost without noise, inf where censored."""
        edges = self.edges().to(cells.device)
        middle = (edges[:-1] * edges[1:]).sqrt()
        radii = middle[cells.clamp(0, self.cells - 1).long()]
        return radii.masked_fill(cells == LOST_CLEAN, 0.0).masked_fill(cells == self.cells - 1, math.inf)


@dataclass(frozen=True)
class Curve:
    """A share that falls with σ: ``clean`` at σ = 0, then through the knots, straight in log σ, then level.

    ``classes`` holds the same for each class, where it was made, and None for an absent one.
    """

    clean: float
    sigma: Tensor
    share: Tensor
    classes: tuple[Curve | None, ...] = ()

    def at(self, sigma: Tensor | float) -> Tensor:
        """The share at ``sigma``, float64 of the same shape."""
        levels, at = self.sigma.numpy(), torch.as_tensor(sigma, dtype=torch.float64).numpy()
        # Between no noise and the first knot a straight line in σ, which log σ has no room for.
        near = np.interp(at, [0.0, levels[0]], [self.clean, float(self.share[0])])
        inside = np.interp(np.log(np.maximum(at, levels[0])), np.log(levels), self.share.numpy())
        return torch.as_tensor(np.where(at < levels[0], near, inside))

    def crossing(self, share: float) -> float:
        """The first σ at which the curve has fallen to ``share``; 0 if it starts there, inf if it never gets there."""
        if share >= self.clean - 1e-12:
            return 0.0
        fallen = (self.share <= share + 1e-12).nonzero()
        if len(fallen) == 0:
            return math.inf
        j = int(fallen[0])
        if j == 0:  # between no noise and the first knot, where the line is straight in σ
            return float(self.sigma[0]) * (self.clean - share) / (self.clean - float(self.share[0]))
        before, after = float(self.share[j - 1]), float(self.share[j])
        part = min((before - share) / (before - after), 1.0)
        return math.exp(math.log(self.sigma[j - 1]) + part * math.log(self.sigma[j] / self.sigma[j - 1]))


def survival(cells: Tensor, grid: Grid) -> Curve:
    """Share of rays not yet lost, 1 − F̂, F̂ being the distribution of T interpolated in log σ inside its cells."""
    flat = cells.reshape(-1).long().cpu()
    counts = torch.bincount(flat - LOST_CLEAN, minlength=grid.cells + 1).double() / max(len(flat), 1)
    share = 1 - counts.cumsum(0)[: grid.cells]
    return Curve(clean=float(share[0]), sigma=grid.edges()[: grid.cells], share=share)


def isotonic(values: Tensor) -> Tensor:
    """The falling sequence nearest to ``values`` in squares (pool adjacent violators)."""
    if bool((values.diff() <= 0).all()):
        return values.double()
    pools: list[list[float]] = []
    for value in values.tolist():
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            mean, size = pools.pop()
            pools[-1] = [(pools[-1][0] * pools[-1][1] + mean * size) / (pools[-1][1] + size), pools[-1][1] + size]
    return torch.tensor([mean for mean, size in pools for _ in range(int(size))], dtype=torch.float64)


def falling_curve(clean: float, sigma: Sequence[float], share: Sequence[float]) -> Curve:
    """A curve through shares measured at any σ, in any order: isotonic regression, equal σ averaged first."""
    levels, index = torch.unique(torch.tensor([*sigma] or [1.0], dtype=torch.float64), return_inverse=True)
    met = torch.tensor([*share] or [clean], dtype=torch.float64)
    mean = torch.zeros_like(levels).index_add_(0, index, met) / torch.bincount(index, minlength=len(levels))
    return Curve(clean=clean, sigma=levels, share=isotonic(mean).clamp(max=clean))


def student_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else Cornish and Fisher's series (error < 0.13 %).

    >>> round(student_quantile(0.975, 1), 3), round(student_quantile(0.975, 10), 3)
    (12.706, 2.228)
    """
    if degrees < 1:
        return math.inf
    if degrees == 1:
        return math.tan(math.pi * (p - 0.5))
    if degrees == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z = NormalDist().inv_cdf(p)
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(degrees) ** power for power, term in enumerate(terms, start=1))


def median_interval(values: Tensor, level: float = LEVEL) -> tuple[float, float, float]:
    """Median's confidence interval from order statistics (Hettmansperger and Sheather), and its level.

    [x_(d), x_(n+1−d)] holds the median with probability γ_d = 1 − 2·P(Bin(n, ½) < d). Between the two d whose γ enclose
    the wanted level the bounds are interpolated. Below six values even the extremes fall short of 95 %: they are
    returned with the level that they have.

    Args:
        values: ``[n]``, may hold 0 and inf.
        level: Wanted confidence level.

    Returns:
        Lower bound, upper bound, level.
    """
    x = values.double().sort().values.tolist()
    n = len(x)
    below = 1  # 2ⁿ·P(Bin(n, ½) < d), for d = 1: whole numbers, of any size
    gamma, d = 1 - 2 * below / 2**n, 1
    if gamma < level:
        return x[0], x[-1], gamma
    while True:
        below += math.comb(n, d)
        following = 1 - 2 * below / 2**n
        if following < level:
            break
        gamma, d = following, d + 1
    part = (gamma - level) / (gamma - following)
    weight = (n - d) * part / (d + (n - 2 * d) * part)
    return _between(x[d - 1], x[d], weight), _between(x[n - d], x[n - d - 1], weight), level


def _between(outer: float, inner: float, weight: float) -> float:
    """(1 − weight)·outer + weight·inner; an infinite bound stays infinite."""
    if weight == 0 or outer == inner:
        return outer
    return outer if math.isinf(outer) else (1 - weight) * outer + weight * inner


def median(values: Tensor) -> float:
    """The median with the mean of the two middle values, also where one of them is infinite."""
    x = values.double().sort().values
    return float((x[(len(x) - 1) // 2] + x[len(x) // 2]) / 2)


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


def default_accuracy(num_classes: int) -> float:
    """One half, as in P1; three quarters for two classes, where one half is what guessing gives."""
    return 0.75 if num_classes == 2 else 0.5
