"""Whether the model's output is a probability, and which logits it was made of.

A sigmoid, softmax or log_softmax whose result is the model's output is no activation: its input holds the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

#: Methods that may copy a tensor into another type or place. Other copies are recognised by their values alone.
COPIES = {
    getattr(Tensor, name) for name in ("to", "type", "float", "double", "half", "bfloat16", "clone", "contiguous")
}


@dataclass(frozen=True)
class Squashed:
    """A probability that may turn out to be the model's output.

    Attributes:
        value: The result of a sigmoid or softmax, or a copy of it.
        logits: What it was made of.
        origin: The result itself.
        version: For a copy, the version of its content: one that was written over is no copy any more.
    """

    value: Tensor
    logits: Tensor
    origin: Tensor
    version: int | None = None

    def is_output(self, output: Any) -> bool:
        """Whether the model's output is this."""
        written_over = self.version is not None and self.version != self.value._version
        return not written_over and _is_all_of(output, self.value)


class Probabilities:
    """The results of sigmoid, softmax and log_softmax in one run, and their copies.

    Args:
        samples: Number of samples in the batch.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._found: list[Squashed] = []

    def add(self, result: Tensor, logits: Tensor) -> None:
        """Remember a result; attention weights have more dimensions, and are left out."""
        if result.ndim <= 2 and len(result) == self.samples:
            self._found.append(Squashed(result, logits, result))

    def add_copy(self, result: Tensor, subject: Tensor) -> None:
        """Remember a copy of a result: it may turn out to be the model's output too."""
        # Tensors made in inference mode have no version.
        if result is subject or not result.is_floating_point() or result.is_inference():
            return
        found = next((each for each in self._found if _is_view_of_all(subject, each.value)), None)
        if found is not None:
            self._found.append(replace(found, value=result, version=result._version))

    def behind(self, output: Any) -> Squashed | None:
        """The one that is the model's output, if there is one."""
        return next((each for each in reversed(self._found) if each.is_output(output)), None)


def _is_all_of(output: Any, tensor: Tensor) -> bool:
    """Whether ``output`` is a tensor, a view of all of it (``sigmoid(x).squeeze(1)``), or a copy in another type."""
    if not isinstance(output, Tensor) or output.numel() != tensor.numel():
        return False
    return _is_view_of_all(output, tensor) or torch.equal(output.to(tensor.dtype).reshape(tensor.shape), tensor)


def _is_view_of_all(output: Tensor, tensor: Tensor) -> bool:
    return output is tensor or (output._base is tensor and output.numel() == tensor.numel())
