"""Bisection of many rays at once on one grid, from the whole of it or from where they were last lost."""

from __future__ import annotations

import torch
from torch import Tensor

from netdyn.radii import Grid

#: Start of a ray of which nothing is known: its bracket is the whole grid.
UNKNOWN = -2


class Search:
    """Brackets ``[rays]`` between numbered edges of a grid, each closing to the cell in which its ray is lost.

    A ray without a start bisects the whole grid. One that was last lost in a cell is asked at that cell's two edges
    first, and from there outward in growing steps until it is caught between right and wrong. Both ways end in a cell
    with a right lower and a wrong upper edge; where a ray is lost once and for all there is only one such cell. The
    lowest edge counts as right and the highest as wrong, without being asked.

    Args:
        grid: The grid.
        start: The cell to begin with, int64 ``[rays]``; ``UNKNOWN`` for none.

    Source:
        netdyn's convention.

    Example:
        >>> lost = torch.tensor([5, 9])
        >>> search = Search(Grid(1e-3, 1e1, 4), torch.tensor([5, UNKNOWN]))
        >>> while len(rays := search.open()):
        ...     search.answer(rays, search.question(rays) <= lost[rays])
        >>> search.low.tolist(), search.asked.tolist()
        ([5, 9], [2, 4])
    """

    def __init__(self, grid: Grid, start: Tensor) -> None:
        known = start >= 0
        self.top = grid.cells
        self.low = torch.where(known, start, 0)
        self.high = torch.where(known, start + 1, self.top)
        self.low_sure = ~known | (self.low == 0)
        self.high_sure = ~known | (self.high == self.top)
        self.step = torch.ones_like(start)
        self.asked = torch.zeros_like(start)

    def open(self) -> Tensor:
        """Numbers of the rays whose brackets are not closed."""
        return (~(self.low_sure & self.high_sure) | (self.high - self.low > 1)).nonzero()[:, 0]

    def question(self, rays: Tensor) -> Tensor:
        """The edge to ask next for each of some open rays."""
        low, high = self.low[rays], self.high[rays]
        middle = torch.div(low + high, 2, rounding_mode="floor")
        return torch.where(self.low_sure[rays], torch.where(self.high_sure[rays], middle, high), low)

    def answer(self, rays: Tensor, right: Tensor) -> None:
        """Take in whether the network was right at the edges in question."""
        low, high, step = self.low[rays], self.high[rays], self.step[rays]
        low_sure, high_sure, edge = self.low_sure[rays], self.high_sure[rays], self.question(rays)
        # Which end is being asked on the way outward; a wrong lower end is the new upper end, and vice versa.
        below, above = ~low_sure, low_sure & ~high_sure
        self.low[rays] = torch.where(right, edge, torch.where(below, (low - step).clamp(min=0), low))
        self.high[rays] = torch.where(right, torch.where(above, (high + step).clamp(max=self.top), high), edge)
        self.step[rays] = torch.where(torch.where(right, above, below), 2 * step, step)
        self.low_sure[rays] = low_sure | right | (self.low[rays] == 0)
        self.high_sure[rays] = high_sure | ~right | (self.high[rays] == self.top)
        self.asked[rays] += 1
