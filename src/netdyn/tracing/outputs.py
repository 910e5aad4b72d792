"""Whether the model's outputs are probabilities, and which logits they were made from.

A sigmoid, softmax or log_softmax whose result is the model's output is not an activation: its input holds the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

#: Methods that may copy a tensor to another dtype, device or layout. Other copies are recognised by their values.
COPIES = {
    getattr(Tensor, name) for name in ("to", "type", "float", "double", "half", "bfloat16", "clone", "contiguous")
}


@dataclass(frozen=True)
class Squashed:
    """A probability that may turn out to be the model's output.

    Attributes:
        value: The result of a sigmoid or softmax, or a copy of it.
        logits: The function's input.
        result: The result itself.
        version: For a copy, its version when it was made: an overwritten copy does not count.
    """

    value: Tensor
    logits: Tensor
    result: Tensor
    version: int | None = None

    def is_output(self, output: Any) -> bool:
        """Whether this is the model's output."""
        overwritten = self.version is not None and self.version != self.value._version
        return not overwritten and _is_all_of(output, self.value)


class Probabilities:
    """The results of sigmoid, softmax and log_softmax in one run, and their copies.

    Args:
        samples: Number of samples in the batch.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._found: list[Squashed] = []

    def add(self, result: Tensor, logits: Tensor) -> None:
        """Note a result. Attention weights have more dimensions, and are left out."""
        if result.ndim <= 2 and len(result) == self.samples:
            self._found.append(Squashed(result, logits, result))

    def add_copy(self, result: Tensor, subject: Tensor) -> None:
        """Note a copy of a result, which may turn out to be the model's output as well."""
        # Tensors made in inference mode have no version.
        if result is subject or not result.is_floating_point() or result.is_inference():
            return
        found = next((each for each in self._found if _is_view_of_all(subject, each.value)), None)
        if found is not None:
            self._found.append(replace(found, value=result, version=result._version))

    def find(self, output: Any) -> Squashed | None:
        """The probability that is the model's output, if there is one."""
        return next((each for each in reversed(self._found) if each.is_output(output)), None)


def _is_all_of(output: Any, tensor: Tensor) -> bool:
    """Whether ``output`` is the tensor, a view of all of it (``sigmoid(x).squeeze(1)``), or a copy in another dtype."""
    if not isinstance(output, Tensor) or output.numel() != tensor.numel():
        return False
    return _is_view_of_all(output, tensor) or torch.equal(output.to(tensor.dtype).reshape(tensor.shape), tensor)


def _is_view_of_all(output: Tensor, tensor: Tensor) -> bool:
    return output is tensor or (output._base is tensor and output.numel() == tensor.numel())
