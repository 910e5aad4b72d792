"""Unusual networks, each of which once gave a wrong number without a warning."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdyn import diagnose
from netdyn.functional import (
    characteristic_maps,
    linear_substitution_map,
    linear_tail,
    local_fields,
    register_activation,
)
from netdyn.metrics import LinearTail
from netdyn.tracing.activations import REGISTERED
from netdyn.tracing.fields import discover
from networks import CLASSES, FEATURES, fill, samples


def labels_of(network, x):
    with torch.no_grad():
        return network.eval()(x).argmax(1)


def sequence(*modules):
    return fill(nn.Sequential(*modules))


def accuracy(logits, target):
    return float((logits.argmax(1) == target).double().mean())


@pytest.mark.parametrize(
    "second",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.Sequential(nn.Dropout(), nn.ReLU())],
    ids=["plain", "in place", "apart"],
)
@pytest.mark.parametrize("exact", [True, False])
def test_tails_of_activations_that_touch(second, exact):
    network, x = sequence(nn.Linear(FEATURES, 40), nn.Tanh(), second, nn.Linear(40, CLASSES)), samples(500)
    target = labels_of(network, x)
    with torch.no_grad():
        first = accuracy(network[3](network[0](x)), target)
        later = accuracy(network[3](torch.tanh(network[0](x))), target)
    assert first != later
    assert list(linear_tail(network, x, target, exact=exact).values()) == [first, later]


class Gate(nn.Module):
    """An activation in a module of the user's own."""

    def forward(self, x):
        return x * torch.sigmoid(2 * x)


class Stopped(nn.Module):
    def __init__(self, phi):
        super().__init__()
        self.a, self.b = nn.Linear(FEATURES, 40), nn.Linear(40, 40)
        self.c, self.phi = nn.Linear(40, CLASSES), phi

    def forward(self, x):
        return self.c(self.phi(self.b(self.phi(self.a(x)).detach())))


def by_hand(x):
    return x * torch.sigmoid(x)


@pytest.mark.parametrize(
    "phi", [torch.relu, nn.ReLU(inplace=True), Gate(), by_hand], ids=["function", "in place", "module", "by hand"]
)
def test_tails_behind_a_stop_gradient_are_run(phi):
    network, x = fill(Stopped(phi)), samples(500)
    target = labels_of(network, x)
    with torch.no_grad():
        expected = [
            accuracy(network.c(network.b(network.a(x))), target),
            accuracy(network.c(network.b(phi(network.a(x)))), target),
        ]
    assert expected[0] != expected[1]
    assert list(linear_tail(network, x, target).values()) == expected


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(FEATURES, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def test_units_of_a_plain_recurrent_layer_share_out_the_map_of_the_first_step():
    network, x = fill(Recurrent(nn.RNN)), samples(64, shape=(3, FEATURES))
    whole = characteristic_maps(network, x)
    parts = characteristic_maps(network, x, "rnn", range(8))
    # The first step's inputs reach the logits through the first step's eight units alone.
    torch.testing.assert_close(parts.sum(dim=1)[:, 0], whole[:, 0], rtol=1e-4, atol=1e-6)
    assert whole[:, 0].abs().max() > 0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_units_of_gated_recurrent_layers_have_maps(kind):
    assert characteristic_maps(fill(Recurrent(kind)), samples(64, shape=(3, FEATURES)), "rnn").abs().max() > 0


class Routed(nn.Module):
    """Every sample goes to one of two experts."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 10), nn.Linear(10, CLASSES)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(10, 10), nn.ReLU()) for _ in range(2))

    def forward(self, x):
        h = torch.relu(self.first(x))
        out = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            chosen = (x[:, 0] > 0).long() == i
            if chosen.any():
                out[chosen] = expert(h[chosen])
        return self.last(out)


class Sorted(nn.Module):
    """Samples are sorted inside, and put back at the end."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 10), nn.Linear(10, CLASSES)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.last(torch.relu(self.first(x[order])))[order.argsort()]


def test_layers_that_see_some_of_the_samples_are_named_and_left_out():
    network, x = fill(Routed()), samples(60)
    x[[0, 20, 40], 0] = 1.0  # the three that a survey begins with go the same way
    with pytest.warns(UserWarning, match=re.escape("['experts.0.0', 'experts.1.0'] mix or sort the samples")):
        assert list(local_fields(network, x)) == ["first"]
    with pytest.warns(UserWarning, match="mix or sort"):
        report = diagnose(network, x, torch.arange(60) % CLASSES, measure=["modes"])
    assert [layer.name for layer in report.layers] == ["first"]


def test_layers_in_which_samples_are_sorted_are_named_and_left_out():
    network, x = fill(Sorted()), samples(60)
    x[[0, 20, 40], 0] = torch.tensor([-9.0, 0.0, 9.0])  # in order already
    with (
        pytest.warns(UserWarning, match=re.escape("['first'] mix or sort the samples")),
        pytest.raises(ValueError, match="samples cannot be told apart"),
    ):
        local_fields(network, x)


class Used(nn.Module):
    """A field that something else has read before its activation."""

    def __init__(self, inplace):
        super().__init__()
        self.n, self.s, self.c = nn.Linear(FEATURES, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x):
        h = self.n(x)
        beside = self.s(h.clone())
        return self.c(self.act(h) + beside)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_field_that_was_read_before_it_is_written_over_keeps_that_way(inplace):
    network = fill(Used(inplace))
    expected = network.c.weight @ (torch.eye(8) + network.s.weight)
    torch.testing.assert_close(linear_substitution_map(network, samples())["n"], expected.detach())


class Flipped(nn.Module):
    def forward(self, x):
        return F.relu(x).flip(1)


class Normed(nn.Module):
    def forward(self, x):
        return F.relu(F.layer_norm(x, x.shape[1:])) * 1.5


class ByElement(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.7 * x)


def test_a_module_that_moves_units_is_no_activation_itself():
    network = sequence(nn.Linear(FEATURES, 8), Flipped(), nn.Linear(8, CLASSES))
    linear_map = linear_substitution_map(network, samples())
    assert list(linear_map) == ["0"]
    torch.testing.assert_close(linear_map["0"], network[2].weight.detach().flip(1))


def test_a_module_with_a_norm_inside_is_read_inside():
    network = sequence(nn.Linear(FEATURES, 8), Normed(), nn.Linear(8, CLASSES))
    fields = local_fields(network, samples())
    with torch.no_grad():
        torch.testing.assert_close(fields["1"], F.layer_norm(network[0](samples()), (8,)))
    torch.testing.assert_close(linear_substitution_map(network, samples())["1"], 1.5 * network[2].weight.detach())


def test_a_module_that_acts_by_element_is_one_activation():
    network = sequence(nn.Linear(FEATURES, 8), ByElement(), nn.Linear(8, CLASSES))
    linear_map = linear_substitution_map(network, samples())
    assert list(linear_map) == ["0"]
    torch.testing.assert_close(linear_map["0"], network[2].weight.detach())


class Confident(nn.Module):
    """A probability, beside another one or in another type."""

    def __init__(self, how):
        super().__init__()
        self.how, self.h, self.c, self.d = how, nn.Linear(FEATURES, 8), nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x):
        h = torch.relu(self.h(x))
        p = torch.sigmoid(self.c(h))
        if self.how == "beside":
            self.confidence = torch.sigmoid(self.d(h))
            return p
        return p.double() if self.how == "double" else p.clone()


