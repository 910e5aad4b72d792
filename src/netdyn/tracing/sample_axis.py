"""The axis of the samples in a tensor: the one that grows from a run of two to one of three, and keeps their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Two samples are the same if they differ by less than this many square roots of the machine precision, relatively.
ROUNDING = 3.0


@dataclass(frozen=True)
class SampleAxis:
    """The axis of the samples: a dimension, into which another axis may be folded (``[samples·windows, …]``)."""

    dim: int = 0
    folded: int = 1  #: number of entries that each sample has in the dimension
    fastest: bool = False  #: whether neighbours belong to different samples (``[windows·samples]``)

    def rows(self, value: Tensor) -> Tensor:
        """The value as ``[samples, units]``: all entries that belong to a sample are its units."""
        value = value.movedim(self.dim, 0)
        samples = len(value) // self.folded
        if self.fastest:
            value = value.reshape(self.folded, samples, *value.shape[1:]).transpose(0, 1)
        return value.reshape(samples, -1)


def candidate_axes(two: Tensor, three: Tensor) -> list[SampleAxis]:
    """The axes that the shapes of a tensor with two samples and with three allow; none if it holds no samples."""
    if len(two.shape) != len(three.shape):
        raise ValueError("its number of dimensions depends on the number of samples")
    grown = [dim for dim, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if a != b]
    if not grown:
        return []
    counts = [dim for dim in grown if two.shape[dim] == 2 and three.shape[dim] == 3]
    dim, folded = grown[0], two.shape[grown[0]] // 2
    if len(counts) == 1:
        return [SampleAxis(counts[0])]
    if len(grown) > 1 or two.shape[dim] != 2 * folded or three.shape[dim] != 3 * folded:
        raise ValueError("more than the samples' axis grows with the number of samples")
    return [SampleAxis(dim, folded), SampleAxis(dim, folded, fastest=True)]


def axis_scores(axis: SampleAxis, two: Tensor, three: Tensor) -> Tensor:
    """How well an axis fits, ``[2]``: whether the samples keep their positions (0 or 1), and how far they differ."""
    # Tensors cut to the longest sample of a batch cannot be compared, and fit.
    if two.movedim(axis.dim, 0).shape[1:] != three.movedim(axis.dim, 0).shape[1:]:
        return torch.ones(2, device=two.device)
    rows, others = axis.rows(two), axis.rows(three)
    return torch.stack([same_positions(rows, others).float(), _distances(rows, others).trace()])


def choose_axis(axes: Sequence[SampleAxis], scores: Sequence[Sequence[float]]) -> SampleAxis | None:
    """The axis that fits with the smallest difference, by :func:`axis_scores`; None if none fits."""
    fitting = [(difference, i) for i, (fits, difference) in enumerate(scores) if fits]
    return axes[min(fitting)[1]] if fitting else None


def same_positions(rows: Tensor, others: Tensor) -> Tensor:
    """Whether the first samples of two runs ``[samples, units]`` have the same positions in both: a bool scalar."""
    # A sample is displaced if another position holds it, up to rounding, and its own does not. One that no position
    # holds is not displaced: the network is random, or its outputs depend on the whole batch.
    distances = _distances(rows, others)
    own, nearest = distances.diagonal(), distances.min(dim=1).values
    size = rows.float().nan_to_num(0.0, 0.0, 0.0).norm(dim=1)
    same = ROUNDING * torch.finfo(rows.dtype).eps ** 0.5 * size
    return ~((own > same) & (nearest <= same)).any()  # type: ignore[no-any-return]


def _distances(rows: Tensor, others: Tensor) -> Tensor:
    """Distances ``[samples, other samples]``; entries whose difference is not finite count as equal."""
    difference = (rows[:, None].float() - others[None].float()).nan_to_num(0.0, 0.0, 0.0)
    return difference.flatten(2).norm(dim=2)  # type: ignore[no-any-return]
