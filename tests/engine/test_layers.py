"""Reading layers: what it costs, in counts, and what is reported where nothing can be read."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from counting import PASSES, Counting, Kernels, counted
from netdyn import diagnose, functional
from netdyn._utils.checks import DynamicsWarning
from netdyn.engine import layers, modes
from netdyn.engine.config import Config
from netdyn.engine.evaluate import evaluate
from netdyn.functional import local_fields
from netdyn.isolation.isolated import isolated
from netdyn.linear.substitution import substitute
from netdyn.modes import ranks
from netdyn.probes.probe import Probe
from netdyn.tracing.fields import choose, discover
from networks import CLASSES as FEW_CLASSES
from networks import FEATURES as FEW_FEATURES
from networks import fill, labels, samples

SAMPLES, FEATURES, CLASSES, UNITS = 200, 20, 10, (32, 24)
#: Samples of the passes that come first: two calls that show whether the network is random, then the survey.
FIRST, SURVEY = [2, 2], [2, 3]
#: All samples once more, in another order and in other company: this shows whether rows are the samples' own.
AGAIN = [SAMPLES // 2, SAMPLES // 2]
#: Two samples that show the number of classes, and four samples per class whose Jacobians are the layers' maps.
MAP = [2, 4 * CLASSES]


def network(wide=1):
    a, b = (wide * units for units in UNITS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Counting(nn.Linear(FEATURES, a), nn.ReLU(), nn.Linear(a, b), nn.Tanh(), nn.Linear(b, CLASSES))
    PASSES.clear()
    return model


def probe():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, FEATURES, generator=generator), torch.arange(SAMPLES) % CLASSES


def test_the_counter_notices_what_waits():
    values = torch.arange(3.0)
    with Kernels() as kernels:
        values.sum().item()
        bool(values.any())
        float(values[0])
        values.nonzero()
        values[values > 1]
    assert kernels.waits == 5


# Passes and sorts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [["modes"], ["linear"], ["modes", "linear"]])
def test_reading_takes_one_pass_over_the_probe_and_one_gradient(measure, monkeypatch):
    model = network()
    with counted(monkeypatch, torch.autograd, "grad") as gradients:
        diagnose(model, *probe(), measure=measure, progress=False)
    assert [*FIRST, *SURVEY, *MAP, *AGAIN, SAMPLES] == PASSES
    assert len(gradients) == 1


@pytest.mark.parametrize("batch_size", [None, 64])
def test_every_unit_is_sorted_once(batch_size, monkeypatch):
    with counted(monkeypatch, modes, "sort_rows") as sorts, counted(monkeypatch, ranks, "sort_rows") as others:
        diagnose(network(), *probe(), measure=["modes", "linear"], batch_size=batch_size, progress=False)
    assert [tuple(rows.shape) for rows in sorts] == [(units, SAMPLES) for units in UNITS]
    assert not others


def test_numbers_to_be_predicted_are_sorted_once_too(monkeypatch):
    x, _ = probe()
    numbers = torch.randn(SAMPLES, CLASSES, generator=torch.Generator().manual_seed(1))
    with counted(monkeypatch, modes, "sort_rows") as sorts, counted(monkeypatch, ranks, "sort_rows") as others:
        diagnose(network(), x, numbers, measure=["modes"], progress=False)
    assert [len(rows) for rows in sorts] == [*UNITS]
    assert [len(rows) for rows in others] == [CLASSES]


@pytest.mark.parametrize(("function", "sorts"), [("midranks", 1), ("class_tuning", 1), ("rank_distribution", 1)])
def test_functions_sort_once(function, sorts, monkeypatch):
    x, y = probe()
    pathway = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(1))
    given = {"class_tuning": (y, CLASSES), "rank_distribution": (y, pathway, CLASSES)}
    with counted(monkeypatch, np, "argsort") as others, counted(monkeypatch, ranks, "sort_rows") as calls:
        getattr(functional, function)(x, *given.get(function, ()))
    assert (len(calls), len(others)) == (sorts, 0)


@pytest.mark.parametrize("wide", [1, 8])
def test_the_questions_to_the_device_are_as_many_for_a_wide_layer_as_for_a_narrow_one(wide, monkeypatch):
    read, kernels = layers.read, Kernels()

    def watched(*args):
        with kernels:
            return read(*args)

    monkeypatch.setattr(layers, "read", watched)
    diagnose(network(wide), *probe(), measure=["modes", "linear"], progress=False)
    assert kernels.calls["addmm"] >= 3
    # Per layer: is every unit monotone, are there ties, and the numbers of the report (on a CPU; elsewhere these are
    # read from one copy). Once: the loss.
    assert kernels.waits <= 27 * len(UNITS) + 1
    assert kernels.calls["sort"] == kernels.calls["argsort"] == 0


@pytest.mark.parametrize("hidden", [1, 4])
def test_the_maps_of_all_layers_leave_their_device_together(hidden):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = [part for _ in range(hidden) for part in (nn.Linear(FEATURES, FEATURES), nn.ReLU())]
        model = nn.Sequential(*parts, nn.Linear(FEATURES, CLASSES))
    x, _ = probe()
    choice = choose(model, discover(model, x), None)
    with Kernels() as kernels:
        substitute(model, x, choice, through=True)
    # One list of numbers: a question for each of the two sums of a layer on a CPU, a single copy elsewhere.
    assert kernels.waits <= 2 * hidden


# Where nothing can be read -------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Its activation reads a table of samples beside samples."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(FEW_FEATURES, FEW_CLASSES)

    def forward(self, x):
        return self.fc(x) + torch.tanh(self.fc(x) @ self.fc(x).T).mean()


class Late(nn.Module):
    """Its only activation sees the samples in another order."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(FEW_FEATURES, 9), nn.Linear(9, FEW_CLASSES)

    def forward(self, x):
        order = x[:, 0].argsort(descending=True)
        return self.head(torch.relu(self.first(x[order]))[order.argsort()])