@pytest.mark.parametrize("how", ["beside", "double", "clone"])
def test_a_probability_is_told_as_one(how):
    network, x = fill(Confident(how)), samples(200)
    target = torch.arange(200) % 2
    with torch.no_grad():
        expected = float(((network(x)[:, 0] > 0.5).long() == target).double().mean())
    assert discover(network, x).probabilities is True
    assert diagnose(network, x, target, measure=["modes"]).accuracy == expected


@pytest.mark.parametrize("how", ["double", "clone"])
def test_a_probability_in_another_place_is_no_layer(how):
    network, x = fill(Confident(how)), samples(200)
    assert list(local_fields(network, x)) == ["h"]
    pathway = linear_substitution_map(network, x)["h"]
    torch.testing.assert_close(pathway.double(), network.c.weight.detach().double())


class Rescaled(nn.Module):
    """A logit made of a probability's copy, and a number beside it."""

    def __init__(self, how):
        super().__init__()
        self.how, self.a = how, nn.Linear(FEATURES, 1)

    def forward(self, x):
        copied = torch.sigmoid(self.a(x)).clone()
        return copied.mul_(2).sub_(1) if self.how == "in place" else (copied > 0.5).to(torch.int64).double() - 0.5


@pytest.mark.parametrize("how", ["in place", "whole numbers"])
def test_what_is_made_of_a_probabilitys_copy_is_none(how):
    network, x = fill(Rescaled(how)), samples(200)
    with torch.no_grad():
        target = (network(x)[:, 0] > 0).long()
    assert discover(network, x).probabilities is False
    assert diagnose(network, x, target, measure=["sample_basin"], progress=False).accuracy == 1


def test_in_inference_mode_a_probabilitys_copy_is_known_by_its_values():
    network = fill(Confident("double")).eval()
    with torch.inference_mode():
        assert discover(network, samples(200)).probabilities is True


class Clips(nn.Module):
    def forward(self, x):
        x.copy_(F.relu(x) * 1.0)
        return x


class Statement(nn.Module):
    """An activation whose result is not used: it wrote over its input."""

    def __init__(self):
        super().__init__()
        self.a, self.p, self.c = nn.Linear(FEATURES, 8), Clips(), nn.Linear(8, CLASSES)

    def forward(self, x):
        h = self.a(x)
        self.p(h)
        return self.c(h)


def test_an_activation_that_only_writes_is_taken_out_too():
    network, x = fill(Statement()), samples(300)
    target = labels_of(network, x)
    with torch.no_grad():
        expected = accuracy(network.c(network.a(x)), target)
    assert expected < 1
    for exact in (True, False):
        assert linear_tail(network, x, target, exact=exact) == {"a": expected}


