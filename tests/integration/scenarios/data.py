"""Trainings that differ in where the samples come from: data sets, loaders, batches, and what they carry along."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

from integration.scenarios.base import CLASSES, FEATURES, Classifier, dataset, loader, network, points
from integration.untouched import Training

SCENARIOS: dict[str, Callable[[], Training]] = {}


def scenario(build: Callable[[], Training]) -> Callable[[], Training]:
    """Put a builder on the list, under its own name."""
    SCENARIOS[build.__name__] = build
    return build


def train_on(data: Any, **options: Any) -> Training:
    """A plain classifier on a data set, with the usual loader."""
    return Training(Classifier(), loader(data, **options), loader(dataset(32, seed=1), shuffle=False))


# --- data sets: random numbers, counters, caches -------------------------------------------------------------------


class Samples(Dataset[Any]):
    """The clusters, sample by sample, without any list of labels; the base of the data sets below."""

    def __init__(self, n: int = 64) -> None:
        self.x, self.y = points(n)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], int(self.y[index])


class Augmented(Samples):
    """Draws from all three global generators for every sample."""

    def __getitem__(self, index: int) -> Any:
        noise = (
            torch.randn(FEATURES) + torch.from_numpy(np.random.normal(size=FEATURES)).float() + random.gauss(0.0, 1.0)  # noqa: NPY002
        )
        return self.x[index] + 0.05 * noise, int(self.y[index])


@scenario
def augmentation_from_all_global_generators() -> Training:
    return train_on(Augmented())


@scenario
def augmentation_of_validation_data() -> Training:
    return Training(Classifier(), loader(), loader(Augmented(32), shuffle=False))


def draw(generator: Any) -> Tensor:
    """A little noise from a generator of any kind."""
    if isinstance(generator, torch.Generator):
        return 0.05 * torch.randn(FEATURES, generator=generator)
    if isinstance(generator, random.Random):
        return torch.tensor([0.05 * generator.gauss(0.0, 1.0) for _ in range(FEATURES)])
    return torch.from_numpy(generator.normal(size=FEATURES)).float() * 0.05


class Owner(Samples):
    """Owns a generator and draws from it."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def __getitem__(self, index: int) -> Any:
        return self.x[index] + draw(self.generator), int(self.y[index])


def owner_of(generator: Any, wrap: Callable[[Any], Any] = lambda data: data) -> Training:
    """Training on a data set that owns a generator, whose state is compared."""
    training = train_on(wrap(Owner(generator)))
    training.watched["generator"] = lambda: generator
    return training


@scenario
def data_set_owns_torch_generator() -> Training:
    return owner_of(torch.Generator().manual_seed(3))


@scenario
def data_set_owns_numpy_generator() -> Training:
    return owner_of(np.random.default_rng(3))


@scenario
def data_set_owns_numpy_random_state() -> Training:
    return owner_of(np.random.RandomState(3))


@scenario
def data_set_owns_python_generator() -> Training:
    return owner_of(random.Random(3))


@scenario
def owner_in_subset() -> Training:
    return owner_of(torch.Generator().manual_seed(3), lambda data: Subset(data, range(0, 64, 2)))


@scenario
def owner_in_concatenation() -> Training:
    return owner_of(np.random.default_rng(3), lambda data: ConcatDataset([data, Samples(16)]))


@scenario
def owner_in_subset_of_concatenation_of_subset() -> Training:
    def wrap(data: Any) -> Any:
        return Subset(ConcatDataset([Samples(16), Subset(data, list(range(40)))]), list(range(8, 56)))

    return owner_of(random.Random(3), wrap)