@pytest.mark.parametrize(("kind", "module"), [(Mixed, "model"), (Late, "first")])
def test_where_nothing_can_be_read_the_reason_is_given(kind, module):
    said = re.escape(f"['{module}'] mix or sort the samples of a batch")
    network = fill(kind()).eval()
    with pytest.warns(DynamicsWarning, match=said), pytest.raises(ValueError, match="samples cannot be told apart"):
        local_fields(network, samples())
    with pytest.warns(DynamicsWarning, match=said), pytest.raises(ValueError, match="samples cannot be told apart"):
        diagnose(network, samples(), labels(), measure=["modes"])


@pytest.mark.parametrize(
    ("layers", "error"),
    [
        (None, "The samples cannot be told apart in the inputs of the activations of ['first']"),
        (["nope"], "`layers` names 'nope', which matches nothing"),
        (["first"], "`layers` names 'first', but no output of ['first'] holds samples"),
    ],
)
def test_without_layers_the_other_measures_come(layers, error):
    network, failed = fill(Late()).eval(), []
    said = re.escape("['first'] mix or sort the samples of a batch")
    with isolated(network) as (network,), pytest.warns(DynamicsWarning, match=said):
        report = evaluate(
            network,
            Probe(samples(), labels()),
            Config(measure=("modes", "maps"), layers=layers),
            on_failure=lambda name, reason: failed.append((name, str(reason))),
        )
    assert [(name, reason[: len(error)]) for name, reason in failed] == [("modes", error)]
    assert (report.layers, report.subnetwork) == ((), None)
    assert report.characteristic_maps.shape == (FEW_CLASSES, FEW_FEATURES)
    assert math.isfinite(report.accuracy)


# No reading ends with nothing and no word ----------------------------------------------------------------------------


def hooked(kind):
    model = network()
    for module in model:
        getattr(module, f"register_{kind}")(lambda *given: BACKWARD.append(kind))
    return model


#: Calls of backward hooks. A global, because an evaluation restores all that it can reach from the network.
BACKWARD = []


@pytest.mark.parametrize("kind", ["full_backward_hook", "full_backward_pre_hook"])
def test_backward_hooks_on_layers_change_nothing_and_see_nothing(kind):
    expected = diagnose(network(), *probe(), measure=["modes", "linear"], progress=False)
    BACKWARD.clear()
    model = hooked(kind)
    report = diagnose(model, *probe(), measure=["modes", "linear"], progress=False)
    assert str(report) == str(expected)
    assert len(report.layers) == 2
    assert BACKWARD == []
    model(probe()[0].requires_grad_()).sum().backward()
    assert len(BACKWARD) == 5


def test_backward_hooks_for_all_modules_see_nothing():
    expected = diagnose(network(), *probe(), measure=["modes"], progress=False)
    BACKWARD.clear()
    hook = nn.modules.module.register_module_full_backward_hook(lambda *given: BACKWARD.append(""))
    try:
        report = diagnose(network(), *probe(), measure=["modes"], progress=False)
    finally:
        hook.remove()
    assert (str(report), BACKWARD) == (str(expected), [])


class Elsewhere(nn.Module):
    """Its activation runs under another name where gradients are wanted."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(FEW_FEATURES, 9), nn.Linear(9, FEW_CLASSES)

    def forward(self, x):
        h = self.first(x)
        return self.head(torch.relu(h * 1 if torch.is_grad_enabled() else h))


def test_a_reading_without_any_layer_is_an_error():
    with pytest.raises(ValueError, match=re.escape("None of the layers ['first'] could be read")):
        diagnose(fill(Elsewhere()), samples(), labels(), measure=["modes"], progress=False)


def test_a_layer_without_a_map_is_named():
    model = nn.Sequential(nn.Linear(FEW_FEATURES, FEW_FEATURES), nn.Tanh(), Elsewhere())
    with pytest.warns(DynamicsWarning, match=re.escape("The layers ['2.first'] are left out")):
        report = diagnose(fill(model), samples(), labels(), measure=["modes"], progress=False)
    assert [layer.name for layer in report.layers] == ["0"]
    with pytest.warns(DynamicsWarning, match=re.escape("The layers ['2.first'] are left out")):
        assert list(functional.linear_substitution_map(model, samples())) == ["0"]
