"""Who waits for whom: evaluations on a device that notes every wait, and errs where tensors of two devices meet.

The device is one of PyTorch's for backends to come, made here in Python (``far.py``). It stays registered for good, so
that its evaluations run in a process of their own (``far_runs.py``), and all tests here look at what that has found.
"""

import json
import subprocess
import sys
from collections import Counter, deque
from pathlib import Path

import pytest
import torch

from netdyn._utils import transit
from netdyn._utils.transit import Coming, sent, together

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
CASES = [
    *("plain", "wide", "deep", "many rays", "batches", "norms", "images", "not monotone", "attention", "recurrent"),
    *("words", "each weight", "low precision", "few classes of many", "nobody right", "one logit", "numbers"),
    *("own activation", "folded", "sorting", "one probability"),
]
#: Here the criterion, and not netdyn, waits.
WAITING = "answers on the host"
#: Begun from the whole grid, and from where rays were lost the time before.
TURNS = {"cold": 0, "warm": 1}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the evaluations there have found."""
    path = tmp_path_factory.mktemp("far") / "found.json"
    subprocess.run([sys.executable, HERE / "far_runs.py", path], check=True, timeout=600)
    return json.loads(path.read_text())


def parts(waits):
    return Counter(part for part, _, _ in waits)


def test_the_device_notices_what_waits(found):
    assert found["noticed"] == {
        "number": 1,
        "flag": 1,
        "list": 1,
        "copy": 1,
        "copy into": 1,
        "sent at once": 1,
        "where": 1,
        "by flags": 1,
        "by flags, written": 1,
        "by numbers of the host": 1,
        "equal": 1,
        "distinct": 1,
        "counted": 1,
        "sum": 0,
        "sorted": 0,
        "chosen": 0,
        "sent": 0,
        "coming": 0,
    }
    assert found["refused"] == ["aten.add was given tensors on two devices"]


def test_all_cases_ran(found):
    assert set(found["cases"]) == {*CASES, WAITING}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", CASES)
def test_nobody_waits_before_the_last_part(found, name, turn):
    waits = found["cases"][name][TURNS[turn]]["waits"]
    assert [wait for wait in waits if wait[0] not in ("look", "finish")] == []
    assert parts(waits)["finish"] > 0
    # Labels of two probes and the contents of one, once in a run.
    assert parts(waits)["look"] == (3 if turn == "cold" else 0)


def test_the_first_time_a_search_begins_when_it_is_known_who_is_right(found):
    done = found["cases"]["plain"][TURNS["cold"]]["done"]
    assert "arrived" not in done["begin"]
    assert done["search"]["outputs"] > done["begin"]["outputs"] + done["finish"]["outputs"]


@pytest.mark.parametrize("name", set(CASES) - {"nobody right"})
def test_later_all_rays_of_the_weights_are_given_before_that_is_looked_at(found, name):
    cold, warm = (found["cases"][name][turn]["done"] for turn in (0, 1))
    assert "arrived" not in warm["begin"]
    assert "outputs" not in warm["search"]
    assert warm["begin"]["outputs"] > cold["begin"]["outputs"]


@pytest.mark.parametrize("turn", TURNS)
def test_where_nobody_is_right_no_search_is_made(found, turn):
    done = found["cases"]["nobody right"][TURNS[turn]]["done"]
    # To tell the floor.
    assert done["search"]["outputs"] == 1


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", [*CASES, WAITING])
def test_layers_are_read_again_only_where_they_are_not_as_was_assumed(found, name, turn):
    done = found["cases"][name][TURNS[turn]]["done"]
    unusual = name in ("folded", "sorting") and turn == "cold"
    assert (done["begin"]["read"], done["finish"].get("read", 0)) == (1, int(unusual))


@pytest.mark.parametrize("turn", TURNS)
def test_a_criterion_may_wait(found, turn):
    waits = found["cases"][WAITING][TURNS[turn]]["waits"]
    own = [wait for wait in waits if not wait[2].startswith("criteria.checked")]
    assert [wait for wait in own if wait[0] not in ("look", "finish")] == []
    assert len(own) < len(waits)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", [*CASES, WAITING])
def test_numbers_are_those_of_the_cpu(found, name, turn):
    run = found["cases"][name][TURNS[turn]]
    assert run["numbers"] > 20
    # PyTorch has attention in one kernel on the CPU alone: what it rounds otherwise may change places in the order.
    assert run["differ"] == ({tag: pytest.approx([near] * 2, rel=1e-4) for tag, (near, _) in run["differ"].items()})
    assert name == "attention" or not run["differ"]


def test_numbers_are_predicted_on_two_devices_as_on_one(found):
    here, there = found["split"]
    assert here == there
    assert all(0 < radius < float("inf") for radius in here)


@pytest.mark.parametrize("turn", TURNS)
def test_waits_at_the_end_do_not_grow_with_width_or_rays_of_the_weights(found, turn):
    last = {name: parts(runs[TURNS[turn]]["waits"])["finish"] for name, runs in found["cases"].items()}
    assert last["wide"] == last["plain"]
    # A few for each of four more layers: what was sorted is read layer by layer, when all of it is there.
    assert 0 < last["deep"] - last["plain"] <= 4 * 7
    # Without a basin only its questions are left out.
    assert last["nobody right"] < last["plain"]


def test_a_warm_search_reads_its_answers_at_the_end(found):
    cold, warm = (found["cases"]["plain"][turn]["waits"] for turn in (0, 1))
    assert parts(warm)["finish"] > parts(cold)["finish"]
    assert any("_resumed" in place for _, _, place in warm)
    assert not any("_resumed" in place for _, _, place in cold)


# The ways themselves -------------------------------------------------------------------------------------------------


def test_on_a_cpu_nothing_is_copied():
    x = torch.arange(3.0)
    assert sent(x, x.device) is x
    assert Coming(x).arrived().data_ptr() == x.data_ptr()


class Marked:
    """Notes in which order marks are set and waited for."""

    def __init__(self, log):
        self.log, self.number = log, len(log)
        log.append(("set", self.number))

    def synchronize(self):
        self.log.append(("waited", self.number))


@pytest.fixture
def stream(monkeypatch):
    """The CPU as a device that goes on by itself, with room for 64 bytes under way."""
    log = []
    monkeypatch.setattr(transit, "STREAMED", {"cpu"})
    monkeypatch.setattr(transit, "UNDER_WAY", 64)
    monkeypatch.setattr(transit, "_sent", deque())
    monkeypatch.setattr(transit, "mark", lambda device: Marked(log))
    return log


def test_what_is_under_way_is_bounded_and_the_oldest_is_waited_for(stream):
    given = [torch.arange(5.0), torch.arange(40, dtype=torch.int64).reshape(4, 10), torch.tensor(True), torch.zeros(0)]
    given.append(torch.zeros(1).expand(30))
    for tensor in given:
        arrived = sent(tensor, torch.device("cpu"))
        assert torch.equal(arrived, tensor)
        assert arrived.dtype == tensor.dtype
        assert sum(held for _, held in transit._sent) <= 64
    waited = [number for what, number in stream if what == "waited"]
    assert waited == sorted(waited)
    # 20 bytes, 320 in pieces of 32, 1, 0, and 120 in pieces of 32: all but the last 64 have been waited for.
    pieces = [20, *[32] * 10, 1, 0, 32, 32, 32, 24]
    assert [what for what, _ in stream].count("set") == len(pieces)
    assert len(waited) == len(pieces) - len(transit._sent)


def test_what_comes_is_waited_for_where_it_is_wanted(stream):
    coming = Coming(torch.tensor([1, 2]))
    assert stream == [("set", 0)]
    assert coming.arrived().tolist() == [1, 2]
    assert stream == [("set", 0), ("waited", 0)]


def test_numbers_are_read_together_in_their_order():
    given = [torch.tensor(True), torch.zeros(0), torch.tensor([[1, 2], [3, 4]]), torch.tensor(0.5, dtype=torch.float64)]
    assert together(given) == [[1.0], [], [1.0, 2.0, 3.0, 4.0], [0.5]]
    assert together([]) == []
