"""From data loaders to a fixed, stratified probe: read from the data set, or else collected from training batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from netdyn._utils.checks import warn
from netdyn._utils.inputs import check_inputs, shown
from netdyn._utils.trees import Inputs, copied, count, map_tensors, take, tensors
from netdyn._utils.user_code import explained
from netdyn.isolation.isolated import rng_restored
from netdyn.probes.choice import MOST, as_strata, draw, labels_of, pick, stratified
from netdyn.probes.probe import Probe, device_of
from netdyn.probes.reading import read
from netdyn.probes.unpacking import detached_copy, first_of, input_and_target, what_is_taken

Unpack = Callable[[Any], tuple[Inputs, Tensor]]

#: If the labels are not known, a random pool of this many times the probe's size is read and stratified.
POOL = 4


def can_read(loader: Any) -> bool:
    """Whether samples can be read from a loader's data set by index."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    return loader.batch_size is not None or loader.batch_sampler is not None


def read_probe(
    loader: DataLoader[Any],
    size: int,
    seed: int,
    transfer: Callable[[Any], Any],
    unpack: Unpack,
    where: str = "",
    most: float = math.inf,
) -> Probe:
    """Read a stratified probe of ``size`` samples from a loader's data set, see :func:`netdyn.probes.reading.read`.

    ``seed`` seeds the choice, and the random numbers that reading draws. ``transfer`` moves a batch to the device, and
    into the form, that the model expects. ``where`` says which loader this is, if there are several. Where the samples
    come in order, only the first ``most`` batches count.
    """
    dataset: Any = loader.dataset
    # The sampler may draw from some of the samples only; the others may be held-out data.
    sampler: Any = getattr(loader.batch_sampler, "sampler", loader.sampler)
    some = getattr(sampler, "indices", None)
    if some is None and _draws_a_part(sampler, len(dataset)):
        warn(
            f"The sampler {type(sampler).__name__} draws {len(sampler)} of {len(dataset)} samples, but does not say "
            "which: the probe is of all of them, of which some may be held out. Give the sampler an attribute "
            "`indices`, or pass the samples that count as `probe=` (held-out ones as `val_probe=`)."
        )
    total = len(dataset) if some is None else len(some)
    if isinstance(sampler, SequentialSampler) or (isinstance(sampler, DistributedSampler) and not sampler.shuffle):
        # Each process has every so many-th sample.
        total = int(min(total, most * (loader.batch_size or total) * getattr(sampler, "num_replicas", 1)))
    if total == 0:
        raise ValueError("The training data set must hold samples for the probe, got an empty one.")
    generator = torch.Generator().manual_seed(seed)

    def drawn(wanted: int) -> Tensor:
        places = draw(total, wanted, generator)
        return places if some is None else pick(some, places)

    with rng_restored():  # labels may be a property, with code of the user's
        first = torch.zeros(1, dtype=torch.int64) if some is None else pick(some, torch.zeros(1, dtype=torch.int64))
        index = drawn(POOL * size if labels_of(dataset, first) is None else MOST)
        labels = labels_of(dataset, index)
        if labels is None:  # the first one only seemed to be a label
            index = index[draw(len(index), POOL * size, generator)]
    if labels is not None:
        index = index[stratified(labels, size, generator)]
    batch = read(loader, [index.tolist()], seed, next)
    inputs, target = unpacked(unpack, transfer(batch))
    target = copied(target)
    if labels is None:
        # Targets that are not class labels are a single stratum.
        check_inputs(inputs, target)
        strata = as_strata(target.cpu())
        strata = torch.zeros(len(target), dtype=torch.int64) if strata is None else strata
        chosen = stratified(strata, size, generator).to(target.device)
        inputs, target = take(inputs, chosen), target[chosen]
    return Probe(copied(inputs), target, _taken(batch, unpack, where))


def _draws_a_part(sampler: Any, samples: int) -> bool:
    """Whether a sampler of the user's own draws fewer than all samples, and not for one of several processes."""
    if isinstance(sampler, RandomSampler | WeightedRandomSampler) or hasattr(sampler, "num_replicas"):
        return False
    try:
        return len(sampler) < samples
    except Exception:  # its length is the user's code, or there is none
        return False


