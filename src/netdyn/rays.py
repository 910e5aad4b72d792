"""Walk rays in sample space: bisection in log σ, every ray of every sample with a bracket of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from netdyn import _checks
from netdyn.batches import blocks
from netdyn.brackets import Brackets
from netdyn.criteria import checked, predictions
from netdyn.noise import Noise
from netdyn.radii import LEVEL, LOST_CLEAN, BasinResult, Grid, default_accuracy, survival
from netdyn.reentry import Rungs, correct
from netdyn.search import UNKNOWN, Search
from netdyn.supply import Supply
from netdyn.walk import Walk as Walk

#: Rays from which on a radius of its own is given for every sample.
PER_SAMPLE_RAYS = 8
#: A radius is not to be trusted where its accuracy is nearer than this to what noise alone leaves.
FLOOR_MARGIN = 0.05


def noise_of(walk: Walk, names: Sequence[str] | None, seed: int) -> Noise:
    """The noise of a walk, see :meth:`netdyn.noise.Noise.at`."""
    return Noise.at(walk.model, walk.inputs, walk.cut, names, seed)


def points(walk: Walk, names: Sequence[str] | None = None) -> Tensor:
    """What noise falls on, ``[samples, components]``; see :func:`netdyn.functional.coverage`."""
    noise = noise_of(walk, names, 0)
    parts = [noise.points(walk.model, walk.batch(part)[0]) for part in blocks(walk.samples, walk.batch_size)]
    return torch.cat(parts)


def sample_cells(walk: Walk, noise: Noise, grid: Grid, start: Tensor) -> Tensor:
    """Close the bracket of every ray of every sample, all right without noise: cells int64 ``[rays, samples]``.

    ``start`` holds the cells to begin with. As many rows as there are samples in a batch are under way at a time; one
    whose bracket is closed makes room for the next.
    """
    rays, samples = start.shape
    edges = grid.edges().float()
    search = Search(grid, start.reshape(-1))
    size, waiting = walk.batch_size or max(samples, 1), 0
    under_way, batch = torch.zeros(0, dtype=torch.int64), None
    while True:
        if len(under_way) < size and waiting < rays * samples:
            new = torch.arange(waiting, min(rays * samples, waiting + size - len(under_way)))
            rows = walk.rows(noise, new // samples, new % samples)
            batch = rows if batch is None else batch.joined(rows)
            under_way, waiting = torch.cat([under_way, new]), int(new[-1]) + 1
        if batch is None or not len(under_way):
            return search.low.reshape(rays, samples)
        outputs = walk.noisy(noise, batch, edges[search.question(under_way)])
        search.answer(under_way, checked(walk.criterion, outputs, batch.target).cpu())
        going = (~search.closed(under_way)).nonzero()[:, 0]
        if len(going) < len(under_way):
            under_way, batch = under_way[going], batch.chosen(going) if len(going) else None


def right_at(walk: Walk, noise: Noise, sigma: Tensor) -> Tensor:
    """Which rays are right at their noise levels ``sigma [rays, samples]``, NaN for not to be asked; bool likewise."""
    right = torch.zeros(sigma.shape, dtype=torch.bool)
    asked = (~sigma.isnan()).nonzero()
    for part in blocks(len(asked), walk.batch_size or walk.samples):
        rays, index = asked[part].t()
        if len(rays):
            batch = walk.rows(noise, rays, index)
            outputs = walk.noisy(noise, batch, sigma[rays, index])
            right[rays, index] = checked(walk.criterion, outputs, batch.target).cpu()
    return right


def at_top(walk: Walk, noise: Noise, grid: Grid) -> Tensor:
    """Outcomes at the top noise level, int64 ``[2, samples]``: right or not on one ray, and the class (−1: none)."""
    outcome = torch.full((2, walk.samples), -1, dtype=torch.int64)
    for part in blocks(walk.samples, walk.batch_size):
        index = torch.arange(walk.samples)[part]
        batch = walk.rows(noise, torch.zeros_like(index), index)
        outputs = walk.noisy(noise, batch, torch.full((len(index),), grid.high))
        outcome[0, part] = checked(walk.criterion, outputs, batch.target).long().cpu()
        if walk.num_classes > 1:
            outcome[1, part] = predictions(outputs[:, None] if outputs.ndim == 1 else outputs).cpu()
    return outcome


def chance(num_classes: int) -> float:
    """Accuracy of guessing; 0 where there are no classes."""
    return 1 / num_classes if num_classes > 1 else 0.0


def target_accuracy(accuracy: float | None, relative: bool, clean: float, floor: float, num_classes: int) -> float:
    """The absolute accuracy that defines a radius."""
    wanted = default_accuracy(num_classes) if accuracy is None else accuracy
    if relative:
        # Where the network does not beat noise there is no basin: no accuracy is as high as 1, so that the radius is 0.
        return floor + wanted * (clean - floor) if clean > floor else 1.0
    return wanted


def warn_of_floor(accuracy: float, floor: float) -> None:
    """Warn if the accuracy that defines a radius is too near to what noise alone leaves."""
    if accuracy < floor + FLOOR_MARGIN:
        _checks.warn(
            f"`accuracy` is {accuracy:g}, but noise alone leaves an accuracy of {floor:.2f}: so near to it the radius "
            f"means little. Use {_usable(floor)}relative=True."
        )


def _usable(floor: float) -> str:
    """An accuracy well above what noise leaves, as part of an advice; empty if there is none."""
    usable = round((1 + floor) / 2, 2)
    return f"accuracy={usable:g}, or " if usable >= floor + FLOOR_MARGIN else ""


def warn_of_range(radius: float, accuracy: float, grid: Grid, top: float) -> bool:
    """Warn if the radius lies outside the noise levels searched; whether it does."""
    if radius == math.inf:
        _checks.warn(
            f"The largest noise level, `high` = {grid.high:g}, leaves an accuracy of {top:.2f}, and `accuracy` is "
            f"{accuracy:.2f}: the radius lies beyond it. Set a larger `high` if noise of that level is small beside "
            f"the inputs, else use {_usable(top)}relative=True."
        )
    elif 0 < radius < float(grid.edges()[1]):
        warn_of_low(grid)
    return not float(grid.edges()[1]) <= radius < math.inf and radius != 0


def warn_of_low(grid: Grid) -> None:
    """Warn that a radius lies below the noise levels searched."""
    _checks.warn(
        f"The radius lies below the smallest noise level asked, {float(grid.edges()[1]):.3g}. Set a smaller `low`, got "
        f"{grid.low:g}."
    )


def sample_basin(
    walk: Walk,
    grid: Grid,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 1,
    seed: int = 0,
    noise_at: Sequence[str] | None = None,
    clean: Tensor | None = None,
    quiet: bool = False,
    memory: Brackets | None = None,
) -> BasinResult:
    """Ray search in sample space, see :func:`netdyn.functional.sample_basin`.

    ``clean`` says who is right without noise, if that is known; ``quiet`` leaves out the warnings of floor and range.
    ``memory`` holds the last evaluation's cells, where the search begins, and takes this one's. A ray that is lost once
    and for all ends in the same cell with and without it; one that comes back may end in another of the cells in
    which it is lost. The accuracy that the radius crosses is measured at the same noise levels either way.
    """
    noise = noise_of(walk, noise_at, seed)
    walk.supply = Supply(noise, walk.inputs, walk.prints, rays)
    try:
        return _searched(walk, noise, grid, accuracy, relative, rays, clean, quiet, memory)
    finally:
        walk.supply = None


def _searched(
    walk: Walk,
    noise: Noise,
    grid: Grid,
    accuracy: float | None,
    relative: bool,
    rays: int,
    clean: Tensor | None,
    quiet: bool,
    memory: Brackets | None,
) -> BasinResult:
    """:func:`sample_basin`, with the noise at hand."""
    before = walk.forwards
    clean = walk.shared(Walk.all_right) if clean is None else clean
    alive = clean.cpu().nonzero()[:, 0]
    cells, start = torch.full((rays, walk.samples), LOST_CLEAN), torch.full((rays, walk.samples), UNKNOWN)
    key = f"{grid.low}|{grid.high}|{grid.levels}|{noise.key}"
    # Processes that keep step with each other must ask equally often, which only a search from the start does.
    if memory is not None and not walk.crew.lockstep:
        start = memory.samples(key, walk.prints, rays)
    cells[:, alive] = walk.divided(lambda own, part: sample_cells(own, noise, grid, start[:, part]), alive)
    if memory is not None:
        memory.keep_samples(key, walk.prints, cells)
    # A sixteenth of the samples tells the floor well enough for a warning; a relative radius is measured from it.
    # Those with the smallest digests are asked, so that the probe's order does not matter.
    wanted = walk.samples if relative else max(64, walk.samples // 16)
    asked = torch.tensor(sorted(range(walk.samples), key=walk.prints.__getitem__)[:wanted])
    return summarize_samples(
        cells,
        grid,
        walk.labels,
        walk.num_classes,
        accuracy=accuracy,
        relative=relative,
        top=walk.shared(lambda own: at_top(own, noise, grid), asked),
        right_at=lambda sigma: _shared_right_at(walk, noise, sigma),
        forwards=lambda: walk.forwards - before,
        quiet=quiet,
        bisected=(start < 0),
    )


def _shared_right_at(walk: Walk, noise: Noise, sigma: Tensor) -> Tensor:
    """:func:`right_at` by all processes together."""
    if walk.crew.lockstep:
        # All must run the network equally often: everybody's rays are asked, somewhere.
        sigma = torch.where(sigma.isnan(), float(sigma.nan_to_num().max()), sigma)
    index = (~sigma.isnan()).any(dim=0).nonzero()[:, 0]
    right = torch.zeros(sigma.shape, dtype=torch.bool)
    right[:, index] = walk.divided(lambda own, part: right_at(own, noise, sigma[:, part]), index)
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
    bisected: Tensor | None = None,
) -> BasinResult:
    """From cells ``[rays, samples]`` to the result.

    ``top`` is what :func:`at_top` gives for some of the samples; ``right_at`` asks rays at the noise levels that the
    correction needs. ``bisected`` says which rays' searches began with the whole grid (None: all).
    """
    cells, labels = cells.cpu(), labels.cpu()
    edges = grid.edges()
    clean = float((cells[0] != LOST_CLEAN).double().mean())
    at_high = float(top[0].double().mean())
    floor = max(chance(num_classes), at_high)
    absolute = target_accuracy(accuracy, relative, clean, floor, num_classes)
    rungs = Rungs(
        cells,
        grid,
        look=lambda asked: right_at(torch.where(asked >= 0, edges[asked.clamp(min=0)], math.nan)),
        bisected=torch.ones_like(cells, dtype=torch.bool) if bisected is None else bisected,
    )
    members = [labels == k for k in range(num_classes)] if num_classes > 1 else []
    found = correct(rungs, absolute, members)
    if not (quiet or warn_of_range(found.radius, absolute, grid, at_high) or relative):
        warn_of_floor(absolute, floor)
    per_sample = None
    if len(cells) >= PER_SAMPLE_RAYS:
        per_sample = torch.tensor([survival(rays, grid).crossing(absolute) for rays in cells.t()], dtype=torch.float64)
    votes = torch.bincount(top[1].cpu(), minlength=num_classes).double() / top.shape[1] if num_classes > 1 else None
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
