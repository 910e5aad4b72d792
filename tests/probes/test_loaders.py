"""The probe: classes in proportion, read without a trace in the user's data, or collected from training batches."""

# ruff: noqa: NPY002 (the global generators are the subject)

import copy
import functools
import math
import multiprocessing
import random
import re
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from netdyn.probes.choice import labels_of as labels_at
from netdyn.probes.choice import stratified
from netdyn.probes.loaders import POOL, Collector, can_read, given_probe, read_probe
from netdyn.probes.unpacking import input_and_target

exactly = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def labels_of(dataset):
    """The labels of all samples of a data set."""
    return labels_at(dataset, torch.arange(len(dataset)))


def as_is(batch):
    """A transfer that leaves the batch where it is."""
    return batch


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def read(dataset, size=20, seed=0, unpack=input_and_target, transfer=as_is, **options):
    """The probe of a data set behind a shuffling loader."""
    return read_probe(DataLoader(dataset, batch_size=4, shuffle=True, **options), size, seed, transfer, unpack)


def same(a, b):
    """Equal to the last bit."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# Stratified choice

class_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def shuffled_labels(sizes, seed=0):
    """Labels of classes of these sizes, in any order; class k is called 3k − 5."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)) * 3 - 5, torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=seeded(seed))]


def quotas(sizes, size, seed=0):
    """How many samples each class is given."""
    labels = shuffled_labels(sizes)
    chosen = labels[stratified(labels, size, seeded(seed))]
    return [int((chosen == 3 * k - 5).sum()) for k in range(len(sizes))]


@exactly
@given(class_sizes, st.integers(1, 200))
def test_as_many_as_wanted_are_chosen_and_none_twice(sizes, size):
    index = stratified(shuffled_labels(sizes), size, seeded())
    assert len(index) == min(size, sum(sizes))
    assert (index.diff() > 0).all()
    assert len(index) == 0 or 0 <= int(index[0]) <= int(index[-1]) < sum(sizes)


@exactly
@given(class_sizes, st.integers(1, 200))
@example([39, 1, 1, 1, 1], 5)
def test_every_class_has_a_sample_if_there_is_room(sizes, size):
    got = quotas(sizes, size)
    assert all(got) or size < len(sizes)
    assert all(given <= there for given, there in zip(got, sizes, strict=True))


@exactly
@given(class_sizes, st.integers(1, 200))
def test_classes_are_in_proportion_within_one_sample(sizes, size):
    shares = [there * size / sum(sizes) for there in sizes]
    got = quotas(sizes, size)
    if size < sum(sizes) and min(shares) >= 1:
        assert all(abs(given - share) < 1 for given, share in zip(got, shares, strict=True))
    # Where small classes need a place each, no class gets more than its share rounded up.
    if len(sizes) <= size < sum(sizes):
        assert all(given <= max(1, math.ceil(share - 1e-9)) for given, share in zip(got, shares, strict=True))


@exactly
@given(class_sizes, st.integers(1, 200))
@example([40, 30, 1, 1, 1, 1, 1, 1], 12)
def test_places_for_small_classes_are_taken_evenly_from_large_ones(sizes, size):
    shares = [there * size / sum(sizes) for there in sizes]
    excess = [given - share for given, share in zip(quotas(sizes, size), shares, strict=True) if given > 1]
    assert not excess or max(excess) - min(excess) <= 1 + 1e-9 or size >= sum(sizes)


@exactly
@given(class_sizes, st.integers(1, 200))
def test_classes_of_one_size_differ_by_at_most_one(sizes, size):
    size = max(size, len(sizes))
    got = quotas(sizes, size)
    for there in set(sizes):
        alike = [given for given, s in zip(got, sizes, strict=True) if s == there]
        assert max(alike) - min(alike) <= 1


def test_of_more_classes_than_places_a_random_choice_of_samples_is_kept():
    """n = 300 of 3,000 different numbers in order, seed 0: a mean of 1,499.5 with a standard error of 47."""
    numbers = torch.arange(3000)
    chosen = numbers[stratified(numbers, 300, seeded())].double()
    assert len(chosen) == 300
    assert abs(chosen.mean().item() - 1499.5) < 4.5 * 47
    # In proportion: of 100 places the class with half of all samples has about a half (standard error 5).
    chosen = stratified(torch.cat([torch.zeros(1000).long(), torch.arange(1, 1001)]), 100, seeded())
    assert abs(int((chosen < 1000).sum()) - 50) < 4.5 * 5