class Jitter:
    """A transform with a generator and a counter of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + draw(self.generator)


class Compose:
    """One transform after another."""

    def __init__(self, steps: list[Callable[[Tensor], Tensor]]) -> None:
        self.steps = steps

    def __call__(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Transformed(Samples):
    """Passes every sample through a transform."""

    def __init__(self, transform: Any = None) -> None:
        super().__init__()
        self.transform = transform

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.x[index]), int(self.y[index])


def watching(transform: Any, jitter: Jitter) -> Training:
    """Training through a transform that uses ``jitter`` somewhere, whose state is compared."""
    training = train_on(Transformed(transform))
    training.watched["jitter"] = lambda: [jitter.calls, jitter.generator]
    return training


@scenario
def transform_owns_generator() -> Training:
    jitter = Jitter()
    return watching(jitter, jitter)


@scenario
def composed_transforms() -> Training:
    jitter = Jitter()
    return watching(Compose([nn.Identity(), Compose([jitter])]), jitter)


@scenario
def transform_is_bound_method() -> Training:
    jitter = Jitter()
    return watching(jitter.__call__, jitter)


@scenario
def transform_is_partial() -> Training:
    jitter = Jitter()
    return watching(partial(_through, jitter), jitter)


def _through(jitter: Jitter, x: Tensor) -> Tensor:
    return jitter(x)


@scenario
def transform_is_closure() -> Training:
    jitter = Jitter()

    def transform(x: Tensor) -> Tensor:
        return jitter(x)

    return watching(transform, jitter)


class Augmenter:
    """Not callable itself: has an ``augment`` method, a counter and a generator."""

    def __init__(self) -> None:
        self.jitter = Jitter()

    def augment(self, x: Tensor) -> Tensor:
        return self.jitter(x)


class WithAugmenter(Samples):
    """Uses a plain helper object."""

    def __init__(self) -> None:
        super().__init__()
        self.augmenter = Augmenter()

    def __getitem__(self, index: int) -> Any:
        return self.augmenter.augment(self.x[index]), int(self.y[index])


@scenario
def data_set_has_plain_helper_object() -> Training:
    data = WithAugmenter()
    training = train_on(data)
    training.watched["helper"] = lambda: [data.augmenter.jitter.calls, data.augmenter.jitter.generator]
    return training


class SelfReferring(Samples):
    """Chooses its own method at construction, and its transform knows it: a reference that comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.load = self._load
        self.transform = Compose([])
        self.transform.owner = self  # type: ignore[attr-defined]

    def _load(self, index: int) -> Tensor:
        self.reads += 1
        return self.x[index]

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.load(index)), int(self.y[index])


@scenario
def data_set_refers_to_itself() -> Training:
    data = SelfReferring()
    training = train_on(data)
    training.watched["reads"] = lambda: data.reads
    return training


class Counting(Samples):
    """Counts its reads in every way, and keeps what it has read."""

    def __init__(self, n: int = 64) -> None:
        super().__init__(n)
        self.reads = 0
        self.order: list[int] = []
        self.seen: set[int] = set()
        self.kept: dict[int, Any] = {}

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        self.order.append(index)
        self.seen.add(index)
        if index not in self.kept:
            self.kept[index] = (self.x[index] + 0.05 * torch.randn(FEATURES), int(self.y[index]))
        return self.kept[index]

    def traces(self) -> list[Any]:
        return [self.reads, self.order, self.seen, self.kept]


@scenario
def data_set_counts_and_caches() -> Training:
    data = Counting()
    training = train_on(data)
    training.watched["traces"] = data.traces
    return training


@scenario
def validation_data_set_counts_and_caches() -> Training:
    data = Counting(32)
    training = Training(Classifier(), loader(), loader(data, shuffle=False))
    training.watched["traces"] = data.traces
    return training


