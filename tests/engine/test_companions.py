"""The companions of an evaluation: their numbers, their cost, and what a failing one costs."""

import math

import pytest
import torch
from tests.counting import PASSES, Counting
from torch import nn

from netdyn import DynamicsWarning, Monitor, diagnose
from netdyn import functional as F
from netdyn.engine import companions
from netdyn.engine.config import MEASURES

ALL = [*MEASURES, "companions"]


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)]
    return Counting(*layers)


def probe(samples=80):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 6, generator=generator), torch.arange(samples) % 4


@pytest.fixture(scope="module")
def scalars():
    return diagnose(network(), *probe(), measure=["companions", "maps"]).scalars()


def test_each_tag_is_its_function(scalars):
    net, (x, _) = network(), probe()
    fields = F.local_fields(net, x)
    weights = {name: net[int(name)].weight for name in ("0", "3", "5")}
    expected = {
        "node_strength": {name: float(own.mean()) for name, own in F.node_strength(net).items()},
        "layer_fluctuation": F.layer_fluctuation(net),
        "neural_persistence": {name: F.neural_persistence(weight) for name, weight in weights.items()},
        "weight_variance": {name: F.weight_variance(weight) for name, weight in weights.items()},
        "gate_entropy": {name: float(own.mean()) for name, own in F.gate_entropy(net, x).items()},
        "effective_dimension": {name: F.effective_dimension(own) for name, own in fields.items()},
        "effective_rank": {name: F.effective_rank(own) for name, own in fields.items()},
        "localisation": {"0": float(F.localisation(net[0].weight).mean())},
        "bn_drift": F.bn_drift(net, x),
    }
    tags = {f"companions/{name}/{layer}": value for name, own in expected.items() for layer, value in own.items()}
    tags["companions/deep_graph_persistence"] = F.deep_graph_persistence(net)
    tags["companions/map_localisation"] = float(F.localisation(F.characteristic_maps(net, x)).mean())
    assert {tag: value for tag, value in scalars.items() if tag.startswith("companions/")} == pytest.approx(tags)


def test_they_are_measured_on_request_alone():
    report = diagnose(network(), *probe())
    assert report.companions is None
    assert not any(tag.startswith("companions/") for tag in {**report.scalars(), **report.histograms()})


@pytest.mark.parametrize("measure", [["modes"], ["modes", "linear", "batchnorm"], ["sample_basin", "maps"]])
def test_all_together_cost_one_pass_of_the_probe(measure):
    counts = []
    for asked in (measure, [*measure, "companions"]):
        PASSES.clear()
        diagnose(network(), *probe(), measure=asked)
        counts.append(sum(PASSES))
    # Batch normalisation takes that pass. Where no layers are read, runs of two samples and of three find them.
    assert counts[1] - counts[0] == 80 + 5 * ("modes" not in measure)


def test_without_batch_normalisation_they_cost_no_pass():
    net, counts = network(), []
    del net[1]
    for asked in (["modes"], ["modes", "companions"]):
        PASSES.clear()
        diagnose(net, *probe(), measure=asked)
        counts.append(sum(PASSES))
    assert counts[1] == counts[0]


def test_batches_change_nothing(scalars):
    found = diagnose(network(), *probe(), measure=["companions", "maps"], batch_size=23).scalars()
    assert found == pytest.approx(scalars, rel=1e-5)


def test_they_are_those_of_the_layers_that_modes_read(scalars):
    report = diagnose(network(), *probe(), measure=["modes", "linear", "companions", "maps"])
    for tag, value in report.scalars().items():
        if tag.startswith("companions/"):
            assert value == pytest.approx(scalars[tag], rel=1e-5)
    assert set(report.companions.scalars()) == {tag for tag in scalars if tag.startswith("companions/")}


def test_units_have_histograms():
    report = diagnose(network(), *probe(), measure=["companions"])
    found = report.histograms()
    assert set(found) == {f"companions/node_strengths/{name}" for name in ("0", "3", "5")} | {
        f"companions/gate_entropies/{name}" for name in ("1", "3")
    }
    assert torch.equal(found["companions/node_strengths/0"], F.node_strength(network())["0"].float())