@pytest.mark.parametrize("size", [10, 11, 10**6])
def test_a_size_beyond_the_data_takes_all(size):
    assert stratified(torch.arange(10) % 3, size, seeded()).tolist() == list(range(10))


def test_the_seed_makes_the_choice():
    labels = torch.arange(1000) % 10
    first, again, other = (stratified(labels, 100, seeded(seed)) for seed in (5, 5, 6))
    same(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.bincount(labels[other]), torch.full((10,), 10))


# Labels without reading samples


class Holder(Dataset):
    """A data set that counts how often it is read, with any further attribute."""

    def __init__(self, n=30, **attributes):
        self.n, self.reads = n, 0
        self.__dict__.update(attributes)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads += 1
        return torch.full((2,), float(i)), i % 3


LABELS = [i % 3 for i in range(30)]


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize(
    "value",
    [
        LABELS,
        tuple(LABELS),
        np.array(LABELS),
        np.array(LABELS, dtype=np.uint8),
        torch.tensor(LABELS, dtype=torch.int32),
    ],
    ids=["list", "tuple", "numpy int64", "numpy uint8", "tensor int32"],
)
def test_labels_are_found_as_an_attribute(name, value):
    same(labels_of(Holder(**{name: value})), torch.tensor(LABELS))


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(3)[LABELS],
        torch.eye(3, dtype=torch.int64)[LABELS],
        torch.rand(30),
        torch.tensor(LABELS[:29]),
        ["cat"] * 30,
        [[0], [1, 2]] * 15,
        [{"boxes": 1}] * 30,
        None,
        lambda: LABELS,
    ],
    ids=["one-hot", "whole one-hot", "floats", "too short", "words", "ragged", "mappings", "None", "a method"],
)
def test_what_is_not_one_label_per_sample_is_passed_over(value):
    assert labels_of(Holder(targets=value)) is None


def test_one_hot_targets_do_not_hide_labels():
    same(labels_of(Holder(targets=torch.eye(3)[LABELS], labels=LABELS)), torch.tensor(LABELS))


def test_labels_are_the_last_tensor_of_a_tensor_dataset():
    y = torch.tensor(LABELS)
    same(labels_of(TensorDataset(torch.rand(30, 2), torch.rand(30), y)), y)
    assert labels_of(TensorDataset(torch.rand(30, 2), torch.rand(30))) is None
    assert labels_of(TensorDataset(torch.rand(30, 2), torch.eye(3, dtype=torch.int64)[LABELS])) is None


@pytest.mark.parametrize("indices", [[4, 2, 2, 29], np.array([4, 2, 2, 29]), torch.tensor([4, 2, 2, 29]), range(4)])
def test_labels_of_a_subset_are_found(indices):
    same(labels_of(Subset(Holder(targets=LABELS), indices)), torch.tensor([LABELS[i] for i in indices]))


def test_labels_of_splits_and_concatenations_are_found():
    a, b = random_split(Holder(targets=LABELS), [20, 10], generator=seeded())
    c = TensorDataset(torch.zeros(4, 2), torch.tensor([7, 8, 9, 7]))
    whole = Subset(ConcatDataset([b, c, a]), range(2, 33))
    expected = [LABELS[i] for i in b.indices] + [7, 8, 9, 7] + [LABELS[i] for i in a.indices]
    same(labels_of(whole), torch.tensor(expected[2:33]))


def test_a_concatenation_with_a_part_unknown_has_no_labels():
    assert labels_of(ConcatDataset([Holder(targets=LABELS), Holder()])) is None
    assert labels_of(Subset(Holder(), [1, 2])) is None


def test_finding_labels_reads_no_sample():
    holder = Holder(targets=LABELS)
    labels_of(ConcatDataset([Subset(holder, range(9)), holder]))
    assert holder.reads == 0


# Reading a probe


def test_the_probe_is_stratified_by_known_labels():
    y = torch.tensor([0] * 90 + [1] * 9 + [2])
    probe = read(TensorDataset(torch.arange(100.0)[:, None], y), size=10)
    assert torch.bincount(probe.target).tolist() == [8, 1, 1]
    same(y[probe.inputs[:, 0].long()], probe.target)


