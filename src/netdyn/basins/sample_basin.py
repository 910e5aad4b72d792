"""Walk rays in sample space: bisection in log σ, every ray of every sample with a bracket of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from netdyn._utils.transit import sent
from netdyn._utils.trees import blocks
from netdyn.basins.brackets import Brackets
from netdyn.basins.input_noise import Noise
from netdyn.basins.reentry import Rungs, correct
from netdyn.basins.result import LEVEL, LOST_CLEAN, BasinResult, Grid, survival
from netdyn.basins.search import UNKNOWN, Search
from netdyn.basins.supply import Supply
from netdyn.basins.target import chance, target_accuracy, warn_of_floor, warn_of_range
from netdyn.probes.criteria import checked, predictions
from netdyn.probes.evaluator import Walk as Walk

#: Rays from which on a radius of its own is given for every sample.
PER_SAMPLE_RAYS = 8


def noise_of(walk: Walk, names: Sequence[str] | None, seed: int) -> Noise:
    """The noise of a walk, see :meth:`netdyn.basins.input_noise.Noise.at`."""
    return Noise.at(walk.model, walk.inputs, walk.cut, names, seed)


def points(walk: Walk, names: Sequence[str] | None = None) -> Tensor:
    """What noise falls on, ``[samples, components]``; see :func:`netdyn.functional.coverage`."""
    noise = noise_of(walk, names, 0)
    parts = [noise.points(walk.model, walk.batch(part)[0]) for part in blocks(walk.samples, walk.batch_size)]
    return torch.cat(parts)


def sample_cells(walk: Walk, noise: Noise, grid: Grid, start: Tensor) -> Tensor:
    """Close the bracket of every ray of every sample, all right without noise: cells int64 ``[rays, samples]``.

    ``start`` holds the cells to begin with, on the host. Where none is known nobody waits for the answers.
    """
    return _bisected(walk, noise, grid, len(start)) if starts_cold(start) else _resumed(walk, noise, grid, start)


def starts_cold(start: Tensor) -> bool:
    """Whether no ray's cell is known."""
    return bool((start < 0).all())


def _bisected(walk: Walk, noise: Noise, grid: Grid, rays: int) -> Tensor:
    """From the whole grid, which takes every ray the same number of questions; cells on the network's device."""
    device = walk.target.device
    edges, cells = sent(grid.edges().float(), device), [torch.zeros(0, dtype=torch.int64, device=device)]
    for part in blocks(rays * walk.samples, walk.batch_size or walk.samples):
        row = torch.arange(part.start, part.stop)
        batch = walk.rows(noise, row // walk.samples, row % walk.samples)
        low = torch.zeros(len(row), dtype=torch.int64, device=device)
        high = torch.full_like(low, grid.cells)
        for _ in range(grid.levels):
            middle = (low + high) // 2
            outputs = walk.noisy(noise, batch, edges.index_select(0, middle))
            right = checked(walk.criterion, outputs, batch.target)
            low, high = torch.where(right, middle, low), torch.where(right, high, middle)
        cells.append(low)
    return torch.cat(cells).reshape(rays, walk.samples)


def _resumed(walk: Walk, noise: Noise, grid: Grid, start: Tensor) -> Tensor:
    """From the cells in ``start``; as many rows as there are samples in a batch are under way at a time.

    One whose bracket is closed makes room for the next, so that each answer is read before the next question.
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
    """Outcomes at the top noise level, int64 ``[2, samples]``: right or not on one ray, and the class (−1: none).

    They are on the network's device.
    """
    outcome = torch.full((2, walk.samples), -1, dtype=torch.int64, device=walk.target.device)
    for part in blocks(walk.samples, walk.batch_size):
        index = torch.arange(walk.samples)[part]
        batch = walk.rows(noise, torch.zeros_like(index), index)
        outputs = walk.noisy(noise, batch, torch.full((len(index),), grid.high))
        outcome[0, part] = checked(walk.criterion, outputs, batch.target).long()
        if walk.num_classes > 1:
            outcome[1, part] = predictions(outputs[:, None] if outputs.ndim == 1 else outputs)
    return outcome


def begin_sample_basin(
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
) -> Callable[[], BasinResult]:
    """Ray search in sample space, see :func:`netdyn.functional.sample_basin`.

    A search from the start is made at once, and nobody has to know an answer for it. One that begins where rays were
    last lost asks some of them again and again, and others no more, as the answers are: what is returned makes it, and
    does the rest.

    ``clean`` says who is right without noise, if that is known; ``quiet`` leaves out the warnings of floor and range.
    ``memory`` holds the last evaluation's cells, where the search begins, and takes this one's. A ray that is lost once
    and for all ends in the same cell with and without it; one that comes back may end in another of the cells in
    which it is lost. The accuracy that the radius crosses is measured at the same noise levels either way.
    """
    noise = noise_of(walk, noise_at, seed)
    own = replace(walk, passed=0, supply=Supply(noise, walk.inputs, walk.prints, rays))
    clean = own.shared(Walk.all_right) if clean is None else clean
    alive = clean.cpu().nonzero()[:, 0]
    start = torch.full((rays, own.samples), UNKNOWN)
    key = f"{grid.low}|{grid.high}|{grid.levels}|{noise.key}"
    # Processes that keep step with each other must ask equally often, which only a search from the start does.
    if memory is not None and not own.crew.lockstep:
        # What the first one remembers counts: one that has failed meanwhile remembers something else.
        start = own.crew.share(partial(memory.samples, key, own.prints, rays))[0]
    # A sixteenth of the samples tells the floor well enough for a warning; a relative radius is measured from it.
    # Those with the smallest digests are asked, so that the probe's order does not matter.
    wanted = own.samples if relative else max(64, own.samples // 16)
    some = torch.tensor(sorted(range(own.samples), key=own.prints.__getitem__)[:wanted])

    def ask() -> tuple[Tensor, Tensor]:
        cells = own.divided(lambda mine, part: sample_cells(mine, noise, grid, start[:, part]), alive)
        return cells, own.shared(lambda mine: at_top(mine, noise, grid), some)

    asked = ask() if starts_cold(start[:, alive]) else None

    def finish() -> BasinResult:
        found, top = asked or ask()
        cells = torch.full((rays, own.samples), LOST_CLEAN)
        cells[:, alive] = found.cpu()
        if memory is not None:
            memory.keep_samples(key, own.prints, cells)
        result = summarize_samples(
            cells,
            grid,
            own.known_labels,
            own.num_classes,
            accuracy=accuracy,
            relative=relative,
            top=top,
            right_at=lambda sigma: _shared_right_at(own, noise, sigma),
            forwards=lambda: own.forwards,
            quiet=quiet,
            bisected=(start < 0),
        )
        walk.passed += own.passed
        return result

    return finish


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
        bisected=torch.ones_like(cells, dtype=torch.bool) if bisected is None else bisected,
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
