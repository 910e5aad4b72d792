"""Modules of the user's own without parameters are one activation if they act element by element."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdyn.functional import linear_substitution_map, local_fields
from netdyn.tracing.elementwise import acts_by_element, may_be_activation
from networks import CLASSES, FEATURES, Own, fill, one_hidden, samples


class Memory(torch.autograd.Function):
    """x * sigmoid(x), with a backward of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * s * (1 + x * (1 - s))


# Activations of the user's own: whatever they call inside, each is one activation.
OWN = {
    "x sigmoid(x)": lambda x: x * torch.sigmoid(x),
    "x sigmoid(x) in place": lambda x: x.mul_(torch.sigmoid(x)),
    "x sigmoid(1.7 x)": lambda x: x * (1.702 * x).sigmoid(),
    "x tanh(softplus(x))": lambda x: x * torch.tanh(F.softplus(x)),
    "tanh's GELU": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3))),
    "squared relu": lambda x: F.relu(x) ** 2,
    "relu": F.relu,
    "relu in place": F.relu_,
    "own backward": Memory.apply,
}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", OWN.values(), ids=OWN)
def test_a_parameter_free_module_of_ones_own_is_one_activation(activation):
    network = one_hidden(Own(activation))
    fields = local_fields(network, samples())
    assert list(fields) == ["0"]
    close(fields["0"], network[0](samples()).detach())
    linear_map = linear_substitution_map(network, samples())
    close(linear_map["0"], network[2].weight.detach())
    assert linear_map.affine_defect["0"] < 1e-5


@pytest.mark.parametrize("gates", [False, True])
def test_an_own_activation_with_parameters_is_read_whole_if_it_gates_its_input_else_inside(gates):
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return (x if gates else 1) * torch.sigmoid(self.slope * x)

    assert list(local_fields(one_hidden(Learned()), samples())) == ["0" if gates else "1"]


def test_an_own_module_without_an_activation_is_no_site():
    network = fill(nn.Sequential(nn.Linear(FEATURES, 8), Own(lambda x: x - 1), nn.ReLU(), nn.Linear(8, CLASSES)))
    fields = local_fields(network, samples())
    assert list(fields) == ["1"]
    close(fields["1"], network[0](samples()).detach() - 1)


@pytest.mark.parametrize("function", OWN.values(), ids=OWN)
def test_what_acts_element_by_element_is_recognised(function):
    x = samples()
    assert acts_by_element(Own(function), x.clone(), function(x.clone()))


MIXING = {
    "softmax": lambda x: x.softmax(1),
    "sorted": lambda x: x.sort(dim=1).values,
    "centred over samples": lambda x: x - x.mean(dim=0),
    "the sample before": lambda x: x.roll(1, 0),
    "gated by a neighbour": lambda x: x * torch.sigmoid(x.roll(1, 1)),
}


@pytest.mark.parametrize("function", MIXING.values(), ids=MIXING)
@pytest.mark.parametrize("shape", [(2, 2), (2, 6), (3, 7), (3, 64), (80, 6), (2, 3, 4)], ids=str)
def test_what_mixes_units_or_samples_does_not_act_element_by_element(function, shape):
    x = samples(shape[0], shape=shape[1:])
    assert not acts_by_element(Own(function), x.clone(), function(x.clone()))


def test_only_leaves_of_the_users_own_without_state_may_be_activations():
    buffered = Own(F.relu)
    buffered.register_buffer("scale", torch.ones(1))
    assert may_be_activation(Own(F.relu))
    assert not any(map(may_be_activation, [nn.ReLU(), nn.Linear(2, 2), buffered, nn.Sequential(Own(F.relu))]))


def test_a_module_that_centres_its_batch_is_not_one_activation():
    network = one_hidden(Own(lambda x: torch.sigmoid(x - x.mean(dim=0))))
    with pytest.warns(UserWarning, match="depend on the other samples"):
        fields = local_fields(network, samples())
    assert list(fields) == ["1"]
    field = network[0](samples()).detach()
    close(fields["1"], field - field.mean(dim=0))
