"""Node strength and layer fluctuation against sums over the edges of a graph."""

import statistics

import pytest
import torch
from torch import nn

from netdyn.functional import layer_fluctuation, node_strength


def edges_of(first, second):
    """Strengths of a chain of two linear layers, edge by edge."""
    strength = first.bias.tolist()
    for unit in range(first.out_features):
        for source in range(first.in_features):
            strength[unit] += first.weight[unit, source].item()
        for goal in range(second.out_features):
            strength[unit] += second.weight[goal, unit].item()
    return strength


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))


def test_units_of_a_chain_sum_their_edges(net):
    found = node_strength(net)
    assert list(found) == ["0", "3"]
    assert found["0"].tolist() == pytest.approx(edges_of(net[0], net[3]), abs=1e-6)
    assert found["3"].tolist() == pytest.approx((net[3].weight.sum(1) + net[3].bias).tolist(), abs=1e-6)


def test_fluctuation_is_the_spread_of_the_units(net):
    expected = {name: statistics.pstdev(values.tolist()) for name, values in node_strength(net).items()}
    assert layer_fluctuation(net) == pytest.approx(expected)


def test_channels_sum_their_kernels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, bias=False), nn.Flatten(), nn.Linear(54, 3))
    found = node_strength(net)
    for channel in range(4):
        into = net[0].weight[channel].sum() + net[0].bias[channel]
        assert found["0"][channel].item() == pytest.approx((into + net[2].weight[:, channel].sum()).item(), abs=1e-5)
    for channel in range(6):
        # Each of the nine positions is a unit, and has its own weights in the linear layer.
        out = [net[4].weight[:, 9 * channel + position].sum().item() for position in range(9)]
        expected = net[2].weight[channel].sum().item() + statistics.fmean(out)
        assert found["2"][channel].item() == pytest.approx(expected, abs=1e-5)


def test_grouped_and_transposed_kernels_belong_to_their_channels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(4, 4, 1, bias=False), nn.Conv1d(4, 8, 3, groups=2, bias=False))
    net.append(nn.ConvTranspose1d(8, 6, 2, groups=2, bias=False))
    kernel, transposed = net[1].weight, net[2].weight
    found = node_strength(net)
    assert found["0"][2].item() == pytest.approx((net[0].weight[2].sum() + kernel[4:, 0].sum()).item(), abs=1e-5)
    # Output 4 of the transposed layer is the second one of its second group, whose inputs are channels 4 to 7.
    assert found["2"][4].item() == pytest.approx(transposed[4:, 1].sum().item(), abs=1e-5)
    assert found["1"][5].item() == pytest.approx((kernel[5].sum() + transposed[5].sum()).item(), abs=1e-5)


def test_the_next_layer_is_the_first_that_takes_as_many_inputs():
    net = nn.ModuleDict({"a": nn.Linear(3, 4), "side": nn.Linear(3, 2), "b": nn.Linear(4, 1)})
    found = node_strength(net)["a"]
    expected = net["a"].weight.sum(1) + net["a"].bias + net["b"].weight.sum(0)
    assert torch.allclose(found, expected.detach().double(), atol=1e-6)


def test_a_network_without_weights_has_no_strengths():
    assert node_strength(nn.Sequential(nn.ReLU())) == {}
    assert list(node_strength(nn.Linear(2, 2))) == ["model"]


def test_weights_are_left_as_they_were(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    node_strength(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training
