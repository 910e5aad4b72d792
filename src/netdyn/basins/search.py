"""Bisection of many rays at once on one grid, from the whole of it or from where they were last lost."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netdyn.basins.result import Grid

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
        # Arrays of NumPy, whose operations on few numbers are quicker.
        cell = start.cpu().numpy()
        known = cell >= 0
        self._top = grid.cells
        self._low = np.where(known, cell, 0)
        self._high = np.where(known, cell + 1, self._top)
        self._low_sure = ~known | (self._low == 0)
        self._high_sure = ~known | (self._high == self._top)
        self._step = np.ones_like(self._low)
        self._asked = np.zeros_like(self._low)

    @property
    def low(self) -> Tensor:
        """Lower edges of the brackets, int64 ``[rays]``."""
        return torch.from_numpy(self._low)

    @property
    def high(self) -> Tensor:
        """Upper edges of the brackets, int64 ``[rays]``."""
        return torch.from_numpy(self._high)

    @property
    def asked(self) -> Tensor:
        """Questions answered so far, int64 ``[rays]``."""
        return torch.from_numpy(self._asked)

    def open(self) -> Tensor:
        """Numbers of the rays whose brackets are not closed."""
        return (~self.closed(torch.arange(len(self._low)))).nonzero()[:, 0]

    def closed(self, rays: Tensor) -> Tensor:
        """Whether the brackets of some rays are closed, bool."""
        at = rays.numpy()
        closed = self._low_sure[at] & self._high_sure[at] & (self._high[at] - self._low[at] <= 1)
        return torch.from_numpy(closed)

    def question(self, rays: Tensor) -> Tensor:
        """The edge to ask next for each of some open rays."""
        return torch.from_numpy(self._question(rays.numpy()))

    def _question(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        low, high = self._low[at], self._high[at]
        return np.where(self._low_sure[at], np.where(self._high_sure[at], (low + high) // 2, high), low)

    def answer(self, rays: Tensor, right: Tensor) -> None:
        """Take in whether the network was right at the edges in question."""
        at, yes = rays.numpy(), right.numpy()
        low, high, step, edge = self._low[at], self._high[at], self._step[at], self._question(at)
        low_sure, high_sure = self._low_sure[at], self._high_sure[at]
        # Which end is being asked on the way outward; a wrong lower end is the new upper end, and vice versa.
        below, above = ~low_sure, low_sure & ~high_sure
        low = np.where(yes, edge, np.where(below, np.maximum(low - step, 0), low))
        high = np.where(yes, np.where(above, np.minimum(high + step, self._top), high), edge)
        self._low[at], self._high[at] = low, high
        self._step[at] = np.where(np.where(yes, above, below), 2 * step, step)
        self._low_sure[at] = low_sure | yes | (low == 0)
        self._high_sure[at] = high_sure | ~yes | (high == self._top)
        self._asked[at] += 1
