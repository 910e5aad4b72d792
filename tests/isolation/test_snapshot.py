"""A snapshot puts objects back in place, follows what code can reach, and leaves data and other packages alone."""

import collections
import functools
import logging
from types import SimpleNamespace

import pytest
import torch

from netdyn.isolation import snapshot
from netdyn.isolation.snapshot import Snapshot


class Counter:
    """Counts calls of a method."""

    def __init__(self):
        self.calls = 0

    def count(self):
        self.calls += 1


def enclosing(counter):
    return lambda: counter.count()


#: Objects that lead to a counter.
WAYS = {
    "itself": lambda counter: counter,
    "an attribute": lambda counter: SimpleNamespace(counter=counter),
    "a list": lambda counter: [counter],
    "a tuple": lambda counter: (counter,),
    "a dictionary": lambda counter: {"counter": counter},
    "a set": lambda counter: {counter},
    "a deque": lambda counter: collections.deque([counter]),
    "a bound method": lambda counter: counter.count,
    "a closure": enclosing,
    "a default": lambda counter: eval("lambda counter=counter: None", {"counter": counter}),
    "a partial function": lambda counter: functools.partial(print, counter),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_object_is_found_and_put_back(way):
    counter = Counter()
    saved = Snapshot(way(counter))
    counter.count()
    saved.restore()
    assert counter.calls == 0


def test_objects_are_put_back_in_place():
    inner, tensor = [1], torch.zeros(2)
    thing = SimpleNamespace(inner=inner, tensor=tensor, mapping={"b": 1, "a": 2})
    mapping = thing.mapping
    saved = Snapshot(thing)
    inner.append(2)
    tensor.add_(1)
    mapping.pop("b")
    thing.inner = thing.tensor = thing.mapping = None
    saved.restore()
    assert thing.inner is inner == [1]
    assert thing.tensor is tensor
    assert not tensor.any()
    assert thing.mapping is mapping
    assert list(mapping.items()) == [("b", 1), ("a", 2)]


def test_a_ring_of_objects_is_followed_once():
    first, second = Counter(), Counter()
    first.other, second.other = second, first
    saved = Snapshot(first)
    second.count()
    saved.restore()
    assert second.calls == 0


def test_data_are_left_alone():
    large = torch.zeros(snapshot.LARGEST_BYTES // 4 + 1)
    long = [Counter() for _ in range(snapshot.LONGEST)]
    saved = Snapshot({"large": large, "long": long})
    large.add_(1)
    long[0].count()
    saved.restore()
    assert large.all()
    assert long[0].calls == 1


def test_objects_of_other_packages_are_not_followed():
    logger = logging.Logger("own")
    saved = Snapshot(SimpleNamespace(logger=logger))
    logger.level = 7
    saved.restore()
    assert logger.level == 7


def test_all_are_put_back_also_if_one_fails():
    class Locked(dict):
        def clear(self):
            raise PermissionError("locked")

    locked, counter = Locked(a=1), Counter()
    saved = Snapshot(counter, locked, [counter])
    locked["b"] = 2
    counter.count()
    with pytest.raises(PermissionError, match="locked"):
        saved.restore()
    assert counter.calls == 0
