"""A module with a forward pass of the user's: it shares the module's weights, and enters a context for each call."""

import contextlib

import torch
from torch import nn

import networks
from netdyn.functional import local_fields
from netdyn.isolation.adapter import Adapter
from networks import samples


def picked(module, batch):
    return module(batch["x"]) * 2


def test_without_a_function_the_module_itself_is_called():
    network = networks.bn_mlp().eval()
    assert torch.equal(Adapter(network)(samples()), network(samples()))


def test_the_function_gets_the_module_and_the_inputs():
    network = networks.bn_mlp().eval()
    assert torch.equal(Adapter(network, picked)({"x": samples()}), 2 * network(samples()))


def test_names_parameters_and_buffers_are_the_modules_own():
    network = networks.bn_mlp().eval()
    adapted = Adapter(network, picked)
    assert dict(adapted.named_parameters()) == dict(network.named_parameters())
    assert dict(adapted.named_buffers()) == dict(network.named_buffers())
    assert list(adapted.state_dict()) == list(network.state_dict())
    assert [name for name, _ in adapted.named_modules()] == [name for name, _ in network.named_modules()]
    assert not adapted.training
    fields, twins = local_fields(adapted, {"x": samples()}), local_fields(network, samples())
    assert list(fields) == list(twins)
    assert all(torch.equal(fields[name], twins[name]) for name in twins)


def test_parameters_that_are_replaced_in_the_adapter_are_replaced_in_the_module():
    network = networks.fill(nn.Linear(6, 4))
    zeros = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    adapted = Adapter(network, lambda module, x: module(x))
    assert not torch.func.functional_call(adapted, zeros, (samples(),)).any()
    assert adapted(samples()).any()


def test_a_context_is_entered_for_each_call():
    entered = []

    @contextlib.contextmanager
    def context():
        entered.append("in")
        yield
        entered.append("out")

    adapted = Adapter(networks.bn_mlp().eval(), context=context)
    adapted(samples())
    adapted(samples())
    assert entered == ["in", "out"] * 2
