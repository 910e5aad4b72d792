"""The modes of a layer: samples that are not finite, dead units, and what the report says of them."""

import math
import warnings

import pytest
import torch
from torch import nn

from netdyn import NeuronModes, diagnose
from netdyn.functional import class_tuning, linear_substitution_map, local_fields, order_test

SAMPLES, UNITS, CLASSES = 120, 30, 5
MODES = ("opt_fraction", "order_z", "opt_chance", "positive_fraction", "order_mean", "rpd_gradient", "transfer_order")


def network(outputs=CLASSES, activation=nn.ReLU):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, UNITS), activation(), nn.Linear(UNITS, UNITS), activation(), nn.Linear(UNITS, outputs)
        ).double()


def probe():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, 6, generator=draw, dtype=torch.float64), torch.arange(SAMPLES) % CLASSES


def modes(model, x, y, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return diagnose(model, x, y, measure=["modes"], **options)


@pytest.mark.parametrize("batch_size", [None, 50])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("task", ["classes", "numbers"])
def test_samples_that_are_not_finite_are_left_out_of_the_modes_and_counted(task, value, batch_size):
    model, (x, y) = network(), probe()
    if task == "numbers":
        y = torch.randn(SAMPLES, CLASSES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    spoilt, kept = x.clone(), torch.ones(SAMPLES, dtype=torch.bool)
    for sample in (3, 77):
        spoilt[sample, 1], kept[sample] = value, False
    found, expected = modes(model, spoilt, y, batch_size=batch_size), modes(model, x[kept], y[kept])
    assert [layer.left_out for layer in expected.layers] == [0, 0]
    for layer, other in zip(found.layers, expected.layers, strict=True):
        assert layer.left_out == 2
        for name in MODES:
            assert getattr(layer, name) == pytest.approx(getattr(other, name), abs=1e-12, nan_ok=True), name
        torch.testing.assert_close(layer.distribution, other.distribution, equal_nan=True)
    line = "samples left out in 0, 2: 2, 2, because local fields are not finite."
    assert line in str(found).splitlines()
    assert line in found._repr_html_()


class Halves(nn.Module):
    """The first half of the units is finite for one half of the samples, and the other one for the others."""

    def __init__(self, model):
        super().__init__()
        self.first, self.rest = model[0], model[1:]

    def forward(self, x):
        own = (x[:, :1] > 0) == (torch.arange(UNITS) < UNITS // 2)
        return self.rest(self.first(x).where(own, math.nan)).nan_to_num()


def test_without_a_sample_that_all_units_have_none_is_called_constant():
    layer = modes(Halves(network()), *probe()).layers[0]
    assert layer.left_out == SAMPLES
    assert layer.constant_fraction == 0
    assert math.isnan(layer.opt_fraction)


def test_a_unit_that_is_never_finite_is_left_out_alone():
    model, (x, y) = network(), probe()
    whole = modes(model, x, y).layers[1]
    model[2].weight.data[4], model[4].weight.data[:, 4] = math.nan, 0.0
    layer = modes(model, x, y).layers[1]
    others = torch.arange(UNITS) != 4
    assert layer.left_out == 0
    assert math.isnan(layer.order_index[4])
    torch.testing.assert_close(layer.order_index[others], whole.order_index[others])


def test_the_metric_leaves_samples_out_too():
    model, (x, y) = network(), probe()
    fields, pathway = local_fields(model, x)["2"], linear_substitution_map(model, x)["2"]
    kept = torch.arange(SAMPLES) != 9
    metric, expected = NeuronModes(CLASSES), NeuronModes(CLASSES)
    expected.update(fields[kept], y[kept], pathway)
    spoilt = fields.clone()
    spoilt[9, 4] = -math.inf
    metric.update(spoilt, y, pathway)
    assert repr(metric.compute()) == repr(expected.compute())
    torch.testing.assert_close(metric.units(), expected.units())


@pytest.mark.parametrize(("activation", "bias"), [(nn.ReLU, -1e3), (nn.Sigmoid, 1e3), (nn.Hardtanh, -1e3)])
def test_units_whose_activation_never_changes_its_output_are_dead(activation, bias):
    model, (x, y) = network(activation=activation), probe()
    with torch.no_grad():
        model[2].bias[:9] = bias
        model[2].weight[9:15], model[2].bias[9:15] = 0.0, 1.0  # constant: not counted at all
    first, second = modes(model, x, y).layers
    assert first.dead_fraction == 0
    assert second.dead_fraction == 9 / 24
    assert second.constant_fraction == 6 / 30


def test_dead_units_are_shown_in_the_table_and_in_the_scalars():
    model, (x, y) = network(), probe()
    with torch.no_grad():
        model[0].bias[:15] = -1e3
        model[2].bias[:] = -1e3
    found = modes(model, x, y)
    row = next(line.split() for line in str(found).splitlines() if line.startswith("2 "))
    assert row[4] == "1.000"
    scalars = found.scalars()
    assert (scalars["modes/dead_fraction/0"], scalars["modes/dead_fraction/2"], scalars["modes/dead_max"]) == (
        0.5,
        1,
        1,
    )


def test_the_mean_share_over_layers_is_logged():
    found = modes(network(), *probe())
    expected = sum(layer.opt_fraction for layer in found.layers) / 2
    assert found.scalars()["modes/opt_mean"] == pytest.approx(expected)


def test_the_layers_test_is_the_function():
    model, (x, y) = network(), probe()
    tuning = class_tuning(local_fields(model, x)["0"], y, CLASSES)
    pathway = linear_substitution_map(model, x)["0"]
    layer = modes(model, x, y, seed=3).layers[0]
    assert (layer.order_z, layer.opt_chance) == pytest.approx(order_test(tuning, pathway), abs=1e-9)


def test_the_report_says_that_units_are_too_few():
    x, _ = probe()
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 2)).double()
    found = modes(model, x, torch.arange(SAMPLES) % 2)
    assert [layer.rule for layer in found.layers] == ["none", "false-discovery"]
    line = '"-" in 0: fewer than 20 live units are too few to tell OPT from NPT with fewer than five classes.'
    assert line in str(found).splitlines()


def test_the_share_of_equal_fields_is_that_of_equal_neighbours_in_rank():
    """Of 100 samples, 40 are the same: of 99 neighbours in rank 39 are equal."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(100, 6, generator=generator), torch.arange(100) % 5
    x[::5] = x[1::5] = 0.0
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 5))
    (found,) = diagnose(net, x, y, measure=["modes"]).layers
    assert found.tied_fraction == pytest.approx(39 / 99)
