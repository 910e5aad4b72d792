"""Activations that are written by hand are read as their modules are, and nothing else is taken for one."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdyn import diagnose
from netdyn._utils.checks import DynamicsWarning
from netdyn.functional import linear_share, linear_substitution_map, linear_tail, local_fields
from networks import CLASSES, FEATURES, fill, labels, samples

WIDTH = 24


class Net(nn.Module):
    """Two hidden layers with an activation that is a function."""

    def __init__(self, phi):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.phi = phi

    def forward(self, x):
        return self.c(self.phi(self.b(self.phi(self.a(x)))))


class Whole(nn.Module):
    """A function as a module, which is read as one activation."""

    def __init__(self, phi):
        super().__init__()
        self.phi = phi

    def forward(self, h):
        return self.phi(h)


def cut(h):
    h[h < 0] = 0
    return h


def multiplied(h):
    h *= h > 0
    return h


def powers(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


RELU = {
    "mask": lambda h: h * (h > 0),
    "mask, as a number": lambda h: (h > 0).to(h.dtype) * h,
    "clamp": lambda h: h.clamp(min=0),
    "torch.clamp": lambda h: torch.clamp(h, 0),
    "clamp_min": lambda h: h.clamp_min(0),
    "clamp, in place": lambda h: h.clamp_(min=0),
    "clip": lambda h: torch.clip(h, min=0.0),
    "maximum": lambda h: torch.maximum(h, torch.zeros_like(h)),
    "maximum, the constant first": lambda h: torch.maximum(torch.zeros_like(h), h),
    "max with a number": lambda h: torch.max(h, torch.tensor(0.0)),
    "where": lambda h: torch.where(h > 0, h, 0),
    "where, with zeros": lambda h: torch.where(h < 0, torch.zeros_like(h), h),
    "Tensor.where": lambda h: h.where(h > 0, torch.tensor(0.0)),
    "masked_fill": lambda h: h.masked_fill(h < 0, 0),
    "masked_fill, in place": lambda h: h.masked_fill_(h < 0, 0),
    "assigned": cut,
    "multiplied, in place": multiplied,
}
SAME = {f"relu: {name}": (written, F.relu) for name, written in RELU.items()} | {
    "leaky relu: where": (lambda h: torch.where(h > 0, h, 0.01 * h), F.leaky_relu),
    "leaky relu: max": (lambda h: torch.max(h, 0.01 * h), F.leaky_relu),
    "leaky relu: a sum": (lambda h: F.relu(h) - 0.01 * F.relu(-h), F.leaky_relu),
    "elu: where": (lambda h: torch.where(h > 0, h, h.exp() - 1), F.elu),
    "elu: a sum": (lambda h: h.clamp(min=0) + (h.clamp(max=0).exp() - 1), F.elu),
    "hardtanh": (lambda h: h.clamp(-1, 1), F.hardtanh),
    "relu6": (lambda h: torch.clamp(h, 0, 6), F.relu6),
    "silu": (lambda h: h * torch.sigmoid(h), F.silu),
    "silu, in place": (lambda h: h.mul_(torch.sigmoid(h)), F.silu),
    "silu, over the sigmoid": (lambda h: torch.sigmoid(h).mul_(h), F.silu),
    "silu, a quotient": (lambda x: x / (1 + torch.exp(-x)), F.silu),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), F.mish),
    "gelu": (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), F.gelu),
    "gelu, halved at the end": (lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2, F.gelu),
    "gelu, tanh": (lambda x: 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))), tanh_gelu),
    "gelu, tanh of products": (powers, tanh_gelu),
    "hardswish": (lambda h: h * F.relu6(h + 3) / 6, F.hardswish),
    "hardswish, of clamp": (lambda h: h * ((h + 3).clamp(0, 6) / 6), F.hardswish),
    "softsign": (lambda h: h / (1 + h.abs()), F.softsign),
    "tanh, a quotient": (lambda h: (h.exp() - (-h).exp()) / (h.exp() + (-h).exp()), torch.tanh),
    "squared relu": (lambda h: F.relu(h) ** 2, Whole(lambda h: F.relu(h) ** 2)),
    "squared relu: square": (lambda h: F.relu(h).square(), Whole(lambda h: F.relu(h) ** 2)),
    "squared relu: a product": (lambda h: F.relu(h) * F.relu(h), Whole(lambda h: F.relu(h) ** 2)),
    "squared relu: of clamp": (lambda h: h.clamp(min=0).pow(2), Whole(lambda h: F.relu(h) ** 2)),
}


@pytest.mark.parametrize("name", SAME)
def test_an_activation_that_is_written_by_hand_is_read_as_its_module(name):
    written, module = SAME[name]
    first, second, x, y = fill(Net(written)).eval(), fill(Net(module)).eval(), samples(), labels()
    for function in (local_fields, linear_substitution_map):
        found, expected = function(first, x), function(second, x)
        assert list(found) == list(expected) == ["a", "b"]
        for layer in found:
            torch.testing.assert_close(found[layer], expected[layer], rtol=1e-4, atol=1e-5)
    for exact in (False, True):
        assert linear_tail(first, x, y, exact=exact) == linear_tail(second, x, y, exact=exact)
        assert linear_share(first, x, exact=exact) == pytest.approx(linear_share(second, x, exact=exact), abs=1e-4)


@pytest.mark.parametrize("name", ["silu", "relu: mask", "relu: clamp", "gelu"])
def test_a_report_is_that_of_the_module(name):
    layers = [
        diagnose(fill(Net(phi)), samples(200), labels(200), measure=["modes", "linear"], progress=False).layers
        for phi in SAME[name]
    ]
    for first, second in zip(*layers, strict=True):
        assert (first.name, first.opt_fraction) == (second.name, second.opt_fraction)
        assert first.transfer_order == pytest.approx(second.transfer_order, abs=0.01)
        torch.testing.assert_close(first.order_index, second.order_index, rtol=0, atol=1e-3)


def test_a_parameter_may_be_part_of_it():
    class Swish(Net):
        def __init__(self):
            super().__init__(lambda h: h * torch.sigmoid(self.beta * h))
            self.beta = nn.Parameter(torch.ones(WIDTH))

    first, second = fill(Swish()).eval(), fill(Net(F.silu)).eval()
    with torch.no_grad():
        first.beta.fill_(1)
        second.load_state_dict({key: value for key, value in first.state_dict().items() if key != "beta"})
    found, expected = (linear_substitution_map(network, samples()) for network in (first, second))
    assert list(found) == ["a", "b"]
    for layer in found:
        torch.testing.assert_close(found[layer], expected[layer], rtol=1e-5, atol=1e-6)


def test_a_sigmoid_that_is_used_elsewhere_too_is_an_activation_itself():
    class Both(Net):
        def forward(self, x):
            h = self.a(x)
            gate = torch.sigmoid(h)
            return self.c(h * gate + self.b(gate))

    fields = local_fields(fill(Both(None)), samples())
    assert list(fields) == ["a", "a:1"]
    assert torch.equal(fields["a"], fields["a:1"])


def test_an_activation_of_a_negative_field_keeps_its_sign():
    network = fill(Net(lambda h: (lambda s: s * torch.sigmoid(s))(-2 * h)))
    other = fill(Net(lambda h: F.silu(-2 * h)))
    found, expected = (linear_substitution_map(each, samples()) for each in (network, other))
    for one, two in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


# What is none ------------------------------------------------------------------------------------------------------


def rms_norm(h):
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def layer_norm(h):
    centred = h - h.mean(-1, keepdim=True)
    return centred / (centred * centred).mean(-1, keepdim=True).clamp(min=1e-6).sqrt()


def softmax(h):
    e = (h - h.amax(-1, keepdim=True)).exp()
    return h * (e / e.sum(-1, keepdim=True))


NONE = {
    "RMS norm": rms_norm,
    "layer norm": layer_norm,
    "softmax": softmax,
    "unit length": lambda h: h / h.norm(dim=-1, keepdim=True).clamp_min(1e-12),
    "without NaN": lambda h: torch.where(h.isnan(), torch.zeros_like(h), h),
    "squares": lambda h: h + 0.1 * (h * h).sum(-1, keepdim=True),
    "a mask": lambda h: h * (torch.arange(h.shape[1]) > 3),
    "attention": lambda h: (h[:, :, None] @ h[:, None]).softmax(-1).sum(1),
}


class Hiding(nn.Module):
    """Weighs its input by a softmax, from which a mask hides entries, as transformers do."""

    def __init__(self, inplace):
        super().__init__()
        self.a, self.b, self.inplace = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES), inplace

    def forward(self, x, mask):
        inverted = 1.0 - mask
        fill = inverted.masked_fill_ if self.inplace else inverted.masked_fill
        hidden = fill(inverted.to(torch.bool), torch.finfo(x.dtype).min)
        return self.b(torch.relu(self.a(x * (x + hidden).softmax(-1))))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_mask_that_hides_entries_from_a_softmax_is_no_activation(inplace):
    mask = (torch.rand(len(samples()), FEATURES, generator=torch.Generator().manual_seed(4)) > 0.3).float()
    assert list(local_fields(Hiding(inplace), (samples(), mask))) == ["a"]


@pytest.mark.parametrize("name", NONE)
def test_norms_masks_and_guards_are_no_activations(name):
    network = fill(Net(lambda h: torch.tanh(NONE[name](h))))
    fields = local_fields(network, samples())
    assert len(fields) == 2
    with torch.no_grad():
        torch.testing.assert_close(next(iter(fields.values())), NONE[name](network.a(samples())))


def test_a_bound_that_nothing_reaches_is_no_activation_unless_it_is_on_a_modules_output():
    fields = local_fields(fill(Net(lambda h: torch.tanh((2 * h).clamp(-1e4, 1e4)))), samples())
    assert list(fields) == ["model", "model:1"]
    fields = local_fields(fill(Net(lambda h: h.clamp(-1e4, 1e4))), samples())
    assert list(fields) == ["a", "b"]


def test_activations_with_factors_and_sums_of_others_are_read_as_before():
    class Scaled(Net):
        def forward(self, x):
            h = self.a(x)
            h = h + 1.7 * torch.relu(h)
            return self.c(torch.sigmoid(self.b(h)) * torch.tanh(h))

    network = fill(Scaled(None)).eval()
    assert list(local_fields(network, samples())) == ["a", "b", "model"]
    found = linear_substitution_map(network, samples())
    assert list(found) == ["a", "b", "model"]
    leaf = network.a(samples()).detach()
    leaf = (leaf[torch.arange(4) * 20]).requires_grad_()
    h = leaf + 1.7 * (leaf + (torch.relu(leaf) - leaf).detach())
    straight = [(own + (phi(own) - own).detach()) for own, phi in ((network.b(h), torch.sigmoid), (h, torch.tanh))]
    logits = network.c(straight[0] * straight[1])
    expected = torch.stack([torch.autograd.grad(own.sum(), leaf, retain_graph=True)[0] for own in logits.unbind(1)])
    many = linear_substitution_map(network, samples()[torch.arange(4) * 20])["a"]
    torch.testing.assert_close(many, expected.mean(1), rtol=1e-4, atol=1e-5)


# What is not understood --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [torch.sin, lambda h: 1 / (1 + (-h).exp()), lambda h: (h + h.abs()) / 2])
def test_functions_that_may_be_activations_are_named(phi):
    said = re.escape("['a', 'b'] lead to weights through functions that are no known activations (register these with")
    with (
        pytest.warns(DynamicsWarning, match=said),
        pytest.raises(ValueError, match=r"No activation .* of \['a', 'b'\] that may be.*register_activation"),
    ):
        local_fields(fill(Net(phi)), samples())


def test_beside_known_activations_they_are_named_too():
    class Mixed(Net):
        def forward(self, x):
            return self.c(torch.sin(self.b(torch.relu(self.a(x)))))

    with pytest.warns(DynamicsWarning, match=re.escape("['b'] lead to weights through functions that are no known")):
        assert list(local_fields(fill(Mixed(None)), samples())) == ["a"]
