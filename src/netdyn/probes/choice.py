"""Which samples of a data set make the probe: a stratified choice, whose cost does not grow with the data."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

#: Of a larger data set a random part of this many samples is considered.
MOST = 1 << 22


def draw(total: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Indices of ``wanted`` of ``total`` samples at random, none twice, ascending; time and memory as ``wanted``."""
    if wanted >= total:
        return torch.arange(total)
    if total <= 4 * wanted:
        return torch.randperm(total, generator=generator)[:wanted].sort().values
    chosen = torch.zeros(0, dtype=torch.int64)
    while len(chosen) < wanted:
        chosen = torch.cat([chosen, torch.randint(total, (wanted,), generator=generator)]).unique()  # type: ignore[no-untyped-call]
    # `unique` has sorted them: a random part of what is too many.
    return chosen[draw(len(chosen), wanted, generator)]


def pick(values: Any, index: Tensor) -> Tensor:
    """Entries of a tensor, an array or a sequence, as a tensor on the CPU; only these entries are touched."""
    if isinstance(values, Tensor):
        return values.detach()[index.to(values.device)].cpu()
    if hasattr(values, "__array__"):
        return torch.as_tensor(np.asarray(values)[index.numpy()])
    return torch.as_tensor([values[i] for i in index.tolist()])


def labels_of(dataset: Any, index: Tensor) -> Tensor | None:
    """Class labels of some samples, int64 ``[index]``; None if samples would have to be read to find them."""
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset, pick(dataset.indices, index))
    if isinstance(dataset, ConcatDataset):
        ends = torch.tensor(dataset.cumulative_sizes)
        part = torch.bucketize(index, ends, right=True)
        found = torch.empty(len(index), dtype=torch.int64)
        for number in part.bincount().nonzero()[:, 0].tolist():
            start = int(ends[number - 1]) if number else 0
            labels = labels_of(dataset.datasets[number], index[part == number] - start)
            if labels is None:
                return None
            found[part == number] = labels
        return found
    if isinstance(dataset, TensorDataset):
        return _as_labels(dataset.tensors[-1], len(dataset), index)
    values = (_listed(dataset, name) for name in ("targets", "labels"))
    found_labels = (_as_labels(value, len(dataset), index) for value in values if value is not None)
    return next((labels for labels in found_labels if labels is not None), None)


def _listed(dataset: Any, name: str) -> Any:
    """An attribute that may list labels; a property of a large data set might read all of its samples."""
    computed = isinstance(inspect.getattr_static(dataset, name, None), property | cached_property)
    value = None if computed and len(dataset) > MOST else getattr(dataset, name, None)
    return None if callable(value) else value


def _as_labels(values: Any, samples: int, index: Tensor) -> Tensor | None:
    try:
        if len(values) != samples:
            return None
        labels = pick(values, index)
    except (TypeError, ValueError, RuntimeError, LookupError):
        return None
    return as_strata(labels)


def as_strata(values: Tensor) -> Tensor | None:
    """Whole numbers, one per sample, as class labels int64 ``[samples]``; None for all else."""
    if values.is_complex() or values.numel() != len(values):
        return None
    if values.is_floating_point() and not bool((values == values.round()).all()):
        return None
    return values.reshape(-1).long()


def stratified(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Indices of ``size`` samples in ascending order, with the classes in proportion and at least one of each.

    Of more classes than ``size``, they are a random choice.
    """
    if size >= len(labels):
        return torch.arange(len(labels))
    # A random order, then by class: the first ones of each class are a random choice of it.
    order = torch.randperm(len(labels), generator=generator)
    _, classes, sizes = torch.unique(labels[order], return_inverse=True, return_counts=True)
    if len(sizes) > size:
        # Not every class has a place: numbers to be predicted, for instance.
        return order[:size].sort().values
    by_class = classes.argsort(stable=True)
    place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return order[by_class[place < quotas(sizes, size).repeat_interleave(sizes)]].sort().values


def quotas(sizes: Tensor, size: int) -> Tensor:
    """How many of ``size`` places, one per class at least, each class is given: int64 ``[classes]``.

    ``sizes [classes]`` are its samples.
    """
    # Largest remainders, after one place for each class.
    share = sizes.double() * size / sizes.sum()
    quota = share.floor().long().clamp(min=1)
    missing = size - int(quota.sum())
    if missing >= 0:
        quota[(share - quota).argsort(descending=True, stable=True)[:missing]] += 1
        return quota
    # Small classes have been given more than their share. The others lose as many places, each time one of the class
    # that is furthest above its share; none loses its last one.
    owner = torch.arange(len(sizes)).repeat_interleave(quota - 1)
    lost = torch.arange(len(owner)) - (quota - 1).cumsum(0).sub(quota - 1).repeat_interleave(quota - 1)
    first = ((quota - share)[owner] - lost).argsort(descending=True, stable=True)[:-missing]
    return quota - torch.bincount(owner[first], minlength=len(sizes))
