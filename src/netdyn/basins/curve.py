"""Noise levels, and shares that fall as noise grows.

A *ray* is one direction of noise; along it the network is right up to some noise level T. Here T is known up to a cell
of a grid that is regular in log σ: ``cells [rays, samples]`` holds LOST_CLEAN (wrong without noise, T = 0), the number
of the cell that T lies in, or the last cell: right at every σ visited, *censored*, T = inf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LOST_CLEAN = -1


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

    @classmethod
    def level(cls, share: float, sigma: float) -> Curve:
        """The same share everywhere."""
        return cls(share, torch.tensor([sigma], dtype=torch.float64), torch.tensor([share], dtype=torch.float64))

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


def isotonic(values: Sequence[float], weights: Sequence[float] | None = None) -> list[tuple[float, int]]:
    """The falling sequence nearest to ``values`` in (weighted) squares, as pools: their means and lengths.

    Source:
        Pool adjacent violators.

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


def falling_curve(
    clean: float, sigma: Sequence[float], share: Sequence[float], weights: Sequence[float] | None = None
) -> Curve:
    """A curve through shares measured at any σ, in any order: isotonic regression, with a knot per pool."""
    if not len(sigma):
        return Curve(clean, torch.tensor([1.0], dtype=torch.float64), torch.tensor([clean], dtype=torch.float64))
    order = sorted(range(len(sigma)), key=sigma.__getitem__)
    logs = [math.log(sigma[i]) for i in order]
    own = [1.0] * len(order) if weights is None else [weights[i] for i in order]
    knots, first = [], 0
    for mean, size in isotonic([share[i] for i in order], own):
        pool = slice(first, first + size)
        knots.append((sum(w * x for w, x in zip(own[pool], logs[pool], strict=True)) / sum(own[pool]), mean))
        first += size
    levels = torch.tensor([math.exp(x) for x, _ in knots], dtype=torch.float64)
    return Curve(clean, levels, torch.tensor([mean for _, mean in knots], dtype=torch.float64).clamp(max=clean))