class CountingInNests(Samples):
    """Keeps its counts in containers inside containers."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, dict[int, int]] = {"reads": {}}
        self.lists: list[list[int]] = [[] for _ in range(CLASSES)]
        self.pair: tuple[list[int], set[int]] = ([], set())

    def __getitem__(self, index: int) -> Any:
        label = int(self.y[index])
        self.counts["reads"][label] = self.counts["reads"].get(label, 0) + 1
        self.lists[label].append(index)
        self.pair[0].append(index)
        self.pair[1].add(index)
        return self.x[index], label


@scenario
def data_set_counts_in_nested_containers() -> Training:
    data = CountingInNests()
    training = train_on(data)
    training.watched["traces"] = lambda: [data.counts, data.lists, data.pair]
    return training


class CountingInCollections(Samples):
    """The same, with the containers of :mod:`collections`."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[int] = Counter()
        self.by_class: defaultdict[int, list[int]] = defaultdict(list)
        self.kept: OrderedDict[int, Any] = OrderedDict()

    def __getitem__(self, index: int) -> Any:
        self.reads[index] += 1
        self.by_class[int(self.y[index])].append(index)
        if index not in self.kept:
            self.kept[index] = self.x[index] + 0.05 * torch.randn(FEATURES)
        self.kept.move_to_end(index)
        while len(self.kept) > 20:
            self.kept.popitem(last=False)
        return self.kept[index], int(self.y[index])


@scenario
def data_set_counts_in_collections() -> Training:
    data = CountingInCollections()
    training = train_on(data)
    training.watched["traces"] = lambda: [data.reads, data.by_class, data.kept]
    return training


class CountingInArrays(Samples):
    """The same, written into a tensor and an array in place."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = torch.zeros(64, dtype=torch.int64)
        self.times = np.zeros(64, dtype=np.int64)

    def __getitem__(self, index: int) -> Any:
        self.reads[index] += 1
        self.times[index] += 1
        return self.x[index], int(self.y[index])


@scenario
def data_set_counts_in_arrays() -> Training:
    data = CountingInArrays()
    training = train_on(data)
    training.watched["traces"] = lambda: [data.reads, data.times]
    return training


class NoDataset:
    """A data set by behaviour only: it inherits from nothing."""

    def __init__(self) -> None:
        self.x, self.y = points()
        self.reads = 0
        self.generator = np.random.default_rng(4)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.x[index] + draw(self.generator), int(self.y[index])


@scenario
def data_set_of_no_base_class() -> Training:
    data = NoDataset()
    training = train_on(data)
    training.watched["traces"] = lambda: [data.reads, data.generator]
    return training


class Delegating(Dataset[Any]):
    """Wraps a data set and passes on whatever it does not know itself."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


@scenario
def data_set_delegates_attributes() -> Training:
    data = Counting()
    training = train_on(Delegating(data))
    training.watched["traces"] = data.traces
    return training


class Unpicklable(Counting):
    """Holds something open, and refuses to be pickled."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("an open file cannot be pickled")


@scenario
def data_set_refuses_to_be_pickled() -> Training:
    data = Unpicklable()
    training = train_on(data)
    training.watched["traces"] = data.traces
    return training


class Slots:
    """Counts in a slot."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return float(np.sin(self.calls))


class OfState(Samples):
    """Adds what it makes of its state, which moves with every sample; counts on its class too."""

    reads = 0

    def __init__(self, state: Any, draw: Callable[[Any], float]) -> None:
        super().__init__()
        self.state, self.draw = state, draw

    def __getitem__(self, index: int) -> Any:
        type(self).reads += 1
        return self.x[index] + 0.3 * self.draw(self.state) + 0.01 * (type(self).reads % 7), int(self.y[index])


def _of_state(make: Callable[[], Any], draw: Callable[[Any], float]) -> Callable[[], Training]:
    def build() -> Training:
        OfState.reads = 0
        training = train_on(OfState(make(), draw))
        training.watched["reads"] = lambda: OfState.reads
        return training

    return build


def _closure() -> Callable[[], float]:
    calls = 0

    def draw() -> float:
        nonlocal calls
        calls += 1
        return float(np.sin(calls))

    return draw


