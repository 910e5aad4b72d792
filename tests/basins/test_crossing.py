"""The search for a crossing: exact lines, known outcomes, which levels are asked, and odd samples."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from netdyn.basins.crossing import APART, MOST, Crossing, logit

exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)

LOW, HIGH = 1e-3, 1e1
BOTTOM, TOP = math.log(LOW), math.log(HIGH)
COUNT = 1000


def crossing(target=0.5, clean=1.0, count=COUNT, **options):
    """A search over samples of which a share is right without noise."""
    right = torch.arange(count) < round(clean * count)
    return Crossing(target, right, torch.arange(count), LOW, HIGH, **options)


def outcomes(share, count=COUNT):
    return (torch.arange(count) < round(share * count)).double()


def searched(accuracy, clean=1.0, count=COUNT, target=0.5, guess=1.0):
    """A search on samples that are lost one after the other, so that accuracy at log sigma is as given."""
    search = crossing(target, clean, count, guess=guess)
    while (level := search.next_level()) is not None:
        search.right[level] = outcomes(accuracy(level), count)
    return search


def sigmoid(middle, slope=4.0, top=1.0):
    return lambda level: top / (1 + math.exp(slope * (level - middle)))


# Radius and interval -------------------------------------------------------------------------------------------------


def test_logit_adds_half_an_outcome_on_both_sides():
    assert logit(0.0, 9) == pytest.approx(math.log(0.5 / 9.5))
    assert logit(1.0, 9) == pytest.approx(math.log(9.5 / 0.5))
    assert logit(0.3, 10) == pytest.approx(math.log(3.5 / 7.5))
    assert logit(0.3, 10**9) == pytest.approx(math.log(3 / 7))


@pytest.mark.parametrize("target", [0.3, 0.5, 0.75])
def test_radius_and_interval_lie_on_the_line_through_the_logits_of_two_levels(target):
    search = crossing(target)
    search.right = {-0.2: outcomes(0.8), 0.1: outcomes(0.2)}
    y = [logit(0.8, COUNT), logit(0.2, COUNT)]
    at = [reference.line_crossing((-0.2, 0.1), y, logit(target, COUNT))]
    assert search.radius == pytest.approx(math.exp(at[0]))
    # Each sample's share at the radius is on the straight line too: those lost between the levels are partly right.
    part = (at[0] + 0.2) / 0.3
    shares = (1 - part) * outcomes(0.8) + part * outcomes(0.2)
    margin = scipy.stats.t.ppf(0.975, COUNT - 1) * reference.clustered_error(shares, range(COUNT))
    ends = [math.exp(reference.line_crossing((-0.2, 0.1), y, logit(target + m, COUNT))) for m in (margin, -margin)]
    assert search.interval == pytest.approx(ends, rel=1e-5)
    assert ends[0] < search.radius < ends[1]


def test_error_outside_of_the_levels_is_that_of_the_line_drawn_on():
    search = crossing(0.5, count=100)
    search.right = {0.0: outcomes(0.9, 100), 0.1: outcomes(0.6, 100)}
    part = math.log(search.radius) / 0.1
    assert 1 < part < 1.5
    shares = (1 - part) * outcomes(0.9, 100) + part * outcomes(0.6, 100)
    margin = scipy.stats.t.ppf(0.975, 99) * reference.clustered_error(shares, range(100))
    line = [(0.0, 0.1), [logit(0.9, 100), logit(0.6, 100)]]
    assert search.interval[1] == pytest.approx(math.exp(reference.line_crossing(*line, logit(0.5 - margin, 100))))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_a_level_that_has_the_target_is_the_radius(share):
    search = crossing(share)
    search.right = {-0.3: outcomes(0.9), 0.3: outcomes(share)}
    assert search.radius == pytest.approx(math.exp(0.3))


@exactly
@given(st.floats(BOTTOM + 0.5, TOP - 1.0), st.floats(1.0, 8.0), st.floats(0.3, 0.8), st.floats(0.2, 5.0))
def test_a_line_is_found_from_any_guess(middle, slope, target, guess):
    search = searched(sigmoid(middle, slope), target=target, guess=guess)
    truth = middle - math.log(target / (1 - target)) / slope
    if truth < TOP - 0.1:
        # A share is a multiple of 1/1000.
        assert math.log(search.radius) == pytest.approx(truth, abs=0.03)
    assert search.interval[0] <= search.radius <= search.interval[1]


def test_samples_that_are_copies_count_once():
    alone, copied = searched(sigmoid(0.0), count=100), searched(sigmoid(0.0), count=100)
    copied.right = {level: right.repeat(4) for level, right in copied.right.items()}
    copied.clean, copied.cluster = copied.clean.repeat(4), copied.cluster.repeat(4)
    for a, b in zip(alone.interval, copied.interval, strict=True):
        assert a == pytest.approx(b, rel=0.01)


def test_accuracy_that_rises_again_is_made_to_fall():
    search = crossing(0.5)
    search.right = {-0.4: outcomes(0.9), 0.0: outcomes(0.4), 0.4: outcomes(0.6), 0.8: outcomes(0.1)}
    falling = crossing(0.5)
    falling.right = search.right | {0.4: outcomes(0.4)}
    assert search.radius == falling.radius
    assert search.radius < 1


# Which levels are asked ----------------------------------------------------------------------------------------------


def test_two_levels_about_the_guess_are_enough_where_the_radius_lies_between():
    search = searched(sigmoid(0.05), guess=1.0)
    assert sorted(search.right) == pytest.approx([-APART, APART])


@pytest.mark.parametrize("side", [-1, 1])
def test_levels_beyond_are_asked_at_most_at_doubled_steps(side):
    # Two levels that show no fall say nothing of where the crossing is.
    search = searched(lambda level: 0.9 if level < side * 2.0 else 0.2, guess=1.0)
    asked = [level * side for level in search.right]
    outward = [level for level in asked if level > APART + 1e-9]
    assert outward[:3] == pytest.approx([APART + 0.24, APART + 0.24 + 0.48, APART + 0.24 + 0.48 + 0.96])
    assert math.log(search.radius) == pytest.approx(side * 2.0, abs=0.3)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 8.0])
@pytest.mark.parametrize("guess", [1e-3, 0.5, 1e1, math.inf])
def test_a_step_is_found_from_any_guess(sigma, guess):
    search = searched(lambda level: float(level < math.log(sigma)), guess=guess)
    assert len(search.right) <= MOST
    assert math.log(search.radius) == pytest.approx(math.log(sigma), abs=0.5)


@pytest.mark.parametrize("beyond", [-0.2, 0.2])
def test_a_crossing_just_outside_of_the_levels_is_not_taken_from_the_line(beyond):
    """The line through two levels puts it 0.08 outside of them, nearer than any further level would be asked."""
    search = searched(sigmoid(beyond), guess=1.0)
    assert sorted(search.right) == pytest.approx(sorted([-APART, APART, math.copysign(3 * APART, beyond)]))
    shares = [float(right.mean()) for right in search.right.values()]
    assert min(shares) <= 0.5 < max(shares)


def weighted():
    """Samples of which the first half counts three times as much, with 0.95 and 0.57 of accuracy at two levels."""
    weight = torch.where(torch.arange(COUNT) < COUNT // 2, 1.5, 0.5).double()
    return crossing(0.5, weight=weight, right={-APART: outcomes(0.9), APART: outcomes(0.38)})


def test_weights_decide_on_which_side_of_all_levels_the_crossing_lies():
    # Unweighted, accuracy is 0.38 at the upper level, and nothing more would be asked.
    search = weighted()
    line = (-APART, APART), [logit(0.95, COUNT), logit(0.57, COUNT)]
    assert search.radius == pytest.approx(math.exp(reference.line_crossing(*line, 0.0)))
    assert APART < math.log(search.radius) < 1.5 * APART
    assert search.next_level() == pytest.approx(3 * APART)


def test_influences_of_weighted_samples_are_deviations_from_the_weighted_mean():
    search = weighted()
    influence = search.influence()
    assert float((influence * search.weight).sum()) == pytest.approx(0, abs=1e-9)
    # A sample that is right at the radius against one that is not: 1 over the slope of accuracy.
    slope = 0.25 * (logit(0.95, COUNT) - logit(0.57, COUNT)) / (2 * APART)
    assert float(influence[0] - influence[-1]) == pytest.approx(1 / slope)


def test_influences_are_deviations_over_the_slope_of_accuracy():
    search = crossing(0.5)
    search.right = {-0.1: outcomes(0.6), 0.1: outcomes(0.4)}
    influence = search.influence()
    # Accuracy falls by 0.2 over 0.2: its slope is 1. The 200 samples between are half right at the radius.
    expected = torch.cat([torch.full((400,), 0.5), torch.zeros(200), torch.full((400,), -0.5)]).double()
    torch.testing.assert_close(influence, expected, rtol=0.02, atol=1e-3)
    assert crossing(0.5, clean=0.4).influence() is None
    assert searched(lambda level: 1.0).influence() is None


def test_ends_of_the_interval_are_asked_themselves():
    # A flat curve and few samples: the ends lie far from the radius.
    search = searched(sigmoid(0.0, slope=0.6), count=60)
    for end in search.interval:
        assert min(abs(math.log(end) - level) for level in search.right) <= APART + 1e-9
    assert search.interval[1] / search.interval[0] > 2


def test_no_more_than_so_many_levels_are_asked():
    draw = torch.Generator().manual_seed(0)
    search = searched(lambda level: float(torch.rand((), generator=draw)), count=30)
    assert len(search.right) <= MOST


def test_levels_stay_within_the_range():
    for low, high in ((1.0, 1.1), (1.0, 1.0 + 1e-9)):
        search = Crossing(0.5, torch.ones(10).bool(), torch.arange(10), low, high, guess=3.0)
        while (level := search.next_level()) is not None:
            assert math.log(low) - 1e-12 <= level <= math.log(high) + 1e-12
            search.right[level] = outcomes(0.7, 10)
        assert search.radius == math.inf


# Where there is no crossing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [0.0, 0.2, 0.4])
def test_where_the_clean_accuracy_is_far_below_nothing_is_asked(clean):
    search = searched(sigmoid(0.0, top=clean), clean=clean)
    assert not search.right
    assert (search.radius, search.interval) == (0, (0, 0))


def test_where_the_clean_accuracy_is_the_target_the_interval_reaches_up_from_0():
    search = searched(sigmoid(0.0, top=0.5), clean=0.5)
    margin = scipy.stats.t.ppf(0.975, COUNT - 1) * math.sqrt(0.25 / (COUNT - 1))
    assert search.radius == search.interval[0] == 0
    # Where accuracy is the target less the error of the clean one: of 0.5 a share of 1 - 2 margin is left. The line
    # through the logits of two levels is not quite that of this curve.
    truth = math.exp(math.log(1 / (1 - 2 * margin) - 1) / 4)
    assert search.interval[1] == pytest.approx(truth, rel=0.1)


def test_where_the_target_lies_just_below_the_clean_accuracy_the_interval_begins_at_0():
    search = searched(sigmoid(0.0, top=0.52), clean=0.52)
    assert search.interval[0] == 0 < search.radius < search.interval[1] < 1


def test_accuracy_that_never_falls_has_an_infinite_radius():
    search = searched(lambda level: 1.0)
    assert max(search.right) == pytest.approx(TOP)
    assert (search.radius, search.interval) == (math.inf, (math.inf, math.inf))


def test_interval_of_a_radius_beyond_may_begin_within():
    search = searched(lambda level: 0.51 + 0.4 * (level < 1))
    assert search.radius == math.inf
    assert 1 < math.log(search.interval[0]) < 2
    assert search.interval[1] == math.inf


def test_below_the_lowest_level_accuracy_is_straight_in_sigma():
    search = searched(lambda level: 0.4, clean=0.8)
    assert min(search.right) == pytest.approx(BOTTOM)
    assert search.radius == pytest.approx(LOW * (0.8 - 0.5) / (0.8 - 0.4))


@pytest.mark.parametrize("clean", [0.0, 1.0])
def test_one_sample_says_nothing(clean):
    search = searched(sigmoid(0.0), clean=clean, count=1)
    assert search.interval == (0, math.inf)
    assert bool(search.right) == bool(clean)
