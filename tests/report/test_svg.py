"""Sparklines: where their points are, and their gaps."""

import re

from made_reports import INF, NAN, Reader
from netdyn.report.svg import HEIGHT, MARGIN, WIDTH, sparkline

RIGHT, DOWN = WIDTH - MARGIN, HEIGHT - MARGIN


def lines(*values, limits=(0.0, 1.0)):
    """The points of each line."""
    drawn = dict.fromkeys(re.findall(r'points="([^"]*)"', sparkline(values, limits, "x")))
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in drawn]


def test_a_line_goes_through_its_values():
    assert lines(0.0, 0.5, 1.0) == [[(MARGIN, DOWN), (WIDTH / 2, HEIGHT / 2), (RIGHT, MARGIN)]]


def test_without_limits_the_scale_begins_at_zero_and_ends_at_the_largest():
    assert lines(2.0, 4.0, limits=None) == [[(MARGIN, HEIGHT / 2), (RIGHT, MARGIN)]]
    assert lines(0.0, 0.0, limits=None) == [[(MARGIN, DOWN), (RIGHT, DOWN)]]
    assert lines(-1.0, 1.0, limits=None) == [[(MARGIN, DOWN), (RIGHT, MARGIN)]]


def test_unknown_values_are_gaps_and_values_beyond_the_limits_are_at_the_edge():
    first, second = lines(0.0, 0.0, NAN, 2.0, 2.0, INF)
    assert first[-1][0] < second[0][0]
    assert {y for _, y in second} == {MARGIN}


def test_a_single_value_is_a_dot_and_none_draws_nothing():
    assert Reader(sparkline([NAN, 0.5], None, "x")).tags == ["svg", "circle"]
    assert Reader(sparkline([0.5], None, "x")).tags == ["svg", "circle"]
    assert Reader(sparkline([], None, "x")).tags == ["svg"]


def test_the_label_is_escaped():
    assert ("aria-label", '"<b>&') in Reader(sparkline([1.0], None, '"<b>&')).attributes
