"""From cells on rays to the radius of a sample basin, corrected for rays that come back.

A ray that is lost at T may be right again farther out, so that the accuracy A(σ) lies above the share S(σ) of rays not
yet lost. The surplus ρ = A − S is measured at edges of the noise grid, every ``stride`` cells, and is straight in log σ
between them: A = S + ρ is exact at the edges asked, and falls like S in between.

Layout: ``cells [rays, samples]`` as in :mod:`netdyn.radii`; a *group* is a choice of samples, bool ``[samples]``: all
of them, or those of a class. Edges are numbered as the grid's, 0 for the lowest noise level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from netdyn.radii import LEVEL, LOST_CLEAN, Curve, Grid, isotonic, student_quantile, survival

#: Widest stride between edges at which the surplus is measured, in log σ.
STRIDE = 0.6
#: A surplus below this, or this share of a sampling error, is taken to be level from one edge to the next.
LITTLE, NOISE = 0.01, 0.1
#: Most edges asked for one group.
MOST = 8

Look = Callable[[Tensor], Tensor]
"""Edges to ask ``[rays, samples]``, −1 for none → whether the network is right there, bool ``[rays, samples]``."""


def stride_of(grid: Grid) -> int:
    """Cells between edges at which the surplus is measured: a power of two, at most ``STRIDE`` in log σ if it can be.

    >>> stride_of(Grid(1e-3, 1e1, 7))
    8
    """
    width = math.log(grid.high / grid.low) / grid.cells
    return 1 << min(max(math.floor(math.log2(STRIDE / width)), 0), grid.levels - 1)


def seen(cells: Tensor, edge: Tensor, levels: int) -> Tensor:
    """Whether bisection, ending in ``cells``, has passed ``edge`` on its way: bool, of the common shape.

    The edge o·2^t, o odd, is the middle of the bracket that starts at (o − 1)·2^t and is 2^(t+1) cells wide.
    """
    size = (edge & -edge).clamp(min=1) * 2
    inside = torch.div(cells, size, rounding_mode="floor") == torch.div(edge, size, rounding_mode="floor")
    return inside & (cells != LOST_CLEAN) & (edge > 0) & (edge < 1 << levels)


@dataclass
class Rungs:
    """Who is right at edges of the grid: what the search has seen on its way, and for the rest another look.

    Attributes:
        cells: ``[rays, samples]``.
        grid: The cells' grid.
        look: Asks the network.
        bisected: Which samples' rays were found by bisection of the whole grid, bool ``[rays, samples]``; of others
            only the two edges of their cell are known to have been passed.
    """

    cells: Tensor
    grid: Grid
    look: Look
    bisected: Tensor
    wrong: dict[int, Tensor] = field(default_factory=dict)
    asked: dict[int, Tensor] = field(default_factory=dict)

    def ask(self, edges: Sequence[int], groups: Sequence[Tensor]) -> None:
        """Find out who is right at one edge for each of several groups without common samples, in one pass."""
        asked = torch.full((self.cells.shape[1],), -1)
        for step, group in zip(edges, groups, strict=True):
            asked[group & ~self.asked.get(step, torch.zeros_like(group))] = step
        if bool((asked < 0).all()):
            return
        edge = asked.expand_as(self.cells)
        known = torch.where(
            self.bisected,
            seen(self.cells, edge, self.grid.levels),
            ((edge == self.cells) | (edge == self.cells + 1)) & (edge > 0) & (edge < self.grid.cells),
        ) & (self.cells != LOST_CLEAN)
        wanted = (edge >= 0) & ~known
        right = torch.where(known, self.cells >= edge, False)
        if bool(wanted.any()):
            right = torch.where(wanted, self.look(edge.masked_fill(~wanted, -1)).to(right.device), right)
        for step in sorted({*edges}):
            new = asked == step
            old = self.wrong.get(step, torch.zeros_like(right))
            self.wrong[step] = torch.where(new, ~right, old)
            self.asked[step] = self.asked.get(step, torch.zeros_like(new)) | new

    def surplus(self, edge: int, group: Tensor) -> Tensor:
        """Right there, minus not yet lost: ``[rays, samples of the group]``, of mean ρ."""
        kept = self.cells[:, group] >= edge if edge < self.grid.cells else self.cells[:, group] == self.grid.cells - 1
        return (~self.wrong[edge][:, group]).double() - kept.double()

    def surpluses(self, group: Tensor) -> dict[int, float]:
        """ρ at each edge at which all of a group has been asked."""
        edges = [edge for edge, asked in self.asked.items() if bool(asked[group].all())]
        return {edge: float(self.surplus(edge, group).mean()) for edge in edges}


@dataclass(frozen=True)
class Group:
    """One group on the way to its radius: its curve of rays not yet lost, and the surplus at the edges asked."""

    chosen: Tensor
    curve: Curve
    grid: Grid
    accuracy: float
    surplus: dict[int, float] = field(default_factory=dict)

    @property
    def raw(self) -> float:
        """The radius without correction."""
        return self.curve.crossing(self.accuracy)

    @property
    def inside(self) -> bool:
        """Whether there is something to correct: a finite level above 0 to measure at."""
        return 0 < self.raw < math.inf

    def corrected(self) -> Curve:
        """Accuracy against σ: S + ρ, made to fall (isotonic).

        ρ is straight in log σ between the edges asked; from the outermost two it goes on straight for one stride, but
        not beyond the lowest edge, where it is 0. From a single edge it is level.
        """
        edges, stride = sorted(self.surplus), stride_of(self.grid)
        if not (self.inside and edges):
            return self.curve
        knots = {edge: self.surplus[edge] for edge in edges}
        if len(edges) > 1:
            for outer, inner in ((edges[0], edges[1]), (edges[-1], edges[-2])):
                slope = (knots[outer] - knots[inner]) / (outer - inner)
                beyond = outer + stride if outer > inner else outer - stride
                knots[max(beyond, 0)] = knots[outer] + slope * (beyond - outer) if beyond > 0 else 0.0
        share = torch.cat([self.curve.share, self.curve.share[-1:]])
        at = torch.arange(self.grid.cells + 1, dtype=torch.float64)
        share = isotonic((share + interpolated(at, knots)).clamp(0, 1)).clamp(max=self.curve.clean)
        return Curve(self.curve.clean, self.grid.edges(), share)

    def next_edge(self) -> int | None:
        """The edge to ask next; None if the radius is known well enough.

        Where next to nothing comes back, one edge within half a stride is enough; else those on both sides are asked.
        """
        if not self.inside or len(self.surplus) >= MOST:
            return None
        stride, top = stride_of(self.grid), self.grid.cells
        radius = self.corrected().crossing(self.accuracy)
        # Without a crossing the search goes on outward.
        position = self.grid.position(radius) if radius < math.inf else float(max(self.surplus) + stride)
        if radius == math.inf and top in self.surplus:
            return None
        near = {edge: rho for edge, rho in self.surplus.items() if abs(edge - position) <= stride}
        nearest = min(near, key=lambda edge: abs(edge - position), default=None)
        if nearest is None:
            return min(max(round(position / stride), 1) * stride, top)
        little = max(LITTLE, NOISE / math.sqrt(int(self.chosen.sum())))
        if abs(near[nearest]) <= little and abs(nearest - position) <= (stride + 1) / 2:
            return None
        lower = min(math.floor(position / stride) * stride, top - stride)
        return next((edge for edge in (lower, lower + stride) if edge > 0 and edge not in self.surplus), None)


def interpolated(at: Tensor, knots: dict[int, float]) -> Tensor:
    """Straight between knots, level beyond them."""
    x = torch.tensor(sorted(knots), dtype=torch.float64)
    y = torch.tensor([knots[edge] for edge in sorted(knots)], dtype=torch.float64)
    if len(x) == 1:
        return y.expand_as(at)
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    part = ((at - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1)
    return y[right - 1] + part * (y[right] - y[right - 1])


@dataclass(frozen=True)
class Corrected:
    """A sample basin's radius and what belongs to it.

    Attributes:
        radius: Where the measured accuracy crosses the wanted one.
        interval: Its confidence interval.
        reentry: The surplus at the uncorrected radius: the share of rays that are right again there.
        groups: Radius of each further group, NaN where it is empty.
    """

    radius: float
    interval: tuple[float, float]
    reentry: float
    groups: Tensor


def correct(rungs: Rungs, accuracy: float, groups: Sequence[Tensor] = ()) -> Corrected:
    """Radius of all samples with its interval, and the radius of each of some groups without common samples.

    Samples are the independent units of the interval: with F_s the share of sample s's rays wrong at the radius and
    se = sd(F_s)/√S it is [A⁻¹(a + t·se), A⁻¹(a − t·se)], t Student's quantile with S − 1 degrees of freedom.

    Args:
        rungs: The rays, and who is right at edges of the grid.
        accuracy: The accuracy a that defines the radius.
        groups: Bool ``[samples]`` each.

    Source:
        netdyn's convention.
    """
    everyone = torch.ones(rungs.cells.shape[1], dtype=torch.bool)
    whole = _walk(rungs, accuracy, [everyone])[0]
    curve = whole.corrected()
    radius = curve.crossing(accuracy)
    wrong = _wrong_shares(rungs, radius)
    samples = len(wrong)
    error = float(wrong.std()) / math.sqrt(samples) if samples > 1 else math.inf
    margin = student_quantile((1 + LEVEL) / 2, samples - 1) * error if error > 0 else 0.0
    held = [group for group in groups if bool(group.any())]
    found = iter(_walk(rungs, accuracy, held))
    radii = [next(found).corrected().crossing(accuracy) if bool(group.any()) else math.nan for group in groups]
    return Corrected(
        radius=radius,
        interval=(curve.crossing(accuracy + margin), curve.crossing(accuracy - margin)),
        reentry=float(curve.at(whole.raw)) - accuracy if whole.inside else 0.0,
        groups=torch.tensor(radii, dtype=torch.float64),
    )


def _walk(rungs: Rungs, accuracy: float, groups: Sequence[Tensor]) -> list[Group]:
    """Ask for each group at the edges that it needs, all groups in one pass at a time."""
    states = [Group(group, survival(rungs.cells[:, group], rungs.grid), rungs.grid, accuracy) for group in groups]
    while True:
        # What others have asked at an edge counts, too.
        states = [replace(state, surplus=rungs.surpluses(state.chosen)) for state in states]
        wanted = [(edge, state.chosen) for state in states if (edge := state.next_edge()) is not None]
        if not wanted:
            return states
        rungs.ask([edge for edge, _ in wanted], [group for _, group in wanted])


def _wrong_shares(rungs: Rungs, sigma: float) -> Tensor:
    """Share of each sample's rays wrong at ``sigma``: those lost by then, less what comes back at the nearest edge."""
    cells, grid = rungs.cells, rungs.grid
    if sigma == 0:
        return (cells == LOST_CLEAN).double().mean(dim=0)
    if math.isinf(sigma):
        return (cells != grid.cells - 1).double().mean(dim=0)
    position = grid.position(sigma)
    everyone = torch.ones(cells.shape[1], dtype=torch.bool)
    lost = (cells < math.floor(position)).double()
    if near := min(rungs.surpluses(everyone), key=lambda edge: abs(edge - position), default=None):
        lost = lost - rungs.surplus(near, everyone)
    return lost.mean(dim=0)
