"""Layers are read as they were last time; where they are no longer so, the numbers are those of a reading anew."""

import gc
import math
import random
import re
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import families
import sequence_families
from netdyn._utils.checks import DynamicsWarning
from netdyn._utils.distributed import Crew
from netdyn._utils.doubts import Doubts, Question
from netdyn._utils.trees import count
from netdyn.engine import reading
from netdyn.engine.config import Settings
from netdyn.engine.evaluate import examine
from netdyn.engine.layers import LayerReader
from netdyn.engine.memory import Memory
from netdyn.functional import local_fields
from netdyn.isolation.isolated import isolated
from netdyn.probes.probe import Probe
from networks import CLASSES, FEATURES, Sorting, Swish, fill, labels, probabilities, samples, single_logit


class Softened(nn.Module):
    """Looks like an activation, but looks at the whole sample."""

    def forward(self, x):
        return torch.relu(x) / (1 + F.relu(x).sum(dim=1, keepdim=True))


class Mixing(nn.Module):
    """Its second activation reads a table of samples beside samples."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, 9), nn.Linear(9, CLASSES)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return self.head(hidden) + torch.tanh(hidden @ hidden.T).mean()


def own(module):
    return fill(nn.Sequential(nn.Linear(FEATURES, 8), module, nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, CLASSES)))


KINDS = families.FULLY_CONNECTED | families.CONVOLUTIONAL | sequence_families.TRANSFORMERS | sequence_families.AXES
NETWORKS = {
    name: (lambda family=family: (family.network(), family.inputs()))
    for name, family in KINDS.items()
    if family.forward is None and family.layers is None
} | {
    "own activation": lambda: (own(Swish()), samples()),
    "no activation": lambda: (own(Softened()), samples()),
    "sorting": lambda: (fill(Sorting()), samples()),
    "mixing": lambda: (fill(Mixing()), samples()),
    "one logit": lambda: (single_logit(), samples()),
    "probabilities": lambda: (probabilities(), samples()),
    "three samples": lambda: (own(nn.Tanh()), samples(3)),
    "one sample": lambda: (own(nn.Tanh()), samples(1)),
    "the same samples": lambda: (own(nn.Tanh()), torch.ones(20, FEATURES)),
}
#: Where samples usually are they are not in these.
UNUSUAL = {"no activation", "sorting", "steps and samples merged"}


class Certain(Doubts):
    """Looks before it answers."""

    def __init__(self, assumed):
        super().__init__(None)


class Mistaken(Doubts):
    """Answers some questions wrong, all of them if ``share`` is 1, unless it is to look."""

    share, seed = 1.0, 0

    def __init__(self, assumed):
        super().__init__(assumed)
        self.rest = random.Random(self.seed)

    def ask(self, questions):
        given = super().ask(questions)
        if self.assumed is None:
            return given
        for place, question in enumerate(questions):
            others = [answer for answer in question.answers if answer != given[place]]
            if others and self.rest.random() < self.share:
                given[place] = self.answers[question.key] = self.rest.choice(others)
        return given


class Counted:
    """How often layers were read."""

    def __init__(self, monkeypatch):
        self.reads, real = 0, LayerReader.read

        def read(reader):
            self.reads += 1
            return real(reader)

        monkeypatch.setattr(LayerReader, "read", read)


@pytest.fixture
def counted(monkeypatch):
    return Counted(monkeypatch)


def read(network, x, memory=None, **settings):
    """The layers' numbers, and what was warned of."""
    target = labels(count(x)) if settings.pop("classes", True) else torch.arange(count(x)) % 2
    with isolated(network), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = Settings(**{"measure": ("modes", "linear")} | settings)
        report = examine(network, Probe(x, target), options, Crew(), False, memory=memory)
    return repr(report.to_dict()["layers"]), sorted(
        str(each.message) for each in caught if issubclass(each.category, DynamicsWarning)
    )


def case(name):
    network, x = NETWORKS[name]()
    return network.eval(), x, {"classes": name not in ("one logit",)}


@pytest.fixture
def certain(monkeypatch):
    """What a reading finds that looks first."""

    def found(name):
        network, x, options = case(name)
        with monkeypatch.context() as patched:
            patched.setattr(reading, "Doubts", Certain)
            return read(network, x, **options)

    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_are_those_of_a_reading_that_looks_first(name, certain, counted):
    expected = certain(name)
    counted.reads = 0
    network, x, options = case(name)
    memory = Memory()
    assert read(network, x, memory, **options) == expected
    assert counted.reads == 1 + (name in UNUSUAL)
    # What the first time has found the second time assumes, and rightly so.
    assert read(network, x, memory, **options) == expected
    assert counted.reads == 2 + (name in UNUSUAL)


@pytest.mark.parametrize(("share", "seed"), [(1.0, 0), (0.3, 1), (0.3, 2)])
@pytest.mark.parametrize("name", NETWORKS)
def test_whatever_was_assumed_numbers_are_right(name, share, seed, certain, monkeypatch):
    expected = certain(name)
    network, x, options = case(name)
    memory = Memory()
    with monkeypatch.context() as patched:
        patched.setattr(Mistaken, "share", share)
        patched.setattr(Mistaken, "seed", seed)
        patched.setattr(reading, "Doubts", Mistaken)
        assert read(network, x, memory, **options) == expected
    # And what is remembered is the truth.
    doubts = Doubts(None)
    with isolated(network):
        reading.survey(network, x, doubts)
    assert memory.answers == doubts.answers