def test_without_known_labels_a_pool_is_read_and_stratified():
    pooled = []
    probe = read(Holder(n=1000), size=30, transfer=lambda batch: pooled.append(len(batch[1])) or batch)
    assert pooled == [POOL * 30]
    assert len(probe.target) == 30
    sizes = torch.bincount(probe.target).tolist()
    # The pool holds 120 of 333 or 334 per class, without replacement: the sd of a class's part of the probe is 1.2.
    assert len(sizes) == 3
    assert all(abs(size - 10) <= 5 for size in sizes)
    same(probe.inputs[:, 0].long() % 3, probe.target)


def test_the_pool_is_the_whole_data_set_if_it_is_small():
    probe = read(Holder(n=30), size=21)
    assert torch.bincount(probe.target).tolist() == [7, 7, 7]


def test_targets_that_are_no_labels_are_taken_as_one_stratum():
    targets = torch.rand(50)
    probe = read(TensorDataset(torch.arange(50.0)[:, None], targets), size=10)
    same(targets[probe.inputs[:, 0].long()], probe.target)
    assert len(probe.target) == 10


def test_one_seed_one_probe():
    holder = Holder(n=300, targets=[i % 3 for i in range(300)])
    first, again, other = read(holder, seed=3), read(holder, seed=3), read(holder, seed=4)
    same((first.inputs, first.target), (again.inputs, again.target))
    assert not torch.equal(first.inputs, other.inputs)


def test_the_probe_does_not_depend_on_the_global_generators_or_the_loader():
    class Noisy(Holder):
        def __getitem__(self, i):
            noise = torch.rand(1) + np.random.rand() + random.random()
            return noise, i % 3

    torch.manual_seed(1)
    first = read(Noisy(n=200))
    torch.manual_seed(2)
    second = read_probe(DataLoader(Noisy(n=200), batch_size=64, generator=seeded(9)), 20, 0, as_is, input_and_target)
    same(first.inputs, second.inputs)


def test_the_probe_is_not_the_data_themselves():
    images = torch.zeros(6, 2)

    class Views(Holder):
        def __getitems__(self, index):
            return [images, torch.arange(6)]

    probe = read(Views(n=6), collate_fn=list)
    probe.inputs.add_(1)
    assert not images.any()


def test_transfer_and_unpack_are_applied_in_this_order():
    data = [{"x": torch.tensor([float(i)]), "y": i % 2} for i in range(8)]
    probe = read(
        data,
        size=8,
        transfer=lambda batch: {"x": batch["x"] * 10, "y": batch["y"]},
        unpack=lambda batch: (batch["x"] + 1, batch["y"]),
    )
    assert probe.inputs[:, 0].tolist() == [i * 10 + 1 for i in range(8)]


def test_the_loaders_collate_function_makes_the_batch():
    probe = read(
        [(torch.ones(n % 3 + 1), n % 2) for n in range(8)],
        size=8,
        collate_fn=lambda items: (
            torch.nn.utils.rnn.pad_sequence([x for x, _ in items], batch_first=True),
            torch.tensor([y for _, y in items]),
        ),
    )
    assert list(probe.inputs.shape) == [8, 3]


def test_samples_are_fetched_at_once_if_the_data_set_has_the_method():
    class Fetching(Holder):
        def __getitems__(self, index):
            return [(torch.tensor([float(i)]), 10 + i % 3) for i in index]

    assert read(Fetching(), size=6).target.min() == 10


def test_a_probe_has_no_graph():
    x = torch.rand(8, 2, requires_grad=True)
    probe = read([(row, i % 2) for i, row in enumerate(x)], size=4)
    assert not probe.inputs.requires_grad


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="must hold samples for the probe, got an empty one"):
        read_probe(DataLoader(Holder(n=0)), 4, 0, as_is, input_and_target)


def test_several_inputs_keep_their_structure():
    class Pair(NamedTuple):
        left: Tensor
        right: Tensor

    data = [((torch.tensor([float(i)]), {"m": torch.tensor(i)}), i % 2) for i in range(12)]
    probe = read(data, size=6)
    assert list(probe.inputs[0].shape) == [6, 1]
    same(probe.inputs[0][:, 0].long(), probe.inputs[1]["m"])

    named = read([(Pair(torch.tensor(float(i)), torch.tensor(i)), i % 2) for i in range(12)], size=6)
    assert type(named.inputs) is Pair
    same(named.inputs.left.long(), named.inputs.right)


# Reading leaves no trace


