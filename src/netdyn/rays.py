"""Walk rays in sample space: bisection in log σ, every ray of every sample with a bracket of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from netdyn.batches import Inputs, blocks, count, disturb, fingerprints, has_floating, standard_noise, take
from netdyn.criteria import Criterion, checked, predictions
from netdyn.radii import LEVEL, LOST_CLEAN, BasinResult, Grid, default_accuracy, sample_radius, survival

#: Rays from which on a radius of its own is given for every sample.
PER_SAMPLE_RAYS = 8
#: A radius is not to be trusted where its accuracy is nearer than this to what noise alone leaves.
FLOOR_MARGIN = 0.05


@dataclass
class Walk:
    """A network, a probe and a criterion; counts the samples that it sends through the network.

    Attributes:
        model: The network, in eval mode.
        inputs: The probe's inputs.
        target: Their targets ``[samples]``.
        criterion: Says which outputs are still right.
        num_classes: Number of classes; 1 where the targets are no labels.
        batch_size: Samples a forward pass (None: all).
        passed: Samples sent through the network so far.
    """

    model: nn.Module
    inputs: Inputs
    target: Tensor
    criterion: Criterion
    num_classes: int
    batch_size: int | None = None
    passed: int = 0

    @cached_property
    def samples(self) -> int:
        """Number of samples."""
        return count(self.inputs)

    @cached_property
    def prints(self) -> list[bytes]:
        """Digest of every sample's content, which seeds its noise."""
        return fingerprints(self.inputs)

    @cached_property
    def labels(self) -> Tensor:
        """Class labels int64 ``[samples]``; all zero where the targets are no labels."""
        none = torch.zeros(self.samples, dtype=torch.int64, device=self.target.device)
        return self.target if self.num_classes > 1 else none

    def outputs(self, inputs: Inputs, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """The network's outputs for a batch."""
        self.passed += count(inputs)
        return (model or self.model)(inputs)

    def right(self, inputs: Inputs, target: Tensor, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """Which samples of a batch are right, bool ``[batch]``."""
        return checked(self.criterion, self.outputs(inputs, model), target)

    def all_right(self, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """Which samples of the probe are right, bool ``[samples]``."""
        parts = blocks(self.samples, self.batch_size)
        return torch.cat([self.right(take(self.inputs, part), self.target[part], model) for part in parts])

    @property
    def forwards(self) -> float:
        """Forward passes a sample so far."""
        return self.passed / max(self.samples, 1)


@dataclass(frozen=True)
class Top:
    """At the top noise level: which samples are right, and their predicted classes (empty where there are none)."""

    right: Tensor
    predicted: Tensor


def sample_cells(walk: Walk, grid: Grid, rays: int, seed: int, clean: Tensor) -> Tensor:
    """Bisect every ray of every sample: cells int64 ``[rays, samples]``.

    A sample wrong without noise is resolved before the search and takes no part in it. All others take ``grid.levels``
    steps of one forward pass.

    Raises:
        TypeError: If there is nothing that noise can disturb.
    """
    if not has_floating(walk.inputs):
        raise TypeError(
            "`inputs` holds no floating tensor that noise could disturb. "
            "Give the model floating inputs, for instance the output of its embedding."
        )
    device = walk.target.device
    edges = grid.edges().to(device=device, dtype=torch.float32)
    cells = torch.full((rays, walk.samples), LOST_CLEAN, dtype=torch.int64, device=device)
    for part in blocks(walk.samples, walk.batch_size):
        alive = torch.arange(part.start, part.stop, device=device)[clean[part]]
        if len(alive) == 0:
            continue
        inputs, target = take(walk.inputs, alive), walk.target[alive]
        prints = [walk.prints[i] for i in alive.tolist()]
        for ray in range(rays):
            noise = standard_noise(inputs, prints, seed, ray)
            low, high = torch.zeros_like(alive), torch.full_like(alive, grid.cells)
            for _ in range(grid.levels):
                middle = (low + high) // 2
                right = walk.right(disturb(inputs, noise, edges[middle]), target)
                low, high = torch.where(right, middle, low), torch.where(right, high, middle)
            cells[ray, alive] = low
    return cells


def right_at(walk: Walk, rays: int, seed: int, sigma: float) -> Tensor:
    """Which rays are right at one noise level, bool ``[rays, samples]``."""
    right = torch.empty(rays, walk.samples, dtype=torch.bool, device=walk.target.device)
    for part in blocks(walk.samples, walk.batch_size):
        inputs, target = take(walk.inputs, part), walk.target[part]
        level = torch.full((len(target),), sigma, dtype=torch.float32, device=walk.target.device)
        for ray in range(rays):
            noise = standard_noise(inputs, walk.prints[part], seed, ray)
            right[ray, part] = walk.right(disturb(inputs, noise, level), target)
    return right


def at_top(walk: Walk, grid: Grid, seed: int, wanted: int | None = None) -> Top:
    """What the top noise level leaves, on one ray.

    Args:
        walk: Network and probe.
        grid: Its upper end is the top noise level.
        seed: Seed of the noise.
        wanted: Samples to ask (None: all): those with the smallest digests, so that the probe's order does not matter.
    """
    device = walk.target.device
    everything = range(walk.samples)
    chosen = torch.tensor(everything if wanted is None else sorted(everything, key=walk.prints.__getitem__)[:wanted])
    right: list[Tensor] = []
    predicted: list[Tensor] = []
    for part in blocks(len(chosen), walk.batch_size):
        index = chosen[part].to(device)
        inputs, target = take(walk.inputs, index), walk.target[index]
        noise = standard_noise(inputs, [walk.prints[i] for i in chosen[part].tolist()], seed, 0)
        level = torch.full((len(target),), grid.high, dtype=torch.float32, device=device)
        outputs = walk.outputs(disturb(inputs, noise, level))
        right.append(checked(walk.criterion, outputs, target))
        if walk.num_classes > 1:
            predicted.append(predictions(outputs[:, None] if outputs.ndim == 1 else outputs))
    return Top(
        torch.cat(right), torch.cat(predicted) if predicted else torch.zeros(0, dtype=torch.int64, device=device)
    )


def chance(num_classes: int) -> float:
    """Accuracy of guessing; 0 where there are no classes."""
    return 1 / num_classes if num_classes > 1 else 0.0


def target_accuracy(accuracy: float | None, relative: bool, clean: float, floor: float, num_classes: int) -> float:
    """The absolute accuracy that defines a radius; warns if it is too near to the floor."""
    wanted = default_accuracy(num_classes) if accuracy is None else accuracy
    if relative:
        # Where the network does not beat noise there is no basin: no accuracy is as high as 1, so that the radius is 0.
        return floor + wanted * (clean - floor) if clean > floor else 1.0
    if wanted < floor + FLOOR_MARGIN:
        warnings.warn(
            f"`accuracy` is {wanted:g}, but noise alone leaves an accuracy of {floor:.2f}: so near to it the radius "
            f"means little. Use accuracy={(1 + floor) / 2:.2f}, or relative=True.",
            UserWarning,
            stacklevel=2,
        )
    return wanted


def sample_basin(
    walk: Walk,
    grid: Grid,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 1,
    seed: int = 0,
    clean: Tensor | None = None,
) -> BasinResult:
    """Ray search in sample space, see :func:`netdyn.functional.sample_basin`; ``clean``: who is right, if known."""
    cells = sample_cells(walk, grid, rays, seed, walk.all_right() if clean is None else clean)
    # A sixteenth of the samples tells the floor well enough for a warning; a relative radius is measured from it.
    top = at_top(walk, grid, seed, None if relative else max(64, walk.samples // 16))
    return summarize_samples(
        cells,
        grid,
        walk.labels,
        walk.num_classes,
        accuracy=accuracy,
        relative=relative,
        top=top,
        right_at=lambda sigma: right_at(walk, rays, seed, sigma),
        forwards=lambda: walk.forwards,
    )


def summarize_samples(
    cells: Tensor,
    grid: Grid,
    labels: Tensor,
    num_classes: int,
    *,
    accuracy: float | None,
    relative: bool,
    top: Top,
    right_at: Callable[[float], Tensor],
    forwards: Callable[[], float],
) -> BasinResult:
    """From cells ``[rays, samples]`` to the result; ``right_at`` makes the one more pass that the correction needs."""
    cells, labels = cells.cpu(), labels.cpu()
    clean = float((cells[0] != LOST_CLEAN).double().mean())
    floor = max(chance(num_classes), float(top.right.double().mean()))
    absolute = target_accuracy(accuracy, relative, clean, floor, num_classes)
    radius, interval, radius_of, reentry = sample_radius(cells, grid, absolute, right_at)
    classes = range(num_classes) if num_classes > 1 else ()
    per_sample = None
    if len(cells) >= PER_SAMPLE_RAYS:
        per_sample = torch.tensor([survival(rays, grid).crossing(absolute) for rays in cells.t()], dtype=torch.float64)
    votes = torch.bincount(top.predicted.cpu(), minlength=num_classes).double() / max(len(top.predicted), 1)
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
        per_class=torch.tensor([radius_of(labels == k) for k in classes], dtype=torch.float64),
        per_sample=per_sample,
        noise_classes=votes if num_classes > 1 else None,
        high=grid.high,
        forwards=forwards(),
        curve=survival(cells, grid),
    )
