"""How far the network's answer for a training sample reaches: past validation samples of its class, or of another."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.random import Contents
from netdyn._utils.trees import Inputs, blocks, samples_first, tensors
from netdyn.basins.input_noise import Noise
from netdyn.basins.interval import median
from netdyn.basins.sample_basin import Rays
from netdyn.isolation.adapter import isolated_network
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.criteria import Criterion
from netdyn.probes.evaluator import Evaluator
from netdyn.probes.tasks import prepare

#: Distances held at a time.
BLOCK = 4_000_000
#: Most validation samples asked about: an error of a share of 0.022 at most.
SAMPLES = 512
#: A square of a distance that is so many roundings large is clear in single precision.
CLEAR = 1000


class Covered(NamedTuple):
    """How far answers reach, and how far they had to.

    Attributes:
        own: Share of validation samples v whose nearest training sample μ of the same class is still right at
            x_μ + d(v, μ)·ε. NaN if there is none.
        other: The same with the nearest training sample of another class, whose answer should not reach so far.
        distance: Median of d(v, μ) for the same class, RMS per component; the denser the probe, the smaller it is.
        apart: Are validation samples farther from the training samples than these are from one another? The chance
            that the distance of one to the nearest of them, whatever its class, is larger, plus half the chance that
            they are equal. About ½ where both are distributed alike, with a standard error of about 0.03 for 256
            samples of each.
    """

    own: float
    other: float
    distance: float
    apart: float = math.nan


def coverage(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    val_inputs: Inputs,
    val_target: Tensor,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    criterion: Criterion | None = None,
) -> Covered:
    """How much of the validation data the answers for the training data reach, by class.

    For each validation sample v the nearest training sample μ of its class is found; d(v, μ) is the root mean square of
    the difference of their components, the unit of σ. Under noise of that level, is the network still right about μ?
    The same is asked with the nearest sample of another class. A network that merely memorises covers both alike: the
    difference is the reading.

    Args:
        model: Any PyTorch module; called with the inputs as its ``forward`` takes them, in eval mode.
        inputs: The training probe: a tensor, or a sequence or mapping of tensors, samples first. Distances and noise
            are those of the floating ones.
        target: Its class labels ``[samples]``.
        val_inputs: The validation samples, of the same shapes; of more than 512 a fixed choice is taken.
        val_target: Their class labels; samples of a class without training sample are left out.
        seed: Seed of the noise.
        batch_size: Samples per forward pass; None: the whole training probe's number at once.
        criterion: As in :func:`netdyn.functional.sample_basin`.

    Returns:
        The two shares, the median distance, and how far apart the data lie. Distances are held in blocks of at most
        4 million.

    Raises:
        TypeError: If labels are not whole numbers, or nothing in ``inputs`` is floating.
        ValueError: If the numbers of samples or components do not fit.

    Source:
        P1's account of grokking: training samples' basins come to cover the test samples. The measure is netdyn's
        convention.

    Examples:
        >>> net = nn.Linear(1, 2)  # class 1 above 0
        >>> net.load_state_dict({"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> found = coverage(net, x, torch.tensor([0, 0, 1, 1]), torch.tensor([[-1.25], [1.5]]), torch.tensor([0, 1]))
        >>> found.distance
        0.375
    """
    checks.whole("seed", seed, minimum=0)
    if not len(val_target):
        raise ValueError("`val_target` must have at least one entry, got none.")
    with isolated_network(model) as network:
        evaluator = prepare(network, inputs, target, criterion, batch_size)
        nearest = neighbours(
            evaluator.inputs, evaluator.target, evaluator.contents, val_inputs, val_target, Contents.of(val_inputs)
        )
        return measure_coverage(evaluator, nearest, seed)


class Neighbours(NamedTuple):
    """Training samples near validation samples. The data alone decide, so a run finds them once.

    Attributes:
        own: For each validation sample that has one, the nearest training sample of its class, and its distance.
        other: The same of the other classes.
        apart: As in :class:`Covered`.
    """

    own: tuple[Tensor, Tensor]
    other: tuple[Tensor, Tensor]
    apart: float


def neighbours(
    inputs: Inputs, target: Tensor, contents: Contents, val_inputs: Inputs, val_target: Tensor, val_contents: Contents
) -> Neighbours:
    """The training samples near the validation samples, or near a fixed choice of these."""
    points, val_points = _points("inputs", inputs), _points("val_inputs", val_inputs)
    classes = 1 + max(int(labels.max()) for labels in (target, val_target))
    target = checks.class_labels(target, classes, len(points)).cpu()
    val_target = checks.class_labels(val_target, classes, len(val_points), "val_target").cpu()
    checks.same_units("inputs", points, "val_inputs", val_points)
    # There is no distance from a point that holds NaN or inf.
    known, val_known = (own.isfinite().all(dim=1).nonzero()[:, 0].cpu() for own in (points, val_points))
    chosen = val_known[val_contents.chosen(val_known).first(SAMPLES)]
    val_points, val_target = val_points[chosen.to(val_points.device)], val_target[chosen]
    points, target = points[known.to(points.device)], target[known]
    own, other = (_nearest_of_classes(points, target, val_points, val_target, same) for same in (True, False))
    apart = _apart(points, val_points, contents.chosen(known).first(SAMPLES))
    return Neighbours((known[own[0]], own[1]), (known[other[0]], other[1]), apart)


def measure_coverage(evaluator: Evaluator, nearest: Neighbours, seed: int) -> Covered:
    """The coverage of a network that is isolated already, see :func:`coverage`."""
    noise = Noise.at(evaluator.model, evaluator.inputs, evaluator.by_sample, None, seed)
    own, other = (_right_at_distance(evaluator, noise, *pair) for pair in (nearest.own, nearest.other))
    _, distances = nearest.own
    return Covered(own, other, median(distances) if len(distances) else math.nan, nearest.apart)


def _right_at_distance(evaluator: Evaluator, noise: Noise, index: Tensor, sigma: Tensor) -> float:
    """Share of some samples, which may come more than once, that are right under noise of a level of their own."""
    processes = evaluator.processes
    if not processes.lockstep:
        part = processes.part(len(index))
        index, sigma = index[part], sigma[part]
    alone = evaluator.only(torch.arange(evaluator.samples))

    def work() -> tuple[list[bool], float]:
        rays, found = Rays(alone, noise), list[bool]()
        for rows in blocks(len(index), evaluator.batch_size or evaluator.samples):
            found += rays.rows_right(index[rows], sigma[rows]).tolist()
        return found, alone.passed

    parts = [work()] if processes.lockstep else processes.gather(work)
    evaluator.passed += sum(passed for _, passed in parts)
    found = [right for own, _ in parts for right in own]
    return sum(found) / len(found) if found else math.nan


def _points(name: str, inputs: Inputs) -> Tensor:
    """All floating components, ``[samples, components]``."""
    leaves = zip(tensors(inputs), samples_first(inputs), strict=True)
    found = [t.detach().reshape(len(t), -1).float() for t, own in leaves if own and t.is_floating_point()]
    if not found:
        raise TypeError(f"`{name}` holds no floating tensor between whose samples there could be a distance.")
    return torch.cat(found, dim=1)


def _nearest_of_classes(
    points: Tensor, target: Tensor, val_points: Tensor, val_target: Tensor, same: bool
) -> tuple[Tensor, Tensor]:
    """For each validation sample that has one, the nearest training sample of its (another) class, and its distance."""
    nearest = torch.full((len(val_target),), -1, dtype=torch.int64)
    distance = torch.full((len(val_target),), math.nan, dtype=torch.float64)
    for k in torch.unique(val_target).tolist():
        own, of_class = ((target == k) == same).nonzero()[:, 0], (val_target == k).nonzero()[:, 0]
        if len(own):
            nearest[of_class], distance[of_class] = _nearest(points, own, val_points, of_class)
    return nearest[nearest >= 0], distance[nearest >= 0]


def _apart(points: Tensor, val_points: Tensor, chosen: Tensor) -> float:
    """How the distances of the validation points to the nearest training point rank among those of training points.

    Of the training points the ``chosen`` ones are compared.
    """
    if len(points) < 2 or not len(val_points):
        return math.nan
    everything = torch.arange(len(points))
    _, among = _nearest(points, everything, points, chosen, but_itself=True)
    _, held_out = _nearest(points, everything, val_points, torch.arange(len(val_points)))
    among = among.sort().values
    smaller, at_most = (torch.searchsorted(among, held_out, right=right) for right in (False, True))
    return float((smaller + at_most).double().mean() / (2 * len(among)))


def _nearest(
    points: Tensor, own: Tensor, others: Tensor, chosen: Tensor, but_itself: bool = False
) -> tuple[Tensor, Tensor]:
    """For the chosen ones of the other points the nearest own point, and its RMS distance per component.

    With ``but_itself`` the other points are the own ones, and none is the nearest to itself.

    |a − b|² = |a|² − 2 a·b + |b|² finds it block by block, about the own mean so that little cancels: in single
    precision, or in double where what is left is too small for that. The distance itself is taken from the difference.
    """
    own, chosen = own.to(points.device), chosen.to(others.device)
    center = points[own].double().mean(dim=0).to(points.dtype)
    # A block holds its distances and its points on both sides.
    rows = max(BLOCK // max(points.shape[1], math.isqrt(BLOCK)), 1)

    def search(a: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest points of some, the squares of their distances, and the rounding of these."""
        best, index = a.new_full((len(a),), math.inf), torch.zeros_like(numbers)
        largest = a.new_zeros(())
        for columns in torch.split(own, rows):
            b = (points[columns] - center).to(a)
            sizes = b.square().sum(dim=1)
            squares = torch.addmm(sizes[None].expand(len(a), -1), a, b.t(), alpha=-2)
            if but_itself:
                squares[numbers[:, None] == columns[None]] = math.inf
            least, at = squares.min(dim=1)
            closer = least < best
            best, index = torch.where(closer, least, best), torch.where(closer, columns[at], index)
            largest = torch.maximum(largest, sizes.max())
        size = a.square().sum(dim=1)
        return index, best + size, torch.finfo(a.dtype).eps * (size + largest)

    found, distances = [], []
    for part in torch.split(chosen, rows):
        a = others[part] - center
        index, squares, rounding = search(a, part)
        if bool((squares < CLEAR * rounding).any()):
            index, *_ = search(a.to(statistic_dtype(a.device)), part)
        found.append(index.cpu())
        distances.append((others[part].double() - points[index].double()).square().mean(dim=1).sqrt().cpu())
    return torch.cat(found), torch.cat(distances)