@pytest.fixture(params=["in a worker", "in this process"])
def place(request, monkeypatch):
    """Where data sets are read: by default in a forked worker, where there is no fork in this process."""
    if request.param == "in this process":
        monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    return request.param


def test_the_loader_is_never_iterated():
    class Loader(DataLoader):
        def __iter__(self):
            raise AssertionError("the loader was iterated")

    generator = seeded(5)
    loader = Loader(Holder(), batch_size=4, shuffle=True, generator=generator)
    before = generator.get_state()
    assert len(read_probe(loader, 10, 0, as_is, input_and_target).target) == 10
    same(generator.get_state(), before)


def test_a_sampler_is_not_asked():
    sampler = WeightedRandomSampler([1.0] * 30, 30, generator=seeded(1))
    before = sampler.generator.get_state()
    read_probe(DataLoader(Holder(), sampler=sampler), 10, 0, as_is, input_and_target)
    same(sampler.generator.get_state(), before)


def test_the_global_generators_stay_where_they_were():
    class Drawing(Holder):
        def __getitem__(self, i):
            return torch.rand(1) + np.random.rand() + random.random(), i % 3

    states = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    read(Drawing())
    same(torch.get_rng_state(), states[0])
    np.testing.assert_equal(np.random.get_state(legacy=False), states[1])
    assert random.getstate() == states[2]


def test_the_global_generators_are_put_back_after_an_error():
    class Failing(Holder):
        def __getitem__(self, i):
            torch.rand(1), np.random.rand(), random.random()
            raise OSError("the disk is gone")

    states = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    with pytest.raises(RuntimeError, match="OSError: the disk is gone"):
        read(Failing())
    same(torch.get_rng_state(), states[0])
    np.testing.assert_equal(np.random.get_state(legacy=False), states[1])
    assert random.getstate() == states[2]


class Jitter:
    """A random transform with generators of its own, and a count."""

    def __init__(self):
        self.torch, self.numpy, self.python = seeded(1), np.random.default_rng(2), random.Random(3)
        self.legacy = np.random.RandomState(4)
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        noise = torch.rand(1, generator=self.torch) + self.numpy.random() + self.python.random() + self.legacy.rand()
        return x + noise

    def apply(self, x):
        return self(x)

    def state(self):
        bits = [self.numpy.bit_generator.state, self.legacy.get_state(legacy=False)]
        return self.calls, self.torch.get_state().tolist(), repr(bits), self.python.getstate()


class Compose:
    """Transforms in a row."""

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, x):
        for step in self.steps:
            x = step(x)
        return x


class Tool:
    """Not callable, but with a state of its own."""

    def __init__(self, jitter):
        self.jitter = jitter


class Augmented(Dataset):
    """Reads through a transform, counts its reads and keeps what it has read, in containers of many kinds."""

    def __init__(self, reads, owned):
        self.reading, self.owned, self.reads = reads, owned, 0

    def __len__(self):
        return 24

    def __getitem__(self, i):
        self.reads += 1
        return self.reading(self, torch.tensor([float(i)])), i % 3


class Plain:
    """A data set by its methods alone."""

    def __init__(self, jitter):
        self.jitter, self.reads = jitter, 0

    def __len__(self):
        return 24

    def __getitem__(self, i):
        self.reads += 1
        return self.jitter(torch.tensor([float(i)])), i % 3


class WithMethod(Dataset):
    """A data set one of whose attributes is a method of its own."""

    def __init__(self, jitter):
        self.jitter, self.reads = jitter, 0
        self.reader = self.read_one

    def __len__(self):
        return 24

    def read_one(self, i):
        self.reads += 1
        return self.jitter(torch.tensor([float(i)])), i % 3

    def __getitem__(self, i):
        return self.reader(i)


class Circular(Compose):
    """A transform with a reference to its data set."""


def circular(jitter):
    data = Augmented(lambda self, x: self.owned(x), Circular([jitter]))
    data.owned.dataset = data
    return data


