"""Drift of running statistics against statistics made by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from netdyn.companions.bn_drift import measure_drift
from netdyn.functional import bn_drift


def exact(net, inputs):
    """Give every normalisation the statistics of what it gets in training."""
    for place, module in enumerate(net):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            value = given(net, place, inputs)
            module.running_mean.copy_(value.mean(1))
            module.running_var.copy_(value.var(1, correction=0))
    return net


def given(net, place, inputs):
    """What the module at a place gets in training, ``[channels, values]``; the network is a copy."""
    with torch.no_grad():
        return copy.deepcopy(net).train()[:place](inputs).transpose(0, 1).flatten(1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


@pytest.fixture
def inputs():
    return torch.randn(50, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def test_exact_statistics_have_none(net, inputs):
    assert bn_drift(exact(net, inputs), inputs) == pytest.approx({"1": 0.0, "5": 0.0}, abs=1e-4)


def test_equals_the_distance_of_two_normal_distributions(net, inputs):
    with torch.no_grad():
        net[1].running_mean.normal_()
        net[5].running_var.uniform_(0.5, 2)
        expected = {}
        for name, place in (("1", 1), ("5", 5)):
            value = given(net, place, inputs).double()
            squared = []
            for own, m, v in zip(value, net[place].running_mean, net[place].running_var, strict=True):
                sigma = math.sqrt(own.var(correction=0) + 1e-5)
                squared.append(((m - own.mean()) ** 2 + ((v + 1e-5).sqrt() - sigma) ** 2).item() / sigma**2)
            expected[name] = math.sqrt(sum(squared) / len(squared))
    assert bn_drift(net, inputs) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("place", [1, 5])
def test_a_shift_is_told_in_standard_deviations_where_it_is(net, inputs, place):
    exact(net, inputs)
    with torch.no_grad():
        net[place].running_mean += 2 * (net[place].running_var + 1e-5).sqrt()
    found = bn_drift(net, inputs)
    assert found.pop(str(place)) == pytest.approx(2.0, rel=1e-3)
    assert max(found.values()) < 1e-3


def test_training_leaves_a_drift_that_its_end_closes(net, inputs):
    net.train()
    with torch.no_grad():
        net(inputs)
        early = bn_drift(net, inputs)
        for _ in range(200):
            net(inputs)
    late = bn_drift(net, inputs)
    assert all(early[name] > 5 * late[name] for name in early)


def test_batches_count_as_one(net, inputs):
    # What the second module gets depends on the batch that the first one normalises with.
    found = measure_drift(net.eval(), inputs.split([7, 20, 23]))
    assert found["1"] == pytest.approx(bn_drift(net, inputs)["1"], rel=1e-6)
    assert found["5"] == pytest.approx(bn_drift(net, inputs)["5"], rel=0.2)


def test_the_network_is_left_as_it_was(net, inputs):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    bn_drift(net, inputs)
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_normalisations_without_running_statistics_have_none(inputs):
    net = nn.Sequential(
        nn.BatchNorm2d(1, track_running_stats=False), nn.GroupNorm(1, 1), nn.Flatten(), nn.LayerNorm(36)
    )
    assert bn_drift(net, inputs) == {}
