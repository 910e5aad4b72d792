"""Learning phases: against loops, on profiles whose answer is known, and their symmetries."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netdyn.functional import Phase, phase

NAN = math.nan
#: Gradients in steps of a tenth of the tie at K = 10, δ = 0.108, none of which rounding can carry over it.
profiles = st.lists(st.integers(-270, 270).map(lambda i: i * 0.02 + 0.001), min_size=2, max_size=12)


def slow_index(gradients, num_classes):
    """Every pair of layers in turn."""
    delta = 0.02 * 6 * (1 - 1 / num_classes)
    kept = [g for g in gradients if not math.isnan(g)]
    rising = falling = pairs = 0
    for first, second in itertools.combinations(kept, 2):
        pairs += 1
        if abs(second - first) >= delta:
            rising += second > first
            falling += second < first
    return (rising - falling) / pairs


@pytest.mark.parametrize(
    ("gradients", "index"),
    [
        ([1.0, 2.0, 3.0, 4.0], 1),
        ([4.0, 3.0, 2.0, 1.0], -1),
        ([2.0, 2.0, 2.0], 0),
        ([2.0, 2.05, 2.1], 0),  # all within δ = 0.108 of one another
        ([2.0, 2.06, 2.12], 1 / 3),  # only the first and the last differ
        ([1.0, 3.0, 1.0], 0),  # up and down
        ([1.0, 3.0, 1.05], 0),
        ([0.0, 3.0, 3.0], 2 / 3),
        ([3.0, 0.0, 0.0, 3.0], 0),
        ([-1.0, 1.0], 1),
        ([1.0, NAN, 2.0], 1),
        ([NAN, 2.0, NAN, 1.0, NAN], -1),
    ],
)
def test_hand_made_profiles_have_the_index_that_counting_gives(gradients, index):
    assert phase(gradients, 10).index == pytest.approx(index, abs=1e-15)
    assert slow_index(gradients, 10) == pytest.approx(index, abs=1e-15)


@pytest.mark.parametrize(("num_classes", "delta"), [(2, 0.06), (5, 0.096), (10, 0.108), (1000, 0.11988)])
def test_ties_are_two_hundredths_of_the_largest_gradient(num_classes, delta):
    assert phase([1.0, 1.0 + 0.999 * delta], num_classes).index == 0
    assert phase([1.0, 1.0 + 1.001 * delta], num_classes).index == 1
    assert phase([1.0, 1.0 - 1.001 * delta], num_classes).index == -1


def test_spread_and_mean():
    result = phase([0.5, -0.25, 1.0, NAN], 10)
    assert (result.spread, result.mean) == (1.25, 1.25 / 3)


def test_one_layer_has_no_order_of_layers():
    result = phase([1.5, NAN], 10)
    assert math.isnan(result.index)
    assert (result.spread, result.mean) == (0, 1.5)


@pytest.mark.parametrize("gradients", [[], [NAN], [NAN, NAN], torch.zeros(0)])
def test_no_layer_no_phase(gradients):
    result = phase(gradients, 10)
    assert all(map(math.isnan, (result.index, result.spread, result.mean)))


def test_an_untrained_network_is_in_no_phase():
    # n = 40 layers, seed 0: gradients of 100 units and 10 classes have a spread of 6·0.9·0.58/√1000 ≈ 0.1 by chance,
    # of the order of δ. Kendall's τ of 40 independent numbers has a standard error of 0.11; ties make it smaller.
    gradients = 0.1 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    result = phase(gradients, 10)
    assert abs(result.index) < 3 * 0.11
    assert abs(result.mean) < 3 * 0.1 / math.sqrt(40)


@given(profiles, st.integers(2, 50))
def test_equals_the_slow_twin(gradients, num_classes):
    result = phase(gradients, num_classes)
    assert result.index == pytest.approx(slow_index(gradients, num_classes), abs=1e-12)
    assert result.spread == max(gradients) - min(gradients)
    assert result.mean == pytest.approx(sum(gradients) / len(gradients), abs=1e-12)


@given(profiles)
def test_the_index_lies_between_minus_one_and_one(gradients):
    assert -1 <= phase(gradients, 10).index <= 1


@given(profiles)
def test_reversal_flips_the_index_alone(gradients):
    forth, back = phase(gradients, 10), phase(gradients[::-1], 10)
    assert back.index == -forth.index
    assert back.spread == forth.spread
    assert back.mean == pytest.approx(forth.mean, abs=1e-12)


@given(profiles)
def test_other_signs_flip_index_and_mean(gradients):
    forth, back = phase(gradients, 10), phase([-g for g in gradients], 10)
    assert (back.index, back.spread) == (-forth.index, forth.spread)
    assert back.mean == pytest.approx(-forth.mean, abs=1e-12)


@given(profiles, st.integers(-20, 20))
def test_a_shift_moves_the_mean_alone(gradients, shift):
    here, there = phase(gradients, 10), phase([g + shift for g in gradients], 10)
    assert there.index == here.index
    assert there.spread == pytest.approx(here.spread, abs=1e-12)
    assert there.mean == pytest.approx(here.mean + shift, abs=1e-12)


@given(profiles, st.integers(0, 12))
def test_layers_without_a_gradient_are_left_out(gradients, place):
    with_gap = [*gradients[:place], NAN, *gradients[place:]]
    assert phase(with_gap, 10) == phase(gradients, 10)


def test_takes_tensors_of_any_kind():
    expected = phase([0.5, 1.0, 2.0], 10)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert phase(torch.tensor([0.5, 1.0, 2.0], dtype=dtype, requires_grad=True), 10) == expected
    assert phase((0.5, 1, 2), 10) == expected


def test_the_result_holds_plain_numbers():
    result = phase(torch.tensor([0.5, 1.0]), 10)
    assert result == Phase(1.0, 0.5, 0.75)
    assert {type(value) for value in (result.index, result.spread, result.mean)} == {float}


@pytest.mark.parametrize(
    ("gradients", "num_classes", "text"),
    [
        (torch.zeros(2, 3), 10, "`gradients` must hold one number per layer, shape [layers], got shape [2, 3]."),
        (torch.tensor(1.0), 10, "`gradients` must hold one number per layer, shape [layers], got shape []."),
        ([1.0], 1, "`num_classes` must be at least 2, got 1."),
    ],
)
def test_what_makes_no_sense_is_refused(gradients, num_classes, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        phase(gradients, num_classes)
