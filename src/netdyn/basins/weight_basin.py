"""How much noise on the weights it takes until the network is wrong: rays in weight space.

Bisection in log σ, every ray by the same number of passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.trees import Inputs
from netdyn.basins.curve import Curve, Grid, falling_curve
from netdyn.basins.interval import median, median_interval
from netdyn.basins.result import BasinResult
from netdyn.basins.target import chance, check_basin, target_accuracy, warn_of_floor, warn_of_low
from netdyn.basins.weight_noise import WeightNoise, realised_noise
from netdyn.isolation.isolated import isolated
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.criteria import Criterion
from netdyn.probes.evaluator import Evaluator
from netdyn.probes.tasks import TOLERANCE, prepare


def weight_basin(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 8,
    normalization: Literal["layer", "global"] = "layer",
    layers: Sequence[str] | Literal["each"] | None = None,
    low: float = 1e-3,
    high: float = 1e1,
    rel_tol: float = 0.05,
    seed: int = 0,
    batch_size: int | None = None,
    criterion: Criterion | None = None,
    tolerance: float = TOLERANCE,
) -> BasinResult:
    """How much noise the weights bear before the network's predictions stop being right.

    Along a ray W + σ·s·E, E ~ N(0, I), bisection in log σ finds the noise level at which the accuracy on the probe
    crosses ``accuracy``. The radius is the median over rays, its interval the one of Hettmansperger and Sheather (with
    fewer than 6 rays their extremes, with the level that these have).

    Args:
        model: Any PyTorch module; called as ``model(inputs)``, in eval mode. Its weights are not written to.
        inputs: A tensor, or a sequence or mapping of tensors, samples first.
        target: Class labels ``[samples]``, or numbers to be predicted (or what ``criterion`` takes).
        accuracy: The accuracy that defines the radius, in (0, 1). None: 0.5 as in P1, and 0.75 for two classes.
        relative: Count ``accuracy`` from chance (0) to the accuracy without noise (1).
        rays: Number of rays.
        normalization: ``"layer"``: s is the population standard deviation of each weight tensor. ``"global"``: of all
            entries of the disturbed tensors together.
        layers: Names or globs of the parameters to disturb (None: every floating one with two or more dimensions), or
            ``"each"``: all of them, and then each one alone (``per_layer``; layers × rays × 8 more passes).
        low: Smallest noise level, in units of s.
        high: Largest noise level.
        rel_tol: Cells of the search end no wider than (1 + rel_tol)².
        seed: Seed of the noise, which depends on it, the ray and the parameter's name alone.
        batch_size: Samples a forward pass; None: all at once. Changes nothing but rounding.
        criterion: As in :func:`netdyn.functional.sample_basin`.
        tolerance: Likewise.

    Returns:
        The radius with its interval, and what stands behind it.

    Warns:
        UserWarning: If a weight tensor is constant, so that noise in units of its spread does not move it.

    Raises:
        TypeError: If the labels are not whole numbers.
        ValueError: If an argument lies outside its range, a name matches nothing or the output is not
            ``[samples, classes]``.

    Source:
        P1, attraction basin in weight space. Scale, ray search and interval are netdyn's conventions.

    Example:
        >>> import torch
        >>> net = nn.Linear(1, 2)
        >>> net.load_state_dict({"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> x = torch.linspace(0.5, 1.5, 100)[:, None]
        >>> basin = weight_basin(net, x, torch.ones(100, dtype=torch.int64), rays=16)
        >>> basin.radius > 0.5, list(basin.radii.shape)
        (True, [16])
    """
    grid = check_basin(accuracy, rays, low, high, rel_tol, seed)
    checks.choice("normalization", normalization, ("layer", "global"))
    checks.positive("tolerance", tolerance)
    with isolated(model):
        return measure_weight_basin(
            prepare(model, inputs, target, criterion, batch_size, tolerance),
            grid,
            accuracy=accuracy,
            relative=relative,
            rays=rays,
            normalization=normalization,
            layers=layers,
            seed=seed,
        )


class Trail:
    """Right answers of each class, met on the way out: without noise, and at the noise levels visited on each ray."""

    def __init__(self, size: Tensor, clean: Tensor) -> None:
        self.size, self.clean = size, clean
        self.rays: list[dict[float, Tensor]] = []

    @classmethod
    def start(cls, evaluator: Evaluator, clean: Tensor) -> Trail:
        """A trail at σ = 0, where ``clean`` says which samples are right."""
        labels, right = evaluator.labels.cpu(), clean.cpu()
        size, met = (torch.bincount(some, minlength=evaluator.num_classes).double() for some in (labels, labels[right]))
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


def class_counts(evaluator: Evaluator, right: Tensor) -> Tensor:
    """Right answers of each class, int64 ``[classes]``, on the device of the labels."""
    # Flags as indices, and `bincount`, would each wait for the device.
    labels = evaluator.labels
    counts = torch.zeros(evaluator.num_classes, dtype=torch.int64, device=labels.device)
    return counts.index_add_(0, labels, right.to(labels.device, torch.int64))


def measure_weight_basin(
    evaluator: Evaluator,
    grid: Grid,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 8,
    normalization: str = "layer",
    layers: Sequence[str] | str | None = None,
    seed: int = 0,
    clean: Tensor | None = None,
) -> BasinResult:
    """Ray search in weight space, see :func:`netdyn.functional.weight_basin`.

    ``clean`` says which samples are right without noise, if that is known. Where these are too few there is no basin,
    and no ray is walked.
    """
    own, each = replace(evaluator, passed=0), layers == "each"
    clean = own.all_right() if clean is None else clean
    noise = WeightNoise.on(evaluator.model, None if each else layers, normalization, seed)
    trail = Trail.start(own, clean)
    absolute = weight_accuracy(trail.clean_accuracy, accuracy, relative, evaluator.num_classes)
    exists = trail.clean_accuracy > absolute
    radii, per_layer = torch.zeros(rays, dtype=torch.float64), None
    if exists:
        radii = walk_rays(own, noise, rays, grid, absolute).radii(trail, absolute)
    if each:
        # One tensor at a time: a fragile layer is one whose own radius is small.
        per_layer = dict.fromkeys(noise.weights, 0.0)
        for name in noise.weights if exists else ():
            visits = walk_rays(own, noise.only(name), rays, grid, absolute)
            per_layer[name] = median(visits.radii(Trail.start(own, clean), absolute))
    if unmoved := noise.unmoved:
        warn_unmoved(unmoved)
    if not relative:
        # What is left at the top is no floor where weights that were not moved decide: only chance is worth a word.
        warn_of_floor(absolute, chance(evaluator.num_classes))
    if len(unmoved) < len(noise.weights):
        warn_of_weight_range(radii, grid)
    realised = realised_noise(noise, median(radii)) if 0 < median(radii) < math.inf else {}
    evaluator.passed += own.passed
    return summarize_weights(radii, grid, trail, absolute, own.forwards, per_layer, realised)


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


def walk_rays(evaluator: Evaluator, noise: WeightNoise, rays: int, grid: Grid, accuracy: float) -> Visits:
    """Bisect rays for the σ at which probe accuracy crosses; every process walks its part of them.

    Each takes the same number of passes, and no answer is read: the next noise level is chosen where the network runs.
    The top level is visited too, for the curves of the classes.
    """
    # In lockstep nobody can evaluator alone: all take every ray, and share the samples at each step.
    alone = evaluator.processes.lockstep or evaluator.processes.size == 1
    part = range(rays) if alone else range(rays)[evaluator.processes.part(rays)]
    bound = most_right(evaluator.samples, accuracy)

    def work() -> tuple[Tensor, Tensor, float]:
        before, device, visits = evaluator.passed, evaluator.labels.device, 1 + grid.levels
        steps = torch.zeros(len(part), visits, dtype=torch.int64, device=device)
        counts = torch.zeros(len(part), visits, evaluator.num_classes, dtype=torch.int64, device=device)
        for place, ray in enumerate(part):
            steps[place], counts[place] = _walk_ray(evaluator, noise, ray, grid, bound)
        passed, evaluator.passed = evaluator.passed - before, before
        return (steps, counts, passed) if alone else (steps.cpu(), counts.cpu(), passed)

    parts = [work()] if alone else evaluator.processes.gather(work)
    evaluator.passed += sum(passed for *_, passed in parts)
    return Visits(grid, torch.cat([steps for steps, _, _ in parts]), torch.cat([counts for _, counts, _ in parts]))


def _walk_ray(evaluator: Evaluator, noise: WeightNoise, ray: int, grid: Grid, bound: int) -> tuple[Tensor, Tensor]:
    """The edges visited on one ray ``[visits]``, and the right answers of each class there ``[visits, classes]``."""
    device = evaluator.labels.device
    edges = grid.edges().to(device, statistic_dtype(device))
    direction = noise.draw(ray)

    def visit(step: Tensor) -> Tensor:
        network = noise.network(direction, edges.index_select(0, step)[0])
        lockstep = evaluator.processes.lockstep
        right = (
            evaluator.divided(lambda own, part: own.all_right(network)) if lockstep else evaluator.all_right(network)
        )
        return class_counts(evaluator, right)

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
