"""A batch of model inputs as a tree of tensors, passed to the model as one argument."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: A tensor, or a (nested) sequence or mapping of tensors.
Inputs = Any


def map_tensors(
    function: Callable[..., Any], inputs: Inputs, *twins: Inputs, on_other: Callable[[Any], Any] | None = None
) -> Inputs:
    """Apply ``function`` to each tensor and its ``twins``; other leaves stay as they are, or go to ``on_other``."""
    if isinstance(inputs, Tensor):
        return function(inputs, *twins)
    content: Any
    if isinstance(inputs, Mapping):
        content = {k: map_tensors(function, v, *(t[k] for t in twins), on_other=on_other) for k, v in inputs.items()}
    elif isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes):
        content = [map_tensors(function, v, *(t[i] for t in twins), on_other=on_other) for i, v in enumerate(inputs)]
        if hasattr(inputs, "_fields"):
            return type(inputs)(*content)
    else:
        return inputs if on_other is None else on_other(inputs)
    try:
        return type(inputs)(content)
    except TypeError:  # a constructor that takes something else
        return content


def tensors(inputs: Inputs) -> list[Tensor]:
    """All tensors of the tree, in order."""
    found: list[Tensor] = []
    map_tensors(found.append, inputs)
    return found


def leaf_names(inputs: Inputs, path: str = "") -> list[str]:
    """The path to each tensor, in order: keys and positions joined by dots (``b.0``); empty for a single tensor."""
    if isinstance(inputs, Tensor):
        return [path]
    if isinstance(inputs, str | bytes) or not isinstance(inputs, Mapping | Sequence):
        return []
    items: Iterable[tuple[Any, Any]] = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return [name for key, value in items for name in leaf_names(value, f"{path}.{key}" if path else str(key))]


def count(inputs: Inputs) -> int:
    """Number of samples: the first dimension of the first tensor that has one."""
    for tensor in tensors(inputs):
        if tensor.ndim:
            return len(tensor)
    raise TypeError(
        "`inputs` must be a tensor, or a sequence or mapping of tensors, with samples first; "
        f"got {type(inputs).__name__}."
    )


def samples_first(inputs: Inputs) -> tuple[bool, ...]:
    """Whether each tensor has the samples first; to be asked of whole inputs, since other tensors may fit a part."""
    samples = count(inputs)
    return tuple(bool(tensor.ndim) and len(tensor) == samples for tensor in tensors(inputs))


def take(inputs: Inputs, index: Tensor | slice, by_sample: Sequence[bool] | None = None) -> Inputs:
    """The chosen samples: copies for a tensor of indices or flags, views for a slice. Other leaves stay whole."""
    flags = iter(samples_first(inputs) if by_sample is None else by_sample)

    def rows(tensor: Tensor) -> Tensor:
        if not next(flags):
            return tensor
        if isinstance(index, slice) or index.dtype != torch.int64 or tensor.layout != torch.strided:
            return tensor[index]
        # For long rows this is several times faster than indexing.
        return tensor.index_select(0, index.to(tensor.device))

    return map_tensors(rows, inputs)


def as_slice(index: Tensor) -> Tensor | slice:
    """Indices on the CPU, as a slice if each is one more than the last: a slice needs no copy."""
    if len(index) and bool((index.diff() == 1).all()):
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def copied(inputs: Inputs) -> Inputs:
    """A copy of every tensor, without a graph."""
    return map_tensors(lambda tensor: tensor.detach().clone(), inputs)


def blocks(samples: int, batch_size: int | None) -> Iterator[slice]:
    """Consecutive slices of at most ``batch_size`` samples (None: one slice)."""
    size = batch_size or max(samples, 1)
    for start in range(0, samples, size):
        yield slice(start, min(start + size, samples))


def evenly_spaced(samples: int, wanted: int) -> Tensor:
    """Indices of ``wanted`` samples at even distances; of all samples if there are fewer."""
    wanted = min(samples, wanted)
    return torch.div(torch.arange(wanted) * samples, max(wanted, 1), rounding_mode="floor")


def open_to_noise(inputs: Inputs, by_sample: Sequence[bool] | None = None) -> tuple[bool, ...]:
    """Which tensors noise falls on if none is named: the floating ones with the samples first.

    Where these are masks, by their names, beside whole numbers (token ids), it falls on none of them.
    """
    own = samples_first(inputs) if by_sample is None else by_sample
    floating = tuple(first and tensor.is_floating_point() for tensor, first in zip(tensors(inputs), own, strict=True))
    masks = [name.endswith("mask") for name in leaf_names(inputs)]
    only_masks = all(mask for mask, here in zip(masks, floating, strict=True) if here) and not all(masks)
    return (False,) * len(floating) if only_masks else floating


def has_floating(inputs: Inputs) -> bool:
    """Whether there are tensors that noise can fall on, see :func:`open_to_noise`."""
    return any(open_to_noise(inputs))


def finite(inputs: Inputs) -> bool:
    """Whether all floating tensors are finite."""
    # A sum takes a tenth of the time; that of finite numbers may be too large, so that each has to be looked at.
    floating = [tensor for tensor in tensors(inputs) if tensor.is_floating_point()]
    return all(bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all()) for tensor in floating)


def usable(inputs: Inputs) -> Tensor | None:
    """Indices of the samples that hold no NaN and no +inf; None if that is all. Masks are full of −inf."""
    good = torch.ones(count(inputs), dtype=torch.bool)
    if not finite(inputs):
        for tensor, own in zip(tensors(inputs), samples_first(inputs), strict=True):
            if own and tensor.is_floating_point() and tensor.layout == torch.strided:
                good &= (tensor < torch.inf).reshape(len(tensor), -1).all(dim=1).cpu()
    return None if bool(good.all()) else good.nonzero()[:, 0]


def evenly_chosen(inputs: Inputs, wanted: int) -> Tensor:
    """Indices of ``wanted`` samples at even distances, among those that are usable if there are any."""
    index = usable(inputs)
    if index is None or not len(index):
        return evenly_spaced(count(inputs), wanted)
    return index[evenly_spaced(len(index), wanted)]


def numbers(values: Sequence[Tensor]) -> list[list[float]]:
    """The numbers in some small tensors, copied to the host at once: a flat list for each tensor."""
    if not values:
        return []
    flat = torch.cat([value.detach().reshape(-1).to(values[0].device) for value in values]).tolist()
    rest = map(float, flat)
    return [list(itertools.islice(rest, value.numel())) for value in values]
