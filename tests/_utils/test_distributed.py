"""Processes that divide work: the parts, the exchange of results, failures, and weights spread over processes."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from netdyn._utils.distributed import (
    ProcessError,
    Processes,
    full_tensor,
    is_shard,
    is_sharded,
    local_part,
    local_tensor,
    reshard,
)
from netdyn._utils.user_code import reason


@pytest.fixture
def others(monkeypatch):
    """`others(rank, *contents)` sets what the other processes send, and returns the list of what this one sent."""
    sent = []

    def prepare(rank, *contents):
        def all_gather_object(gathered, own):
            sent.append(own)
            gathered[:] = [*contents[:rank], own, *contents[rank:]]

        monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
        return sent

    return prepare


# Parts


def test_without_a_process_group_there_is_one_process():
    assert Processes.world(lockstep=True) == Processes(0, 1, False)


@given(st.integers(0, 100), st.integers(1, 9))
def test_parts_hold_everything_once_and_differ_by_one_at_most(total, size):
    parts = [range(total)[Processes(rank, size).part(total)] for rank in range(size)]
    assert [item for part in parts for item in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(0, 50), st.integers(1, 7), st.booleans())
def test_samples_that_count_are_each_in_one_part_and_parts_in_lockstep_are_equally_long(total, size, lockstep):
    index = torch.arange(total) * 3
    parts = [Processes(rank, size, lockstep).own_samples(index) for rank in range(size)]
    assert torch.equal(torch.cat([part[:counted] for part, counted in parts]), index)
    lengths = {len(part) for part, _ in parts}
    assert len(lengths) == 1 if lockstep else max(lengths) - min(lengths) <= 1
    assert all(set(part.tolist()) <= set(index.tolist()) for part, _ in parts)


# Exchange


def test_one_process_exchanges_nothing(others):
    sent = others(0)
    assert Processes().gather(lambda: 3) == [3]
    Processes().align([torch.zeros(2)])
    Processes().fail(ValueError("alone"))
    assert sent == []


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_results_come_in_the_order_of_ranks(others, rank):
    others(rank, ("a", None), ("b", None))
    expected = ["a", "b"]
    expected.insert(rank, "own")
    assert Processes(rank, 3).gather(lambda: "own") == expected


def test_the_failure_of_another_process_is_raised_here(others):
    others(0, (1, None), (None, "ValueError: out of paper"))
    with pytest.raises(ProcessError) as error:
        Processes(0, 3).gather(lambda: 0)
    assert str(error.value) == "Process 2 failed: ValueError: out of paper"


def out_of_ink():
    raise ValueError("out of ink")


def test_a_failure_here_is_reported_once_and_raised_with_a_note(others):
    sent = others(1, (None, None))
    processes = Processes(1, 2)
    with pytest.raises(ValueError, match="out of ink") as error:
        processes.gather(out_of_ink)
    assert error.value.__notes__ == ["This ended the work on all processes."]
    assert reason(error.value) == "ValueError: out of ink."
    assert sent == [(None, "ValueError: out of ink")]
    processes.fail(error.value)
    assert len(sent) == 1


def test_the_failure_of_another_process_is_not_reported_again(others):
    sent = others(0, (None, None))
    Processes(0, 2).fail(ProcessError("Process 1 failed"))
    assert sent == []


def test_all_take_the_values_of_the_first_process(others):
    same, other = torch.ones(2), torch.zeros(2)
    others(1, ([torch.ones(2), torch.tensor([3.0, torch.inf])], None))
    versions = same._version, other._version
    Processes(1, 2).align([same, other])
    assert other.tolist() == [3.0, torch.inf]
    # What is equal already is not written to: a backward pass may wait for it.
    assert (same._version, other._version) == (versions[0], versions[1] + 1)


# Weights spread over processes


def test_a_plain_weight_is_whole():
    weight, value = nn.Parameter(torch.zeros(3)), torch.ones(3)
    assert not is_shard(weight)
    assert local_tensor(weight) is full_tensor(weight) is weight
    assert local_part(value, weight) is value


class FSDPModule(nn.Linear):
    """Has what the class of that name has."""

    freed = 0

    def reshard(self):
        self.freed += 1


def test_sharded_modules_free_their_whole_weights_and_others_are_left_alone():
    model = nn.Sequential(nn.Linear(2, 2), FSDPModule(2, 2))
    assert [is_sharded(module) for module in model] == [False, True]
    reshard(model)
    assert model[1].freed == 1
