"""The axis of the samples in a tensor: the one that grows from a run of two to one of three."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from netdyn._utils.trees import numbers


@dataclass(frozen=True)
class SampleAxis:
    """The axis of the samples: a dimension, into which another axis may be folded (``[samples·windows, …]``)."""

    dim: int = 0
    folded: int = 1  #: number of entries that each sample has in the dimension
    fastest: bool = False  #: whether neighbours belong to different samples (``[windows·samples]``)

    def holds(self, value: Tensor, samples: int) -> bool:
        """Whether the axis is as long as so many samples make it."""
        return value.ndim > self.dim and value.shape[self.dim] == samples * self.folded

    def samples_first(self, value: Tensor) -> Tensor:
        """The value as ``[samples, …]``; an axis that is folded into that of the samples comes second."""
        value = value.movedim(self.dim, 0)
        if self.folded == 1:
            return value
        samples, rest = len(value) // self.folded, value.shape[1:]
        if self.fastest:
            return value.reshape(self.folded, samples, *rest).transpose(0, 1)
        return value.reshape(samples, self.folded, *rest)

    def rows(self, value: Tensor) -> Tensor:
        """The value as ``[samples, units]``: all entries that belong to a sample are its units."""
        value = self.samples_first(value)
        return value.reshape(len(value), -1)


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


def choose_axis(axes: Sequence[SampleAxis], two: Tensor, three: Tensor) -> SampleAxis | None:
    """The axis on which two samples keep their values best when a third one joins them; None if there is none.

    Where shapes allow a single axis its values are not compared: whole runs show whether its rows are the samples' own.
    """
    if len(axes) < 2:
        return axes[0] if axes else None
    # Tensors cut to the longest sample of a batch cannot be compared.
    if two.movedim(axes[0].dim, 0).shape[1:] != three.movedim(axes[0].dim, 0).shape[1:]:
        return axes[0]
    apart = [(axis.rows(two).float() - axis.rows(three)[:2].float()).nan_to_num(0.0, 0.0, 0.0).norm() for axis in axes]
    found = [value for (value,) in numbers(apart)]
    return axes[found.index(min(found))]
