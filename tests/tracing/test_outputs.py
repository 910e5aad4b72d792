"""Outputs that are probabilities are recognised, in every form and through copies, and the logits behind them found."""

import pytest
import torch

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
