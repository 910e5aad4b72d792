"""Deep graph persistence against an enumeration of all paths."""

import itertools
import math
import re

import pytest
import torch
from torch import nn

from netdyn.functional import deep_graph_persistence, neural_persistence


def strongest_paths(net):
    """S of inputs and outputs: of all paths between the two, the strongest weakest weight."""
    layers = []
    for module in net:
        if isinstance(module, nn.Linear):
            weight = module.weight.detach().double()
            deviations = [(w - weight.mean().item()) ** 2 for w in weight.flatten().tolist()]
            layers.append(((weight - weight.mean()) / math.sqrt(sum(deviations) / len(deviations))).abs())
    sizes = [layers[0].shape[1], *(len(weight) for weight in layers)]
    found = torch.zeros(sizes[0], sizes[-1], dtype=torch.float64)
    for path in itertools.product(*map(range, sizes)):
        weakest = min(weight[b, a].item() for weight, a, b in zip(layers, path, path[1:], strict=False))
        found[path[0], path[-1]] = max(found[path[0], path[-1]].item(), weakest)
    return found


@pytest.mark.parametrize("sizes", [(4, 3), (4, 5, 3), (3, 6, 4, 5), (9, 4, 4, 2), (2, 4, 4, 9)])
def test_equals_the_strongest_of_all_paths(sizes):
    torch.manual_seed(sum(sizes))
    net = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))
    for p in (1, 2):
        assert deep_graph_persistence(net, p) == pytest.approx(neural_persistence(strongest_paths(net), p), rel=1e-9)


def test_blocks_change_nothing(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5))
    whole = deep_graph_persistence(net)
    monkeypatch.setattr("netdyn.companions.graph_persistence._AT_ONCE", 50)
    assert deep_graph_persistence(net) == whole


def test_layers_on_other_scales_change_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 5))
    whole = deep_graph_persistence(net)
    with torch.no_grad():
        net[1].weight.mul_(100).add_(3)
    assert deep_graph_persistence(net) == pytest.approx(whole, rel=1e-4)


def test_a_layer_of_equal_weights_has_no_number():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    nn.init.ones_(net[1].weight)
    assert math.isnan(deep_graph_persistence(net))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.ReLU(), "`model` must have linear layers, got none."),
        (
            nn.Sequential(nn.Conv1d(1, 2, 3), nn.Linear(2, 2)),
            "`model` must have linear layers only, got the convolutions ['0'].",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 2)),
            "The layers of `model` must feed one another: '0' has 4 outputs, and '1', which follows, takes 3 inputs.",
        ),
        (
            nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10)),
            "Deep graph persistence of layers of the sizes [20, 30, 10] takes 6e+03 comparisons, more than `most`="
            "1e+03. Pass a larger `most`, or leave it out.",
        ),
    ],
)
def test_networks_that_have_none_are_named(net, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        deep_graph_persistence(net, most=1000)
