"""Walk rays in weight space: bisection in log σ, all rays by the same number of passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from netdyn._utils import checks
from netdyn._utils.transit import Coming, sent
from netdyn.basins.result import BasinResult, Curve, Grid, falling_curve, median, median_interval
from netdyn.basins.target import chance, target_accuracy, warn_of_floor, warn_of_low
from netdyn.basins.weight_noise import WeightNoise, realised_noise
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.evaluator import Walk


class Trail:
    """Right answers of each class, met on the way out: without noise, and at the noise levels visited on each ray."""

    def __init__(self, size: Tensor, clean: Tensor) -> None:
        self.size, self.clean = size, clean
        self.rays: list[dict[float, Tensor]] = []

    @classmethod
    def start(cls, walk: Walk, clean: Tensor) -> Trail:
        """A trail at σ = 0, where ``clean`` says which samples are right."""
        labels, right = walk.known_labels, clean.cpu()
        size, met = (torch.bincount(some, minlength=walk.num_classes).double() for some in (labels, labels[right]))
        return cls(size, met)

    def accuracy(self, counts: Tensor) -> float:
        """Accuracy over all samples."""
        return float(counts.sum() / self.size.sum())

    @property
    def clean_accuracy(self) -> float:
        """Accuracy without noise."""
        return self.accuracy(self.clean)

    @property
    def floor(self) -> float:
        """The larger of chance and the mean accuracy at the highest level visited."""
        top = [self.accuracy(ray[max(ray)]) for ray in self.rays if ray]
        return max(chance(len(self.size)), sum(top) / len(top) if top else 0.0)

    def ray_curve(self, ray: dict[float, Tensor], classes: slice = slice(None)) -> Curve:
        """Accuracy over some classes along one ray: isotonic, interpolated between the levels visited."""
        size = float(self.size[classes].sum())
        met = [float(counts[classes].sum()) / size for counts in ray.values()]
        return falling_curve(float(self.clean[classes].sum()) / size, list(ray), met)

    def curve(self, classes: slice = slice(None)) -> Curve:
        """Mean over rays of their curves.

        Each ray is interpolated before the mean is taken: the levels it visited lie about its own crossing, so that
        pooling visits would weigh fragile rays more where σ is small, and robust ones where it is large.
        """
        curves = [self.ray_curve(ray, classes) for ray in self.rays if ray] or [self.ray_curve({}, classes)]
        sigma = torch.unique(torch.cat([curve.sigma for curve in curves]))
        return Curve(curves[0].clean, sigma, torch.stack([curve.at(sigma) for curve in curves]).mean(dim=0))

    def class_curves(self) -> tuple[Curve | None, ...]:
        """Curve of each class, None where it is absent; empty where there are no classes."""
        classes = range(len(self.size)) if len(self.size) > 1 else ()
        return tuple(self.curve(slice(k, k + 1)) if self.size[k] else None for k in classes)


def class_counts(walk: Walk, right: Tensor) -> Tensor:
    """Right answers of each class, int64 ``[classes]``, on the device of the labels."""
    # Flags as indices, and `bincount`, would each wait for the device.
    labels = walk.labels
    counts = torch.zeros(walk.num_classes, dtype=torch.int64, device=labels.device)
    return counts.index_add_(0, labels, right.to(labels.device, torch.int64))


def begin_weight_basin(
    walk: Walk,
    grid: Grid,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 8,
    normalization: str = "layer",
    layers: Sequence[str] | str | None = None,
    seed: int = 0,
    coming: Coming | None = None,
    expected: bool = False,
) -> Callable[[], BasinResult]:
    """Ray search in weight space, see :func:`netdyn.functional.weight_basin`.

    All rays are walked here, and nobody has to know an answer for it; what is returned reads them and does the rest.
    But where the network is not right often enough without noise there is no way to go. Who is right (``coming``, if
    somebody has asked) is therefore waited for, unless it is ``expected`` that there is a way: should there be none,
    the rays were for nothing. An accuracy counted from the clean one needs that in any case.
    """
    own, each = replace(walk, passed=0), layers == "each"
    coming = Coming(own.all_right()) if coming is None else coming
    noise = WeightNoise.on(walk.model, None if each else layers, normalization, seed)
    # One tensor at a time: a fragile layer is one whose own radius is small.
    alone = {name: noise.only(name) for name in noise.weights} if each else {}
    asked = relative or not expected
    clean = Trail.start(own, coming.arrived()).clean_accuracy if asked else math.inf
    absolute = weight_accuracy(clean, accuracy, relative, walk.num_classes)
    ahead = clean > absolute
    visits = walk_rays(own, noise, rays, grid, absolute) if ahead else None
    visits_alone = {name: walk_rays(own, one, rays, grid, absolute) for name, one in alone.items()} if ahead else {}

    def finish() -> BasinResult:
        right = coming.arrived()
        trail = Trail.start(own, right)
        found = trail.clean_accuracy > absolute
        if unmoved := noise.unmoved:
            warn_unmoved(unmoved)
        nowhere = torch.zeros(rays, dtype=torch.float64)
        radii = visits.radii(trail, absolute) if found and visits is not None else nowhere
        per_layer = {
            name: median(visits_alone[name].radii(Trail.start(own, right), absolute)) if found else 0.0
            for name in alone
        }
        if not relative:
            # What is left at the top is no floor where weights that were not moved decide: only chance is worth a word.
            warn_of_floor(absolute, chance(walk.num_classes))
        if len(unmoved) < len(noise.weights):
            warn_of_weight_range(radii, grid)
        realised = realised_noise(noise, median(radii)) if 0 < median(radii) < math.inf else {}
        walk.passed += own.passed
        return summarize_weights(radii, grid, trail, absolute, own.forwards, per_layer if each else None, realised)

    return finish


def warn_of_weight_range(radii: Tensor, grid: Grid) -> None:
    """Warn if the radius lies below the noise levels searched, or all rays above."""
    if 0 < median(radii) < float(grid.edges()[1]):
        warn_of_low(grid)
    elif bool(radii.isinf().all()):
        checks.warn(
            f"The largest noise level, `high` = {grid.high:g}, takes the network on no ray below `accuracy`: the "
            "radius lies beyond it. Set a larger `high`, or a higher `accuracy`."
        )


def warn_unmoved(unmoved: Sequence[str]) -> None:
    """Warn of weights that noise in units of their spread does not move."""
    checks.warn(
        f"The weights {unmoved} are constant: noise in units of their standard deviation, 0, does not move them. "
        "Leave them out with `layers=`, or use normalization='global'."
    )


def weight_accuracy(clean: float, accuracy: float | None, relative: bool, num_classes: int) -> float:
    """The absolute accuracy that defines the radius; a relative one counts from chance to the ``clean`` one."""
    return target_accuracy(accuracy, relative, clean, chance(num_classes), num_classes)


@dataclass(frozen=True)
class Visits:
    """What was met on rays in weight space: all of it on the network's device until :meth:`radii` reads it.

    Attributes:
        grid: Noise levels.
        steps: The edges of the grid visited on each ray ``[rays, visits]``: the top, and those of the bisection.
        counts: Right answers of each class there ``[rays, visits, classes]``.
    """

    grid: Grid
    steps: Tensor
    counts: Tensor

    def radii(self, trail: Trail, accuracy: float) -> Tensor:
        """Radii ``[rays]``; what was met is added to the trail."""
        edges, radii = self.grid.edges().tolist(), []
        for steps, counts in zip(self.steps.tolist(), self.counts.cpu().double(), strict=True):
            met = dict(zip(steps, counts, strict=True))
            trail.rays.append({edges[step]: right for step, right in met.items()})
            radii.append(self._radius(met, edges, trail, accuracy))
        return torch.tensor(radii, dtype=torch.float64)

    def _radius(self, met: dict[int, Tensor], edges: list[float], trail: Trail, accuracy: float) -> float:
        """The σ at which accuracy crosses along one ray, interpolated in log σ between the edges that enclose it."""
        inside = {step: trail.accuracy(counts) for step, counts in met.items() if step < self.grid.cells}
        high = min((step for step, found in inside.items() if found <= accuracy), default=self.grid.cells)
        if high == self.grid.cells:
            return math.inf
        low = max((step for step, found in inside.items() if found > accuracy), default=0)
        # The lowest edge is not visited: the accuracy there is taken to be the clean one.
        above, below = inside.get(low, trail.clean_accuracy), inside[high]
        part = (above - accuracy) / (above - below)
        return math.exp(math.log(edges[low]) + part * math.log(edges[high] / edges[low]))


def walk_rays(walk: Walk, noise: WeightNoise, rays: int, grid: Grid, accuracy: float) -> Visits:
    """Bisect rays for the σ at which probe accuracy crosses; every process walks its part of them.

    Each takes the same number of passes, and no answer is read: the next noise level is chosen where the network runs.
    The top level is visited too, for the curves of the classes.
    """
    # In lockstep nobody can walk alone: all take every ray, and share the samples at each step.
    alone = walk.crew.lockstep or walk.crew.size == 1
    part = range(rays) if alone else range(rays)[walk.crew.part(rays)]
    bound = most_right(walk.samples, accuracy)

    def work() -> tuple[Tensor, Tensor, float]:
        before, device, visits = walk.passed, walk.labels.device, 1 + grid.levels
        steps = torch.zeros(len(part), visits, dtype=torch.int64, device=device)
        counts = torch.zeros(len(part), visits, walk.num_classes, dtype=torch.int64, device=device)
        for place, ray in enumerate(part):
            steps[place], counts[place] = _walk_ray(walk, noise, ray, grid, bound)
        passed, walk.passed = walk.passed - before, before
        return (steps, counts, passed) if alone else (steps.cpu(), counts.cpu(), passed)

    parts = [work()] if alone else walk.crew.share(work)
    walk.passed += sum(passed for *_, passed in parts)
    return Visits(grid, torch.cat([steps for steps, _, _ in parts]), torch.cat([counts for _, counts, _ in parts]))


def _walk_ray(walk: Walk, noise: WeightNoise, ray: int, grid: Grid, bound: int) -> tuple[Tensor, Tensor]:
    """The edges visited on one ray ``[visits]``, and the right answers of each class there ``[visits, classes]``."""
    device = walk.labels.device
    edges = sent(grid.edges().to(statistic_dtype(device)), device)
    direction, room = noise.draw(ray), dict[str, Tensor]()

    def visit(step: Tensor) -> Tensor:
        network = noise.network(direction, edges.index_select(0, step)[0], room)
        right = walk.shared(lambda own: own.all_right(network)) if walk.crew.lockstep else walk.all_right(network)
        return class_counts(walk, right)

    low = torch.zeros(1, dtype=torch.int64, device=device)
    high = torch.full_like(low, grid.cells)
    steps, counts = [high], [visit(high)]
    for _ in range(grid.levels):
        steps.append((low + high) // 2)
        counts.append(visit(steps[-1]))
        right = counts[-1].sum() > bound
        low, high = torch.where(right, steps[-1], low), torch.where(right, high, steps[-1])
    return torch.cat(steps), torch.stack(counts)


def most_right(samples: int, accuracy: float) -> int:
    """The largest number of right answers whose share is not above an accuracy: whole numbers decide alike everywhere.

    >>> most_right(10, 0.7), most_right(10, 0.69)
    (7, 6)
    """
    near = int(samples * accuracy)
    return max(right for right in range(max(near - 1, 0), near + 2) if right / samples <= accuracy)


def summarize_weights(
    radii: Tensor,
    grid: Grid,
    trail: Trail,
    accuracy: float,
    forwards: float,
    per_layer: dict[str, float] | None = None,
    realised: dict[str, float] | None = None,
) -> BasinResult:
    """From radii on rays and the accuracies met on the way to the result."""
    low, high, level = median_interval(radii)
    curves = trail.class_curves()
    per_class = [math.nan if curve is None else curve.crossing(accuracy) for curve in curves]
    return BasinResult(
        radii=radii.double(),
        radius=median(radii),
        interval=(low, high),
        level=level,
        accuracy=accuracy,
        clean=trail.clean_accuracy,
        floor=trail.floor,
        censored=float(radii.isinf().double().mean()),
        reentry=0.0,
        per_class=torch.tensor(per_class, dtype=torch.float64),
        per_layer=per_layer,
        high=grid.high,
        forwards=forwards,
        curve=replace(trail.curve(), classes=curves),
        realised=realised,
    )
