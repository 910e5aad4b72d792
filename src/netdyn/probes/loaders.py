"""From data loaders to a fixed, stratified probe, without the training noticing.

A user's loader is never iterated: that draws random numbers, advances its generator and can reset its workers. Samples
are read from the data set itself, through copies whose counters and generators are their own. Data that cannot be read
so (iterable sets, loaders of another kind) are taken from the batches that training sees.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from netdyn._utils.trees import Inputs, copied, count, map_tensors, take, tensors
from netdyn.isolation.isolated import restored
from netdyn.probes.probe import Probe

Unpack = Callable[[Any], tuple[Inputs, Tensor]]

#: Without labels at hand, a random pool this many times the probe's size is read and stratified.
POOL = 4


def input_and_target(batch: Any) -> tuple[Inputs, Tensor]:
    """The default ``unpack``: a batch that is a pair (input, target).

    Raises:
        TypeError: If it is something else.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        what = f"a mapping with the keys {sorted(map(str, batch))}"
    elif isinstance(batch, list | tuple):
        what = f"a {type(batch).__name__} of {len(batch)} items"
    else:
        what = f"a {type(batch).__name__}"
    raise TypeError(
        f"A batch must be a pair (input, target), got {what}. Pass `unpack=`, a function of the batch that returns the "
        "model's input and the class labels."
    )