def test_layers_that_were_the_same_for_all_are_found_when_they_no_longer_are(counted):
    """Before training all samples may have the same fields, and every order of them fits."""
    network, x = NETWORKS["steps and samples merged"]()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    for value in network.parameters():
        nn.init.zeros_(value)
    memory = Memory()
    read(network, x, memory)
    assert counted.reads == 1
    network.load_state_dict(weights)
    found = read(network, x, memory)
    assert counted.reads == 3
    assert found == read(network, x)


def test_a_network_that_has_changed_is_read_as_it_is(counted):
    memory = Memory()
    read(own(nn.Tanh()), samples(), memory)
    counted.reads = 0
    network = fill(Sorting())
    found = read(network, samples(), memory)
    assert counted.reads == 2
    assert found == read(network, samples())


def test_an_error_that_no_assumption_is_to_blame_for_is_met_once(monkeypatch):
    surveys, real = [], reading.survey
    monkeypatch.setattr(reading, "survey", lambda *given: surveys.append(given) or real(*given))
    with pytest.raises(ValueError, match=re.escape("`layers` names 'nope', which matches nothing")) as caught:
        read(own(nn.Tanh()), samples(), layers=["nope"])
    assert len(surveys) == 1
    assert caught.value.__context__ is None


def test_where_nothing_can_be_read_it_is_said_why():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(FEATURES, CLASSES)

        def forward(self, x):
            return self.fc(x) + torch.tanh(self.fc(x) @ self.fc(x).T).mean()

    said = re.escape("['model'] mix or sort the samples of a batch")
    with pytest.warns(UserWarning, match=said), pytest.raises(ValueError, match="Samples cannot be told apart"):
        local_fields(fill(Mixed()), samples())
    with (
        isolated(network := fill(Mixed()).eval()),
        pytest.warns(UserWarning, match=said),
        pytest.raises(ValueError, match="Samples cannot be told apart"),
    ):
        examine(network, Probe(samples(), labels()), Settings(measure=("modes",)), Crew(), False)


class Late(nn.Module):
    """Its only activation sees the samples in another order."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, 9), nn.Linear(9, CLASSES)

    def forward(self, x):
        order = x[:, 0].argsort(descending=True)
        return self.head(torch.relu(self.first(x[order]))[order.argsort()])


@pytest.mark.parametrize("layers", [None, ["nope"], ["first"]])
def test_where_nothing_is_left_when_one_has_looked_it_is_said_why(layers, counted):
    network, failed, memory = fill(Late()).eval(), [], Memory()
    options = Settings(measure=("modes", "maps"), layers=layers)
    said = re.escape("['first'] mix or sort the samples of a batch")
    for _ in range(2):
        with isolated(network), pytest.warns(DynamicsWarning, match=said):
            report = examine(
                network,
                Probe(samples(), labels()),
                options,
                Crew(),
                False,
                on_failure=lambda name, error: failed.append(f"{name}: {error}"),
                memory=memory,
            )
        assert (report.layers, report.subnetwork) == ((), None)
        assert math.isfinite(report.accuracy)
    assert len(failed) == 2
    assert failed[0] == failed[1]
    # The second time it is known.
    assert counted.reads <= 1
    doubts = Doubts(None)
    with isolated(network):
        reading.survey(network, samples(), doubts)
    assert memory.answers == doubts.answers


def test_one_reading_is_let_go_of_before_the_next(monkeypatch):
    alive, most, real = weakref.WeakSet(), [], LayerReader.read

    def read_(reader):
        gc.collect()
        most.append(len(alive))
        alive.add(reader)
        return real(reader)

    monkeypatch.setattr(LayerReader, "read", read_)
    read(fill(Sorting()), samples())
    assert most == [0, 0]


# Doubts --------------------------------------------------------------------------------------------------------------


def positive(key, *numbers):
    return Question(key, [torch.tensor(n) for n in numbers], ("all", "some", None), judged)


def judged(found):
    right = [number > 0 for (number,) in found]
    return "all" if all(right) else "some" if any(right) else None


QUESTIONS = [positive("a", 1.0, 2.0), positive("b", 1.0, -2.0), positive("c", -1.0), positive("d")]
TRUTH = ["all", "some", None, "all"]


def test_who_looks_answers_right_and_has_no_doubts():
    doubts = Doubts(None)
    assert doubts.ask(QUESTIONS) == TRUTH
    assert doubts.ask([]) == []
    assert doubts.justified()
    assert doubts.answers == dict(zip("abcd", TRUTH, strict=True))


@pytest.mark.parametrize(
    ("assumed", "given", "justified"),
    [
        ({}, ["all", "all", "all", "all"], False),
        ({"b": "some", "c": None}, TRUTH, True),
        # An answer of last time that is none now.
        ({"b": "some", "c": "half"}, ["all", "some", "all", "all"], False),
        ({"a": None, "b": "some", "c": None}, [None, "some", None, "all"], False),
    ],
)
def test_who_assumes_is_told_whether_that_was_right(assumed, given, justified):
    doubts = Doubts(assumed)
    assert [*doubts.ask(QUESTIONS[:2]), *doubts.ask(QUESTIONS[2:])] == given
    assert doubts.justified() is justified
    assert doubts.justified() is justified
    assert doubts.answers == dict(zip("abcd", given, strict=True))
