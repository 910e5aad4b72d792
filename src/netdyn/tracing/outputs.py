"""Whether a sigmoid or softmax ends the model: it is no activation, and its input holds the logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

#: Functions that may copy a tensor to another dtype, device or layout. Other copies are recognised by their values.
COPIES = {
    getattr(Tensor, name) for name in ("to", "type", "float", "double", "half", "bfloat16", "clone", "contiguous")
} | {torch.nan_to_num, Tensor.nan_to_num}


@dataclass(frozen=True)
class Squashed:
    """The ``result`` of a sigmoid or softmax of ``logits``, of which a ``value`` may be the model's output."""

    value: Tensor  #: the result, or a copy of it
    logits: Tensor
    result: Tensor
    version: int | None = None  #: of a copy when it was made: an overwritten copy does not count

    def is_output(self, output: Any) -> bool:
        """Whether the model's output is this, a view of all of it (``sigmoid(x).squeeze(1)``), or a copy."""
        value = self.value
        overwritten = self.version is not None and self.version != value._version
        if overwritten or not isinstance(output, Tensor) or output.numel() != value.numel():
            return False
        return is_view_of_all(output, value) or torch.equal(output.to(value.dtype).reshape(value.shape), value)


class Probabilities:
    """The results of sigmoid, softmax and log_softmax in one run, and their copies."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._found: list[Squashed] = []

    def add(self, result: Tensor, logits: Tensor) -> None:
        """Note a result. Of those with more dimensions, most of them attention weights, only the latest is kept."""
        if result.ndim < 1 or len(result) != self.samples:
            return
        if result.ndim > 2:
            self._found = [each for each in self._found if each.result.ndim <= 2]
        self._found.append(Squashed(result, logits, result))

    def behind(self, tensor: Tensor) -> Squashed | None:
        """The result that a tensor is, or is a copy of; None if there is none."""
        return next((each for each in self._found if is_view_of_all(tensor, each.value)), None)

    def add_copy(self, result: Tensor, subject: Tensor) -> None:
        """Note a copy of a result, also one within bounds, which may be the model's output as well."""
        # Tensors made in inference mode have no version.
        if result is subject or not result.is_floating_point() or result.is_inference():
            return
        if (found := self.behind(subject)) is not None:
            self._found.append(replace(found, value=result, version=result._version))

    def find(self, output: Any) -> Squashed | None:
        """The probability that is the model's output, if there is one."""
        return next((each for each in reversed(self._found) if each.is_output(output)), None)


def is_view_of_all(output: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor is another one, or a view of all of it."""
    return output is tensor or (output._base is tensor and output.numel() == tensor.numel())