def test_no_more_samples_than_units_have_a_dimension_and_no_rank():
    found = diagnose(network(), *probe(12), measure=["companions"]).companions.layers
    assert set(found["effective_dimension"]) == {"1", "3"}
    assert set(found["effective_rank"]) == {"3"}


def test_of_many_units_a_choice_is_measured():
    found = diagnose(network(), *probe(), measure=["companions"], max_units=5)
    assert len(found.companions.units["gate_entropies"]["1"]) == 5
    assert found.companions.layers["effective_dimension"]["1"] <= 5


def test_what_a_network_has_not_is_named():
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
    x, y = probe()
    report = diagnose(net, x[:, None], y, measure=["companions"])
    reason = "`model` must have linear layers only, got the convolutions ['0']."
    assert report.companions.left_out == {"deep_graph_persistence": reason}
    assert f"no deep_graph_persistence: {reason}" in str(report).splitlines()


def test_layers_too_large_for_a_spanning_tree_are_named(monkeypatch):
    monkeypatch.setattr(companions, "MOST_VERTICES", 20)
    found = diagnose(network(), *probe(), measure=["companions"]).companions
    assert set(found.layers["neural_persistence"]) == {"0", "5"}
    assert set(found.layers["weight_variance"]) == {"0", "3", "5"}
    assert found.left_out == {"neural_persistence": "['3'] have more than 20 inputs and outputs"}


def test_a_linear_network_has_those_of_its_weights():
    x, y = probe()
    found = diagnose(nn.Linear(6, 4), x, y, measure=["companions"]).companions
    assert math.isfinite(found.network["deep_graph_persistence"])
    assert set(found.layers["neural_persistence"]) == {"model"}
    assert set(found.left_out) == {"gate_entropy", "effective_dimension", "effective_rank"}


def broken(*args):
    raise ArithmeticError("broken")


@pytest.mark.parametrize(
    ("function", "name"),
    [
        ("effective_dimension", "effective_dimension"),
        ("entropy_of_gates", "gate_entropy"),
        ("neural_persistence", "neural_persistence"),
        ("node_strength", "node_strength"),
        ("deep_graph_persistence", "deep_graph_persistence"),
    ],
)
def test_one_that_fails_costs_itself_alone(monkeypatch, function, name, scalars):
    monkeypatch.setattr(companions, function, broken)
    monitor = Monitor(probe(), measure=["companions"], figures="never")
    with pytest.warns(DynamicsWarning) as caught:
        report = monitor.measure(network(), 0)
    assert [str(warning.message) for warning in caught] == [
        f"netdyn could not measure 'companions/{name}', and goes on without it: ArithmeticError: broken. Leave "
        "'companions' out of `measure`, or pass strict=True to have this raised."
    ]
    others = {
        tag: value
        for tag, value in scalars.items()
        if not tag.startswith((f"companions/{name}", "companions/map_"))
        and not (name == "node_strength" and tag.startswith("companions/layer_fluctuation"))
    }
    assert report.scalars() == pytest.approx(others)


def test_a_failure_is_raised_if_asked_for(monkeypatch):
    monkeypatch.setattr(companions, "neural_persistence", broken)
    monitor = Monitor(probe(), measure=["companions"], figures="never", strict=True)
    with pytest.raises(ArithmeticError, match="broken"):
        monitor.measure(network(), 0)


def test_training_stays_as_it_is_without_them():
    def trained(measure):
        net, (x, y) = network(), probe()
        optimizer = torch.optim.Adam(net.parameters())
        monitor = Monitor((x, y), measure=measure, every_n_train_steps=2, figures="never", weight_rays=2)
        for step in range(6):
            if measure and monitor.due(step):
                monitor.measure(net, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(nn.functional.dropout(net(x)), y).backward()
            optimizer.step()
        return net.state_dict()

    with_them, without = trained(ALL), trained([])
    assert all(torch.equal(with_them[name], value) for name, value in without.items())