SCENARIOS |= {
    "data_set_counts_in_a_slot": _of_state(Slots, lambda state: state()),
    "data_set_holds_an_iterator": _of_state(lambda: cycle(np.sin(np.arange(1000)).tolist()), next),
    "data_set_spawns_generators": _of_state(
        lambda: np.random.default_rng(0), lambda state: float(state.spawn(1)[0].normal())
    ),
    "data_set_counts_in_a_closure": _of_state(_closure, lambda state: state()),
}


class InBulk(Samples):
    """Reads a whole batch in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __getitems__(self, index: list[int]) -> Any:
        self.calls += 1
        return [(self.x[i] + 0.05 * torch.randn(FEATURES), int(self.y[i])) for i in index]


@scenario
def data_set_reads_in_bulk() -> Training:
    data = InBulk()
    training = train_on(data)
    training.watched["calls"] = lambda: data.calls
    return training


# --- labels --------------------------------------------------------------------------------------------------------


class Labelled(Samples):
    """Carries its labels under a name of choice, and in a form of choice."""

    def __init__(self, name: str, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        setattr(self, name, form(self.y))


def _labelled(name: str, form: Callable[[Tensor], Any]) -> Callable[[], Training]:
    return lambda: train_on(Labelled(name, form))


SCENARIOS |= {
    "targets_as_tensor": _labelled("targets", lambda y: y),
    "targets_as_list": _labelled("targets", lambda y: y.tolist()),
    "targets_as_array": _labelled("targets", lambda y: y.numpy()),
    "labels_as_tensor": _labelled("labels", lambda y: y),
    "labels_as_list": _labelled("labels", lambda y: y.tolist()),
    "labels_as_array": _labelled("labels", lambda y: y.numpy()),
    "labels_as_words": _labelled("labels", lambda y: ["abcde"[i] for i in y]),
    "no_labels": lambda: train_on(Samples()),
    "list_of_samples": lambda: train_on([(x, int(y)) for x, y in zip(*points(), strict=True)]),
}


@scenario
def random_split_of_one_data_set() -> Training:
    train, val = random_split(dataset(96), [64, 32])
    return Training(Classifier(), loader(train), loader(val, shuffle=False))


@scenario
def random_split_of_labelled_data_set() -> Training:
    train, val = random_split(Labelled("targets", list), [40, 24])
    return Training(Classifier(), loader(train), loader(val, shuffle=False))


# --- loaders -------------------------------------------------------------------------------------------------------


@scenario
def loader_owns_generator() -> Training:
    generator = torch.Generator().manual_seed(11)
    training = train_on(Augmented(), generator=generator)
    training.watched["generator"] = lambda: generator
    return training


@scenario
def one_worker() -> Training:
    return train_on(Augmented(), num_workers=1)


@scenario
def persistent_workers() -> Training:
    generator = torch.Generator().manual_seed(11)
    training = train_on(Augmented(), num_workers=2, persistent_workers=True, generator=generator)
    training.watched["generator"] = lambda: generator
    return training


@scenario
def persistent_worker_with_state() -> Training:
    data = Counting()
    training = train_on(data, num_workers=1, persistent_workers=True)
    training.watched["reads"] = lambda: data.reads  # all in the worker: none here
    return training


@scenario
def drop_last() -> Training:
    return train_on(dataset(60), drop_last=True)


@scenario
def uneven_last_batch() -> Training:
    return train_on(dataset(60))


class Backwards(Sampler[int]):
    """Counts how often it was asked; a random start, then backwards."""

    def __init__(self, n: int) -> None:
        self.n, self.asked = n, 0

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        self.asked += 1
        start = random.randrange(self.n)
        return iter([(start - i) % self.n for i in range(self.n)])


@scenario
def custom_sampler() -> Training:
    sampler = Backwards(64)
    training = train_on(Augmented(), sampler=sampler, shuffle=False)
    training.watched["asked"] = lambda: sampler.asked
    return training


@scenario
def batch_sampler() -> Training:
    sampler = Backwards(64)
    batches = BatchSampler(sampler, batch_size=12, drop_last=False)
    data = DataLoader(Augmented(), batch_sampler=batches)
    training = Training(Classifier(), data, loader(shuffle=False))
    training.watched["asked"] = lambda: sampler.asked
    return training


@scenario
def weighted_random_sampler() -> Training:
    generator = torch.Generator().manual_seed(2)
    weights = torch.linspace(0.1, 1.0, 64).tolist()
    sampler = WeightedRandomSampler(weights, num_samples=56, generator=generator)
    training = train_on(dataset(), sampler=sampler, shuffle=False)
    training.watched["generator"] = lambda: generator
    return training


@scenario
def random_sampler_with_replacement() -> Training:
    data = Augmented()
    return train_on(data, sampler=RandomSampler(data, replacement=True, num_samples=48), shuffle=False)


class Collate:
    """A collate function with a counter, a generator and a memory."""

    def __init__(self) -> None:
        self.calls = 0
        self.generator = torch.Generator().manual_seed(8)
        self.sizes: list[int] = []

    def __call__(self, samples: list[Any]) -> Any:
        self.calls += 1
        self.sizes.append(len(samples))
        x, y = default_collate(samples)
        return [x + 0.05 * torch.randn(x.shape, generator=self.generator), y]


@scenario
def collate_object_with_state() -> Training:
    collate = Collate()
    training = train_on(Samples(), collate_fn=collate)
    training.watched["collate"] = lambda: [collate.calls, collate.generator, collate.sizes]
    return training


class Collating(Samples):
    """Collates its own samples, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.collated = 0

    def collate(self, samples: list[Any]) -> Any:
        self.collated += len(samples)
        return default_collate(samples)