def test_names_with_brackets_are_names():
    parts = fill(nn.ModuleDict({"rel[0]": nn.Linear(FEATURES, 8), "head": nn.Linear(8, 4)}))

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.d = parts

        def forward(self, x):
            return self.d["head"](torch.relu(self.d["rel[0]"](x)))

    assert list(local_fields(Whole(), samples(), layers=["d.rel[0]"])) == ["d.rel[0]"]
    assert diagnose(Whole(), samples(), torch.arange(80) % 4, measure=["maps"]).subnetwork.layer == "d.rel[0]"


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("the map takes the identity")


class FrozenTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)
        self.requires_grad_(False)

    def forward(self, ids):
        return self.b(Squared.apply(self.a(F.one_hot(ids, FEATURES).float())))


def test_a_registered_function_in_a_frozen_network_of_whole_numbers_has_a_map():
    register_activation(Squared)
    network = fill(FrozenTokens())
    linear_map = linear_substitution_map(network, torch.arange(30) % FEATURES)
    torch.testing.assert_close(linear_map["a"], network.b.weight)


class Shared(nn.Module):
    """One module has the same output for all samples."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(FEATURES, CLASSES), nn.Linear(3, CLASSES)

    def forward(self, x):
        return torch.relu(self.a(x)) + self.b(torch.ones(5, 3)).mean(dim=0)


def test_a_module_without_samples_cannot_be_a_layer():
    with pytest.raises(ValueError, match=re.escape("no output of ['b'] holds samples")):
        local_fields(fill(Shared()), samples(), layers=["b"])


def test_a_metric_takes_one_network():
    metric, other = LinearTail(), LinearTail()
    target = torch.arange(80) % CLASSES
    metric(sequence(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES)), samples(), target)
    network = sequence(nn.Identity(), nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    with pytest.raises(ValueError, match="`model` must have the same layers"):
        metric(network, samples(), target)
    other.update(network, samples(), target)
    with pytest.raises(ValueError, match="`model` must have the same layers"):
        metric.merge_state(other)
    assert (metric.layers, metric.compute().numel()) == (("0",), 1)


def test_a_registered_function_of_torch_is_seen_as_a_method_and_in_place_too():
    class Sines(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.ModuleList(nn.Linear(FEATURES, FEATURES) for _ in range(3))

        def forward(self, x):
            return self.fc[2](self.fc[1](torch.sin(self.fc[0](x))).sin()).sin_()

    register_activation(torch.sin)
    try:
        assert list(local_fields(fill(Sines()), samples())) == ["fc.0", "fc.1", "fc.2"]
    finally:
        REGISTERED.functions.clear()


def test_a_probe_without_samples_is_refused():
    with pytest.raises(ValueError, match="`inputs` must hold at least one sample, got none"):
        local_fields(fill(Stopped(torch.relu)), samples(0))


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("no more")


class Patient(nn.Module):
    """Goes on where a part of it has failed."""

    def __init__(self):
        super().__init__()
        self.a, self.fails, self.b = nn.Linear(FEATURES, 8), Failing(), nn.Linear(8, CLASSES)

    def forward(self, x):
        h = torch.relu(self.a(x))
        try:
            return self.b(self.fails(h))
        except RuntimeError:
            return self.b(h)


def test_a_registered_module_that_raises_is_no_activation_and_causes_no_warning():
    register_activation(Failing)
    try:
        assert list(local_fields(fill(Patient()), samples())) == ["a"]
    finally:
        REGISTERED.modules.discard(Failing)


class Packed(nn.Module):
    """Reads each of the padded sequences to its length."""

    def __init__(self, enforce_sorted):
        super().__init__()
        self.enforce_sorted = enforce_sorted
        self.cell, self.hidden, self.out = nn.GRU(4, 12, batch_first=True), nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x, lengths):
        sort = {"batch_first": True, "enforce_sorted": self.enforce_sorted}
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), **sort)
        return self.out(torch.relu(self.hidden(self.cell(packed)[1][-1])))


@pytest.mark.filterwarnings("ignore:Not all of the network can be read:netdyn.DynamicsWarning")
@pytest.mark.parametrize("batch_size", [None, 25])
def test_sequences_that_must_be_sorted_by_length_stay_so(batch_size):
    x = samples(90, shape=(7, 4))
    lengths = 7 - torch.arange(90) // 15
    strict, free = fill(Packed(True)).eval(), fill(Packed(False)).eval()
    with torch.no_grad():
        strict.out.bias -= strict(x, lengths).mean(0)
        free.load_state_dict(strict.state_dict())
        y = strict(x, lengths).argmax(1)
    found, expected = (diagnose(net, (x, lengths), y, high=100.0, batch_size=batch_size) for net in (strict, free))
    assert [layer.name for layer in found.layers] == ["hidden"]
    assert found.accuracy == 1
    assert found.scalars() == pytest.approx(expected.scalars(), rel=1e-5)
