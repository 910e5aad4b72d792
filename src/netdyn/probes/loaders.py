"""From data loaders to a fixed, stratified probe: read from the data set, or else collected from training batches."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from netdyn._utils.trees import Inputs, copied, count, map_tensors, take, tensors
from netdyn.isolation.isolated import restored
from netdyn.probes.probe import Probe

Unpack = Callable[[Any], tuple[Inputs, Tensor]]

#: If the labels are not known, a random pool of this many times the probe's size is read and stratified.
POOL = 4


def input_and_target(batch: Any) -> tuple[Inputs, Tensor]:
    """The default ``unpack``: a batch that is a pair (input, target)."""
    if isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    what = f"a {type(batch).__name__}"
    if isinstance(batch, Mapping):
        what = f"a mapping with the keys {sorted(map(str, batch))}"
    elif isinstance(batch, list | tuple):
        what += f" of {len(batch)} items"
    raise TypeError(
        f"A batch must be a pair (input, target), got {what}. Pass `unpack=`, a function of the batch that returns the "
        "model's input and the class labels."
    )


def labels_of(dataset: Any) -> Tensor | None:
    """The class labels of a data set, int64 ``[samples]``; None if samples would have to be read to find them."""
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
    """Indices of ``size`` samples in ascending order, with the classes in proportion and at least one of each."""
    if size >= len(labels):
        return torch.arange(len(labels))
    classes, sizes = torch.unique(labels, return_counts=True)
    # Largest remainders, after one place for each class (each of the largest, if there are more classes than places).
    share = sizes.double() * size / len(labels)
    quota = share.floor().long().clamp(min=1)
    order = (share - quota).argsort(descending=True, stable=True)
    while int(quota.sum()) < size:
        for i in order[: size - int(quota.sum())].tolist():
            quota[i] += int(quota[i] < sizes[i])
    while int(quota.sum()) > size:
        # A class loses its last place only if none has more than one; the smallest class loses it first.
        spare = quota > 1
        excess = (quota - share) if bool(spare.any()) else -sizes.double()
        quota[int(excess.masked_fill(~spare if bool(spare.any()) else quota == 0, -torch.inf).argmax())] -= 1
    chosen = []
    for label, wanted in zip(classes, quota.tolist(), strict=True):
        members = (labels == label).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=generator)[:wanted]])
    return torch.cat(chosen).sort().values


def can_read(loader: Any) -> bool:
    """Whether samples can be read from a loader's data set by index."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    return loader.batch_size is not None or loader.batch_sampler is not None


def read_probe(loader: DataLoader[Any], size: int, seed: int, transfer: Callable[[Any], Any], unpack: Unpack) -> Probe:
    """Read a stratified probe of ``size`` samples from a loader's data set.

    The loader is not iterated: this would draw random numbers, advance its generator and might reset its workers.
    ``seed`` seeds the choice, and the global generators while samples are read (for random transforms). ``transfer``
    moves a batch to the device, and into the form, that the model expects.
    """
    dataset: Any = loader.dataset
    # The sampler may draw from some of the samples only; the others may be held-out data.
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    pool = torch.as_tensor(list(getattr(sampler, "indices", range(len(dataset)))))
    if len(pool) == 0:
        raise ValueError("The training data set must hold samples for the probe, got an empty one.")
    generator = torch.Generator().manual_seed(seed)
    with restored(dataset, loader.collate_fn):
        # Only the CPU's: not all generators of other devices are put back.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        labels = labels_of(dataset)
        if labels is not None:
            index = pool[stratified(labels[pool], size, generator)].tolist()
        else:
            index = pool[torch.randperm(len(pool), generator=generator)[: POOL * size].sort().values].tolist()
        # PyTorch's method to read several samples at once.
        fetch = getattr(dataset, "__getitems__", None)
        samples = fetch(index) if callable(fetch) else [dataset[i] for i in index]
        inputs, target = unpack(transfer(loader.collate_fn(samples)))
        target = copied(target)
        if labels is None:
            # Targets that are not class labels are a single stratum.
            whole = target.ndim == 1 and not target.is_floating_point()
            strata = target.cpu() if whole else torch.zeros(len(target), dtype=torch.int64)
            chosen = stratified(strata, size, generator).to(target.device)
            inputs, target = take(inputs, chosen), target[chosen]
    return Probe(copied(inputs), target)


def _copied(batch: Any) -> Any:
    """A copy of a batch that ``unpack`` may change; dataclasses, also frozen ones, are rebuilt."""
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        twin = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(twin, field.name, _copied(getattr(batch, field.name)))
        return twin
    if isinstance(batch, Mapping | list | tuple):
        return map_tensors(lambda tensor: tensor.detach().clone(), batch, on_other=_copied)
    return batch.detach().clone() if isinstance(batch, Tensor) else batch


class Collector:
    """Collects a probe of ``size`` samples from the training batches, if the data set cannot be read."""

    def __init__(self, size: int, unpack: Unpack) -> None:
        self.size, self.unpack = size, unpack
        self.parts: list[Probe] = []

    def add(self, batch: Any) -> Probe | None:
        """Copy the samples of a batch that are still missing; returns the probe once it is complete."""
        inputs, target = self.unpack(_copied(batch))
        missing = self.size - sum(len(part.target) for part in self.parts)
        self.parts.append(Probe(take(inputs, slice(0, missing)), target[:missing]))
        return self.probe() if len(target) >= missing else None

    def probe(self) -> Probe | None:
        """The probe of all samples so far; None if there are none."""
        if not self.parts:
            return None
        samples = count(self.parts[0].inputs)

        def join(first: Tensor, *others: Tensor) -> Tensor:
            return torch.cat([first, *others]) if first.ndim and len(first) == samples else first

        inputs = map_tensors(join, self.parts[0].inputs, *(part.inputs for part in self.parts[1:]))
        return Probe(inputs, torch.cat([part.target for part in self.parts]))


def check_given(name: str, given: Any) -> None:
    """Check that a user's probe is None, a pair of tensors, a mapping of tensors, a data set or a loader."""
    if given is None or isinstance(given, DataLoader | Dataset) or _is_pair(given):
        return
    if not isinstance(given, Mapping) or not tensors(given):
        raise TypeError(f"`{name}` must be a pair of tensors, a Dataset or a DataLoader, got {type(given).__name__}.")


def _is_pair(given: Any) -> bool:
    return isinstance(given, list | tuple) and len(given) == 2 and bool(tensors(given[0])) and bool(tensors(given[1]))


def given_probe(given: Any, size: int, seed: int, transfer: Callable[[Any], Any], unpack: Unpack) -> Probe:
    """The user's own probe: a pair (inputs, target), which is not unpacked, a batch, a data set or a loader."""
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


def first_loader(given: Any) -> Any:
    """The first of several loaders or data sets, in a list or a mapping; anything else as it is."""
    several = list(given.values()) if isinstance(given, Mapping) else given
    if isinstance(several, list | tuple) and several and all(isinstance(one, DataLoader | Dataset) for one in several):
        return several[0]
    return given


def on_device_of(model: nn.Module) -> Callable[[Any], Any]:
    """A function that moves a batch to the device of a model."""
    weight = next(model.parameters(), None)

    def transfer(batch: Any) -> Any:
        return batch if weight is None else map_tensors(lambda tensor: tensor.to(weight.device), batch)

    return transfer
