"""Which samples make the probe: against a slow twin, and without a list of all samples."""

import tracemalloc

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from netdyn.probes import loaders
from netdyn.probes.choice import MOST, draw, labels_of, pick, quotas, stratified
from netdyn.probes.loaders import read_probe
from netdyn.probes.unpacking import input_and_target

exactly = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_quotas(sizes, size):
    """One place after the other, as the rule says it."""
    share = [n * size / sum(sizes) for n in sizes]
    quota = [max(int(s), 1) for s in share]
    for i in sorted(range(len(sizes)), key=lambda i: quota[i] - share[i])[: max(size - sum(quota), 0)]:
        quota[i] += 1
    while sum(quota) > size:
        spare = [i for i in range(len(sizes)) if quota[i] > 1]
        quota[max(spare, key=lambda i: quota[i] - share[i])] -= 1
    return quota


@exactly
@given(st.lists(st.integers(1, 60), min_size=1, max_size=15), st.integers(1, 300))
@example([39, 1, 1, 1, 1], 5)
@example([40, 30, 1, 1, 1, 1, 1, 1], 12)
@example([50, 50, 50, 1, 1, 1, 1, 1], 11)
def test_places_are_those_of_the_slow_rule(sizes, size):
    if len(sizes) <= size < sum(sizes):
        assert quotas(torch.tensor(sizes), size).tolist() == slow_quotas(sizes, size)


def test_every_member_of_a_class_is_as_likely():
    """600 choices of 5 of 10 samples of each class: a share of 0.5 within 4.5 standard errors of 0.0204."""
    labels = torch.arange(30) % 3
    generator = seeded()
    counts = torch.zeros(30)
    for _ in range(600):
        counts[stratified(labels, 15, generator)] += 1
    assert counts.sum() == 600 * 15
    assert ((counts / 600 - 0.5).abs() < 4.5 * (0.25 / 600) ** 0.5).all()


def test_sixty_thousand_classes_are_no_more_work_than_their_samples():
    """No line of the choice runs once for each class: the calls of Python functions are counted."""
    import sys

    labels = torch.arange(300_000) % 60_000
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        chosen = stratified(labels, 100_000, seeded())
    finally:
        sys.setprofile(None)
    assert calls < 500
    assert torch.bincount(labels[chosen], minlength=60_000).unique().tolist() == [1, 2]


# Indices


@pytest.mark.parametrize(("total", "wanted"), [(10, 10), (10, 20), (20, 6), (10**6, 50), (10**12, 300), (7, 0)])
def test_indices_are_drawn_once_each_and_in_order(total, wanted):
    index = draw(total, wanted, seeded())
    assert len(index) == min(total, wanted)
    assert (index.diff() > 0).all()
    assert len(index) == 0 or 0 <= int(index[0]) <= int(index[-1]) < total


def test_every_index_is_as_likely():
    """2,000 draws of 20 of 200: a share of 0.1 within 4.5 standard errors of 0.0067."""
    generator, counts = seeded(), torch.zeros(200)
    for _ in range(2000):
        counts[draw(200, 20, generator)] += 1
    assert ((counts / 2000 - 0.1).abs() < 4.5 * (0.1 * 0.9 / 2000) ** 0.5).all()


@pytest.mark.parametrize("make", [list, tuple, torch.tensor, lambda v: torch.tensor(v).numpy(), lambda v: range(5, 9)])
def test_entries_are_picked_from_any_sequence(make):
    assert pick(make([5, 6, 7, 8]), torch.tensor([3, 0, 0])).tolist() == [8, 5, 5]


class Huge(Dataset):
    """As many samples as anyone could have; which were read is known to the reader alone."""

    def __init__(self, n=10**8):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return torch.tensor([float(index)]), index % 3


@pytest.mark.parametrize(
    "dataset",
    [Huge(), Subset(Huge(), range(10, 10**8)), ConcatDataset([Huge(), Huge()])],
    ids=["plain", "part", "two"],
)
def test_a_data_set_of_any_length_takes_the_memory_of_the_probe(dataset):
    loader = DataLoader(dataset, 16)
    tracemalloc.start()
    probe = read_probe(loader, 30, 0, lambda batch: batch, input_and_target)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(probe.target) == 30
    assert probe.target.unique().tolist() == [0, 1, 2]
    assert probe.inputs.max() > 10**7
    assert peak < 2**22


class Listed(Huge):
    """Labels as a property that would read every sample."""

    asked = 0

    @property
    def targets(self):
        type(self).asked += 1
        return [0] * self.n


def test_labels_that_have_to_be_computed_are_asked_of_small_data_alone():
    index = torch.arange(4)
    assert labels_of(Listed(20), index).tolist() == [0] * 4
    before = Listed.asked
    assert labels_of(Listed(MOST + 1), index) is None
    assert Listed.asked == before


def test_of_very_large_labelled_data_a_random_part_is_stratified(monkeypatch):
    monkeypatch.setattr(loaders, "MOST", 3000)
    data = Huge(100_000)
    data.targets = torch.arange(100_000) % 3
    probe = read_probe(DataLoader(data, 16), 30, 0, lambda batch: batch, input_and_target)
    assert torch.bincount(probe.target).tolist() == [10, 10, 10]