@scenario
def collate_is_method_of_data_set() -> Training:
    data = Collating()
    training = train_on(data, collate_fn=data.collate)
    training.watched["collated"] = lambda: data.collated
    return training


@scenario
def collate_is_partial() -> Training:
    collate = Collate()
    training = train_on(Samples(), collate_fn=partial(_with_collate, collate))
    training.watched["collate"] = lambda: [collate.calls, collate.generator, collate.sizes]
    return training


def _with_collate(collate: Collate, samples: list[Any]) -> Any:
    return collate(samples)


class Batched(Samples):
    """Hands out whole batches."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.x[index::4] + 0.05 * torch.randn(16, FEATURES), self.y[index::4]


@scenario
def loader_without_batch_size() -> Training:
    return Training(Classifier(), DataLoader(Batched(), batch_size=None, shuffle=True), loader(shuffle=False))


# --- streams -------------------------------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    """Samples in random order, one pass after the other, counted."""

    def __init__(self, n: int = 64) -> None:
        self.x, self.y = points(n)
        self.passes = 0
        self.generator = torch.Generator().manual_seed(6)

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for i in torch.randperm(len(self.x), generator=self.generator).tolist():
            yield self.x[i] + 0.05 * torch.randn(FEATURES), int(self.y[i])


def _stream(data: Stream, **options: Any) -> Training:
    training = Training(Classifier(), DataLoader(data, batch_size=16, **options), loader(shuffle=False))
    training.watched["stream"] = lambda: [data.passes, data.generator]
    return training


@scenario
def stream() -> Training:
    return _stream(Stream())


@scenario
def stream_in_workers() -> Training:
    return _stream(Stream(48), num_workers=1)


@scenario
def stream_shorter_than_the_probe() -> Training:
    training = _stream(Stream(40))
    training.monitor["probe_size"] = 1024
    training.evaluations = 1
    return training


@scenario
def stream_of_validation_data() -> Training:
    data = Stream(32)
    training = Training(Classifier(), loader(), DataLoader(data, batch_size=16))
    training.watched["stream"] = lambda: [data.passes, data.generator]
    return training


@scenario
def stream_unpacked_with_random_numbers() -> Training:
    training = _stream(Stream())
    training.monitor["unpack"] = lambda batch: (batch[0] + 0 * torch.randn(1), batch[1])
    return training


@scenario
def stream_of_whole_batches() -> Training:
    class Batches(Stream):
        def __iter__(self) -> Iterator[Any]:
            for part in torch.randperm(64, generator=self.generator).split(16):
                yield self.x[part], self.y[part]

    data = Batches()
    training = Training(Classifier(), DataLoader(data, batch_size=None), loader(shuffle=False))
    training.watched["stream"] = lambda: [data.passes, data.generator]
    return training


@scenario
def any_iterable_as_loader() -> Training:
    x, y = points()

    class Batches:
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[Any]:
            for part in torch.randperm(64).split(16):
                yield x[part], y[part]

    return Training(Classifier(), Batches(), loader(shuffle=False))


# --- several loaders -----------------------------------------------------------------------------------------------


class Joint(Classifier):
    """Learns from two loaders at once."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=16)
        return loss

    def loss(self, batch: Any) -> Tensor:
        if isinstance(batch, dict):
            batch = list(batch.values())
        if isinstance(batch[0], Tensor):  # validation: one plain batch
            return super().loss(batch)
        pairs = [pair for pair in batch if pair is not None]
        return torch.stack([super(Joint, self).loss(pair) for pair in pairs]).sum()