def labels_of(dataset: Any) -> Tensor | None:
    """The labels of a data set, if they can be had without reading samples.

    They are its ``targets`` or ``labels``, or the last tensor of a :class:`~torch.utils.data.TensorDataset`; subsets
    and concatenations of such sets are looked through.
    """
    if isinstance(dataset, Subset):
        labels = labels_of(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(list(dataset.indices))]
    if isinstance(dataset, ConcatDataset):
        parts = [labels_of(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else torch.cat(parts)  # type: ignore[arg-type]
    if isinstance(dataset, TensorDataset):
        return _as_labels(dataset.tensors[-1], len(dataset))
    values = (getattr(dataset, name, None) for name in ("targets", "labels"))
    found = (_as_labels(value, len(dataset)) for value in values if value is not None and not callable(value))
    return next((labels for labels in found if labels is not None), None)


def _as_labels(value: Any, samples: int) -> Tensor | None:
    try:
        labels = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = labels.ndim == 1 and len(labels) == samples and not labels.is_floating_point() and not labels.is_complex()
    return labels.long() if whole else None


def stratified(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Indices of ``size`` samples, the classes in proportion and at least one of each, in ascending order.

    >>> labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    >>> labels[stratified(labels, 10, torch.Generator().manual_seed(0))].tolist()
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 2]
    """
    if size >= len(labels):
        return torch.arange(len(labels))
    classes, sizes = torch.unique(labels, return_counts=True)
    # Largest remainders, after one for each class (for the largest classes, where there are more classes than places).
    share = sizes.double() * size / len(labels)
    quota = share.floor().long().clamp(min=1)
    order = (share - quota).argsort(descending=True, stable=True)
    while int(quota.sum()) < size:
        for i in order[: size - int(quota.sum())].tolist():
            quota[i] += int(quota[i] < sizes[i])
    while int(quota.sum()) > size:
        # The last place of a class goes only when all have one place left at most, from the smallest class.
        spare = quota > 1
        excess = (quota - share) if bool(spare.any()) else -sizes.double()
        quota[int(excess.masked_fill(~spare if bool(spare.any()) else quota == 0, -torch.inf).argmax())] -= 1
    chosen = []
    for label, wanted in zip(classes, quota.tolist(), strict=True):
        members = (labels == label).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=generator)[:wanted]])
    return torch.cat(chosen).sort().values


def can_read(loader: Any) -> bool:
    """Whether samples can be read from a loader's data set by their index."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    return loader.batch_size is not None or loader.batch_sampler is not None


def read_probe(loader: DataLoader[Any], size: int, seed: int, transfer: Callable[[Any], Any], unpack: Unpack) -> Probe:
    """Read a stratified probe from a loader's data set.

    Args:
        loader: The user's loader; not iterated.
        size: Number of samples.
        seed: Seed of the choice, and of the global generators while samples are read (random transforms).
        transfer: Takes a batch to where and how the model expects it.
        unpack: From a batch to (input, target).

    Raises:
        ValueError: If the data set is empty.
    """
    dataset: Any = loader.dataset
    # A sampler that draws from some of the samples alone: what it leaves out may be held-out data.
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    pool = torch.as_tensor(list(getattr(sampler, "indices", range(len(dataset)))))
    if len(pool) == 0:
        raise ValueError("The training data set must hold samples for the probe, got an empty one.")
    generator = torch.Generator().manual_seed(seed)
    with restored(dataset, loader.collate_fn):
        # The CPU's alone: seeding all devices would reach some that nobody puts back.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        labels = labels_of(dataset)
        if labels is not None:
            index = pool[stratified(labels[pool], size, generator)]
        else:
            index = pool[torch.randperm(len(pool), generator=generator)[: POOL * size].sort().values]
        batch = loader.collate_fn(_items(dataset, index.tolist()))
        inputs, target = unpack(transfer(batch))
        target = copied(target)
        if labels is None:
            chosen = stratified(_strata(target), size, generator).to(target.device)
            inputs, target = take(inputs, chosen), target[chosen]
    return Probe(copied(inputs), target)


def _items(dataset: Any, index: Sequence[int]) -> Any:
    """The samples, at once where the data set knows how (PyTorch's own protocol for it)."""
    fetch = getattr(dataset, "__getitems__", None)
    return fetch(list(index)) if callable(fetch) else [dataset[i] for i in index]


def _strata(target: Tensor) -> Tensor:
    """Labels to stratify by; one stratum where the targets are no labels."""
    whole = target.ndim == 1 and not target.is_floating_point()
    return target.cpu() if whole else torch.zeros(len(target), dtype=torch.int64)


def _copied(batch: Any) -> Any:
    """A copy of a batch for ``unpack`` to do with as it likes; dataclasses, also frozen ones, are rebuilt."""
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        twin = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(twin, field.name, _copied(getattr(batch, field.name)))
        return twin
    if isinstance(batch, Mapping | list | tuple):
        return map_tensors(lambda tensor: tensor.detach().clone(), batch, on_other=_copied)
    return batch.detach().clone() if isinstance(batch, Tensor) else batch


class Collector:
    """Gathers a probe from the batches that training sees, where the data set cannot be read."""

    def __init__(self, size: int, unpack: Unpack) -> None:
        self.size, self.unpack = size, unpack
        self.parts: list[Probe] = []

    def add(self, batch: Any) -> Probe | None:
        """Take a copy of what is wanted of a batch; the probe, when it is full."""
        inputs, target = self.unpack(_copied(batch))
        missing = self.size - sum(len(part.target) for part in self.parts)
        self.parts.append(Probe(take(inputs, slice(0, missing)), target[:missing]))
        return self.probe() if len(target) >= missing else None

    def probe(self) -> Probe | None:
        """What was gathered so far, None if that is nothing."""
        if not self.parts:
            return None
        samples = count(self.parts[0].inputs)

        def join(first: Tensor, *others: Tensor) -> Tensor:
            return torch.cat([first, *others]) if first.ndim and len(first) == samples else first

        inputs = map_tensors(join, self.parts[0].inputs, *(part.inputs for part in self.parts[1:]))
        return Probe(inputs, torch.cat([part.target for part in self.parts]))


def check_given(name: str, given: Any) -> None:
    """Check that a probe of the user's own is None, a pair of tensors, a data set or a loader.

    Raises:
        TypeError: If it is something else.
    """
    if given is None or isinstance(given, DataLoader | Dataset) or _is_pair(given):
        return
    if not isinstance(given, Mapping) or not tensors(given):
        raise TypeError(f"`{name}` must be a pair of tensors, a Dataset or a DataLoader, got {type(given).__name__}.")


def _is_pair(given: Any) -> bool:
    return isinstance(given, list | tuple) and len(given) == 2 and bool(tensors(given[0])) and bool(tensors(given[1]))


def given_probe(given: Any, size: int, seed: int, transfer: Callable[[Any], Any], unpack: Unpack) -> Probe:
    """The probe that the user gave: a pair (inputs, target), which needs no unpacking, a batch, a data set or a loader.

    Raises:
        TypeError: If it is something else.
        ValueError: If it holds nothing.
    """
    check_given("probe", given)
    if _is_pair(given) or isinstance(given, Mapping):
        batch = transfer(copied(given))
        inputs, target = unpack(batch) if isinstance(given, Mapping) else batch
        return Probe(copied(inputs), target.detach().clone())
    loader = given if isinstance(given, DataLoader) else DataLoader(given)
    if can_read(loader):
        return read_probe(loader, size, seed, transfer, unpack)
    collector = Collector(size, unpack)
    with restored(loader.dataset, loader.collate_fn, loader.generator):
        for batch in loader:
            if (probe := collector.add(transfer(batch))) is not None:
                return probe
    if (probe := collector.probe()) is None:
        raise ValueError("`probe` must hold samples, got an empty loader.")
    return probe
