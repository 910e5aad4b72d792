"""From cells on rays to the radius of a sample basin, corrected for rays that come back.

A ray that is lost at T may be right again farther out, so that the accuracy A(σ) lies above the share S(σ) of rays not
yet lost. The surplus ρ = A − S is measured at edges of the noise grid, every ``stride`` cells, and is straight in log σ
between them: A = S + ρ is exact at the edges asked, and falls like S in between.

Layout: ``cells [rays, samples]`` as in :mod:`netdyn.basins.curve`; a *group* is a choice of samples, bool
``[samples]``: all of them, or those of a class. Edges are numbered as the grid's, 0 for the lowest noise level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from netdyn.basins.curve import LOST_CLEAN, Curve, Grid, isotonic, survival
from netdyn.basins.interval import LEVEL, student_quantile

#: Widest stride between edges at which the surplus is measured, in log σ.
STRIDE = 0.6
#: With fewer contradicted rays than this share, or than this part of a sampling error, nothing comes back.
LITTLE, NOISE = 0.01, 0.1
#: With more than this, accuracy is asked at the radius, too, unless it has been within so many cells.
MUCH, CLOSE = 0.05, 2
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
    """

    cells: Tensor
    grid: Grid
    look: Look
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
        known = seen(self.cells, edge, self.grid.levels)
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

    def known(self, group: Tensor) -> list[int]:
        """The edges at which all of a group has been asked."""
        return [edge for edge, asked in self.asked.items() if bool(asked[group].all())]


@dataclass(frozen=True)
class Group:
    """One group on the way to its radius.

    Attributes:
        chosen: Its samples, bool ``[samples]``.
        curve: The share of its rays not yet lost.
        grid: The noise levels.
        accuracy: The accuracy that defines the radius.
        surplus: ρ at the edges asked.
        contradicted: Share of rays there that are right though lost, or wrong though not.
    """

    chosen: Tensor
    curve: Curve
    grid: Grid
    accuracy: float
    surplus: dict[int, float] = field(default_factory=dict)
    contradicted: dict[int, float] = field(default_factory=dict)

    @cached_property
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

        First the odd multiple of the stride next to the radius: bisection has passed it with the rays lost near to it
        alone, while even multiples agree with nearly all rays by the way that these were found. Where next to no ray
        contradicts its cell there, nothing comes back. Else accuracy is asked on the radius's other side, too, and
        where many do, at the radius.
        """
        if not self.inside or len(self.surplus) >= MOST:
            return None
        stride, top = stride_of(self.grid), self.grid.cells
        radius = self.corrected().crossing(self.accuracy)
        # Without a crossing the search goes on outward.
        position = self.grid.position(radius) if radius < math.inf else max(self.surplus) + stride
        position = min(max(position, 0), top)
        odd = min((2 * math.floor(position / (2 * stride)) + 1) * stride, top - stride)
        if odd not in self.surplus:
            return odd
        little = max(LITTLE, NOISE / math.sqrt(int(self.chosen.sum())))
        if radius < math.inf and self.contradicted[odd] <= little:
            return None
        other = odd + stride if position > odd else odd - stride
        if other not in self.surplus and other > 0:
            return other
        distance = min(abs(edge - position) for edge in self.surplus)
        if radius < math.inf and self.contradicted[odd] > MUCH and distance > CLOSE:
            return max(round(position), 1)
        return None


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
    samples = rungs.cells.shape[1]
    error = math.sqrt(_variance(rungs, radius) / samples) if samples > 1 else math.inf
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
        states = [_updated(state, rungs) for state in states]
        wanted = [(edge, state.chosen) for state in states if (edge := state.next_edge()) is not None]
        if not wanted:
            return states
        rungs.ask([edge for edge, _ in wanted], [group for _, group in wanted])


def _updated(state: Group, rungs: Rungs) -> Group:
    met = {edge: rungs.surplus(edge, state.chosen) for edge in rungs.known(state.chosen)}
    return replace(
        state,
        surplus={edge: float(each.mean()) for edge, each in met.items()},
        contradicted={edge: float(each.abs().mean()) for edge, each in met.items()},
    )


def _variance(rungs: Rungs, sigma: float) -> float:
    """Variance over samples of F_s, the share of a sample's rays wrong at ``sigma``.

    F_s counts the rays lost by then, less what comes back at the nearest edge asked. Of the rays lost in the very cell
    a part p counts, and being lost by then or not adds p(1 − p) for each.
    """
    cells, grid = rungs.cells, rungs.grid
    if sigma == 0:
        return float((cells == LOST_CLEAN).double().mean(dim=0).var())
    if math.isinf(sigma):
        return float((cells != grid.cells - 1).double().mean(dim=0).var())
    position = max(grid.position(sigma), 0.0)
    part, within = position % 1, (cells == math.floor(position)).double()
    lost = (cells < math.floor(position)).double() + part * within
    everyone = torch.ones(cells.shape[1], dtype=torch.bool)
    if near := min(rungs.known(everyone), key=lambda edge: abs(edge - position), default=None):
        lost = lost - rungs.surplus(near, everyone)
    return float(lost.mean(dim=0).var() + part * (1 - part) * within.mean() / len(cells))