def unpacked(unpack: Unpack, batch: Any) -> tuple[Inputs, Tensor]:
    """What ``unpack`` makes of a batch, if it can be measured at all."""

    def message(reason: str) -> str:
        return (
            f"`unpack`, called with the batch {shown(batch)}, raised {reason} It must return a pair (inputs, target)."
        )

    with explained(message):
        found = unpack(batch)
    if not isinstance(found, list | tuple) or len(found) != 2 or not isinstance(found[1], Tensor):
        pair = isinstance(found, list | tuple) and len(found) == 2
        what = f"a pair with a target of type {type(found[1]).__name__}" if pair else f"{type(found).__name__}"
        raise TypeError(f"`unpack` must return a pair (inputs, target) with a tensor as target, got {what}.")
    count(found[0])  # an error if there are no samples
    return found[0], found[1]


def _taken(batch: Any, unpack: Unpack, where: str = "") -> str:
    what = what_is_taken(batch) if unpack is input_and_target else ""
    return ", ".join(filter(None, (where, what)))


class Collector:
    """Collects a probe of ``size`` samples from the training batches, if the data set cannot be read.

    ``path`` leads to the part of a batch that counts, if it is made of the batches of several loaders; ``where`` says
    so.
    """

    def __init__(self, size: int, unpack: Unpack, path: tuple[Any, ...] = (), where: str = "") -> None:
        self.size, self.unpack, self.path, self.where = size, unpack, path, where
        self.parts: list[Probe] = []

    def add(self, batch: Any) -> Probe | None:
        """Copy the samples of a batch that are still missing; returns the probe once it is complete."""
        for key in self.path:
            batch = batch[key]
        inputs, target = unpacked(self.unpack, detached_copy(batch))
        missing = self.size - sum(len(part.target) for part in self.parts)
        self.parts.append(
            Probe(take(inputs, slice(0, missing)), target[:missing], _taken(batch, self.unpack, self.where))
        )
        return self.probe() if len(target) >= missing else None

    def probe(self) -> Probe | None:
        """The probe of all samples so far; None if there are none."""
        if not self.parts:
            return None
        first, *others = self.parts
        samples = count(first.inputs)

        def join(tensor: Tensor, *more: Tensor) -> Tensor:
            return torch.cat([tensor, *more]) if tensor.ndim and len(tensor) == samples else tensor

        inputs = map_tensors(join, first.inputs, *(part.inputs for part in others))
        return Probe(inputs, torch.cat([part.target for part in self.parts]), first.taken)


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
    if _is_pair(given):
        inputs, target = transfer(copied(given))
        return Probe(copied(inputs), target.detach().clone())
    if isinstance(given, Mapping):
        inputs, target = unpacked(unpack, transfer(copied(given)))
        return Probe(copied(inputs), target.detach().clone(), _taken(given, unpack))
    loader = given if isinstance(given, DataLoader) else DataLoader(given)
    if can_read(loader):
        return read_probe(loader, size, seed, transfer, unpack)
    collector = Collector(size, unpack)

    def collected(batches: Iterator[Any]) -> Probe | None:
        full = (probe for batch in batches if (probe := collector.add(transfer(batch))) is not None)
        return next(full, None) or collector.probe()

    indices = None
    if not isinstance(loader.dataset, IterableDataset):
        # A data set that hands out whole batches: each has a sample at least.
        batches: Any = loader.dataset
        indices = draw(len(batches), size, torch.Generator().manual_seed(seed)).tolist()
    if (probe := read(loader, indices, seed, collected)) is None:
        raise ValueError("`probe` must hold samples, got an empty loader.")
    return probe


def first_loader(given: Any) -> Any:
    """The first of several loaders or data sets, in lists and mappings; anything else as it is."""
    first, *_ = first_of(given)
    return first if isinstance(first, DataLoader | Dataset) else given


def on_device_of(model: nn.Module) -> Callable[[Any], Any]:
    """A function that moves a batch to the device of a model."""
    device = device_of(model)

    def transfer(batch: Any) -> Any:
        return batch if device is None else map_tensors(lambda tensor: tensor.to(device), batch)

    return transfer
