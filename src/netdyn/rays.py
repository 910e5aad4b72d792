"""Walk rays in sample space: bisection in log σ, every ray of every sample with a bracket of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netdyn.batches import Inputs, blocks, count, disturb, fingerprints, has_floating, standard_noise, take
from netdyn.criteria import Criterion, checked, predictions, right_class
from netdyn.radii import LEVEL, LOST_CLEAN, BasinResult, Grid, default_accuracy, sample_radius, survival

#: Rays from which on a radius of its own is given for every sample.
PER_SAMPLE_RAYS = 8
#: A radius is not to be trusted where its accuracy is nearer than this to what pure noise gives.
FLOOR_MARGIN = 0.05


@dataclass
class Walk:
    """A network, a probe and a criterion; counts the samples it sends through the network.

    Attributes:
        model: The network, in eval mode.
        inputs: The probe's inputs.
        target: Their targets ``[samples]``.
        criterion: Says which outputs are still right.
        batch_size: Samples a forward pass (None: all).
        passed: Samples sent through the network so far.
    """

    model: nn.Module
    inputs: Inputs
    target: Tensor
    criterion: Criterion = right_class
    batch_size: int | None = None
    passed: int = 0

    def __post_init__(self) -> None:
        self.samples = count(self.inputs)

    def right(self, inputs: Inputs, target: Tensor, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """Which samples of a batch are right, bool ``[batch]``."""
        self.passed += len(target)
        return checked(self.criterion, (model or self.model)(inputs), target)

    def all_right(self, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """Which samples of the probe are right, bool ``[samples]``."""
        parts = blocks(self.samples, self.batch_size)
        return torch.cat([self.right(take(self.inputs, part), self.target[part], model) for part in parts])

    @property
    def forwards(self) -> float:
        """Forward passes a sample so far."""
        return self.passed / max(self.samples, 1)


def clean_right(walk: Walk, clean: Tensor | None) -> Tensor:
    """Which samples are right without noise, measured unless it is known already."""
    return walk.all_right() if clean is None else clean


def sample_cells(walk: Walk, prints: Sequence[bytes], grid: Grid, rays: int, seed: int, clean: Tensor) -> Tensor:
    """Bisect every ray of every sample: cells int64 ``[rays, samples]``.

    A sample wrong without noise is resolved before the search and takes no part in it. All others take ``grid.levels``
    steps, each of one forward pass, with a bracket of their own.
    """
    device = walk.target.device
    edges = grid.edges().to(device=device, dtype=torch.float32)
    cells = torch.full((rays, walk.samples), LOST_CLEAN, device=device)
    for part in blocks(walk.samples, walk.batch_size):
        alive = torch.arange(part.start, part.stop, device=device)[clean[part]]
        if len(alive) == 0:
            continue
        inputs, target = take(walk.inputs, alive), walk.target[alive]
        own_prints = [prints[i] for i in alive.tolist()]
        for ray in range(rays):
            noise = standard_noise(inputs, own_prints, seed, ray)
            low, high = torch.zeros_like(alive), torch.full_like(alive, grid.cells)
            for _ in range(grid.levels):
                middle = (low + high) // 2
                right = walk.right(disturb(inputs, noise, edges[middle]), target)
                low, high = torch.where(right, middle, low), torch.where(right, high, middle)
            cells[ray, alive] = low
    return cells


def right_at(walk: Walk, prints: Sequence[bytes], rays: int, seed: int, sigma: float) -> Tensor:
    """Which rays are right at one noise level, bool ``[rays, samples]``."""
    right = torch.empty(rays, walk.samples, dtype=torch.bool, device=walk.target.device)
    for part in blocks(walk.samples, walk.batch_size):
        inputs, target = take(walk.inputs, part), walk.target[part]
        level = torch.full((len(target),), sigma, device=walk.target.device)
        for ray in range(rays):
            noise = standard_noise(inputs, prints[part], seed, ray)
            right[ray, part] = walk.right(disturb(inputs, noise, level), target)
    return right


def noise_floor(
    walk: Walk, prints: Sequence[bytes], grid: Grid, seed: int, num_classes: int, every_sample: bool
) -> tuple[float, Tensor]:
    """Accuracy at the top noise level, and the share of each class among the predictions there.

    One ray is enough, and a sixteenth of the samples (at least 64): those with the smallest digests, so that the order of the
    probe does not matter.
    """
    wanted = walk.samples if every_sample else max(64, walk.samples // 16)
    chosen = torch.tensor(sorted(range(walk.samples), key=lambda i: prints[i])[:wanted])
    right: list[Tensor] = []
    votes = torch.zeros(num_classes, dtype=torch.float64)
    for part in blocks(len(chosen), walk.batch_size):
        index = chosen[part]
        inputs, target = take(walk.inputs, index.to(walk.target.device)), walk.target[index.to(walk.target.device)]
        noise = standard_noise(inputs, [prints[i] for i in index.tolist()], seed, 0)
        outputs = walk.model(disturb(inputs, noise, torch.full((len(target),), grid.high, device=target.device)))
        walk.passed += len(target)
        right.append(checked(walk.criterion, outputs, target))
        if isinstance(outputs, Tensor) and outputs.ndim <= 2:
            logits = outputs[:, None] if outputs.ndim == 1 else outputs
            votes += torch.bincount(predictions(logits), minlength=num_classes)[:num_classes].cpu()
    return float(torch.cat(right).double().mean()), votes / max(float(votes.sum()), 1.0)


def target_accuracy(accuracy: float | None, relative: bool, clean: float, floor: float, num_classes: int) -> float:
    """The absolute accuracy that defines a radius."""
    wanted = default_accuracy(num_classes) if accuracy is None else accuracy
    if relative:
        # Where the network does not beat noise there is no basin: radius 0.
        return floor + wanted * (clean - floor) if clean > floor else 1.0
    if wanted < floor + FLOOR_MARGIN:
        usable = (1 + floor) / 2
        warnings.warn(
            f"`accuracy` is {wanted:g}, but noise alone leaves an accuracy of {floor:.2f}: the radius means little so near to "
            f"it. Use accuracy={usable:.2f}, or relative=True.",
            UserWarning,
            stacklevel=2,
        )
    return wanted


def sample_basin(
    walk: Walk,
    grid: Grid,
    *,
    num_classes: int,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 1,
    seed: int = 0,
    clean: Tensor | None = None,
) -> BasinResult:
    """Ray search in sample space; see :func:`netdyn.functional.sample_basin`."""
    if not has_floating(walk.inputs):
        raise TypeError(
            "`inputs` holds no floating tensor that noise could disturb. "
            "Give the model floating inputs, for instance the output of its embedding."
        )
    prints = fingerprints(walk.inputs)
    clean = clean_right(walk, clean)
    cells = sample_cells(walk, prints, grid, rays, seed, clean)
    at_top, votes = noise_floor(walk, prints, grid, seed, num_classes, every_sample=relative)
    return summarize_samples(
        cells,
        grid,
        walk.target,
        num_classes,
        accuracy=accuracy,
        relative=relative,
        at_top=at_top,
        votes=votes,
        right_at=lambda sigma: right_at(walk, prints, rays, seed, sigma),
        forwards=lambda: walk.forwards,
    )


def summarize_samples(
    cells: Tensor,
    grid: Grid,
    target: Tensor,
    num_classes: int,
    *,
    accuracy: float | None,
    relative: bool,
    at_top: float,
    votes: Tensor,
    right_at: Callable[[float], Tensor],
    forwards: Callable[[], float],
) -> BasinResult:
    """From cells ``[rays, samples]`` to the result; ``right_at`` makes the one more pass that the correction needs."""
    cells, target = cells.cpu(), target.cpu()
    clean = float((cells[0] != LOST_CLEAN).double().mean())
    floor = max(1 / num_classes, at_top)
    absolute = target_accuracy(accuracy, relative, clean, floor, num_classes)
    radius, interval, radius_of, reentry = sample_radius(cells, grid, absolute, right_at)
    # Labels of a regression are no classes.
    classes = range(num_classes) if not target.is_floating_point() else ()
    per_sample = None
    if len(cells) >= PER_SAMPLE_RAYS:
        per_sample = torch.tensor([survival(column, grid).crossing(absolute) for column in cells.t()], dtype=torch.float64)
    return BasinResult(
        radii=grid.radii(cells),
        radius=radius,
        interval=interval,
        level=LEVEL,
        accuracy=absolute,
        clean=clean,
        floor=floor,
        censored=float((cells == grid.cells - 1).double().mean()),
        reentry=reentry,
        per_class=torch.tensor([radius_of(target == k) for k in classes], dtype=torch.float64),
        per_sample=per_sample,
        noise_classes=votes,
        forwards=forwards(),
        curve=survival(cells, grid),
    )
