"""Where the samples are in a tensor that a network made inside.

They come first in most, after the time in others (``[time, samples, features]``), and some networks fold a second axis
into theirs (``[samples·windows, …]``). Which it is shows when the network runs with two samples, and with three: the
axis that has grown is theirs, and the samples that both runs share keep their values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Kernels for other batch sizes round otherwise; samples differ by more.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Layout:
    """The place of the samples.

    Attributes:
        axis: Their axis.
        folded: How many entries of that axis each sample has.
        fastest: Whether the sample changes from one entry to the next (``[windows·samples]``), not every ``folded``.
    """

    axis: int = 0
    folded: int = 1
    fastest: bool = False

    def rows(self, value: Tensor) -> Tensor:
        """``[samples, units]``: everything that belongs to a sample is a unit of it.

        >>> Layout(axis=1).rows(torch.arange(6).reshape(3, 2))
        tensor([[0, 2, 4],
                [1, 3, 5]])
        >>> Layout(folded=3, fastest=True).rows(torch.arange(6)[:, None])
        tensor([[0, 2, 4],
                [1, 3, 5]])
        """
        value = value.movedim(self.axis, 0)
        samples = len(value) // self.folded
        if self.fastest:
            value = value.reshape(self.folded, samples, *value.shape[1:]).transpose(0, 1)
        return value.reshape(samples, -1)


@dataclass(frozen=True)
class Seen:
    """A tensor of a run with a few samples: its shape, and its values where samples are not simply first."""

    shape: tuple[int, ...]
    value: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor, samples: int) -> Seen:
        """What is to be kept of a tensor."""
        plain = len(tensor) == samples
        return cls(tuple(tensor.shape), None if plain else tensor.detach().clone())


def find(two: Seen, three: Seen) -> Layout | None:
    """The layout of a tensor seen with two samples, and with these and a third; None where samples have no place.

    Raises:
        ValueError: If more than one axis has grown, or samples are mixed.
    """
    if len(two.shape) != len(three.shape):
        raise ValueError("its number of dimensions depends on the number of samples")
    grown = [axis for axis, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if a != b]
    if not grown:
        return None
    counts = [axis for axis in grown if two.shape[axis] == 2 and three.shape[axis] == 3]
    if len(counts) == 1:
        # What else may have grown was cut to the longest sample.
        return Layout(counts[0])
    axis = grown[0]
    folded = two.shape[axis] // 2
    if len(grown) > 1 or two.shape[axis] != 2 * folded or three.shape[axis] != 3 * folded:
        raise ValueError("more than the samples' axis grows with the number of samples")
    for fastest in (False, True) if folded > 1 else (False,):
        layout = Layout(axis, folded, fastest)
        if folded == 1 or (two.value is None or three.value is None) or _agree(layout, two.value, three.value):
            return layout
    raise ValueError("samples are mixed along its axis")


def _agree(layout: Layout, two: Tensor, three: Tensor) -> bool:
    """Whether the two samples that both runs share have the same values."""
    a, b = layout.rows(two), layout.rows(three)[:2]
    scale = torch.maximum(a.abs().max(), b.abs().max())
    return bool((a - b).abs().max() <= _ROUNDING * scale)
