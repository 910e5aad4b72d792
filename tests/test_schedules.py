"""Schedules checked at every single step, with counts of steps that go one by one and counts that jump."""

import re
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdyn.schedules import AtSteps, Every, LogSpaced, by_steps

quickly = settings(max_examples=100, deadline=None, derandomize=True, database=None)

#: Counts of optimiser steps as a callback sees them: never falling, standing still under accumulation, jumping ahead.
counts = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(lambda jumps: list(accumulate(jumps, initial=0)))


def fired(schedule, seen):
    """The counts at which a schedule is due, the counts being looked at in turn."""
    return [now for before, now in pairwise(seen) if schedule.due(before, now)]


# Every n


@pytest.mark.parametrize(("n", "expected"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4]), (7, [])])
def test_every_fires_at_multiples(n, expected):
    assert fired(Every(n), range(7)) == expected


def test_every_passes_over_a_multiple_that_the_count_jumps_over():
    assert fired(Every(3), [0, 2, 4, 6, 8, 10, 12]) == [6, 12]


def test_every_does_not_fire_twice_while_the_count_stands_still():
    assert fired(Every(2), [0, 0, 1, 1, 2, 2, 2, 3, 4]) == [2, 4]


def test_every_does_not_fire_at_step_zero():
    assert not Every(5).due(0, 0)


@quickly
@given(counts, st.integers(1, 7))
def test_every_fires_at_each_new_multiple_that_is_seen(seen, n):
    new = [now for before, now in pairwise(seen) if now != before]
    assert fired(Every(n), seen) == [now for now in new if now % n == 0]


# A list of steps


def test_list_fires_at_its_steps():
    assert fired(AtSteps((2, 3, 7)), range(10)) == [2, 3, 7]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([0, 2, 4, 6, 8], [4, 8]),  # 3 is taken at 4, 7 at 8
        ([0, 10], [10]),  # both at once: one evaluation
        ([3, 4, 5], []),  # resumed after 3: it is not taken again
        ([2, 3, 3, 3, 4], [3]),
    ],
)
def test_list_takes_a_step_that_was_jumped_over_at_the_next_count(seen, expected):
    assert fired(AtSteps((3, 7)), seen) == expected


@quickly
@given(counts, st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_list_is_due_exactly_where_an_unseen_step_has_come(seen, steps):
    schedule = by_steps(None, steps)
    for before, now in pairwise(seen):
        assert schedule.due(before, now) == any(before < step <= now for step in steps)


@quickly
@given(counts, st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_list_takes_every_step_once_whatever_the_jumps(seen, steps):
    reached = {step for step in steps if step <= seen[-1]}
    taken = [{step for step in reached if step <= now} for now in fired(by_steps(None, steps), seen)]
    assert (taken[-1] if taken else set()) == reached
    assert all(earlier < later for earlier, later in pairwise(taken))


@quickly
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_list_one_step_at_a_time_fires_at_its_own_steps(steps):
    assert fired(by_steps(None, steps), range(61)) == sorted(set(steps))


# Log-spaced


def test_log_follows_1_2_3_5_in_each_decade():
    assert fired(LogSpaced(), range(1001)) == [1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (0, 0, False),
        (5, 9, False),
        (5, 10, True),
        (9, 21, True),
        (50, 99, False),
        (500, 1000, True),
        (10**6 - 1, 10**6, True),
        (10**6, 2 * 10**6 - 1, False),
        (0, 10**9, True),
    ],
)
def test_log_is_due_where_a_step_of_the_series_was_reached_or_jumped_over(before, now, expected):
    assert LogSpaced().due(before, now) is expected


@quickly
@given(counts, st.integers(0, 2000))
def test_log_equals_a_list_of_its_steps(seen, start):
    series = AtSteps(tuple(digit * 10**decade for decade in range(5) for digit in (1, 2, 3, 5)))
    shifted = [start + count for count in seen]
    assert fired(LogSpaced(), shifted) == fired(series, shifted)


# From the callback's arguments


def test_nothing_given_means_the_log_schedule():
    assert by_steps(None, None) == LogSpaced()


@pytest.mark.parametrize(
    ("every", "schedule", "expected"),
    [
        (7, None, Every(7)),
        (None, "log", LogSpaced()),
        (None, [9, 2, 2, 5], AtSteps((2, 5, 9))),
        (None, (4,), AtSteps((4,))),
        (None, range(1, 4), AtSteps((1, 2, 3))),
    ],
)
def test_arguments_name_a_schedule(every, schedule, expected):
    assert by_steps(every, schedule) == expected


@pytest.mark.parametrize(
    ("every", "schedule", "error", "text"),
    [
        (0, None, ValueError, "`every_n_train_steps` must be at least 1, got 0."),
        (-3, None, ValueError, "`every_n_train_steps` must be at least 1, got -3."),
        (2.0, None, TypeError, "`every_n_train_steps` must be a whole number, got 2.0 of type float."),
        (True, None, TypeError, "`every_n_train_steps` must be a whole number, got True of type bool."),
        (None, "linear", ValueError, "`schedule` must be 'log' or a list of optimiser steps, got 'linear'."),
        (None, [], ValueError, "`schedule` must name at least one optimiser step, got an empty list."),
        (None, [5, 0], ValueError, "`schedule` must be at least 1, got 0."),
        (None, [5, 1.5], TypeError, "`schedule` must hold whole numbers of optimiser steps, got [5, 1.5]."),
        (None, ["1"], TypeError, "`schedule` must hold whole numbers of optimiser steps, got ['1']."),
    ],
)
def test_wrong_values_are_named_and_shown(every, schedule, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        by_steps(every, schedule)


@pytest.mark.parametrize("schedule", [5, 2.5])
def test_a_number_in_place_of_a_list_is_named_and_shown(schedule):
    with pytest.raises(TypeError, match=rf"`schedule` .*{schedule}"):
        by_steps(None, schedule)