#: What a data set may read through, each built from one transform with generators and a count of its own.
READERS = {
    "a transform": lambda jitter: Augmented(lambda self, x: self.owned(x), jitter),
    "transforms in a row": lambda jitter: Augmented(lambda self, x: self.owned(x), Compose([jitter, abs, jitter])),
    "a tuple of transforms": lambda jitter: Augmented(lambda self, x: self.owned[0](x), (jitter,)),
    "a dict of transforms": lambda jitter: Augmented(lambda self, x: self.owned["train"](x), {"train": jitter}),
    "a list in a dict": lambda jitter: Augmented(lambda self, x: self.owned["train"][0](x), {"train": [jitter]}),
    "a tool that is not callable": lambda jitter: Augmented(lambda self, x: self.owned.jitter.apply(x), Tool(jitter)),
    "a partial of a transform": lambda jitter: Augmented(lambda self, x: self.owned(x), functools.partial(jitter)),
    "a partial with a generator": lambda jitter: Augmented(
        lambda self, x: x + self.owned(), functools.partial(torch.rand, 1, generator=jitter.torch)
    ),
    "a bound method": lambda jitter: Augmented(lambda self, x: self.owned(x), jitter.apply),
    "its own bound method": WithMethod,
    "a function's enclosing variables": lambda jitter: Augmented(lambda self, x: jitter(x), None),
    "a plain class": Plain,
    "a transform with a reference to its data set": circular,
    "another data set": lambda jitter: Subset(
        ConcatDataset([Augmented(lambda self, x: self.owned(x), jitter)]), list(range(20))
    ),
}


@pytest.mark.parametrize("build", READERS.values(), ids=READERS)
def test_generators_and_counters_of_a_data_set_stay_where_they_were(place, build):
    jitter = Jitter()
    data = build(jitter)
    before = jitter.state()
    probe = read(data, size=12)
    assert jitter.state() == before
    assert getattr(data, "reads", 0) == 0
    assert len(probe.target) == 12


@pytest.mark.parametrize("build", READERS.values(), ids=READERS)
def test_a_data_set_is_put_back_after_an_error(place, build):
    def failing(batch):
        raise OSError("the disk is gone")

    jitter = Jitter()
    data = build(jitter)
    before = jitter.state()
    with pytest.raises(OSError, match="the disk is gone"):
        read(data, size=12, transfer=failing)
    assert jitter.state() == before
    assert getattr(data, "reads", 0) == 0


@pytest.mark.parametrize("build", READERS.values(), ids=READERS)
def test_reading_twice_gives_the_same_augmentation(build):
    data = build(Jitter())
    same(read(data, size=12).inputs, read(data, size=12).inputs)


class Caching(Dataset):
    """Remembers what it has read."""

    def __init__(self, cache, note):
        self.cache, self.note = cache, note

    def __len__(self):
        return 24

    def __getitem__(self, i):
        self.note(self.cache, i)
        return torch.tensor([float(i)]), i % 3


def put(cache, i):
    cache[i] = i


def count_up(cache, i):
    cache[i] += 1


CACHES = {
    "dict": (dict, put),
    "OrderedDict": (OrderedDict, put),
    "defaultdict": (lambda: defaultdict(int), count_up),
    "Counter": (Counter, count_up),
    "list": (list, list.append),
    "deque": (deque, deque.append),
    "set": (set, set.add),
    "nested": (lambda: {"seen": []}, lambda cache, i: cache["seen"].append(i)),
    "tensor of counts": (lambda: torch.zeros(24), count_up),
    "array of counts": (lambda: np.zeros(24), count_up),
}


@pytest.mark.parametrize(("make", "note"), CACHES.values(), ids=CACHES)
def test_caches_of_a_data_set_stay_as_they_were(place, make, note):
    data = Caching(make(), note)
    before = copy.deepcopy(data.cache)
    read(data, size=12)
    assert repr(data.cache) == repr(before)
    assert type(data.cache) is type(before)


def test_a_collate_function_with_a_generator_of_its_own_stays_where_it_was(place):
    class Collate(Jitter):
        def __call__(self, items):
            return Jitter.__call__(self, torch.stack([x for x, _ in items])), torch.tensor([y for _, y in items])

    for collate in (Collate(), Collate().apply):
        owner = collate if isinstance(collate, Collate) else collate.__self__
        before = owner.state()
        read(Holder(), collate_fn=collate)
        assert owner.state() == before


# Which loaders can be read


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    ("loader", "readable"),
    [
        (DataLoader(Holder()), True),
        (DataLoader([1, 2, 3]), True),
        (DataLoader(Holder(), batch_sampler=[[0, 1]]), True),
        (DataLoader(Holder(), batch_size=None), False),
        (DataLoader(Stream()), False),
        ([torch.zeros(2)], False),
        ({"a": DataLoader(Holder())}, False),
        (None, False),
    ],
    ids=["map", "list", "batch sampler", "whole batches", "iterable", "list of batches", "several", "none"],
)
def test_only_data_sets_with_an_index_can_be_read(loader, readable):
    assert can_read(loader) is readable


