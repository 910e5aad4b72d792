"""What reading layers, maps, the batch-norm gap, figures and an ordinary training step cost, in counts."""

import sys
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from netdyn import DynamicsMonitor, diagnose, functional
from netdyn._utils.trees import evenly_spaced
from netdyn.engine import layers as layer_reader
from netdyn.engine.config import Settings
from netdyn.functional import characteristic_maps
from netdyn.isolation.isolated import isolated
from netdyn.linear import characteristic
from netdyn.linear import substitution as linearize
from netdyn.modes import ranks
from netdyn.probes import outset
from netdyn.report.figures import curves as figures
from netdyn.tracing import survey as sites

SAMPLES, CLASSES, UNITS = 200, 10, (32, 24)
#: Samples of the runs that come before: is the network random (2, 2), what is in it (2, 3 and 3 + 16).
FIRST, SURVEY = [2, 2], [2, 3, 19]
MAP = 64
#: What makes a device's answer a number of the host's.
WAITS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select")


#: Samples in each forward pass so far; not on the network, where an evaluation puts everything back.
ran = []


class Counting(nn.Sequential):
    """A network that writes down what passes through it."""

    def forward(self, x):
        ran.append(len(x))
        return super().forward(x)


def network(norm=False):
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(32) if norm else nn.Identity()
    ran.clear()
    return Counting(nn.Linear(20, 32), middle, nn.ReLU(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, CLASSES))


def probe():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, 20, generator=generator), torch.arange(SAMPLES) % CLASSES


@contextmanager
def counted(monkeypatch, owner, name):
    """The first arguments of every call of a function."""
    calls, original = [], getattr(owner, name)

    def counting(*args, **kwargs):
        calls.append(args[0] if args else None)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counting)
        yield calls


class Kernels(TorchDispatchMode):
    """How often each of torch's operations ran."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            name = "nonzero"
        self.calls[name] += 1
        return func(*args, **kwargs or {})

    @property
    def waits(self):
        return sum(self.calls[name] for name in WAITS)


def test_the_counter_notices_what_waits():
    values = torch.arange(3.0)
    with Kernels() as kernels:
        values.sum().item()
        bool(values.any())
        float(values[0])
        values.nonzero()
        values[values > 1]
    assert kernels.waits == 5


# Reading layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [["modes"], ["linear"], ["modes", "linear"]])
def test_reading_takes_one_pass_over_the_probe_and_one_gradient_a_class(measure, monkeypatch):
    model = network()
    with counted(monkeypatch, torch.autograd, "grad") as gradients:
        diagnose(model, *probe(), measure=measure, progress=False)
    assert ran == [*FIRST, *SURVEY, MAP, SAMPLES]
    assert len(gradients) == CLASSES


@pytest.mark.parametrize("batch_size", [None, 64])
def test_every_unit_is_sorted_once(batch_size, monkeypatch):
    with counted(monkeypatch, layer_reader, "sort_rows") as sorts, counted(monkeypatch, ranks, "sort_rows") as others:
        diagnose(network(), *probe(), measure=["modes", "linear"], batch_size=batch_size, progress=False)
    assert [tuple(rows.shape) for rows in sorts] == [(units, SAMPLES) for units in UNITS]
    assert not others


def test_numbers_to_be_predicted_are_sorted_once_too(monkeypatch):
    x, _ = probe()
    with counted(monkeypatch, layer_reader, "sort_rows") as sorts, counted(monkeypatch, ranks, "sort_rows") as others:
        diagnose(network(), x, torch.randn(SAMPLES, CLASSES), measure=["modes"], progress=False)
    assert [len(rows) for rows in sorts] == [*UNITS]
    assert [len(rows) for rows in others] == [CLASSES]


@pytest.mark.parametrize(("function", "sorts"), [("midranks", 1), ("class_tuning", 1), ("rank_distribution", 1)])
def test_functions_sort_once(function, sorts, monkeypatch):
    x, y = probe()
    given = {"class_tuning": (y, CLASSES), "rank_distribution": (y, torch.randn(CLASSES, 20), CLASSES)}
    with counted(monkeypatch, np, "argsort") as others, counted(monkeypatch, ranks, "sort_rows") as calls:
        getattr(functional, function)(x, *given.get(function, ()))
    assert (len(calls), len(others)) == (sorts, 0)


def test_a_layer_asks_its_device_two_things_while_the_network_runs():
    """Is every unit monotone, and, on a CPU alone, are there ties: everything else stays there."""
    model, (x, y) = network().eval(), probe()
    with isolated(model):
        evaluator = outset.prepare(model, x, y, None, None)
        reader = layer_reader.LayerReader(evaluator, Settings(measure=("modes", "linear")), sites.discover(model, x))
        everything = reader._map()
        with Kernels() as kernels:
            sites.read(model, x, reader._add, everything)
    assert kernels.waits <= 2 * len(UNITS)
    assert kernels.calls["sort"] == kernels.calls["argsort"] == 0


@pytest.mark.parametrize("hidden", [1, 4])
def test_the_maps_of_all_layers_leave_their_device_together(hidden):
    torch.manual_seed(0)
    layers = [part for _ in range(hidden) for part in (nn.Linear(20, 20), nn.ReLU())]
    model, (x, _) = nn.Sequential(*layers, nn.Linear(20, CLASSES)), probe()
    survey = sites.discover(model, x)
    choice = sites.choose(model, survey, None)
    with Kernels() as kernels:
        linearize.substitute(model, x, choice, through=True)
    # One list of numbers: a question for each of the two sums of a layer on a CPU, a single copy elsewhere.
    assert kernels.waits <= 2 * hidden


# Maps of the input ---------------------------------------------------------------------------------------------------


def test_maps_use_what_reading_has_found(monkeypatch):
    model = network()
    with counted(monkeypatch, sites, "discover") as surveys, counted(monkeypatch, torch.autograd, "grad") as gradients:
        report = diagnose(model, *probe(), measure=["modes", "linear", "maps"], progress=False)
    # A run for the maps of the logits, the probe once more for the units' shares, and one for the units' maps.
    few = characteristic.FEW
    assert ran == [*FIRST, *SURVEY, MAP, SAMPLES, few, SAMPLES, few]
    assert not surveys
    assert len(gradients) == 2 * CLASSES + len(report.subnetwork.units.unique())


class Bent(nn.Module):
    """What leads to the hidden layer depends on the sample."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.first, self.last = nn.LayerNorm(20), nn.Linear(20, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.last(self.first(self.norm(x)).relu())


