"""Where the samples are in a tensor that a network made inside.

They come first in most, after the time in others (``[time, samples, features]``), and some networks fold a second axis
into theirs (``[samples·windows, …]``). Which it is shows when the network runs with two samples, and with three: the
axis that has grown is theirs, and the samples that both runs share keep their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Samples that differ by less than this many roots of the machine's precision are the same.
ROUNDING = 3.0


@dataclass(frozen=True)
class SampleAxis:
    """The place of the samples.

    Attributes:
        dim: Their dimension.
        folded: How many entries of that dimension each sample has.
        fastest: Whether the sample changes from one entry to the next (``[windows·samples]``), not every ``folded``.
    """

    dim: int = 0
    folded: int = 1
    fastest: bool = False

    def rows(self, value: Tensor) -> Tensor:
        """``[samples, units]``: everything that belongs to a sample is a unit of it.

        >>> SampleAxis(dim=1).rows(torch.arange(6).reshape(3, 2))
        tensor([[0, 2, 4],
                [1, 3, 5]])
        >>> SampleAxis(folded=3, fastest=True).rows(torch.arange(6)[:, None])
        tensor([[0, 2, 4],
                [1, 3, 5]])
        """
        value = value.movedim(self.dim, 0)
        samples = len(value) // self.folded
        if self.fastest:
            value = value.reshape(self.folded, samples, *value.shape[1:]).transpose(0, 1)
        return value.reshape(samples, -1)


def possible(two: Tensor, three: Tensor) -> list[SampleAxis]:
    """The axes that a tensor may have, as its shapes with two samples and with three tell; none: no samples in it.

    Raises:
        ValueError: If more than one axis has grown.
    """
    if len(two.shape) != len(three.shape):
        raise ValueError("its number of dimensions depends on the number of samples")
    grown = [axis for axis, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if a != b]
    if not grown:
        return []
    counts = [axis for axis in grown if two.shape[axis] == 2 and three.shape[axis] == 3]
    axis, folded = grown[0], two.shape[grown[0]] // 2
    if len(counts) == 1:
        return [SampleAxis(counts[0])]
    if len(grown) > 1 or two.shape[axis] != 2 * folded or three.shape[axis] != 3 * folded:
        raise ValueError("more than the samples' axis grows with the number of samples")
    return [SampleAxis(axis, folded), SampleAxis(axis, folded, fastest=True)]


def evidence(axis: SampleAxis, two: Tensor, three: Tensor) -> Tensor:
    """What speaks for a axis, once it is read: whether samples keep their places, and how far they differ, ``[2]``.

    What was cut to the longest sample has no values to compare, and fits.
    """
    if two.movedim(axis.dim, 0).shape[1:] != three.movedim(axis.dim, 0).shape[1:]:
        return torch.ones(2, device=two.device)
    rows, others = axis.rows(two), axis.rows(three)
    return torch.stack([own_places(rows, others).float(), _distances(rows, others).trace()])


def best(axes: Sequence[SampleAxis], found: Sequence[Sequence[float]]) -> SampleAxis | None:
    """Of some possible axes the one that the evidence, ``(fits, difference)`` each, speaks for; None: for none."""
    fitting = [(difference, at) for at, (fits, difference) in enumerate(found) if fits]
    return axes[min(fitting)[1]] if fitting else None


def own_places(rows: Tensor, others: Tensor) -> Tensor:
    """Whether the first samples of two runs ``[samples, units]`` stand in the same places in both.

    One does not if it stands, but for rounding, in another place. One that is found nowhere is another in each run: the
    network is random, or looks at the whole batch.
    """
    distances = _distances(rows, others)
    own, nearest = distances.diagonal(), distances.min(dim=1).values
    size = rows.float().nan_to_num(0.0, 0.0, 0.0).norm(dim=1)
    same = ROUNDING * torch.finfo(rows.dtype).eps ** 0.5 * size
    displaced: Tensor = ((own > same) & (nearest <= same)).any()
    return ~displaced


def _distances(rows: Tensor, others: Tensor) -> Tensor:
    """``[samples, other samples]``; what is not finite is no difference."""
    difference = (rows[:, None].float() - others[None].float()).nan_to_num(0.0, 0.0, 0.0)
    distances: Tensor = difference.flatten(2).norm(dim=2)
    return distances
