"""Walk rays in sample space: bisection in log σ, every ray of every sample with a bracket of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from netdyn import _checks
from netdyn.batches import (
    Inputs,
    blocks,
    copied,
    disturb,
    fingerprints,
    has_floating,
    sample_tensors,
    standard_noise,
    take,
    tensors,
)
from netdyn.crew import Crew
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
        crew: The processes that share the work.
        passed: Samples sent through the network so far.
        digests: Digests of the samples' contents, which seed their noise; made when they are first asked for.
        cut: Which of the inputs' tensors have the samples first; the others travel whole.
        numbers: The numbers to be predicted ``[samples, outputs]``, in regression.
    """

    model: nn.Module
    inputs: Inputs
    target: Tensor
    criterion: Criterion
    num_classes: int
    batch_size: int | None = None
    crew: Crew = field(default_factory=Crew)
    passed: float = 0
    digests: list[bytes] | None = None
    cut: tuple[bool, ...] = ()
    numbers: Tensor | None = None

    def __post_init__(self) -> None:
        self.cut = self.cut or sample_tensors(self.inputs)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.target)

    @property
    def prints(self) -> list[bytes]:
        """The digests."""
        if self.digests is None:
            self.digests = fingerprints(self.inputs, self.cut)
        return self.digests

    @property
    def labels(self) -> Tensor:
        """Class labels int64 ``[samples]``; all zero where the targets are no labels."""
        none = torch.zeros(self.samples, dtype=torch.int64, device=self.target.device)
        return self.target if self.num_classes > 1 else none

    def outputs(self, inputs: Inputs, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """The network's outputs for a batch."""
        self.passed += len(next(t for t, cut in zip(tensors(inputs), self.cut, strict=True) if cut))
        return (model or self.model)(inputs)

    def right(self, inputs: Inputs, target: Tensor, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """Which samples of a batch are right, bool ``[batch]``."""
        return checked(self.criterion, self.outputs(inputs, model), target)

    def all_right(self, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """Which samples of the probe are right, bool ``[samples]``."""
        right = torch.empty(self.samples, dtype=torch.bool, device=self.target.device)
        for part in blocks(self.samples, self.batch_size):
            right[part] = self.right(*self.batch(part), model)
        return right

    def batch(self, part: slice | Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and targets of some samples: copies, since a network may write over its input."""
        return copied(take(self.inputs, part, self.cut)), self.target[part]

    def noise(self, part: slice, seed: int, ray: int) -> Inputs:
        """The noise of some samples on a ray."""
        return standard_noise(take(self.inputs, part, self.cut), self.prints[part], seed, ray, self.cut)

    def only(self, index: Tensor) -> Walk:
        """The same walk on some of the samples, by this process alone."""
        inputs, target = self.batch(index.to(self.target.device))
        digests = [self.prints[i] for i in index.tolist()]
        return replace(self, inputs=inputs, target=target, crew=Crew(), passed=0, digests=digests)

    def shared(self, work: Callable[[Walk], Tensor], index: Tensor | None = None) -> Tensor:
        """Let each process do its part of the samples (of ``index``); the results side by side, ``[..., samples]``."""
        index = torch.arange(self.samples) if index is None else index
        part, counted = self.crew.samples(index)
        own = self.only(part)
        results = self.crew.share(lambda: (work(own)[..., :counted].cpu(), own.passed * counted / max(len(part), 1)))
        self.passed += sum(passed for _, passed in results)
        return torch.cat([result for result, _ in results], dim=-1)

    @property
    def forwards(self) -> float:
        """Forward passes a sample so far."""
        return self.passed / max(self.samples, 1)


def check_floating(inputs: Inputs) -> None:
    """Check that noise can disturb something.

    Raises:
        TypeError: If no tensor is floating.
    """
    if not has_floating(inputs):
        raise TypeError(
            "`inputs` holds no floating tensor that noise could disturb. "
            "Give the model floating inputs, for instance the output of its embedding."
        )


def sample_cells(walk: Walk, grid: Grid, rays: int, seed: int) -> Tensor:
    """Bisect every ray of every sample, all of them right without noise: cells int64 ``[rays, samples]``."""
    device = walk.target.device
    edges = grid.edges().to(device=device, dtype=torch.float32)
    cells = torch.zeros(rays, walk.samples, dtype=torch.int64, device=device)
    for part in blocks(walk.samples, walk.batch_size):
        inputs, target = walk.batch(part)
        for ray in range(rays):
            noise = walk.noise(part, seed, ray)
            low = torch.zeros(len(target), dtype=torch.int64, device=device)
            high = torch.full_like(low, grid.cells)
            for _ in range(grid.levels):
                middle = (low + high) // 2
                right = walk.right(disturb(inputs, noise, edges[middle]), target)
                low, high = torch.where(right, middle, low), torch.where(right, high, middle)
            cells[ray, part] = low
    return cells


def right_at(walk: Walk, rays: int, seed: int, sigma: float) -> Tensor:
    """Which rays are right at one noise level, bool ``[rays, samples]``."""
    right = torch.empty(rays, walk.samples, dtype=torch.bool, device=walk.target.device)
    for part in blocks(walk.samples, walk.batch_size):
        inputs, target = walk.batch(part)
        level = torch.full((len(target),), sigma, dtype=torch.float32, device=walk.target.device)
        for ray in range(rays):
            noise = walk.noise(part, seed, ray)
            right[ray, part] = walk.right(disturb(inputs, noise, level), target)
    return right


def at_top(walk: Walk, grid: Grid, seed: int) -> Tensor:
    """Outcomes at the top noise level, int64 ``[2, samples]``: right or not on one ray, and the class (−1: none)."""
    outcome = torch.full((2, walk.samples), -1, dtype=torch.int64, device=walk.target.device)
    for part in blocks(walk.samples, walk.batch_size):
        inputs, target = walk.batch(part)
        level = torch.full((len(target),), grid.high, dtype=torch.float32, device=target.device)
        outputs = walk.outputs(disturb(inputs, walk.noise(part, seed, 0), level))
        outcome[0, part] = checked(walk.criterion, outputs, target).long()
        if walk.num_classes > 1:
            outcome[1, part] = predictions(outputs[:, None] if outputs.ndim == 1 else outputs)
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
        usable = round((1 + floor) / 2, 2)
        absolute = f"accuracy={usable:g}, or " if usable >= floor + FLOOR_MARGIN else ""
        _checks.warn(
            f"`accuracy` is {accuracy:g}, but noise alone leaves an accuracy of {floor:.2f}: so near to it the radius "
            f"means little. Use {absolute}relative=True."
        )


def sample_basin(
    walk: Walk,
    grid: Grid,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 1,
    seed: int = 0,
    clean: Tensor | None = None,
    quiet: bool = False,
) -> BasinResult:
    """Ray search in sample space, see :func:`netdyn.functional.sample_basin`.

    ``clean`` says who is right without noise, if that is known; ``quiet`` leaves out the warning of the floor.
    """
    check_floating(walk.inputs)
    before = walk.forwards
    clean = walk.shared(Walk.all_right) if clean is None else clean
    lost = torch.full((rays, walk.samples), LOST_CLEAN)
    alive = clean.cpu().nonzero()[:, 0]
    lost[:, alive] = walk.shared(lambda own: sample_cells(own, grid, rays, seed), alive)
    # A sixteenth of the samples tells the floor well enough for a warning; a relative radius is measured from it.
    # Those with the smallest digests are asked, so that the probe's order does not matter.
    wanted = walk.samples if relative else max(64, walk.samples // 16)
    asked = torch.tensor(sorted(range(walk.samples), key=walk.prints.__getitem__)[:wanted])
    return summarize_samples(
        lost,
        grid,
        walk.labels,
        walk.num_classes,
        accuracy=accuracy,
        relative=relative,
        top=walk.shared(lambda own: at_top(own, grid, seed), asked),
        right_at=lambda sigma: walk.shared(lambda own: right_at(own, rays, seed, sigma)),
        forwards=lambda: walk.forwards - before,
        quiet=quiet,
    )


def summarize_samples(
    cells: Tensor,
    grid: Grid,
    labels: Tensor,
    num_classes: int,
    *,
    accuracy: float | None,
    relative: bool,
    top: Tensor,
    right_at: Callable[[float], Tensor],
    forwards: Callable[[], float],
    quiet: bool = False,
) -> BasinResult:
    """From cells ``[rays, samples]`` to the result.

    ``top`` is what :func:`at_top` gives for some of the samples; ``right_at`` makes the one more pass that the
    correction needs.
    """
    cells, labels = cells.cpu(), labels.cpu()
    clean = float((cells[0] != LOST_CLEAN).double().mean())
    floor = max(chance(num_classes), float(top[0].double().mean()))
    absolute = target_accuracy(accuracy, relative, clean, floor, num_classes)
    if not (relative or quiet):
        warn_of_floor(absolute, floor)
    radius, interval, radius_of, reentry = sample_radius(cells, grid, absolute, right_at)
    classes = range(num_classes) if num_classes > 1 else ()
    per_sample = None
    if len(cells) >= PER_SAMPLE_RAYS:
        per_sample = torch.tensor([survival(rays, grid).crossing(absolute) for rays in cells.t()], dtype=torch.float64)
    votes = torch.bincount(top[1].cpu(), minlength=num_classes).double() / top.shape[1] if num_classes > 1 else None
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
        noise_classes=votes,
        high=grid.high,
        forwards=forwards(),
        curve=survival(cells, grid),
    )
