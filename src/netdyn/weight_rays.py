"""Walk rays in weight space: W' = W + σ·s·E, s each tensor's population standard deviation, E standard normal."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from netdyn import _checks
from netdyn.batches import Inputs, seeded
from netdyn.brackets import Brackets
from netdyn.radii import BasinResult, Curve, Grid, falling_curve, median, median_interval
from netdyn.rays import chance, target_accuracy, warn_of_floor, warn_of_low
from netdyn.search import UNKNOWN, Search
from netdyn.shards import is_shard, local, own_part, reshard, whole
from netdyn.walk import Walk

#: After a warm start levels this part of the grid away are visited, too.
ASIDE = 8


def weight_tensors(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """The floating parameters with two or more dimensions, each once, chosen by globs of their names.

    Raises:
        TypeError: If ``layers`` is a single string.
        ValueError: If a glob matches none of them, or there are none.
    """
    weights = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and p.is_floating_point()}
    if not weights:
        raise ValueError(
            f"The model has no floating parameter with two or more dimensions, got {type(model).__name__}."
        )
    if layers is None:
        return weights
    if isinstance(layers, str):
        raise TypeError(f"`layers` must be a list of parameter names or globs, or 'each', got the string {layers!r}.")
    if not layers:
        raise ValueError("`layers` must name at least one weight, got []. Leave it None to disturb all.")
    chosen: set[str] = set()
    for pattern in layers:
        matches = fnmatch.filter(weights, pattern)
        if not matches:
            raise ValueError(
                f"`layers` names {pattern!r}, which matches no weight. {_checks.nearest(pattern, weights)}"
            )
        chosen.update(matches)
    return {name: weight for name, weight in weights.items() if name in chosen}


class WeightNoise:
    """Gaussian noise on weights, in units of their standard deviations ``scales``."""

    def __init__(self, model: nn.Module, weights: dict[str, nn.Parameter], scales: dict[str, float], seed: int) -> None:
        self.model, self.weights, self.scales, self.seed = model, weights, scales, seed

    @classmethod
    def on(cls, model: nn.Module, layers: Sequence[str] | None, normalization: str, seed: int) -> WeightNoise:
        """Noise on the chosen weights, each with its own spread or all with their common one."""
        weights = weight_tensors(model, layers)
        wide = {name: whole(weight.detach()).double().cpu() for name, weight in weights.items()}
        if normalization == "global":
            everything = torch.cat([w.reshape(-1) for w in wide.values()])
            scales = dict.fromkeys(wide, float(everything.std(correction=0)))
        else:
            scales = {name: float(w.std(correction=0)) for name, w in wide.items()}
        return cls(model, weights, scales, seed)

    def only(self, name: str) -> WeightNoise:
        """The same noise on one tensor alone."""
        return WeightNoise(self.model, {name: self.weights[name]}, {name: self.scales[name]}, self.seed)

    def draw(self, ray: int) -> dict[str, Tensor]:
        """One direction s·E, seeded by (seed, ray, the tensor's name)."""
        generator = torch.Generator()
        direction = {}
        for name, weight in self.weights.items():
            seeded(generator, self.seed, ray, name)
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
            direction[name] = own_part(self.scales[name] * drawn, weight.detach())
        return direction

    def moved(
        self, direction: dict[str, Tensor], sigma: float, room: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The weights W + σ·s·E, rounded to their own type; in ``room``, if there is one, which is filled once more."""
        room = {} if room is None else room
        for name, weight in self.weights.items():
            w = local(weight.detach())
            if name not in room:
                room[name] = torch.empty_like(w)
            if w.dtype == direction[name].dtype:
                torch.mul(direction[name], sigma, out=room[name]).add_(w)
            else:
                wide = torch.promote_types(w.dtype, torch.float32)
                room[name].copy_(w.to(wide) + sigma * direction[name])
        return dict(room)

    def network(
        self, direction: dict[str, Tensor], sigma: float, room: dict[str, Tensor] | None = None
    ) -> Callable[[Inputs], Tensor]:
        """The network with weights W + σ·s·E. Its own weights are not touched; tied ones move together.

        With a ``room`` for the weights the network is good until another one is made there.
        """
        moved = self.moved(direction, sigma, room)
        if any(is_shard(weight) for weight in self.weights.values()):
            own = {name: local(weight.detach()) for name, weight in self.weights.items()}
            return partial(self._call_with_shards, own, moved)

        def call(inputs: Inputs) -> Tensor:
            return torch.func.functional_call(self.model, moved, (inputs,))  # type: ignore[no-any-return]

        return call

    def _call_with_shards(self, own: dict[str, Tensor], moved: dict[str, Tensor], inputs: Inputs) -> Tensor:
        """A sharded module gathers its weights from the shards, whatever is put in their place: write to the shards."""
        kept = {name: shard.clone() for name, shard in own.items()}
        try:
            self._write(own, moved)
            return self.model(inputs)  # type: ignore[no-any-return]
        finally:
            self._write(own, kept)

    def _write(self, own: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        for name, shard in own.items():
            shard.copy_(values[name])
        reshard(self.model)


class Trail:
    """Right answers of each class, met on the way out: without noise, and at the noise levels visited on each ray."""

    def __init__(self, size: Tensor, clean: Tensor) -> None:
        self.size, self.clean = size, clean
        self.rays: list[dict[float, Tensor]] = []

    @classmethod
    def start(cls, walk: Walk, clean: Tensor) -> Trail:
        """A trail at σ = 0, where ``clean`` says which samples are right."""
        return cls(class_counts(walk, torch.ones_like(clean)), class_counts(walk, clean))

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
    """Right answers of each class, float64 ``[classes]``."""
    # Flags as indices, and `bincount`, would each wait for the device; so only the copy to the CPU does.
    labels = walk.labels
    counts = torch.zeros(walk.num_classes, dtype=torch.int64, device=labels.device)
    return counts.index_add_(0, labels, right.to(labels.device, torch.int64)).cpu().double()


def weight_basin(
    walk: Walk,
    grid: Grid,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 8,
    normalization: str = "layer",
    layers: Sequence[str] | str | None = None,
    seed: int = 0,
    clean: Tensor | None = None,
    memory: Brackets | None = None,
) -> BasinResult:
    """Ray search in weight space, see :func:`netdyn.functional.weight_basin`; ``clean``: who is right, if known.

    ``memory`` holds the cells of the last evaluation's rays, where the search begins, and takes this one's. A ray along
    which accuracy crosses once ends in the same cell with and without it. The curves go through fewer levels then.
    """
    each, before = layers == "each", walk.forwards
    noise = WeightNoise.on(walk.model, None if each else layers, normalization, seed)
    warn_unmoved(noise)
    clean = walk.all_right() if clean is None else clean
    trail = Trail.start(walk, clean)
    absolute = weight_accuracy(trail, accuracy, relative, walk.num_classes)
    search = RaySearch(
        walk, rays, grid, absolute, f"{grid.low}|{grid.high}|{grid.levels}|{seed}|{normalization}", memory
    )
    radii = search.radii(noise, trail)
    per_layer = None
    if each:
        # One tensor at a time: a fragile layer is one whose own radius is small.
        alone = {name: noise.only(name) for name in noise.weights}
        start = partial(Trail.start, walk, clean)
        per_layer = {name: median(search.radii(alone[name], start())) for name in alone}
    if memory is not None and search.found:
        memory.keep_weights(search.found)
    if not relative:
        # What is left at the top is no floor where weights that were not moved decide: only chance is worth a word.
        warn_of_floor(absolute, chance(walk.num_classes))
    if any(noise.scales.values()):
        warn_of_weight_range(radii, grid)
    realised = realised_noise(noise, median(radii)) if 0 < median(radii) < math.inf else {}
    return summarize_weights(radii, grid, trail, absolute, walk.forwards - before, per_layer, realised)


def warn_of_weight_range(radii: Tensor, grid: Grid) -> None:
    """Warn if the radius lies below the noise levels searched, or all rays above."""
    if 0 < median(radii) < float(grid.edges()[1]):
        warn_of_low(grid)
    elif bool(radii.isinf().all()):
        _checks.warn(
            f"The largest noise level, `high` = {grid.high:g}, takes the network on no ray below `accuracy`: the "
            "radius lies beyond it. Set a larger `high`, or a higher `accuracy`."
        )


def warn_unmoved(noise: WeightNoise) -> None:
    """Warn of weights that noise in units of their spread does not move."""
    if unmoved := [name for name, scale in noise.scales.items() if scale == 0]:
        _checks.warn(
            f"The weights {unmoved} are constant: noise in units of their standard deviation, 0, does not move them. "
            "Leave them out with `layers=`, or use normalization='global'."
        )


def weight_accuracy(trail: Trail, accuracy: float | None, relative: bool, num_classes: int) -> float:
    """The absolute accuracy that defines the radius; a relative one counts from chance."""
    return target_accuracy(accuracy, relative, trail.clean_accuracy, chance(num_classes), num_classes)


@dataclass
class RaySearch:
    """Searches rays in weight space, from the last evaluation's cells if they are known.

    Attributes:
        walk: Network and probe.
        rays: Number of rays.
        grid: Noise levels.
        accuracy: The accuracy that defines a radius.
        key: Says under which settings cells may be taken over.
        memory: The last evaluation's cells.
        found: This one's, by key and weights.
    """

    walk: Walk
    rays: int
    grid: Grid
    accuracy: float
    key: str
    memory: Brackets | None = None
    found: dict[str, Tensor] = field(default_factory=dict)

    def radii(self, noise: WeightNoise, trail: Trail) -> Tensor:
        """Radii ``[rays]``; every process walks its part of the rays, and what is met is added to the trail."""
        if trail.clean_accuracy <= self.accuracy:
            return torch.zeros(self.rays, dtype=torch.float64)
        walk, key = self.walk, f"{self.key}|{list(noise.weights)}"
        start = torch.full((self.rays,), UNKNOWN) if self.memory is None else self.memory.weights(key, self.rays)
        part = range(self.rays) if walk.crew.lockstep else range(self.rays)[walk.crew.part(self.rays)]

        def work() -> tuple[list[tuple[float, int, dict[float, Tensor]]], float]:
            before = walk.passed
            results = [self._ray(noise, ray, trail, int(start[ray])) for ray in part]
            passed, walk.passed = walk.passed - before, before
            return results, passed

        # In lockstep nobody can walk alone: all take every ray, and share the samples at each step.
        parts = [work()] if walk.crew.lockstep else walk.crew.share(work)
        walk.passed += sum(passed for _, passed in parts)
        results = [result for found, _ in parts for result in found]
        trail.rays += [met for _, _, met in results]
        self.found[key] = torch.tensor([cell for _, cell, _ in results])
        return torch.tensor([radius for radius, _, _ in results], dtype=torch.float64)

    def _ray(self, noise: WeightNoise, ray: int, trail: Trail, start: int) -> tuple[float, int, dict[float, Tensor]]:
        """The σ at which probe accuracy crosses along one ray, its cell, and the right answers at the levels visited.

        The radius is interpolated in log σ inside its cell. The top level is visited too, for the curves of the
        classes, and after a warm start a level on either side, which bisection would have met on its way.
        """
        walk, grid, edges = self.walk, self.grid, self.grid.edges().tolist()
        direction, room = noise.draw(ray), dict[str, Tensor]()

        def visit(step: int) -> Tensor:
            network = noise.network(direction, edges[step], room)
            right = walk.shared(lambda own: own.all_right(network)) if walk.crew.lockstep else walk.all_right(network)
            return class_counts(walk, right)

        met = {grid.cells: visit(grid.cells)}
        search = Search(grid, torch.tensor([start]))
        while len(one := search.open()):
            step = int(search.question(one))
            met[step] = visit(step)
            search.answer(one, torch.tensor([trail.accuracy(met[step]) > self.accuracy]))
        low, high = int(search.low), int(search.high)
        if start >= 0:
            beside = (low - grid.cells // ASIDE, high + grid.cells // ASIDE)
            met |= {step: visit(step) for step in beside if 0 < step < grid.cells and step not in met}
        levels = {edges[step]: counts for step, counts in met.items()}
        if high == grid.cells:
            return math.inf, low, levels
        # The lowest edge is not visited: the accuracy there is taken to be the clean one.
        above, below = trail.accuracy(met.get(low, trail.clean)), trail.accuracy(met[high])
        part = (above - self.accuracy) / (above - below)
        return math.exp(math.log(edges[low]) + part * math.log(edges[high] / edges[low])), low, levels


def realised_noise(noise: WeightNoise, sigma: float) -> dict[str, float]:
    """Spread of the noise that reaches each weight tensor after rounding, over the spread asked for, at ``sigma``.

    1 in full precision. In bfloat16 noise far smaller than the weights is rounded away, or up to a whole step.
    """
    direction, realised = noise.draw(0), dict[str, float]()
    if any(is_shard(weight) for weight in noise.weights.values()):
        return realised  # nobody holds a whole tensor
    for name, moved in noise.moved(direction, sigma).items():
        own = local(noise.weights[name].detach())
        asked = sigma * direction[name].double().square().mean().sqrt()
        reached = (moved.double() - own.double()).square().mean().sqrt()
        realised[name] = float(reached / asked) if asked > 0 else math.nan
    return realised


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