# The default unpack


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_pair_is_input_and_target(kind):
    x, y = torch.zeros(3, 2), torch.zeros(3)
    found = input_and_target(kind([x, y]))
    assert found[0] is x
    assert found[1] is y


def test_several_inputs_and_a_target_are_a_pair():
    inputs = {"ids": torch.zeros(3), "mask": torch.ones(3)}
    assert input_and_target((inputs, torch.zeros(3)))[0] is inputs


@dataclass
class Batch:
    x: Tensor
    y: Tensor


EXPECTED = "A batch must be a pair (input, target), or a mapping with keys such as 'x' and 'y', got"
ADVICE = "Pass `unpack=`, a function of the batch that returns the model's input and the target, a tensor."


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        ({"label": torch.zeros(2), "pixels": torch.zeros(2)}, "{'label': float32 [2], 'pixels': float32 [2]}"),
        ({"image": torch.zeros(2), "label": ["cat", "dog"]}, "{'image': float32 [2], 'label': [str, str]}"),
        ({1: torch.zeros(2), "a": 0}, "{1: float32 [2], 'a': int}"),
        ([torch.zeros(2)] * 3, "[float32 [2], float32 [2], float32 [2]]"),
        ((torch.zeros(2),), "(float32 [2])"),
        ((torch.zeros(2), {"label": torch.zeros(2)}), "(float32 [2], {'label': float32 [2]})"),
        (torch.zeros(2, 2), "float32 [2, 2]"),
        (Batch(torch.zeros(2), torch.zeros(2)), "Batch"),
    ],
    ids=["dict", "words", "mixed keys", "three", "one", "target no tensor", "tensor", "dataclass"],
)
def test_another_batch_is_refused_with_what_it_is_and_what_to_pass(batch, what):
    with pytest.raises(TypeError, match=f"^{re.escape(f'{EXPECTED} {what}. {ADVICE}')}$"):
        input_and_target(batch)


# Collecting from training batches


def batches(*sizes):
    """Batches of these sizes, the samples numbered through."""
    ends = np.cumsum(sizes).tolist()
    return [
        [torch.arange(end - n, end, dtype=torch.float32)[:, None], torch.arange(end - n, end)]
        for n, end in zip(sizes, ends, strict=True)
    ]


@pytest.mark.parametrize(
    ("size", "sizes", "when"),
    [(10, (4, 4, 4), 2), (8, (4, 4, 4), 1), (4, (4, 4), 0), (3, (4, 4), 0), (9, (1, 7, 2, 5), 2)],
)
def test_exactly_the_first_samples_are_collected(size, sizes, when):
    collector = Collector(size, input_and_target)
    answers = [collector.add(batch) for batch in batches(*sizes)[: when + 1]]
    assert [answer is not None for answer in answers] == [False] * when + [True]
    assert answers[-1].target.tolist() == list(range(size))
    assert answers[-1].inputs[:, 0].tolist() == list(range(size))


def test_the_samples_so_far_are_a_probe():
    collector = Collector(100, input_and_target)
    assert collector.probe() is None
    for batch in batches(4, 2):
        assert collector.add(batch) is None
    assert collector.probe().target.tolist() == list(range(6))


@pytest.mark.parametrize("size", [3, 4, 6])
def test_a_batch_written_over_later_changes_nothing(size):
    collector = Collector(size, input_and_target)
    for batch in batches(4, 4):
        collector.add(batch)
        for tensor in batch:
            tensor.fill_(-1)
        batch.clear()
    assert collector.probe().inputs.min() == 0
    assert collector.probe().target.tolist() == list(range(min(size, 8)))[: len(collector.probe().target)]


