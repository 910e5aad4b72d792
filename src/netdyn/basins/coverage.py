"""How much of the validation data lies within the basins of the training data."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from netdyn._utils.transit import sent
from netdyn.basins.result import median

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
    own, chosen = sent(own, points.device), sent(chosen, others.device)
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
