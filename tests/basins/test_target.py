"""Which accuracy defines a radius, and the warnings where it would mean little."""

import math
import re
import warnings

import pytest

from netdyn.basins.target import (
    chance,
    check_basin,
    default_accuracy,
    target_accuracy,
    warn_of_floor,
    warn_of_low,
    warn_of_range,
)


def test_default_accuracy_is_a_half_and_three_quarters_for_two_classes():
    assert [default_accuracy(k) for k in (1, 2, 3, 10)] == [0.5, 0.75, 0.5, 0.5]


def test_chance_is_that_of_guessing():
    assert [chance(k) for k in (1, 2, 4)] == [0, 0.5, 0.25]


def test_an_absolute_accuracy_is_what_was_asked_for():
    assert target_accuracy(None, False, 0.9, 0.1, 10) == 0.5
    assert target_accuracy(0.7, False, 0.2, 0.1, 10) == 0.7


def test_a_relative_accuracy_counts_from_the_floor_to_the_clean_one():
    assert target_accuracy(None, True, 0.9, 0.1, 10) == pytest.approx(0.5)
    assert target_accuracy(0.25, True, 0.9, 0.1, 10) == pytest.approx(0.3)


@pytest.mark.parametrize("clean", [0.05, 0.1])
def test_a_network_that_does_not_beat_noise_is_asked_for_more_than_it_has(clean):
    assert target_accuracy(None, True, clean, 0.1, 10) == 1


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"accuracy": 1.0}, ValueError, "`accuracy` must lie strictly between 0 and 1, got 1.0."),
        ({"accuracy": 0}, ValueError, "`accuracy` must lie strictly between 0 and 1, got 0."),
        ({"rays": 0}, ValueError, "`rays` must be at least 1, got 0."),
        ({"rays": 1.5}, TypeError, "`rays` must be a whole number, got 1.5 of type float."),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1."),
        ({"low": 0.0}, ValueError, "`low` must be a positive, finite number, got 0.0."),
        ({"high": math.inf}, ValueError, "`high` must be a positive, finite number, got inf."),
        ({"low": 2.0, "high": 2.0}, ValueError, "`low` must be smaller than `high`, got low=2 and high=2."),
    ],
)
def test_arguments_outside_of_their_range_are_refused(change, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        check_basin(**{"accuracy": None, "rays": 1, "low": 1e-3, "high": 10.0, "seed": 0} | change)


# Warnings ------------------------------------------------------------------------------------------------------------


def test_an_accuracy_near_the_floor_is_warned_of():
    text = (
        "`accuracy` is 0.5, but noise alone leaves an accuracy of 0.46: so near to it the radius means little. "
        "Use accuracy=0.73, or relative=True."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
        warn_of_floor(0.5, 0.46)


def test_an_accuracy_that_is_named_is_half_way_to_1_in_hundredths():
    with pytest.warns(UserWarning, match=r" Use accuracy=0\.73, or relative=True\.$"):
        warn_of_floor(0.5, 0.468)


def test_no_accuracy_is_named_where_none_is_usable():
    with pytest.warns(UserWarning, match=r"means little\. Use relative=True\.$"):
        warn_of_floor(0.95, 0.96)


@pytest.mark.parametrize("floor", [0.0, 0.44])
def test_an_accuracy_far_from_the_floor_is_not_warned_of(floor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_floor(0.5, floor)


def test_a_radius_beyond_the_range_is_warned_of():
    text = (
        "The largest noise level, `high` = 10, leaves an accuracy of 0.80, and `accuracy` is 0.50: the radius lies "
        "beyond it. Set a larger `high` if noise of that level is small beside the inputs, else use accuracy=0.9, or "
        "relative=True."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
        assert warn_of_range(math.inf, 0.5, 1e-3, 10.0, 0.8)


def test_a_radius_below_the_range_is_warned_of():
    text = "The radius lies below the smallest noise level, `low` = 0.001. Set a smaller `low`."
    for warn in (lambda: warn_of_range(5e-4, 0.5, 1e-3, 10.0, 0.1), lambda: warn_of_low(1e-3)):
        with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
            assert warn() in (True, None)


@pytest.mark.parametrize("radius", [0.0, 1e-3, 0.5])
def test_a_radius_within_the_range_and_one_of_0_are_not_warned_of(radius):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_of_range(radius, 0.5, 1e-3, 10.0, 0.1)