def test_collecting_takes_several_inputs():
    def batch(start):
        index = torch.arange(start, start + 4)
        return {"x": (index.float(), {"ids": index * 2}), "scale": torch.tensor(3.0), "y": index}

    collector = Collector(6, lambda batch: ((*batch["x"], batch["scale"]), batch["y"]))
    assert collector.add(batch(0)) is None
    probe = collector.add(batch(4))
    assert probe.inputs[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert probe.inputs[1]["ids"].tolist() == [0, 2, 4, 6, 8, 10]
    assert probe.inputs[2] == 3


def test_an_unpack_that_empties_the_batch_does_not_reach_the_training():
    batch = {"x": torch.zeros(2, 1), "y": torch.zeros(2)}
    Collector(2, lambda batch: (batch.pop("x"), batch.pop("y"))).add(batch)
    assert set(batch) == {"x", "y"}


@pytest.mark.parametrize("frozen", [False, True])
def test_collecting_takes_dataclasses(frozen):
    kind = dataclass(frozen=frozen)(type("Made", (), {"__annotations__": {"x": Tensor, "y": Tensor}}))
    batch = kind(torch.arange(4.0)[:, None], torch.arange(4))
    probe = Collector(3, lambda batch: (batch.x, batch.y)).add(batch)
    batch.x.fill_(-1)
    batch.y.fill_(-1)
    assert probe.inputs[:, 0].tolist() == [0, 1, 2]
    assert probe.target.tolist() == [0, 1, 2]


def test_collecting_keeps_no_graph():
    batch = [torch.ones(2, 1, requires_grad=True) * 2, torch.zeros(2)]
    assert not Collector(2, input_and_target).add(batch).inputs.requires_grad


# A probe that the user gives


def give(given, size=10, seed=0, transfer=as_is, unpack=input_and_target):
    return given_probe(given, size, seed, transfer, unpack)


@pytest.mark.parametrize("kind", [tuple, list])
def test_given_tensors_are_taken_whole(kind):
    x, y = torch.rand(30, 2), torch.arange(30)
    probe = give(kind([x, y]))
    same((probe.inputs, probe.target), (x, y))


def test_given_tensors_are_copied():
    x, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    probe = give((x, y))
    x += 1
    y += 1
    assert not probe.inputs.any()
    assert not probe.target.any()


def test_given_tensors_pass_through_transfer():
    probe = give((torch.ones(4, 2), torch.zeros(4)), transfer=lambda batch: (batch[0] * 5, batch[1]))
    assert probe.inputs.unique().tolist() == [5]


def test_a_given_pair_needs_no_unpacking():
    x, y = torch.rand(30, 2), torch.arange(30)
    probe = give((x, y), unpack=lambda batch: (batch["image"], batch["label"]))
    same((probe.inputs, probe.target), (x, y))


def test_a_given_mapping_is_unpacked():
    x, y = torch.rand(30, 2), torch.arange(30)
    probe = give({"image": x, "label": y}, unpack=lambda batch: (batch["image"], batch["label"]))
    same((probe.inputs, probe.target), (x, y))


@pytest.mark.parametrize(
    "wrap", [as_is, lambda data: DataLoader(data, batch_size=7, shuffle=True)], ids=["set", "loader"]
)
def test_a_given_data_set_is_stratified(wrap):
    y = torch.tensor([0] * 90 + [1] * 9 + [2])
    probe = give(wrap(TensorDataset(torch.arange(100.0)[:, None], y)))
    assert torch.bincount(probe.target).tolist() == [8, 1, 1]


class Numbers(IterableDataset):
    """Counts up, in an order that the global generator may change."""

    def __init__(self, n):
        self.n = n

    def __iter__(self):
        torch.rand(1)
        return iter([(torch.tensor([float(i)]), i) for i in range(self.n)])


def test_a_given_loader_of_a_stream_gives_its_first_samples():
    state = torch.get_rng_state()
    probe = give(DataLoader(Numbers(100), batch_size=4))
    assert probe.target.tolist() == list(range(10))
    same(torch.get_rng_state(), state)


def test_a_given_stream_shorter_than_the_probe_is_taken_whole():
    assert give(DataLoader(Numbers(6), batch_size=4)).target.tolist() == list(range(6))


def test_a_given_stream_without_a_loader_gives_its_first_samples():
    assert give(Numbers(100)).target.tolist() == list(range(10))


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="`probe` must hold samples, got an empty loader"):
        give(DataLoader(Numbers(0), batch_size=4))


@pytest.mark.parametrize(
    ("given", "name"),
    [(5, "int"), ("train", "str"), (np.zeros(3), "ndarray"), ([], "list"), ((), "tuple"), ({}, "dict")],
)
def test_another_probe_is_refused_with_what_it_is(given, name):
    with pytest.raises(TypeError, match=f"^`probe` must be a pair of tensors.*got .*{name}\\.$"):
        give(given)


