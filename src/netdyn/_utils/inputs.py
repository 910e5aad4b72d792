"""Inputs that cannot be cut into samples: each is refused with the form that can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from netdyn._utils.options import instead
from netdyn._utils.trees import Inputs, count, tensors


def check_inputs(inputs: Inputs, target: Any = None) -> int:
    """Return the number of samples in inputs that have them first; with a target, in both alike.

    Raises:
        TypeError: If the inputs hold no tensors, or tensors that cannot be cut into samples.
        ValueError: If inputs and target do not have the same number of samples.
    """
    for part in _parts(inputs):
        if isinstance(part, PackedSequence):
            raise TypeError(
                "`inputs` holds a PackedSequence, in which steps come before samples. Pass padded sequences [samples, "
                f"steps, …] and their lengths, and pack them in {_own_forward()}."
            )
        if isinstance(part, Tensor) and part.layout != torch.strided:
            raise TypeError(
                f"`inputs` holds a sparse tensor ({part.layout}), of which no part can be taken. Pass `to_dense()` of "
                f"it; if the model needs it sparse, make it so in {_own_forward()}."
            )
    found = tensors(inputs)
    if not found:
        texts = any(isinstance(part, str) for part in _parts(inputs))
        how = "Pass token ids in place of texts." if texts else "Convert with `torch.as_tensor`."
        raise TypeError(f"`inputs` must hold tensors with samples first, got {shown(inputs)}. {how}")
    samples = count(inputs)
    if not isinstance(target, Tensor) or not target.ndim or len(target) == samples:
        return samples
    wanted = len(target)
    if isinstance(inputs, Sequence) and len(inputs) == wanted == len(found):
        same = len({tensor.shape for tensor in found}) == 1
        how = "`torch.stack`" if same else "`torch.nn.utils.rnn.pad_sequence(…, batch_first=True)`"
        raise ValueError(f"`inputs` must be one tensor with samples first, got {shown(inputs)}. Make it with {how}.")
    if found[0].ndim > 1 and found[0].shape[1] == wanted:
        raise ValueError(
            f"`inputs` must have samples first, and `target` has {wanted} entries, got {shown(inputs)}. Pass "
            f"`inputs.transpose(0, 1)`, and turn it back in {_own_forward()}."
        )
    raise ValueError(
        f"`target` must have one entry for each of the {samples} samples, got shape {list(target.shape)} for "
        f"{shown(inputs)}."
    )


def shown(inputs: Inputs) -> str:
    """Inputs, or a batch, in short: the shapes and types of tensors in their places, and the types of all else.

    >>> shown(torch.zeros(3, 2)), shown({"ids": torch.zeros(3, 5, dtype=torch.int64), "kind": "a"})
    ('float32 [3, 2]', "{'ids': int64 [3, 5], 'kind': str}")
    >>> shown([torch.zeros(n) for n in range(5, 25)]), shown((torch.zeros(2), ()))
    ('[float32 [5], float32 [6], … 20 in all]', '(float32 [2], ())')
    """
    if isinstance(inputs, Tensor):
        return f"{str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return "{" + _first([f"{key!r}: {shown(value)}" for key, value in inputs.items()], 6) + "}"
    if type(inputs) in (list, tuple):
        items = _first([shown(item) for item in inputs], 3)
        return f"[{items}]" if isinstance(inputs, list) else f"({items})"
    return type(inputs).__name__


def _first(items: list[str], most: int) -> str:
    return ", ".join(items if len(items) <= most else [*items[: most - 1], f"… {len(items)} in all"])


def _parts(inputs: Inputs) -> Iterator[Any]:
    """The tree's containers and leaves."""
    yield inputs
    if isinstance(inputs, Mapping):
        for value in inputs.values():
            yield from _parts(value)
    elif isinstance(inputs, list | tuple) and not isinstance(inputs, PackedSequence):
        for value in inputs:
            yield from _parts(value)


def _own_forward() -> str:
    return instead("forward", "`forward=`", "the model's `forward`")
