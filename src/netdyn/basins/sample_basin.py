"""How much noise on the samples it takes until the network is wrong.

Noise levels ``[rays, samples]`` hold log σ, NaN where a ray of a sample is not asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.options import offering
from netdyn._utils.random import keys, uniforms
from netdyn._utils.trees import Inputs, as_slice, blocks, take, tensors
from netdyn.basins.change import key_of, sample_influences
from netdyn.basins.crossing import Crossing
from netdyn.basins.curve import LOST_CLEAN, Curve, Grid, falling_curve, survival
from netdyn.basins.input_noise import Noise, Rows
from netdyn.basins.interval import LEVEL, mean_of
from netdyn.basins.ladder import ABOUT, NEAR, WIDE, latin_levels, portions
from netdyn.basins.result import BasinResult
from netdyn.basins.target import chance, check_basin, target_accuracy, warn_of_floor, warn_of_range
from netdyn.isolation.adapter import isolated_network
from netdyn.probes.criteria import Criterion, apply_criterion, predictions, right_probability
from netdyn.probes.evaluator import Evaluator
from netdyn.probes.targets import AccuracyOf, TargetOptions, Task
from netdyn.probes.tasks import TOLERANCE, prepare

#: Rays from which on a radius of its own is given for every sample.
PER_SAMPLE_RAYS = 8
#: Most bytes of noise that are kept from one noise level to the next.
KEPT = 64 << 20


def sample_basin(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 1,
    per_ray: bool = False,
    per_class: bool = False,
    low: float = 1e-3,
    high: float = 1e1,
    rel_tol: float = 0.05,
    seed: int = 0,
    batch_size: int | None = None,
    criterion: Criterion | None = None,
    tolerance: float = TOLERANCE,
    noise_at: Sequence[str] | None = None,
    task: Task = "auto",
    ignore_index: int = -100,
    accuracy_of: AccuracyOf = "samples",
) -> BasinResult:
    """How much noise the inputs tolerate before the network's predictions stop being right.

    Under x + σ·ε, ε ~ N(0, I), accuracy A(σ) falls. The radius is the σ at which it has fallen to ``accuracy``. One
    pass with every sample at a noise level of its own shows roughly where that is. Then all samples are asked at two
    levels beside it, on the same ray, and logit A is interpolated. Further levels are asked where the target lies on
    one side of both, or an end of the interval far away.

    Args:
        model: Any PyTorch module; called with the inputs as its ``forward`` takes them, in eval mode.
        inputs: A tensor, or a sequence or mapping of tensors, samples first; noise falls on the floating ones.
        target: Class labels ``[samples]``, or one per position ``[samples, …]`` of logits ``[samples, classes, …]`` or
            ``[samples, positions, classes]``; zeros and ones ``[samples, labels]``; numbers to be predicted; or what
            ``criterion`` takes. Positions are the units of accuracy, samples those of the interval.
        accuracy: The accuracy that defines the radius, in (0, 1). None: 0.5 as in P1, and 0.75 for two classes.
        relative: Count ``accuracy`` from the floor that noise leaves (0) to the accuracy without noise (1).
        rays: Rays per sample.
        per_ray: Find for each ray of each sample the σ at which it is first lost, by bisection (``radii``, and with 8
            rays or more ``per_sample``); about 8 passes per ray more.
        per_class: Find the radius of each class too, with its interval; two to four passes more.
        low: Smallest noise level, per input component in the units in which the model receives its input.
        high: Largest noise level.
        rel_tol: With ``per_ray``: the bisection's cells are no wider than a factor of (1 + rel_tol)².
        seed: Seed of the noise, which depends on it, the ray, the sample's content and its number among equal samples.
        batch_size: Samples per forward pass; None: all at once. Changes nothing but rounding.
        criterion: ``criterion(outputs, target)`` → bool ``[samples]``; None: outputs are finite, and the predicted
            class (the sign of a single logit) is the target.
        tolerance: How far a predicted number may move before it counts as wrong, in standard deviations of its target.
        noise_at: Where noise falls: names of modules, whose outputs are disturbed (``["embedding"]`` for token ids), or
            of parts of the inputs by key or position (``["image"]``, ``["0"]``), which win over a module of the same
            name. None: all floating inputs; where there are none, the output of the embedding that runs first.
        task: What the targets are, as in :class:`netdyn.Config`.
        ignore_index: Label that marks what has none: samples, positions or labels that are left out.
        accuracy_of: What counts with several labels per sample: ``"samples"`` whose labels are all right, or
            ``"labels"``.

    Returns:
        The radius with its interval, and what stands behind it.

    Warns:
        UserWarning: If ``accuracy`` is within 0.05 of what noise alone leaves, the radius lies outside of the noise
            levels, the inputs are not finite, or the model puts out other numbers at a second call.

    Raises:
        TypeError: If the labels are not whole numbers, or there is nothing floating to disturb.
        ValueError: If an argument is out of range, a name is unknown, or outputs are not ``[samples, classes]``.

    Source:
        P1, attraction basin in sample space. Levels, interpolation and interval are netdyn's conventions.

    Examples:
        >>> net = nn.Linear(1, 2)
        >>> net.load_state_dict({"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> x = torch.linspace(0.5, 1.5, 500)[:, None]
        >>> basin = sample_basin(net, x, torch.ones(500, dtype=torch.int64), accuracy=0.9)
        >>> basin.interval[0] < basin.radius < basin.interval[1]
        True
    """
    check_basin(accuracy, rays, low, high, seed)
    checks.positive("rel_tol", rel_tol)
    checks.positive("tolerance", tolerance)
    targets = TargetOptions(task, ignore_index, accuracy_of)
    with offering(sample_basin), isolated_network(model) as network:
        return measure_sample_basin(
            prepare(network, inputs, target, criterion, batch_size, tolerance, targets),
            low,
            high,
            accuracy=accuracy,
            relative=relative,
            rays=rays,
            cells=Grid.over(low, high, rel_tol) if per_ray else None,
            per_class=per_class,
            seed=seed,
            noise_at=noise_at,
        )


class Rays:
    """A network under noise: right or not on any ray of any sample, at any noise level.

    On several processes each runs its part of the samples, and all get all answers.
    """

    def __init__(self, evaluator: Evaluator, noise: Noise) -> None:
        self.evaluator, self.noise = evaluator, noise
        self._part, self._counted = evaluator.processes.own_samples(torch.arange(evaluator.samples))
        self._own = evaluator.only(self._part)
        self._kept: dict[int, Rows] = {}

    def right(self, levels: Tensor) -> Tensor:
        """Which rays are right at ``levels [rays, samples]``, 1, 0 or a share, likewise; 0 where not asked."""
        return self.outcomes(levels)[0]

    def outcomes(self, levels: Tensor) -> Tensor:
        """Right (1), not (0) or a share, and the class predicted (−1 for none): float64 ``[2, rays, samples]``."""
        processes = self.evaluator.processes
        if processes.lockstep:
            # All processes must run the network equally often: every ray is asked, somewhere.
            levels = torch.where(levels.isnan(), levels.nan_to_num(-math.inf).max(), levels)
        own = self._own
        before = own.passed

        def work() -> tuple[Tensor, float]:
            found = self._asked(levels[:, self._part])[..., : self._counted]
            return found, (own.passed - before) * self._counted / max(len(self._part), 1)

        results = processes.gather(work)
        self.evaluator.passed += sum(passed for _, passed in results)
        return torch.cat([found for found, _ in results], dim=-1)

    def rows_right(self, index: Tensor, sigma: Tensor) -> Tensor:
        """Whether some samples, which may come more than once, are right on their first ray at levels of their own."""
        before = self._own.passed
        order = index.argsort(stable=True)  # packed sequences may have to stay in the order of their lengths
        outputs, target = self._outputs(torch.zeros_like(index), index[order], sigma[order])
        self.evaluator.passed += self._own.passed - before
        right = apply_criterion(self._own.criterion, outputs, target).cpu()
        return right[order.argsort()]

    def _asked(self, levels: Tensor) -> Tensor:
        own = self._own
        found = torch.zeros(2, *levels.shape, dtype=torch.float64)
        found[1] = -1
        asked = (~levels.isnan()).nonzero()
        for part in blocks(len(asked), own.batch_size or own.samples):
            # In the order of the samples, also where a batch holds several rays.
            rays, index = asked[part][asked[part, 1].argsort(stable=True)].t()
            outputs, target = self._outputs(rays, index, levels[rays, index].exp())
            found[0][rays, index] = apply_criterion(own.criterion, outputs, target).double().cpu()
            if own.num_classes > 1:
                logits = outputs - 0.5 if own.criterion is right_probability else outputs
                found[1][rays, index] = predictions(logits[:, None] if logits.ndim == 1 else logits).double().cpu()
        return found

    def _outputs(self, rays: Tensor, index: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of some rows, each a ray of a sample, and their targets."""
        own, part = self._own, as_slice(index)
        target, inputs = own.targets(part), take(own.inputs, part, own.by_sample)
        rows = self._rows(rays, index)
        return self.noise.outputs(own.model, inputs, rows, sigma.float().to(target.device), own.outputs), target

    def _rows(self, rays: Tensor, index: Tensor) -> Rows:
        """Noise of some rows; that of a whole ray is kept where it is small, since all levels ask for it."""
        own, ray = self._own, int(rays[0])
        if bool((rays != ray).any()) or 4 * self.noise.components(own.inputs) * own.samples > KEPT:
            return self.noise.draw(own.inputs, own.contents.chosen(index).digests, rays)
        if ray not in self._kept:
            digests, rays = own.contents.digests, torch.full((own.samples,), ray)
            forms = tuple((tensor.shape, tensor.device) for tensor in tensors(own.inputs))
            key = self.noise, ray, own.contents.key, forms
            self._kept = {ray: own.drawn.get(key, lambda: self.noise.draw(own.inputs, digests, rays))}
        part = as_slice(index)
        return [None if drawn is None else drawn[part] for drawn in self._kept[ray]]


def measure_sample_basin(
    evaluator: Evaluator,
    low: float,
    high: float,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 1,
    cells: Grid | None = None,
    per_class: bool = False,
    seed: int = 0,
    noise_at: Sequence[str] | None = None,
    clean: Tensor | None = None,
    quiet: bool = False,
) -> BasinResult:
    """The basin of a network that is isolated already, see :func:`netdyn.functional.sample_basin`.

    ``cells`` are those to which every ray is bisected, ``clean`` says which samples are right without noise, if that is
    known, and ``quiet`` leaves out the warnings of floor and range.
    """
    own = evaluator.fresh()
    clean = (own.divided(lambda mine, part: mine.all_right()) if clean is None else clean).cpu()
    clean_accuracy = mean_of(clean, own.weight)
    ask = Rays(own, Noise.at(own.model, own.inputs, own.by_sample, noise_at, seed))
    some, right_at_high, votes = _at_high(ask, high, own.samples if relative else max(64, own.samples // 16))
    at_high = mean_of(right_at_high, None if own.weight is None else own.weight[some])
    floor = max(chance(own.answers), at_high)
    absolute = target_accuracy(accuracy, relative, clean_accuracy, floor, own.answers)
    labels, cluster = own.labels.cpu(), own.contents.clusters
    everyone = torch.ones(own.samples, dtype=torch.bool)
    ladder = _Ladder(ask, labels, low, high, seed)
    whole = Crossing(absolute, clean, cluster, low, high, own.weight)
    if whole.reachable:
        ladder.climb(everyone, whole)
        whole.guess = ladder.curve(everyone, whole).crossing(whole.aim)
    _search(ask, rays, [(everyone, whole)])
    per_class = per_class and own.num_classes > 1
    members = [labels == k for k in range(own.num_classes)] if per_class else []
    # None for an absent class.
    classes = [Crossing(absolute, clean[of], cluster[of], low, high) if bool(of.any()) else None for of in members]
    if per_class:
        ladder.complete()
        searches = [(of, search) for of, search in zip(members, classes, strict=True) if search is not None]
        for of, search in searches:
            if search.reachable:
                search.guess = ladder.curve(of, search).crossing(search.aim)
        _search(ask, rays, searches)
    top_outcomes = torch.full((own.samples,), math.nan, dtype=torch.float64)
    top_outcomes[some] = right_at_high
    curves = [None if c is None else ladder.curve(of, c, top_outcomes) for of, c in zip(members, classes, strict=True)]
    class_radii = [math.nan if c is None else c.radius for c in classes]
    intervals = [(math.nan, math.nan) if c is None else c.interval for c in classes]
    sizes = torch.tensor([len(torch.unique(cluster[of])) for of in members])
    radius, interval = whole.radius, whole.interval
    # Of all samples, where the search has come so far.
    top = mean_of(whole.right[max(whole.right)], own.weight) if whole.right else at_high
    if not (quiet or warn_of_range(radius, absolute, low, high, top) or relative):
        warn_of_floor(absolute, floor)
    radii: Tensor | None = None
    per_sample: Tensor | None = None
    if cells is not None and own.weight is not None:
        raise ValueError("`per_ray` needs one answer per sample, right or wrong, got a share of right ones per sample.")
    if cells is not None:
        lost = _bisected(ask, clean, cells, rays)
        radii = cells.radii(lost)
        if rays >= PER_SAMPLE_RAYS:
            found = [survival(each, cells).crossing(absolute) for each in lost.t()]
            per_sample = torch.tensor(found, dtype=torch.float64)
    influence = whole.influence()
    evaluator.passed += own.passed
    return BasinResult(
        influences=None
        if influence is None
        else sample_influences(key_of(seed, rays, own.contents.digests), radius, influence, cluster, own.weight),
        radii=radii,
        radius=radius,
        interval=interval,
        level=LEVEL,
        accuracy=absolute,
        clean=clean_accuracy,
        floor=floor,
        censored=at_high,
        per_class=torch.tensor(class_radii, dtype=torch.float64) if per_class else None,
        class_intervals=torch.tensor(intervals, dtype=torch.float64) if per_class else None,
        class_sizes=sizes if per_class else None,
        per_sample=per_sample,
        noise_classes=votes,
        high=high,
        forwards=own.forwards,
        noise_at=tuple(dict.fromkeys(site.name for site in ask.noise.sites)),
        curve=replace(ladder.curve(everyone, whole, top_outcomes), classes=tuple(curves)),
    )


def _at_high(ask: Rays, high: float, wanted: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Some samples, which of them are right at the top noise level, and the share of each class predicted there.

    Those with the smallest digests are asked, so that the probe's order does not matter.
    """
    own = ask.evaluator
    some = own.contents.first(wanted)
    levels = torch.full((1, own.samples), math.nan, dtype=torch.float64)
    levels[:, some] = math.log(high)
    right, classes = ask.outcomes(levels)[:, 0, some]
    votes = (
        torch.bincount(classes.long(), minlength=own.num_classes).double() / len(some) if own.num_classes > 1 else None
    )
    return some, right, votes


def _search(ask: Rays, rays: int, searches: Sequence[tuple[Tensor, Crossing]]) -> None:
    """Ask groups of samples, bool ``[samples]``, at the levels that their searches want, all groups in one pass."""
    while wanted := [(of, search, level) for of, search in searches if (level := search.next_level()) is not None]:
        levels = torch.full((rays, ask.evaluator.samples), math.nan, dtype=torch.float64)
        for of, _, level in wanted:
            levels[:, of] = level
        right = ask.right(levels).mean(dim=0)
        for of, search, level in wanted:
            search.right[level] = right[of]


class _Ladder:
    """The questions that show where accuracy falls, and the curve through their answers."""

    def __init__(self, ask: Rays, labels: Tensor, low: float, high: float, seed: int) -> None:
        self.ask, self.ends = ask, (math.log(low), math.log(high))
        rays = math.ceil((WIDE + NEAR) / len(labels))
        digests = ask.evaluator.contents.digests
        self.labels = labels.repeat(rays)
        self.chance = torch.cat([uniforms(keys(digests, seed, ray, "ladder")) for ray in range(rays)])
        portion = torch.cat([uniforms(keys(digests, seed, ray, "portion")) for ray in range(rays)])[:, 0]
        self.levels = torch.full((rays, len(labels)), math.nan, dtype=torch.float64)
        self.right = torch.zeros(rays, len(labels), dtype=torch.float64)
        weight = ask.evaluator.weight
        self.weight = torch.ones(len(labels), dtype=torch.float64) if weight is None else weight
        self.portions = portions(portion, self.labels)

    def climb(self, everyone: Tensor, search: Crossing) -> None:
        """Ask over the whole range, and then about the crossing that this has shown."""
        wide, near, _ = self.portions
        bottom, top = self.ends
        self._ask(wide, bottom, top)
        crossing = self.curve(everyone, search).crossing(search.aim)
        middle = min(max(math.log(max(crossing, 1e-300)), bottom + ABOUT), max(top - ABOUT, bottom))
        self._ask(near, max(middle - ABOUT, bottom), min(middle + ABOUT, top))

    def complete(self) -> None:
        """Ask what has not been asked over the whole range."""
        asked = ~self.levels.flatten().isnan()
        self._ask(torch.cat([own[~asked[own]] for own in self.portions]), *self.ends)

    def curve(self, of: Tensor, search: Crossing, at_high: Tensor | None = None) -> Curve:
        """Accuracy against σ over some samples, bool ``[samples]``: through the answers here, and those of a search.

        ``at_high [samples]`` are the outcomes at the top noise level, NaN where not asked: without them the curve would
        end with the few answers just below, which fall to zero by chance.
        """
        asked = ~self.levels[:, of].isnan()
        sigma = self.levels[:, of][asked].exp().tolist()
        share = self.right[:, of][asked].tolist()
        weights = self.weight.expand(len(self.levels), -1)[:, of][asked].tolist()
        for level, found in search.right.items():
            sigma.append(math.exp(level))
            share.append(mean_of(found, self.weight[of]))
            weights.append(float(len(found)))
        if at_high is not None and len(index := (of & ~at_high.isnan()).nonzero()[:, 0]):
            sigma.append(math.exp(self.ends[1]))
            share.append(mean_of(at_high[index], self.weight[index]))
            weights.append(float(len(index)))
        return falling_curve(search.clean_accuracy, sigma, share, weights)

    def _ask(self, questions: Tensor, low: float, high: float) -> None:
        wanted = torch.full_like(self.levels, math.nan)
        wanted.view(-1)[questions] = latin_levels(self.chance[questions], self.labels[questions], low, high)
        asked = ~wanted.isnan()
        self.right = torch.where(asked, self.ask.right(wanted), self.right)
        self.levels = torch.where(asked, wanted, self.levels)


def _bisected(ask: Rays, clean: Tensor, grid: Grid, rays: int) -> Tensor:
    """The cell in which each ray of each sample is lost, by bisection in log σ: int64 ``[rays, samples]``."""
    edges = grid.edges().log()
    low = torch.zeros(rays, len(clean), dtype=torch.int64)
    high = torch.full_like(low, grid.cells)
    for _ in range(grid.levels):
        middle = (low + high) // 2
        right = ask.right(edges[middle].masked_fill(~clean, math.nan)) > 0
        low, high = torch.where(right, middle, low), torch.where(right, high, middle)
    return low.masked_fill(~clean, LOST_CLEAN)
