"""Outputs that are probabilities are recognised, in every form and through copies, and the logits behind them found."""

import pytest
import torch
from torch import nn

from netdyn import diagnose
from netdyn.tracing.fields import discover
from netdyn.tracing.outputs import Probabilities
from netdyn.tracing.tracer import run
from networks import ENDS, Ending, fill, samples


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_outputs_that_are_probabilities_are_recognised(end):
    network = fill(Ending(end)).eval()
    with torch.no_grad():
        assert discover(network, samples()).probabilities is True
        output, logits = run(network, samples(), lambda site: None)
        torch.testing.assert_close(logits, network.last(torch.relu(network.first(samples()))))
        torch.testing.assert_close(output, network(samples()))


LOGITS = samples(5, shape=(1,))


def probabilities():
    found, result = Probabilities(5), LOGITS.sigmoid()
    found.add(result, LOGITS)
    return found, result


#: Outputs of a network that are its probability, or are not.
OUTPUTS = {
    "itself": (lambda p: p, True),
    "a view of all": (lambda p: p.squeeze(1), True),
    "a copy": (lambda p: p.clone(), True),
    "a copy in another dtype": (lambda p: p.double(), True),
    "a part": (lambda p: p[:3], False),
    "other numbers": (lambda p: 1 - p, False),
    "no tensor": (lambda p: (p,), False),
}


@pytest.mark.parametrize(("output", "expected"), OUTPUTS.values(), ids=OUTPUTS)
def test_the_probability_behind_an_output_is_found(output, expected):
    found, result = probabilities()
    behind = found.find(output(result))
    assert (behind is not None) == expected
    assert behind is None or (behind.logits is LOGITS and behind.result is result)


@pytest.mark.parametrize("overwritten", [False, True])
def test_a_rounded_copy_counts_until_it_is_overwritten(overwritten):
    found, result = probabilities()
    copy = result.half()
    found.add_copy(copy, result)
    if overwritten:
        copy.mul_(0.5)
    assert (found.find(copy) is None) == overwritten


def test_of_attention_weights_and_maps_only_the_latest_is_kept():
    first, last = (torch.rand(5, 2, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    found, result = probabilities()
    found.add(first, first)
    found.add(last, last)
    assert found.find(first) is None
    assert found.find(last).logits is last
    assert found.find(result).logits is LOGITS


class Guarded(nn.Module):
    """One probability, or several, that a logarithm of zero cannot meet."""

    def __init__(self, guard, outputs=1):
        super().__init__()
        self.first, self.last, self.guard = nn.Linear(6, 9), nn.Linear(9, outputs), guard

    def forward(self, x):
        # So far from zero that every probability is at an end of its range.
        return self.guard(torch.sigmoid(1000 * self.last(torch.relu(self.first(x)))))


GUARDS = {
    "clamp": lambda p: p.clamp(1e-4, 1 - 1e-4),
    "clamp in place": lambda p: p.clamp_(1e-4, 1 - 1e-4),
    "torch.clip, then a bound": lambda p: torch.clamp_min(torch.clip(p, max=1 - 1e-4), 1e-4),
    "maximum": lambda p: torch.maximum(p, torch.tensor(1e-4)),
    "without NaN": lambda p: torch.nan_to_num(p),
}


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_probabilities_within_bounds_are_probabilities(guard, outputs):
    network, x = fill(Guarded(guard, outputs)), samples()
    with torch.no_grad():  # so that both answers occur
        network.last.bias -= network.last(torch.relu(network.first(x))).median(dim=0).values
    plain = Guarded(lambda p: p, outputs)
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert discover(network, x).probabilities is True
        y = (network(x) > 0.5).long()
    y = y[:, 0] if outputs == 1 else y
    found, expected = (diagnose(each, x, y, measure=["modes", "linear"]) for each in (network, plain))
    assert found.accuracy == expected.accuracy == 1
    assert [layer.name for layer in found.layers] == ["first"]
    assert found.layers[0].tail_accuracy == expected.layers[0].tail_accuracy


class Inside(nn.Module):
    """A probability that is no output, or not the only one."""

    def __init__(self, inside):
        super().__init__()
        self.first, self.last, self.inside = nn.Linear(6, 9), nn.Linear(9, 3), inside

    def forward(self, x):
        return self.last(self.inside(self.first(x)))


INSIDE = {
    "a gate": lambda h: h * torch.sigmoid(h).clamp(1e-6, 1 - 1e-6),
    "a bounded gate": lambda h: h * torch.minimum(torch.sigmoid(h), torch.tensor(0.9)),
    "a bounded sigmoid": lambda h: torch.sigmoid(h).clamp(0.3, 0.7),
}


@pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE)
def test_probabilities_within_bounds_inside_of_a_network_are_activations(inside):
    """Their backward pass is the identity, so that what follows is affine."""
    report = diagnose(fill(Inside(inside)), samples(), torch.arange(len(samples())) % 3, measure=["modes", "linear"])
    assert report.layers[0].name == "first"
    assert all(layer.affine_defect < 1e-6 for layer in report.layers)


def test_the_larger_of_two_probabilities_is_no_copy_of_the_first():
    class Larger(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 9), nn.Linear(9, 2)

        def forward(self, x):
            z = self.last(torch.relu(self.first(x)))
            return torch.maximum(torch.sigmoid(z[:, :1]), torch.sigmoid(z[:, 1:]))

    with torch.no_grad():
        output, logits = run(fill(Larger()), samples(), lambda site: None)
    assert logits is output