def _first_or_pair(batch: Any) -> Any:
    return batch if isinstance(batch[0], Tensor) else batch[0]


def _two() -> list[DataLoader[Any]]:
    return [loader(Augmented()), loader(dataset(40, seed=4), batch_size=8)]


def _together(combine: Callable[[], Any], unpack: Callable[[Any], Any] = _first_or_pair) -> Callable[[], Training]:
    return lambda: Training(Joint(), combine(), loader(shuffle=False), monitor={"unpack": unpack})


def _by_name() -> dict[str, DataLoader[Any]]:
    return dict(zip("ab", _two(), strict=True))


def _named_a(batch: Any) -> Any:
    return batch["a"] if isinstance(batch, dict) else batch


SCENARIOS |= {
    "combined_loader_min_size": _together(lambda: CombinedLoader(_two(), "min_size")),
    "combined_loader_max_size_cycle": _together(lambda: CombinedLoader(_by_name(), "max_size_cycle"), _named_a),
    "combined_loader_max_size": _together(
        lambda: CombinedLoader([loader(Augmented()), loader(dataset(32, seed=4))], "max_size")
    ),
    "list_of_loaders": _together(_two),
    "list_of_one_loader": _together(lambda: [loader(Augmented())]),
    "dict_of_loaders": _together(_by_name, _named_a),
    "dict_of_one_loader": _together(lambda: {"a": loader(Augmented())}, _named_a),
}