def test_a_given_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="must hold samples for the probe, got an empty one"):
        give(Holder(n=0))


def test_a_single_tensor_is_refused_as_no_pair():
    with pytest.raises(TypeError, match="pair"):
        give(torch.zeros(3, 2))


# The order of a batch


class Sequences(Dataset):
    """Sequences of any length."""

    def __init__(self, **attributes):
        self.lengths = [1 + (7 * i) % 13 for i in range(60)]
        self.__dict__.update(attributes)

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return torch.ones(self.lengths[i], 2), i % 3


def longest_first(samples):
    samples = sorted(samples, key=lambda sample: -len(sample[0]))
    padded = torch.nn.utils.rnn.pad_sequence([x for x, _ in samples], batch_first=True)
    return padded, torch.tensor([y for _, y in samples])


@pytest.mark.parametrize("attributes", [{}, {"targets": [i % 3 for i in range(60)]}], ids=["a pool", "labels"])
def test_a_probe_keeps_the_order_that_batches_have(attributes):
    """Packed sequences must come longest first, and the collate function sees to it."""
    probe = read(Sequences(**attributes), size=12, collate_fn=longest_first)
    lengths = probe.inputs[..., 0].sum(1)
    assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)
    assert len(probe.target) == 12
    torch.nn.utils.rnn.pack_padded_sequence(probe.inputs, lengths.long(), batch_first=True, enforce_sorted=True)


class Part(Sampler):
    """A sampler of the user's own, which draws from a part of the data."""

    def __init__(self, part):
        self.part = part

    def __iter__(self):
        return iter(self.part)

    def __len__(self):
        return len(self.part)


@pytest.mark.parametrize("named", [False, True])
def test_a_sampler_of_a_part_must_say_of_which(named):
    data, sampler = TensorDataset(torch.arange(40.0)[:, None], torch.arange(40) % 2), Part(list(range(10)))
    loader = DataLoader(data, batch_size=4, sampler=sampler)
    if named:
        sampler.indices = sampler.part
        assert read_probe(loader, 20, 0, as_is, input_and_target).inputs.max() < 10
        return
    with pytest.warns(UserWarning, match="^The sampler Part draws 10 of 40 samples, but does not say which"):
        read_probe(loader, 20, 0, as_is, input_and_target)


def test_samplers_of_torch_need_not_say_it():
    data = TensorDataset(torch.arange(40.0)[:, None], torch.arange(40) % 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sampler in (RandomSampler(data, num_samples=5), DistributedSampler(data, 2, 0)):
            loader = DataLoader(data, batch_size=4, sampler=sampler)
            assert len(read_probe(loader, 40, 0, as_is, input_and_target).target) == 40


@pytest.mark.parametrize("form", [torch.Tensor.float, lambda y: y[:, None], lambda y: y[:, None].double()])
@pytest.mark.parametrize("known", [True, False])
def test_labels_in_a_column_or_of_a_floating_type_are_strata_too(form, known):
    """3 of 2,000 samples are of the second class; a random choice of 20 rarely holds one."""
    labels = torch.zeros(2000).long()
    labels[[5, 700, 1999]] = 1
    data = TensorDataset(torch.arange(2000.0)[:, None], form(labels))
    data = data if known else [data[i] for i in [*range(60), 700, 1999]]
    for seed in range(5):
        assert int(read_probe(DataLoader(data, 8), 20, seed, as_is, input_and_target).target.sum()) > 0


def test_numbers_of_which_the_first_is_whole_are_not_read_as_labels():
    numbers = torch.cat([torch.zeros(1), torch.rand(4999, generator=seeded())])
    found = read_probe(DataLoader(TensorDataset(numbers[:, None], numbers), 8), 30, 0, as_is, input_and_target)
    assert len(found.target) == 30
    assert labels_at(TensorDataset(numbers), torch.arange(5000)) is None


def test_a_list_of_tensors_is_answered_with_what_fits():
    data = [(torch.zeros(3), i % 2) for i in range(12)]

    def collate(samples):
        return [x for x, _ in samples], torch.tensor([y for _, y in samples])

    with pytest.raises(ValueError, match=r"^`inputs` must be one tensor with samples first, .* `torch.stack`"):
        read_probe(DataLoader(data, 4, collate_fn=collate), 8, 0, as_is, input_and_target)
