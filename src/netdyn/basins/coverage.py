"""How much of the validation data lies within the basins of the training data."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from netdyn._utils import checks
from netdyn._utils.trees import Inputs, samples_first, tensors
from netdyn.basins.interval import median
from netdyn.basins.result import BasinResult

#: Distances held at a time.
BLOCK = 4_000_000


class Covered(NamedTuple):
    """Coverage, and how far it had to reach.

    Attributes:
        share: Mean over validation samples of the share of rays of the nearest training sample of their class that are
            lost farther out than the validation sample lies. NaN if there is none.
        distance: Median of these distances, RMS per component; the denser the probe, the smaller it is.
        nearest: That training sample of each validation sample, −1 where its class is absent, int64 ``[validation]``.
    """

    share: float
    distance: float
    nearest: Tensor


def coverage(
    basin: BasinResult | Tensor,
    inputs: Inputs,
    target: Tensor,
    val_inputs: Inputs,
    val_target: Tensor,
) -> Covered:
    """How much of the validation data lies within the basins of the training data.

    For each validation sample v the nearest training sample μ of its class is found; d(v, μ) is the root mean square of
    the difference of their components, the unit of σ. The coverage is the mean over v of the share of μ's rays with
    T > d(v, μ).

    Args:
        basin: A sample basin of the training probe, or its ``radii`` ``[rays, samples]``.
        inputs: The training probe that it was measured on: a tensor, or a sequence or mapping of tensors, samples
            first. Distances count what is floating. For noise on modules' outputs hand over these.
        target: Its class labels ``[samples]``.
        val_inputs: The validation samples, of the same shapes.
        val_target: Their class labels; samples of a class without training sample are left out.

    Returns:
        ``share``, ``distance`` (the median of d, which falls with the size of the probe) and ``nearest``
        ``[validation samples]``. Distances are held in blocks of at most 4 million.

    Raises:
        TypeError: If labels are not whole numbers, or nothing in ``inputs`` is floating.
        ValueError: If the numbers of samples or components do not fit.

    Source:
        P1's account of grokking: training samples' basins come to cover the test samples. The measure is netdyn's
        convention.

    Example:
        >>> import torch
        >>> points, labels = torch.tensor([[0.0], [10.0]]), torch.tensor([0, 1])
        >>> radii = torch.tensor([[0.5, 3.0], [2.0, 3.0]])
        >>> found = coverage(radii, points, labels, torch.tensor([[1.0], [12.0]]), labels)
        >>> found.share, found.distance
        (0.75, 1.5)
    """
    radii = basin.radii if isinstance(basin, BasinResult) else basin
    points, val_points = _points("inputs", inputs), _points("val_inputs", val_inputs)
    classes = 1 + max(int(labels.max()) if len(labels) else 0 for labels in (target, val_target))
    target = checks.class_labels(target, classes, len(points)).cpu()
    val_target = checks.class_labels(val_target, classes, len(val_points)).cpu()
    checks.same_units("inputs", points, "val_inputs", val_points)
    if checks.matrix("basin", radii, "[rays, samples]").shape[1] != len(points):
        raise ValueError(f"`basin` must be of the {len(points)} samples in `inputs`, got {radii.shape[1]}.")
    return covered(radii, points, target, val_points, val_target)


def _points(name: str, inputs: Inputs) -> Tensor:
    """All floating components, ``[samples, components]``."""
    leaves = zip(tensors(inputs), samples_first(inputs), strict=True)
    found = [t.detach().reshape(len(t), -1).float() for t, own in leaves if own and t.is_floating_point()]
    if not found:
        raise TypeError(f"`{name}` holds no floating tensor between whose samples there could be a distance.")
    return torch.cat(found, dim=1)


def covered(radii: Tensor, points: Tensor, target: Tensor, val_points: Tensor, val_target: Tensor) -> Covered:
    """Coverage, see :func:`netdyn.functional.coverage`; points ``[samples, components]``."""
    nearest = torch.full((len(val_target),), -1, dtype=torch.int64)
    distance = torch.full((len(val_target),), math.nan, dtype=torch.float64)
    for k in torch.unique(val_target).tolist():
        own, of_class = (target == k).nonzero()[:, 0], (val_target == k).nonzero()[:, 0]
        if len(own):
            nearest[of_class], distance[of_class] = _nearest(points, own, val_points, of_class)
    found = nearest >= 0
    if not bool(found.any()):
        return Covered(math.nan, math.nan, nearest)
    inside = radii.double().cpu()[:, nearest[found]] > distance[found]
    return Covered(float(inside.double().mean()), median(distance[found]), nearest)


def _nearest(points: Tensor, own: Tensor, others: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """For some of the other points the nearest of one's own, and its RMS distance per component.

    |a − b|² = |a|² − 2 a·b + |b|² finds the nearest, block by block, about the class's mean so that little cancels;
    the distance itself is then taken from the difference.
    """
    own, chosen = own.to(points.device), chosen.to(others.device)
    center = points[own].double().mean(dim=0).to(points.dtype)
    # A block holds its distances and its points on both sides.
    rows = max(BLOCK // max(points.shape[1], math.isqrt(BLOCK)), 1)
    found, distances = [], []
    for part in torch.split(chosen, rows):
        a = others[part] - center
        best, index = torch.full((len(part),), math.inf, device=a.device), torch.zeros_like(part)
        for columns in torch.split(own, rows):
            b = points[columns] - center
            squares = torch.addmm(b.square().sum(dim=1)[None].expand(len(a), -1), a, b.t(), alpha=-2)
            least, at = squares.min(dim=1)
            closer = least < best
            best, index = torch.where(closer, least, best), torch.where(closer, columns[at], index)
        found.append(index.cpu())
        distances.append((others[part].double() - points[index].double()).square().mean(dim=1).sqrt().cpu())
    return torch.cat(found), torch.cat(distances)