@pytest.mark.parametrize(("model", "gradients"), [(network(), CLASSES), (Bent(), 1 + CLASSES)])
def test_few_samples_are_asked_where_they_agree_and_all_where_they_do_not(model, gradients, monkeypatch):
    x, _ = probe()
    choice = sites.choose(model, sites.discover(model, x), None)
    with counted(monkeypatch, torch.autograd, "grad") as calls, isolated(model):
        maps = characteristic.input_maps(model, x, choice)
    assert len(calls) == gradients
    monkeypatch.setattr(characteristic, "FEW", MAP)
    with isolated(model):
        whole = characteristic.input_maps(model, x, choice)
    assert torch.allclose(maps, whole, atol=1e-6)


def test_maps_that_depend_on_the_sample_are_means_over_all():
    model, (x, _) = Bent(), probe()
    few = characteristic_maps(model, x[:4])
    whole = characteristic_maps(model, x)
    leaf = x[evenly_spaced(SAMPLES, MAP)].requires_grad_()
    straight = model.last(model.first(model.norm(leaf)))
    expected = torch.stack([torch.autograd.grad(row.sum(), leaf, retain_graph=True)[0].mean(0) for row in straight.t()])
    assert torch.allclose(whole, expected, atol=1e-3)
    assert not torch.allclose(few, whole, atol=1e-3)


def test_a_given_pathway_changes_nothing_in_the_subnetwork():
    model, (x, y) = network(), probe()
    together = diagnose(model, x, y, measure=["modes", "linear", "maps"], progress=False)
    alone = diagnose(model, x, y, measure=["maps"], progress=False)
    assert torch.equal(together.subnetwork.units, alone.subnetwork.units)
    assert torch.allclose(together.subnetwork.maps, alone.subnetwork.maps)
    assert torch.equal(together.characteristic_maps, alone.characteristic_maps)


def test_a_sampled_pathway_is_not_taken_for_the_whole(monkeypatch):
    model = network()
    with counted(monkeypatch, characteristic, "substitute") as maps:
        report = diagnose(model, *probe(), measure=["modes", "maps"], max_units=16, progress=False)
    assert len(maps) == 1
    assert int(report.subnetwork.units.max()) >= 16


# Batch normalisation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "passes"), [(False, [2]), (True, [2, SAMPLES, SAMPLES])])
def test_two_samples_show_that_nothing_is_normalised(norm, passes):
    model = network(norm=norm)
    diagnose(model, *probe(), measure=["batchnorm"], progress=False)
    assert ran == [*FIRST, SAMPLES, *passes]


# Figures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(784,), (28, 28), (3, 8, 8)])
def test_forty_maps_share_one_pair_of_axes(shape):
    maps = torch.randn(10, 4, *shape, generator=torch.Generator().manual_seed(0))
    figure = figures.subnetwork(torch.zeros(10, 4).long(), torch.zeros(10, 4), maps)
    # Beside it there is the scale of the images' colours.
    assert len(figure.axes) == 1 + (len(shape) > 1)
    assert len(figure.axes[0].collections) <= 5


def test_labels_of_noise_levels_are_no_formulas():
    sigma = torch.logspace(-3, 1, 9)
    axes = figures.basin_curves(sigma, sigma, None, 0.5, 0.3, (0.2, 0.4)).axes[0]
    assert axes.xaxis.get_major_formatter()(0.001) == "0.001"
    assert axes.xaxis.get_major_formatter()(10.0) == "10"


# A training step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"every_n_train_steps": 100}, {"schedule": "log"}, {"every_n_epochs": 3}])
def test_a_step_without_an_evaluation_asks_torch_nothing(options):
    monitor = DynamicsMonitor(**options)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=7))
    trainer = SimpleNamespace(global_step=7, fast_dev_run=False, fit_loop=loop)
    monitor._seen_step = 6
    calls = []
    with Kernels() as kernels:
        sys.setprofile(lambda frame, event, argument: calls.append(event) if event.endswith("call") else None)
        try:
            monitor.on_train_batch_start(trainer, None, None, 0)
            monitor.on_train_batch_end(trainer, None, None, None, 0)
        finally:
            sys.setprofile(None)
    assert not kernels.calls
    # A call takes about a tenth of a microsecond.
    assert len(calls) <= 25
