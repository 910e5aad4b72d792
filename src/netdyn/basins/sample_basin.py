"""How much noise on the samples it takes until the network is wrong: rays in sample space.

Bisection in log σ, every ray of every sample with a bracket of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.trees import Inputs, as_slice, blocks, take
from netdyn.basins.curve import LOST_CLEAN, Grid, survival
from netdyn.basins.input_noise import Noise, Rows
from netdyn.basins.interval import LEVEL
from netdyn.basins.reentry import Rungs, correct
from netdyn.basins.result import BasinResult
from netdyn.basins.target import chance, check_basin, target_accuracy, warn_of_floor, warn_of_range
from netdyn.isolation.isolated import isolated
from netdyn.probes.criteria import Criterion, apply_criterion, predictions
from netdyn.probes.evaluator import Evaluator
from netdyn.probes.tasks import TOLERANCE, prepare

#: Rays from which on a radius of its own is given for every sample.
PER_SAMPLE_RAYS = 8


def sample_basin(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 1,
    low: float = 1e-3,
    high: float = 1e1,
    rel_tol: float = 0.05,
    seed: int = 0,
    batch_size: int | None = None,
    criterion: Criterion | None = None,
    tolerance: float = TOLERANCE,
    noise_at: Sequence[str] | None = None,
) -> BasinResult:
    """How much noise the inputs bear before the network's predictions stop being right.

    Along a ray x + σ·ε, ε ~ N(0, I), bisection in log σ finds the noise level T at which the prediction stops being
    right. The radius is the σ at which accuracy has fallen to ``accuracy``: the quantile of T, corrected for rays that
    are right again beyond T by measuring accuracy at one or two noise levels of the search next to it.

    Args:
        model: Any PyTorch module; called as ``model(inputs)``, in eval mode.
        inputs: A tensor, or a sequence or mapping of tensors, samples first; noise falls on the floating ones.
        target: Class labels ``[samples]``, or numbers to be predicted (or what ``criterion`` takes).
        accuracy: The accuracy that defines the radius, in (0, 1). None: 0.5 as in P1, and 0.75 for two classes.
        relative: Count ``accuracy`` from the floor that noise leaves (0) to the accuracy without noise (1).
        rays: Rays a sample. With 8 or more every sample gets a radius of its own.
        low: Smallest noise level, per input component in the units in which the model receives its input.
        high: Largest noise level.
        rel_tol: Cells of the search end no wider than (1 + rel_tol)².
        seed: Seed of the noise, which depends on it, the ray and the sample's content alone.
        batch_size: Samples a forward pass; None: all at once. Changes nothing but rounding.
        criterion: ``criterion(outputs, target)`` → bool ``[samples]``; None: the predicted class is the target (its
            sign, for a single logit), finite outputs only.
        tolerance: How far a predicted number may move before it counts as wrong, in standard deviations of its target.
        noise_at: Where noise falls: names of modules, whose outputs are disturbed (``["embedding"]`` where the inputs
            are token ids), or of parts of the inputs by key or position (``["image"]``, ``["0"]``), which win where a
            module has the same name. None: all floating inputs.

    Returns:
        The radius with its interval, and what stands behind it.

    Warns:
        UserWarning: If ``accuracy`` is within 0.05 of what noise alone leaves, if the radius lies outside of the noise
            levels, if the inputs are not finite, or if the model puts out other numbers at a second call.

    Raises:
        TypeError: If the labels are not whole numbers, or there is nothing floating to disturb.
        ValueError: If an argument lies outside its range, a name is unknown, or the output is not
            ``[samples, classes]``.

    Source:
        P1, attraction basin in sample space. Ray search, correction and interval are netdyn's conventions.

    Example:
        >>> import torch
        >>> net = nn.Linear(1, 2)
        >>> net.load_state_dict({"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> x = torch.linspace(0.5, 1.5, 500)[:, None]
        >>> basin = sample_basin(net, x, torch.ones(500, dtype=torch.int64), accuracy=0.9)
        >>> basin.interval[0] < basin.radius < basin.interval[1]
        True
    """
    grid = check_basin(accuracy, rays, low, high, rel_tol, seed)
    checks.positive("tolerance", tolerance)
    with isolated(model):
        evaluator = prepare(model, inputs, target, criterion, batch_size, tolerance)
        return measure_sample_basin(
            evaluator, grid, accuracy=accuracy, relative=relative, rays=rays, seed=seed, noise_at=noise_at
        )


def noise_of(evaluator: Evaluator, names: Sequence[str] | None, seed: int) -> Noise:
    """The noise on a probe, see :meth:`netdyn.basins.input_noise.Noise.at`."""
    return Noise.at(evaluator.model, evaluator.inputs, evaluator.by_sample, names, seed)


@dataclass(frozen=True)
class Batch:
    """Rows to be run under noise, each a ray of a sample.

    Attributes:
        evaluator: The network and the probe.
        noise: Where the noise falls.
        inputs: The samples, without noise; not to be written over.
        target: Their targets ``[rows]``.
        drawn: Their noise.
    """

    evaluator: Evaluator
    noise: Noise
    inputs: Inputs
    target: Tensor
    drawn: Rows

    @classmethod
    def of(cls, evaluator: Evaluator, noise: Noise, rays: Tensor, index: Tensor) -> Batch:
        """Some rows: their rays and their samples, int64 on the CPU."""
        digests, part = evaluator.digests, as_slice(index)
        drawn = noise.draw(evaluator.inputs, [digests[i] for i in index.tolist()], rays.tolist())
        return cls(evaluator, noise, take(evaluator.inputs, part, evaluator.by_sample), evaluator.targets(part), drawn)

    def outputs(self, sigma: Tensor) -> Any:
        """The network's outputs under noise of level ``sigma [rows]``."""
        level = sigma.float().to(self.target.device)
        return self.noise.outputs(self.evaluator.model, self.inputs, self.drawn, level, self.evaluator.outputs)

    def right(self, sigma: Tensor) -> Tensor:
        """Which rows are right under noise of level ``sigma [rows]``, bool ``[rows]``."""
        return apply_criterion(self.evaluator.criterion, self.outputs(sigma), self.target)


def sample_cells(evaluator: Evaluator, noise: Noise, grid: Grid, rays: int) -> Tensor:
    """Bisect every ray of every sample, all right without noise: cells int64 ``[rays, samples]``.

    Every ray takes the same number of questions. The cells are on the network's device.
    """
    samples, device = evaluator.samples, evaluator.target.device
    edges, cells = grid.edges().float().to(device), [torch.zeros(0, dtype=torch.int64, device=device)]
    for part in blocks(rays * samples, evaluator.batch_size or samples):
        row = torch.arange(part.start, part.stop)
        batch = Batch.of(evaluator, noise, row // samples, row % samples)
        low = torch.zeros(len(row), dtype=torch.int64, device=device)
        high = torch.full_like(low, grid.cells)
        for _ in range(grid.levels):
            middle = (low + high) // 2
            right = batch.right(edges.index_select(0, middle))
            low, high = torch.where(right, middle, low), torch.where(right, high, middle)
        cells.append(low)
    return torch.cat(cells).reshape(rays, samples)


def right_at(evaluator: Evaluator, noise: Noise, sigma: Tensor) -> Tensor:
    """Which rays are right at their noise levels ``sigma [rays, samples]``, NaN for not to be asked; bool likewise."""
    right = torch.zeros(sigma.shape, dtype=torch.bool)
    asked = (~sigma.isnan()).nonzero()
    for part in blocks(len(asked), evaluator.batch_size or evaluator.samples):
        rays, index = asked[part].t()
        if len(rays):
            right[rays, index] = Batch.of(evaluator, noise, rays, index).right(sigma[rays, index]).cpu()
    return right


def at_top(evaluator: Evaluator, noise: Noise, grid: Grid) -> Tensor:
    """Outcomes at the top noise level, int64 ``[2, samples]``: right or not on one ray, and the class (−1: none).

    They are on the network's device.
    """
    outcome = torch.full((2, evaluator.samples), -1, dtype=torch.int64, device=evaluator.target.device)
    for part in blocks(evaluator.samples, evaluator.batch_size):
        index = torch.arange(evaluator.samples)[part]
        batch = Batch.of(evaluator, noise, torch.zeros_like(index), index)
        outputs = batch.outputs(torch.full((len(index),), grid.high))
        outcome[0, part] = apply_criterion(evaluator.criterion, outputs, batch.target).long()
        if evaluator.num_classes > 1:
            outcome[1, part] = predictions(outputs[:, None] if outputs.ndim == 1 else outputs)
    return outcome


def measure_sample_basin(
    evaluator: Evaluator,
    grid: Grid,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 1,
    seed: int = 0,
    noise_at: Sequence[str] | None = None,
    clean: Tensor | None = None,
    quiet: bool = False,
) -> BasinResult:
    """Ray search in sample space, see :func:`netdyn.functional.sample_basin`.

    ``clean`` says which samples are right without noise, if that is known; ``quiet`` leaves out the warnings of floor
    and range.
    """
    noise = noise_of(evaluator, noise_at, seed)
    own = replace(evaluator, passed=0)
    clean = own.divided(lambda mine, part: mine.all_right()) if clean is None else clean
    alive = clean.cpu().nonzero()[:, 0]
    cells = torch.full((rays, own.samples), LOST_CLEAN)
    cells[:, alive] = own.divided(lambda mine, part: sample_cells(mine, noise, grid, rays), alive).cpu()
    # A sixteenth of the samples tells the floor well enough for a warning; a relative radius is measured from it.
    # Those with the smallest digests are asked, so that the probe's order does not matter.
    wanted = own.samples if relative else max(64, own.samples // 16)
    some = torch.tensor(sorted(range(own.samples), key=own.digests.__getitem__)[:wanted])
    result = summarize_samples(
        cells,
        grid,
        own.labels,
        own.num_classes,
        accuracy=accuracy,
        relative=relative,
        top=own.divided(lambda mine, part: at_top(mine, noise, grid), some),
        right_at=lambda sigma: _shared_right_at(own, noise, sigma),
        forwards=lambda: own.forwards,
        quiet=quiet,
    )
    evaluator.passed += own.passed
    return result


def _shared_right_at(evaluator: Evaluator, noise: Noise, sigma: Tensor) -> Tensor:
    """:func:`right_at` by all processes together."""
    if evaluator.processes.lockstep:
        # All must run the network equally often: everybody's rays are asked, somewhere.
        sigma = torch.where(sigma.isnan(), float(sigma.nan_to_num().max()), sigma)
    index = (~sigma.isnan()).any(dim=0).nonzero()[:, 0]
    right = torch.zeros(sigma.shape, dtype=torch.bool)
    right[:, index] = evaluator.divided(lambda own, part: right_at(own, noise, sigma[:, part]), index)
    return right


def summarize_samples(
    cells: Tensor,
    grid: Grid,
    labels: Tensor,
    num_classes: int,
    *,
    accuracy: float | None,
    relative: bool,
    top: Tensor,
    right_at: Callable[[Tensor], Tensor],
    forwards: Callable[[], float],
    quiet: bool = False,
) -> BasinResult:
    """From cells ``[rays, samples]`` to the result.

    ``top`` is what :func:`at_top` gives for some of the samples; ``right_at`` asks rays at the noise levels that the
    correction needs.
    """
    cells, labels, top = cells.cpu(), labels.cpu(), top.cpu()
    edges = grid.edges()
    clean = float((cells[0] != LOST_CLEAN).double().mean())
    at_high = float(top[0].double().mean())
    floor = max(chance(num_classes), at_high)
    absolute = target_accuracy(accuracy, relative, clean, floor, num_classes)
    rungs = Rungs(
        cells,
        grid,
        look=lambda asked: right_at(torch.where(asked >= 0, edges[asked.clamp(min=0)], math.nan)),
    )
    members = [labels == k for k in range(num_classes)] if num_classes > 1 else []
    found = correct(rungs, absolute, members)
    if not (quiet or warn_of_range(found.radius, absolute, grid, at_high) or relative):
        warn_of_floor(absolute, floor)
    per_sample = None
    if len(cells) >= PER_SAMPLE_RAYS:
        per_sample = torch.tensor([survival(rays, grid).crossing(absolute) for rays in cells.t()], dtype=torch.float64)
    votes = torch.bincount(top[1], minlength=num_classes).double() / top.shape[1] if num_classes > 1 else None
    return BasinResult(
        radii=grid.radii(cells),
        radius=found.radius,
        interval=found.interval,
        level=LEVEL,
        accuracy=absolute,
        clean=clean,
        floor=floor,
        censored=float((cells == grid.cells - 1).double().mean()),
        reentry=found.reentry,
        per_class=found.groups,
        per_sample=per_sample,
        noise_classes=votes,
        high=grid.high,
        forwards=forwards(),
        curve=replace(
            survival(cells, grid),
            classes=tuple(survival(cells[:, own], grid) if bool(own.any()) else None for own in members),
        ),
    )
