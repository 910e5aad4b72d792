"""Labels at positions: of every pixel, token or step of a sample one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """Where outputs and local fields have the positions that have a label each."""

    shape: tuple[int, ...]  #: of one sample's labels, for instance (height, width) or (steps,)
    last: bool = False  #: whether the classes come after the positions in the outputs

    @classmethod
    def between(cls, outputs: tuple[int, ...], target: tuple[int, ...]) -> Positions | None:
        """The positions for which outputs and labels of these shapes, samples first, fit; None if they do not.

        >>> Positions.between((8, 3, 20, 20), (8, 20, 20))
        Positions(shape=(20, 20), last=False)
        >>> Positions.between((8, 12, 50), (8, 12))
        Positions(shape=(12,), last=True)
        """
        shape = target[2:] if target[1:2] == (1,) and len(target) == len(outputs) > 2 else target[1:]
        if not shape:
            return None
        if shape in (outputs[1:], outputs[2:]):
            return cls(shape)
        return cls(shape, last=True) if shape == outputs[1:-1] else None

    @property
    def count(self) -> int:
        """Number of positions."""
        return math.prod(self.shape)

    def logits(self, outputs: Tensor) -> Tensor:
        """The outputs as ``[samples, positions, classes]``; an output per position without classes is one logit."""
        if tuple(outputs.shape[1:]) == self.shape:
            return outputs.reshape(len(outputs), self.count, 1)
        by_position = outputs if self.last else outputs.movedim(1, -1)
        if tuple(by_position.shape[1:-1]) != self.shape:
            raise ValueError(
                f"The model's output must have the positions {list(self.shape)} of the labels, got shape "
                f"{list(outputs.shape)}."
            )
        return by_position.reshape(len(outputs), self.count, -1)

    def units(self, fields: Tensor) -> Tensor | None:
        """Local fields ``[samples, …]`` as ``[samples, positions, units]``; None if they have other positions."""
        size, own = tuple(fields.shape[1:]), len(self.shape)
        if len(size) == own == 1:
            return None  # a single axis holds the units
        starts = [start for start in range(len(size) - own + 1) if size[start : start + own] == self.shape]
        if not starts and self.count in size and len(size) > 1:
            starts, own = [dim for dim, length in enumerate(size) if length == self.count], 1
        if not starts:
            return None
        # Of several, as in the outputs: units before the positions, or after them.
        start = 1 + (starts[0] if self.last else starts[-1])
        by_position = fields.movedim(tuple(range(start, start + own)), tuple(range(1, 1 + own)))
        return by_position.reshape(len(fields), self.count, -1)
