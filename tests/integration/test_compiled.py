"""Compiled parts of a network over many evaluations: nothing is compiled again, and nothing is left out."""

import pytest
import torch
import torch._dynamo.utils
from torch import nn

from netdyn import Monitor

EVALUATIONS = 20
QUICK = {"measure": ["modes", "linear", "sample_basin"], "figures": "never"}


class Network(nn.Module):
    """An eager head on a body that may be compiled, with dropout and batch normalisation."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 24))
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


def data():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(120, 6, generator=generator), torch.arange(120) % 3


def trained(compiled, monitor):
    """A training of 20 steps, measured before each; the network, the reports, and the graphs that were made."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    network = Network()
    if compiled:
        network.body = torch.compile(network.body, backend="eager")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x, y = data()
    reports = []
    for step in range(EVALUATIONS):
        if monitor is not None:
            reports.append(monitor.measure(network, step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    counters = torch._dynamo.utils.counters
    graphs = {name: counters["stats"][name] for name in ("unique_graphs", "calls_captured")}
    return network, reports, graphs | {"recompiled": sum(counters["recompiles"].values())}


@pytest.fixture(scope="module")
def runs():
    monitor = Monitor(data(), **QUICK)
    return {
        "watched": trained(True, monitor),
        "alone": trained(True, None),
        "eager": trained(False, Monitor(data(), **QUICK)),
    }


def test_no_graph_is_made_for_twenty_evaluations(runs):
    assert runs["watched"][2] == runs["alone"][2]
    assert runs["alone"][2]["unique_graphs"] > 0
    assert runs["eager"][2]["unique_graphs"] == 0


def test_the_training_is_the_same(runs):
    watched, alone = runs["watched"][0].state_dict(), runs["alone"][0].state_dict()
    assert watched.keys() == alone.keys()
    assert all(torch.equal(watched[name], alone[name]) for name in alone)


def test_every_evaluation_has_the_numbers_of_the_eager_network(runs):
    assert len(runs["watched"][1]) == EVALUATIONS
    for compiled, eager in zip(runs["watched"][1], runs["eager"][1], strict=True):
        assert [layer.name for layer in compiled.layers] == [layer.name for layer in eager.layers]
        assert len(compiled.layers) == 2
        for one, other in zip(compiled.layers, eager.layers, strict=True):
            torch.testing.assert_close(one.order_index, other.order_index, rtol=1e-4, atol=1e-5, equal_nan=True)
        assert compiled.accuracy == pytest.approx(eager.accuracy, abs=0.01)
        assert compiled.sample_basin.radius == pytest.approx(eager.sample_basin.radius, rel=0.01)