@scenario
def several_validation_loaders() -> Training:
    class Several(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("val_loss", self.loss(batch))

    vals = [loader(Augmented(32), shuffle=False), loader(dataset(16), shuffle=False)]
    return Training(Several(), loader(), vals)


class TrainsOnly(Classifier):
    """Has no validation step."""

    validation_step = L.LightningModule.validation_step


@scenario
def no_validation() -> Training:
    return Training(TrainsOnly(), loader(Augmented()))


# --- batches -------------------------------------------------------------------------------------------------------


class Fields(nn.Module):
    """Takes floats, integer ids and a boolean mask in one dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, FEATURES)
        self.net = network()

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        words = self.embedding(inputs["ids"]) * inputs["mask"].unsqueeze(-1)
        return self.net(inputs["x"] + words.mean(1))


def fields(n: int = 64) -> list[dict[str, Any]]:
    """Samples with floats, ids, a mask and a label."""
    x, y = points(n)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 4, (n, 3), generator=generator)
    mask = torch.rand(n, 3, generator=generator) < 0.7
    return [{"x": x[i], "ids": ids[i], "mask": mask[i], "label": y[i]} for i in range(n)]


class Named(NamedTuple):
    """A batch as a NamedTuple."""

    x: Tensor
    ids: Tensor
    mask: Tensor
    label: Tensor


@dataclass
class Record:
    """A batch as a dataclass."""

    x: Tensor
    ids: Tensor
    mask: Tensor
    label: Tensor


@dataclass(frozen=True)
class Frozen:
    """A batch as a frozen dataclass, which moves itself to a device."""

    x: Tensor
    ids: Tensor
    mask: Tensor
    label: Tensor

    def to(self, device: Any, **options: Any) -> Frozen:
        return Frozen(**{name: value.to(device, **options) for name, value in vars(self).items()})


def as_fields(batch: Any) -> tuple[dict[str, Tensor], Tensor]:
    """From any of these batches to (inputs, target)."""
    values = batch if isinstance(batch, dict) else batch._asdict() if isinstance(batch, Named) else vars(batch)
    return {name: values[name] for name in ("x", "ids", "mask")}, values["label"]


class FieldClassifier(Classifier):
    """Learns from batches with named fields."""

    def __init__(self) -> None:
        super().__init__(Fields())

    def loss(self, batch: Any) -> Tensor:
        inputs, y = as_fields(batch)
        return nn.functional.cross_entropy(self(inputs), y)


class FieldStream(IterableDataset[Any]):
    """The samples with fields, as a stream."""

    def __iter__(self) -> Iterator[Any]:
        return iter(fields())


def _batches_of(kind: Any, streamed: bool = False, **monitor: Any) -> Callable[[], Training]:
    def collate(samples: list[dict[str, Any]]) -> Any:
        return kind(**default_collate(samples))

    def build() -> Training:
        train = DataLoader(FieldStream(), 16, collate_fn=collate) if streamed else loader(fields(), collate_fn=collate)
        val = loader(fields(32), shuffle=False, collate_fn=collate)
        return Training(FieldClassifier(), train, val, monitor={"unpack": as_fields} | monitor)

    return build


def call_with_named(module: nn.Module, inputs: Named) -> Tensor:
    """How a module that takes a dictionary is called on a NamedTuple."""
    return module(as_fields(inputs)[0])


SCENARIOS |= {
    "batches_are_dicts": _batches_of(dict),
    "batches_are_named_tuples": _batches_of(Named),
    "batches_are_dataclasses": _batches_of(Record),
    "batches_are_frozen_dataclasses": _batches_of(Frozen),
    "batches_are_named_tuples_passed_whole": _batches_of(
        Named, unpack=lambda batch: (batch, batch.label), forward=call_with_named
    ),
    "stream_of_dicts": _batches_of(dict, streamed=True),
    "stream_of_named_tuples": _batches_of(Named, streamed=True),
    "stream_of_dataclasses": _batches_of(Record, streamed=True),
    "stream_of_frozen_dataclasses": _batches_of(Frozen, streamed=True),
}


# --- on the way to the device --------------------------------------------------------------------------------------


class Transferring(Classifier):
    """Augments before and after the transfer, counts, and remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.before = self.after = 0
        self.shapes: list[tuple[int, ...]] = []
        self.generator = torch.Generator().manual_seed(12)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.before += 1
        self.shapes.append(tuple(batch[0].shape))
        return [batch[0] + 0.05 * torch.randn_like(batch[0]), batch[1]]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.after += 1
        noise = torch.randn(batch[0].shape, generator=self.generator) if self.trainer.training else 0.0
        batch[0] = batch[0] + 0.05 * noise + 0.01 * random.random() + 0.01 * float(np.random.rand())  # noqa: NPY002
        return batch


@scenario
def transfer_hooks_of_the_module() -> Training:
    return Training(Transferring(), loader(), loader(shuffle=False))


class WithPlainAugmenter(Classifier):
    """Augments by a helper that is no module, and has a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.augmenter = Jitter()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [self.augmenter(batch[0]), batch[1]]


@scenario
def transfer_hook_uses_plain_helper_object() -> Training:
    module = WithPlainAugmenter()
    training = Training(module, loader(), loader(shuffle=False))
    training.watched["helper"] = lambda: [module.augmenter.calls, module.augmenter.generator]
    return training


class Data(L.LightningDataModule):
    """A data module that shuffles and augments in its data set."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def setup(self, stage: str) -> None:
        self.data, self.val = Augmented(), dataset(32, seed=1)

    def train_dataloader(self) -> Any:
        self.asked += 1
        return loader(self.data)

    def val_dataloader(self) -> Any:
        return loader(self.val, shuffle=False)


@scenario
def data_module() -> Training:
    data = Data()
    training = Training(Classifier(), data)
    training.watched["asked"] = lambda: data.asked
    return training


class TransferringData(Data):
    """The data module itself takes part in the transfer, and keeps a count and a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.transferred = 0
        self.generator = torch.Generator().manual_seed(13)
        self.sizes: list[int] = []

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.transferred += 1
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.sizes.append(len(batch[1]))
        return [batch[0] + 0.05 * torch.randn(batch[0].shape, generator=self.generator), batch[1]]


@scenario
def transfer_hooks_of_the_data_module() -> Training:
    data = TransferringData()
    training = Training(Classifier(), data)
    training.watched["traces"] = lambda: [data.asked, data.transferred, data.sizes, data.generator]
    return training


class CollatingData(Data):
    """Its loaders collate with a method of the data module."""

    def __init__(self) -> None:
        super().__init__()
        self.collated = 0

    def collate(self, samples: list[Any]) -> Any:
        self.collated += 1
        return default_collate(samples)

    def train_dataloader(self) -> Any:
        return loader(self.data, collate_fn=self.collate)


@scenario
def collate_is_method_of_data_module() -> Training:
    data = CollatingData()
    training = Training(Classifier(), data)
    training.watched["collated"] = lambda: data.collated
    return training


class OwnTransfer(Classifier):
    """Moves its batches itself."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        self.moved = getattr(self, "moved", 0) + 1
        return [part.to(device) for part in batch]


@scenario
def module_moves_batches_itself() -> Training:
    return Training(OwnTransfer(), loader(), loader(shuffle=False))


class OwnLoaders(Classifier):
    """Makes its own loaders, from data that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.data, self.val = Counting(), Counting(32)

    def train_dataloader(self) -> Any:
        return loader(self.data)

    def val_dataloader(self) -> Any:
        return loader(self.val, shuffle=False)


@scenario
def loaders_of_the_module() -> Training:
    module = OwnLoaders()
    training = Training(module)
    training.watched["traces"] = lambda: [module.data.traces(), module.val.traces()]
    return training


# --- probes that the user gives ------------------------------------------------------------------------------------


@scenario
def probe_is_tensors() -> Training:
    x, y = points(40, seed=5)
    training = train_on(Augmented())
    training.monitor = {"probe": (x, y), "val_probe": points(20, seed=6)}
    training.watched["probe"] = lambda: [x, y]
    return training


@scenario
def probe_is_data_set() -> Training:
    data = Counting(40)
    training = train_on(data)
    training.monitor = {"probe": data}
    training.watched["traces"] = data.traces
    return training


@scenario
def probe_is_the_training_loader() -> Training:
    generator = torch.Generator().manual_seed(11)
    data = Counting()
    own = loader(data, generator=generator)
    training = Training(Classifier(), own, loader(shuffle=False))
    training.monitor = {"probe": own}
    training.watched["traces"] = lambda: [data.traces(), generator]
    return training
