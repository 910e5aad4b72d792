"""How much noise on the weights it takes until the network is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from statistics import median as middle
from typing import Literal

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.options import instead, offering
from netdyn._utils.random import keys, uniforms
from netdyn._utils.trees import Inputs
from netdyn.basins.change import Influences, key_of
from netdyn.basins.crossing import logit
from netdyn.basins.curve import Curve, falling_curve, mean_curve
from netdyn.basins.interval import mean_of, median, median_interval, shared_error, widened
from netdyn.basins.ladder import by_class
from netdyn.basins.result import BasinResult
from netdyn.basins.target import chance, check_basin, target_accuracy, warn_of_floor, warn_of_low
from netdyn.basins.weight_noise import WeightNoise, large_left_out, realised_noise
from netdyn.isolation.adapter import isolated_network
from netdyn.probes.criteria import Criterion
from netdyn.probes.evaluator import Evaluator
from netdyn.probes.targets import AccuracyOf, TargetOptions, Task
from netdyn.probes.tasks import TOLERANCE, prepare

#: Noise levels asked on each ray, and further ones on the first.
LEVELS, FIRST = 3, 3
#: How far beyond its estimate a crossing is asked, in log σ, so that it lies between two levels.
BEYOND = 0.09
#: Fall of logit A per unit of log σ that is assumed before any ray has shown it.
SLOPE = 4.0
#: How far from a crossing, in log σ, levels show that fall.
NEAR = 1.5
#: Noise levels per ray that show the curves of the classes, and as many where no others have been asked.
LADDER, LADDER_ALONE = 2, 6


def weight_basin(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 16,
    samples: int = 128,
    normalization: Literal["layer", "global"] = "layer",
    layers: Sequence[str] | Literal["each"] | None = None,
    low: float = 1e-3,
    high: float = 1e1,
    per_class: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    criterion: Criterion | None = None,
    tolerance: float = TOLERANCE,
    task: Task = "auto",
    ignore_index: int = -100,
    accuracy_of: AccuracyOf = "samples",
) -> BasinResult:
    """How much noise the weights tolerate before the network's predictions stop being right.

    Along a ray W + σ·s·E, E ~ N(0, I), the accuracy on a choice of the samples falls. Three noise levels per ray, six
    on the first, find the σ at which it crosses ``accuracy``: each ray begins at the median of those before it, and is
    asked further levels until it has crossed between two. Its accuracy is scaled by that of all samples without noise
    over that of its own, so that a choice with more samples that are wrong already is lost no sooner. The radius is the
    median over rays, its interval the one of Hettmansperger and Sheather (with fewer than 6 rays their extremes, with
    the level that these have), widened by what the choice of the probe's samples adds.

    Args:
        model: Any PyTorch module; called with the inputs as its ``forward`` takes them, in eval mode. Its
            weights are not written to.
        inputs: A tensor, or a sequence or mapping of tensors, samples first.
        target: As in :func:`netdyn.functional.sample_basin`.
        accuracy: The accuracy that defines the radius, in (0, 1). None: 0.5 as in P1, and 0.75 for two classes.
        relative: Count ``accuracy`` from chance (0) to the accuracy without noise (1).
        rays: Number of rays.
        samples: Samples per ray, another stratified choice for each.
        normalization: ``"layer"``: s is the population standard deviation of each weight tensor. ``"global"``: of all
            entries of the disturbed tensors together.
        layers: Names or globs of the parameters to disturb (None: all floating or complex ones with two or more
            dimensions; ``["!head.*"]``: all but these), or ``"each"``: all together, then each alone (``per_layer``;
            as many passes more for each).
        low: Smallest noise level, in units of s.
        high: Largest noise level.
        per_class: Find the radius of each class too; four passes more.
        seed: Seed of the noise, which depends on it, the ray and the parameter's name alone.
        batch_size: Samples per forward pass; None: all at once. Changes nothing but rounding.
        criterion: As in :func:`netdyn.functional.sample_basin`.
        tolerance: Likewise.
        task: What the targets are, likewise.
        ignore_index: Label that marks what has none: samples, positions or labels that are left out.
        accuracy_of: What counts with several labels per sample: ``"samples"`` whose labels are all right, or
            ``"labels"``.

    Returns:
        The radius with its interval, and what stands behind it.

    Warns:
        UserWarning: If a weight tensor is constant, so that noise in units of its spread does not move it.

    Raises:
        TypeError: If the labels are not whole numbers.
        ValueError: If an argument is out of range, a name matches nothing or outputs are not ``[samples, classes]``.

    Source:
        P1, attraction basin in weight space. Scale, levels and interval are netdyn's conventions.

    Examples:
        >>> net = nn.Linear(1, 2)
        >>> net.load_state_dict({"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> x = torch.linspace(0.5, 1.5, 100)[:, None]
        >>> basin = weight_basin(net, x, torch.ones(100, dtype=torch.int64), rays=16)
        >>> basin.radius > 0.5, list(basin.radii.shape)
        (True, [16])
    """
    check_basin(accuracy, rays, low, high, seed)
    checks.whole("samples", samples)
    checks.choice("normalization", normalization, ("layer", "global"))
    checks.positive("tolerance", tolerance)
    targets = TargetOptions(task, ignore_index, accuracy_of)
    with offering(weight_basin), isolated_network(model) as network:
        return measure_weight_basin(
            prepare(network, inputs, target, criterion, batch_size, tolerance, targets),
            low,
            high,
            accuracy=accuracy,
            relative=relative,
            rays=rays,
            samples=samples,
            normalization=normalization,
            layers=layers,
            per_class=per_class,
            seed=seed,
        )


@dataclass
class Ray:
    """What was met on one ray."""

    target: float
    weight: Tensor | None = None  # of each of the ray's samples in the accuracy; None: all the same
    scale: float = 1.0  # accuracy of all samples without noise, over that of the ray's own
    right: dict[float, Tensor] = field(default_factory=dict)  # log σ → which of the ray's samples are right
    share: dict[float, float] = field(default_factory=dict)  # their share, scaled
    logits: dict[float, float] = field(default_factory=dict)  # its logit above that of the target, sorted, made to fall

    def add(self, level: float, right: Tensor) -> None:
        """Take what was met at ``level``, a log σ."""
        self.right[level], self.share[level] = right, min(mean_of(right, self.weight) * self.scale, 1.0)
        levels, count = sorted(self.share), len(right)
        falling = accumulate((self.share[each] for each in levels), min)
        aim = logit(self.target, count)
        self.logits = {each: logit(share, count) - aim for each, share in zip(levels, falling, strict=True)}

    def around(self) -> tuple[float | None, float | None]:
        """The levels between which accuracy crosses the target; None where it does not on that side."""
        below = [level for level, y in self.logits.items() if y > 0]
        above = [level for level, y in self.logits.items() if y <= 0]
        return (below[-1] if below else None), (above[0] if above else None)

    def crossing(self, slope: float, bottom: float, top: float) -> float:
        """The log σ at which accuracy crosses the target; inf where it stays above, and beyond ``bottom`` a guess."""
        below, above = self.around()
        if below is None:
            return math.nan if above is None else max(above + self.logits[above] / slope, bottom - 3)
        if above is None:
            beyond = below + self.logits[below] / slope
            return math.inf if below >= top - 1e-9 or beyond > top else beyond
        more, less = self.logits[below], self.logits[above]
        return below + more / (more - less) * (above - below)

    def outcomes(self, radius: float) -> Tensor:
        """Each sample's share of right answers at a log σ, straight between the two levels around the crossing."""
        below, above = self.around()
        if below is None or above is None:
            return self.right[next(level for level in (below, above) if level is not None)].double()
        part = min(max((radius - below) / (above - below), 0.0), 1.0)
        return (1 - part) * self.right[below].double() + part * self.right[above].double()


def walk_rays(ask: _Asker, rays: int, target: float, low: float, high: float) -> list[Ray]:
    """Ask every ray at its levels; the first one's are a bisection of the whole range, then as for all others.

    A ray that has not crossed between two of its levels does not show how far away its crossing is: it is asked further
    levels, up to the ends of the range.
    """
    found: list[Ray] = []
    bottom, top = math.log(low), math.log(high)
    for number in range(rays):
        slope = _slope(found)
        finite = [x for own in found if math.isfinite(x := own.crossing(slope, bottom, top))]
        ray = Ray(target, ask.weight(number), ask.scale(number))
        turn = 0 if found else -FIRST
        while turn < LEVELS or None in ray.around():
            below, above = ray.around()
            if below is None and above is None:
                level = middle(finite) if finite else (bottom + top) / 2
            elif turn < 0:
                level = ((bottom if below is None else below) + (top if above is None else above)) / 2
            else:
                beyond = BEYOND * 2 ** max(turn - 1, 0)
                level = ray.crossing(slope, bottom, top)
                level += beyond if above is None else -beyond if below is None else 0.0
            level = min(max(level, bottom), top)
            if level in ray.share:
                break
            ray.add(level, ask(number, level))
            turn += 1
        found.append(ray)
    return found


def _slope(rays: Sequence[Ray]) -> float:
    """Fall of logit A per unit of log σ near the crossings: a least-squares line through them, for all rays together.

    The two levels around a crossing alone would make it too steep: where chance has moved an answer between them they
    are the levels around it.
    """
    products = squares = 0.0
    for ray in rays:
        if None not in ray.around():
            crossing = ray.crossing(SLOPE, -math.inf, math.inf)
            for level, y in ray.logits.items():
                if abs(level - crossing) < NEAR:
                    products -= (level - crossing) * y
                    squares += (level - crossing) ** 2
    return products / squares if products > 0 else SLOPE


def measure_weight_basin(
    evaluator: Evaluator,
    low: float,
    high: float,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 16,
    samples: int = 128,
    normalization: str = "layer",
    layers: Sequence[str] | str | None = None,
    per_class: bool = False,
    seed: int = 0,
    clean: Tensor | None = None,
) -> BasinResult:
    """The basin of a network that is isolated already, see :func:`netdyn.functional.weight_basin`.

    ``clean`` says which samples are right without noise, if that is known; if these are too few no level is asked.
    """
    own, each = evaluator.fresh(), layers == "each"
    clean = (own.all_right() if clean is None else clean).cpu()
    noise = WeightNoise.on(evaluator.model, None if each else layers, normalization, seed, evaluator.drawn)
    clean_accuracy = mean_of(clean, own.weight)
    floor = chance(own.answers)
    target = target_accuracy(accuracy, relative, clean_accuracy, floor, own.answers)
    key = "choices", rays, samples, seed, own.contents.key, own.labels.cpu().numpy().tobytes()
    choices = own.drawn.get(key, lambda: [_choice(own, ray, min(samples, own.samples), seed) for ray in range(rays)])
    ask, found, radii = _Asker(own, noise, choices, clean), list[Ray](), torch.zeros(rays, dtype=torch.float64)
    per_layer = dict.fromkeys(noise.weights, 0.0) if each else None
    if clean_accuracy > target:
        found = walk_rays(ask, rays, target, low, high)
        radii = _radii(found, low, high)
        if per_layer is not None:
            for name in per_layer:
                alone = walk_rays(_Asker(own, noise.only(name), choices, clean), rays, target, low, high)
                per_layer[name] = median(_radii(alone, low, high))
    radius = median(radii)
    if (layers is None or each) and (large := large_left_out(evaluator.model)):
        checks.warn(
            f"The parameters {large} are large, but get no noise, since they have fewer than two dimensions or hold "
            "whole numbers: the radius is that of the other weights alone."
        )
    if unmoved := noise.unmoved:
        argument = instead("weight_layers", "weight_layers", "layers")
        checks.warn(
            f"The weights {unmoved} are constant: noise in units of their standard deviation, 0, does not move them. "
            f"Leave them out with `{argument}=`, or use normalization='global'."
        )
    if not relative:
        # What is left at the top is no floor where weights that were not moved decide.
        warn_of_floor(target, floor)
    if len(unmoved) < len(noise.weights):
        if 0 < radius < low:
            warn_of_low(low)
        elif bool(radii.isinf().all()):
            checks.warn(
                f"The largest noise level, `high` = {high:g}, takes the network on no ray below `accuracy`: the "
                "radius lies beyond it. Set a larger `high`, or a higher `accuracy`."
            )
    influences = _influences(found, radii, choices, own, target, key_of(seed, rays, own.contents.digests))
    interval, level = _interval(radii, influences)
    curve = falling_curve(clean_accuracy, [], [])
    if found:
        curve = mean_curve(clean_accuracy, [ray.share for ray in found], [len(choices[0])] * rays, _slope(found), floor)
    class_radii = None
    if per_class and own.num_classes > 1:
        curve = replace(curve, classes=_class_curves(ask, clean, found, low, high))
        crossings = [math.nan if c is None else c.crossing(target) for c in curve.classes]
        class_radii = torch.tensor(crossings, dtype=torch.float64)
    evaluator.passed += own.passed
    return BasinResult(
        radius=radius,
        interval=interval,
        level=level,
        accuracy=target,
        clean=clean_accuracy,
        floor=floor,
        censored=float(radii.isinf().double().mean()),
        high=high,
        forwards=own.forwards,
        curve=curve,
        radii=radii,
        per_class=class_radii,
        per_layer=per_layer,
        realised=realised_noise(noise, radius) if 0 < radius < math.inf else {},
        influences=influences,
    )


class _Asker:
    """Runs the network with noise on its weights; on several processes each runs its part of a ray's samples."""

    def __init__(self, evaluator: Evaluator, noise: WeightNoise, choices: Sequence[Tensor], clean: Tensor) -> None:
        self.evaluator, self.noise, self.choices, self.clean = evaluator, noise, choices, clean
        self._ray, self._direction, self._own = -1, dict[str, Tensor](), evaluator

    def weight(self, ray: int) -> Tensor | None:
        """The weights of a ray's samples in the accuracy."""
        weight = self.evaluator.weight
        return None if weight is None else weight[self.choices[ray]]

    def scale(self, ray: int) -> float:
        """The accuracy of all samples without noise, over that of a ray's own samples (a ratio estimator).

        By chance a ray has more or fewer samples that are wrong already. Where the target is hardly below the accuracy
        without noise this would decide where it crosses, and some rays would start below the target.
        """
        own = mean_of(self.clean[self.choices[ray]], self.weight(ray))
        return mean_of(self.clean, self.evaluator.weight) / own if own > 0 else 1.0

    def __call__(self, ray: int, level: float) -> Tensor:
        if ray != self._ray:
            self._ray, self._direction = ray, self.noise.draw(ray)
            self._own = self.evaluator.only(self.choices[ray])
            self._own.processes = self.evaluator.processes
        network, before = self.noise.network(self._direction, math.exp(level)), self._own.passed
        if self._own.processes.size > 1:
            right = self._own.divided(lambda own, part: own.all_right(network))
        else:
            right = self._own.all_right(network)
        self.evaluator.passed += self._own.passed - before
        return right.cpu()


def _choice(evaluator: Evaluator, ray: int, samples: int, seed: int) -> Tensor:
    """A ray's own samples, in ascending order: every so many-th of all, by class and within a class at random."""
    if samples == evaluator.samples:
        return torch.arange(samples)
    numbers = uniforms(keys(evaluator.contents.digests, seed, ray, "weights"))
    order = by_class(numbers[:, 0], evaluator.labels.cpu())
    start = torch.rand(1, generator=torch.Generator().manual_seed(seed + ray), dtype=torch.float64)
    places = ((torch.arange(samples) + start) * evaluator.samples / samples).long()
    return order[places].sort().values


def _radii(rays: Sequence[Ray], low: float, high: float) -> Tensor:
    slope, bottom, top = _slope(rays), math.log(low), math.log(high)
    return torch.tensor([math.exp(ray.crossing(slope, bottom, top)) for ray in rays], dtype=torch.float64)


def _influences(
    rays: Sequence[Ray], radii: Tensor, choices: Sequence[Tensor], evaluator: Evaluator, target: float, key: str
) -> Influences | None:
    """Each sample's influence on the crossing of each ray that asked it; None where no ray has a crossing."""
    known = [(i, math.log(radius)) for i, radius in enumerate(radii.tolist()) if 0 < radius < math.inf]
    if not known:
        return None
    levels = torch.full((len(radii),), math.nan, dtype=torch.float64)
    right = torch.full((len(radii), evaluator.samples), math.nan, dtype=torch.float64)
    for i, level in known:
        levels[i], right[i, choices[i]] = level, rays[i].outcomes(level)
    influence = (right - target) / (target * (1 - target) * _slope(rays))
    return Influences(key, levels, influence, evaluator.contents.clusters, evaluator.weight)


def _interval(radii: Tensor, influences: Influences | None) -> tuple[tuple[float, float], float]:
    """The interval over rays, widened by the choice of the probe's samples, and its level."""
    low, high, level = median_interval(radii)
    if influences is None:
        return (low, high), level
    known = ~influences.radii.isnan()
    error = shared_error(influences.influence[known], influences.clusters, influences.weight)
    return widened((low, high), median(radii), error, influences.influence.shape[1]), level


def _class_curves(ask: _Asker, clean: Tensor, rays: Sequence[Ray], low: float, high: float) -> tuple[Curve | None, ...]:
    """Accuracy of each class against σ, from all that was met and further levels per ray; None if absent."""
    labels, number, levels = ask.evaluator.labels.cpu(), len(ask.choices), LADDER if rays else LADDER_ALONE
    # Where all classes together are too seldom right nothing was met, though single classes may have a radius.
    met = [dict(ray.right) for ray in rays] or [{} for _ in range(number)]
    # Ray by ray: a ray's noise is drawn once.
    for ray in range(number):
        for part in range(levels):
            place = (part * number + ray + 0.5) / (levels * number)
            level = math.log(low) + place * math.log(high / low)
            met[ray][level] = ask(ray, level)
    curves: list[Curve | None] = []
    for k in range(ask.evaluator.num_classes):
        own, members = clean[labels == k].double(), [labels[choice] == k for choice in ask.choices]
        known = [i for i in range(number) if bool(members[i].any())]
        shares = [{level: float(right[members[i]].double().mean()) for level, right in met[i].items()} for i in known]
        weights = [float(members[i].sum()) for i in known]
        mean = float(own.mean()) if len(own) else math.nan
        curves.append(mean_curve(mean, shares, weights, _slope(rays), 0.0) if known else None)
    return tuple(curves)
