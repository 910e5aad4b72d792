"""Noise levels, and shares that fall as noise grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

#: Along a *ray*, one direction of noise, the network is right up to a noise level T. ``cells [rays, samples]`` holds
#: the grid cell of T, or LOST_CLEAN: wrong without noise, T = 0. The last cell means *censored*, T = inf.
LOST_CLEAN = -1
#: Knots of a mean curve.
MOST_KNOTS = 64


@dataclass(frozen=True)
class Grid:
    """Noise levels between ``low`` and ``high``: 2^levels cells of equal width in log σ, those of a bisection."""

    low: float
    high: float
    levels: int

    @classmethod
    def over(cls, low: float, high: float, rel_tol: float) -> Grid:
        """The coarsest grid whose cells are no wider than (1 + rel_tol)²."""
        widest = 2 * math.log1p(rel_tol)
        return cls(low, high, max(1, math.ceil(math.log2(math.log(high / low) / widest) - 1e-9)))

    @property
    def cells(self) -> int:
        """Number of cells."""
        return 1 << self.levels

    def edges(self) -> Tensor:
        """The cells' edges, float64 ``[cells + 1]``; edge j is the lower edge of cell j."""
        ratio = math.log(self.high / self.low) / self.cells
        return self.low * torch.exp(ratio * torch.arange(self.cells + 1, dtype=torch.float64))

    def radii(self, cells: Tensor) -> Tensor:
        """T for each ray: the geometric middle of its cell, 0 where lost without noise, inf where censored."""
        edges = self.edges().to(cells.device)
        middle = (edges[:-1] * edges[1:]).sqrt()
        radii = middle[cells.clamp(min=0).long()]
        return radii.masked_fill(cells == LOST_CLEAN, 0.0).masked_fill(cells == self.cells - 1, math.inf)


@dataclass(frozen=True)
class Curve:
    """A share that falls with σ: ``clean`` at σ = 0, then through the knots, straight in log σ, then level."""

    clean: float
    sigma: Tensor
    share: Tensor
    classes: tuple[Curve | None, ...] = ()  # where it was made; None for an absent class

    def at(self, sigma: Tensor | float) -> Tensor:
        """The share at ``sigma``, float64 of the same shape."""
        levels, at = self.sigma.numpy(), torch.as_tensor(sigma, dtype=torch.float64).numpy()
        # Between no noise and the first knot a straight line in σ, which log σ has no room for.
        near = np.interp(at, [0.0, levels[0]], [self.clean, float(self.share[0])])
        inside = np.interp(np.log(np.maximum(at, levels[0])), np.log(levels), self.share.numpy())
        return torch.as_tensor(np.where(at < levels[0], near, inside))

    def crossing(self, share: float) -> float:
        """The first σ at which the curve has fallen to ``share``; 0 if it starts there, inf if it never gets there."""
        return float(self.crossings(torch.tensor([share], dtype=torch.float64)))

    def crossings(self, shares: Tensor) -> Tensor:
        """:meth:`crossing` of several shares, float64 ``[shares]``."""
        wanted, share, sigma = shares.numpy(), self.share.numpy(), self.sigma.numpy()
        # The first knot at which the share, which falls, is as low; before the first knot of all it is straight in σ.
        knot = np.searchsorted(-share, -wanted - 1e-12)
        j = np.clip(knot, 1, len(share) - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.minimum((share[j - 1] - wanted) / (share[j - 1] - share[j]), 1.0)
            between = np.exp(np.log(sigma[j - 1]) + part * np.log(sigma[j] / sigma[j - 1]))
            near = sigma[0] * (self.clean - wanted) / (self.clean - share[0])
        found = np.where(knot == 0, near, np.where(knot == len(share), math.inf, between))
        return torch.from_numpy(np.where(wanted >= self.clean - 1e-12, 0.0, found))


def survival(cells: Tensor, grid: Grid) -> Curve:
    """Share of rays not yet lost, 1 − F̂, F̂ being the distribution of T interpolated in log σ inside its cells."""
    flat = cells.reshape(-1).long().cpu()
    counts = torch.bincount(flat - LOST_CLEAN, minlength=grid.cells + 1).double() / max(len(flat), 1)
    share = 1 - counts.cumsum(0)[: grid.cells]
    return Curve(clean=float(share[0]), sigma=grid.edges()[: grid.cells], share=share)


def isotonic(values: Sequence[float], weights: Sequence[float] | None = None) -> list[tuple[float, int]]:
    """The falling sequence nearest to ``values`` in weighted squares, by pool adjacent violators: means and lengths.

    >>> isotonic([1.0, 0.2, 0.4, 0.0])
    [(1.0, 1), (0.30000000000000004, 2), (0.0, 1)]
    """
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights or [1.0] * len(values), strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            mean, own, size = pools.pop()
            before, other, length = pools.pop()
            pools.append(((before * other + mean * own) / (other + own), other + own, length + size))
    return [(mean, size) for mean, _, size in pools]


def mean_curve(
    clean: float, rays: Sequence[Mapping[float, float]], weights: Sequence[float], slope: float, floor: float
) -> Curve:
    """The mean over rays of the accuracies that each has met at levels (log σ) of its own.

    Between a ray's levels accuracy is straight in log σ; beyond them its logit falls by ``slope``, to ``floor`` at
    least. A mean of what was met alone is biased: small levels are asked on fragile rays, large ones on robust rays.
    """
    knots = np.unique([level for ray in rays for level in ray])
    knots = knots[np.linspace(0, len(knots) - 1, min(len(knots), MOST_KNOTS)).round().astype(int)]
    total = np.zeros(len(knots))
    for ray, weight in zip(rays, weights, strict=True):
        levels = np.array(sorted(ray))
        shares = np.minimum.accumulate([ray[level] for level in levels])
        inside = np.interp(knots, levels, shares)
        beyond = knots - np.clip(knots, levels[0], levels[-1])
        # A share of 0 or 1 is taken for one that is half an answer away from it.
        ends = np.clip(inside, 0.5 / weight, 1 - 0.5 / weight)
        moved = 1 / (1 + (1 / ends - 1) * np.exp(slope * beyond))
        outside = np.where(beyond > 0, np.maximum(moved, np.minimum(inside, floor)), np.maximum(moved, inside))
        total += weight * np.where(beyond == 0, inside, outside)
    shares = np.minimum.accumulate(total / sum(weights))
    return Curve(clean, torch.from_numpy(np.exp(knots)), torch.from_numpy(shares).clamp(max=clean))


def falling_curve(
    clean: float, sigma: Sequence[float], share: Sequence[float], weights: Sequence[float] | None = None
) -> Curve:
    """A curve through shares measured at any σ, in any order: isotonic regression, with a knot per pool."""
    # Shares at the same σ come in ascending order, so that they form one pool.
    if not len(sigma):
        return Curve(clean, torch.tensor([1.0], dtype=torch.float64), torch.tensor([clean], dtype=torch.float64))
    points = sorted(zip(sigma, weights or [1.0] * len(sigma), share, strict=True), key=itemgetter(0, 2))
    rest, levels, means = iter(points), [], []
    for mean, size in isotonic([value for *_, value in points], [weight for _, weight, _ in points]):
        pool = list(islice(rest, size))
        total = sum(weight for _, weight, _ in pool)
        levels.append(math.exp(sum(weight * math.log(level) for level, weight, _ in pool) / total))
        means.append(mean)
    return Curve(
        clean, torch.tensor(levels, dtype=torch.float64), torch.tensor(means, dtype=torch.float64).clamp(max=clean)
    )
