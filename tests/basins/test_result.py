"""Grid, curve, radius, interval and median against definitions, slow twins and simulated probes."""

import dataclasses
import itertools
import math
import statistics

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

import reference
from netdyn.basins.curve import LOST_CLEAN, Grid, falling_curve, isotonic, survival
from netdyn.basins.interval import median, median_interval, student_quantile
from netdyn.basins.result import BasinResult, Curve
from netdyn.basins.target import default_accuracy

exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)

GRID = Grid(1e-3, 1e1, 4)
WIDE = Grid.over(1e-3, 1e1, 0.05)

shares = st.floats(0.01, 0.99)
noise_levels = st.floats(1e-6, 1e6)


@st.composite
def cells(draw, grid=GRID, max_rays=5, max_samples=12):
    """Cells [rays, samples], a sample lost without noise being lost on all of its rays."""
    rays, samples = draw(st.integers(1, max_rays)), draw(st.integers(1, max_samples))
    numbers = st.lists(st.integers(0, grid.cells - 1), min_size=samples, max_size=samples)
    found = torch.tensor(draw(st.lists(numbers, min_size=rays, max_size=rays)))
    lost = torch.tensor(draw(st.lists(st.booleans(), min_size=samples, max_size=samples)))
    return found.masked_fill(lost, LOST_CLEAN)


# Grid


@exactly
@given(noise_levels, noise_levels, st.floats(0.003, 10))
def test_grid_is_the_coarsest_dyadic_one_whose_cells_are_no_wider_than_the_tolerance_squared(a, b, rel_tol):
    low, high = sorted((a, b))
    assume(high > 1.001 * low)
    grid = Grid.over(low, high, rel_tol)
    widest = 2 * math.log1p(rel_tol) * (1 + 1e-8)
    assert grid.cells == 2**grid.levels >= 2
    assert math.log(high / low) / grid.cells <= widest
    assert grid.levels == 1 or math.log(high / low) / (grid.cells / 2) > widest * (1 - 1e-7)


@exactly
@given(noise_levels, noise_levels, st.integers(1, 8))
def test_edges_run_from_low_to_high_in_equal_ratios(a, b, levels):
    low, high = sorted((a, b))
    assume(high > 1.001 * low)
    edges = Grid(low, high, levels).edges().numpy()
    assert len(edges) == 2**levels + 1
    np.testing.assert_allclose(edges[[0, -1]], [low, high], rtol=1e-12)
    np.testing.assert_allclose(edges[1:] / edges[:-1], (high / low) ** (1 / 2**levels), rtol=1e-9)


def test_a_finer_grid_keeps_the_edges_of_a_coarser_one():
    coarse, fine = Grid(1e-3, 1e1, 4).edges(), Grid(1e-3, 1e1, 6).edges()
    torch.testing.assert_close(fine[::4], coarse, rtol=1e-12, atol=0)


def test_radius_of_a_ray_is_0_if_lost_clean_inf_if_censored_and_else_the_middle_of_its_cell():
    radii = GRID.radii(torch.tensor([[LOST_CLEAN, 0, 14, 15]]))
    edges = GRID.edges()
    middles = [math.sqrt(edges[0] * edges[1]), math.sqrt(edges[14] * edges[15])]
    torch.testing.assert_close(radii, torch.tensor([[0.0, *middles, math.inf]], dtype=torch.float64))


# Curve


@exactly
@given(cells())
def test_curve_is_the_share_of_rays_not_lost_below_each_edge(cells):
    curve = survival(cells, GRID)
    assert curve.clean == pytest.approx((cells != LOST_CLEAN).double().mean().item(), abs=1e-12)
    for j, edge in enumerate(GRID.edges()[:-1]):
        assert float(curve.at(edge)) == pytest.approx((cells >= j).double().mean().item(), abs=1e-9)


@exactly
@given(cells(), st.floats(1e-5, 1e2), st.floats(1e-5, 1e2))
def test_curve_never_rises(cells, a, b):
    curve = survival(cells, GRID)
    values = curve.at(torch.tensor(sorted((0.0, a, b, 1e9)), dtype=torch.float64))
    assert (values.diff() <= 1e-12).all()
    assert values[0] == curve.clean


@exactly
@given(cells(), st.floats(0, 1))
def test_curve_at_its_crossing_has_the_share_crossed(cells, share):
    curve = survival(cells, GRID)
    sigma = curve.crossing(share)
    if share >= curve.clean:
        assert sigma == 0
    elif share < float(curve.share[-1]) - 1e-9:
        assert math.isinf(sigma)
    elif share > float(curve.share[-1]) + 1e-9:
        assert float(curve.at(sigma)) == pytest.approx(share, abs=1e-9)


@exactly
@given(st.floats(2e-3, 8.0))
def test_crossing_the_share_at_a_level_gives_the_level_back(sigma):
    curve = Curve(1.0, GRID.edges()[:-1], torch.linspace(1, 0.1, GRID.cells, dtype=torch.float64))
    assume(sigma < float(curve.sigma[-1]))
    assert curve.crossing(float(curve.at(sigma))) == pytest.approx(sigma, rel=1e-9)


measured = st.lists(st.tuples(st.floats(1e-2, 1e2), st.floats(0, 1)), min_size=1, max_size=12)


@exactly
@given(st.floats(0, 1), measured, st.floats(0, 1))
def test_curve_through_measurements_at_its_crossing_has_the_share_crossed(clean, points, share):
    curve = falling_curve(clean, *zip(*points, strict=True))
    sigma = curve.crossing(share)
    if share >= clean:
        assert sigma == 0
    elif share > float(curve.share[-1]) + 1e-9:
        assert float(curve.at(sigma)) == pytest.approx(share, abs=1e-6)


@exactly
@given(st.floats(0, 1), measured)
def test_curve_through_measurements_starts_clean_and_never_rises(clean, points):
    curve = falling_curve(clean, *zip(*points, strict=True))
    values = curve.at(torch.cat([torch.zeros(1), torch.logspace(-3, 3, 50, dtype=torch.float64)]))
    assert values[0] == clean
    assert (values.diff() <= 1e-12).all()


def test_curve_between_measurements_is_straight_in_log_sigma():
    curve = falling_curve(1.0, [0.1, 10.0], [0.8, 0.2])
    assert float(curve.at(1.0)) == pytest.approx(0.5)
    assert curve.crossing(0.35) == pytest.approx(10**0.5)
    assert float(curve.at(0.05)) == pytest.approx(0.9)
    assert float(curve.at(1e3)) == pytest.approx(0.2)
    assert math.isinf(curve.crossing(0.1))


def test_measurements_at_one_level_are_averaged_whatever_their_order():
    points = [(1.0, 0.9), (2.0, 0.1), (1.0, 0.5), (2.0, 0.3)]
    for order in itertools.permutations(points):
        curve = falling_curve(1.0, *zip(*order, strict=True))
        assert curve.at(torch.tensor([1.0, 2.0])).tolist() == pytest.approx([0.7, 0.2])


@pytest.mark.parametrize("clean", [0.0, 0.3, 1.0])
def test_curve_without_measurements_is_level(clean):
    curve = falling_curve(clean, [], [])
    assert curve.at(torch.tensor([0.0, 0.5, 2.0])).tolist() == [clean] * 3


def test_curve_keeps_the_shape_of_what_it_is_asked():
    curve = falling_curve(1.0, [0.1, 10.0], [0.8, 0.2])
    assert curve.at(torch.ones(2, 3)).shape == (2, 3)
    assert curve.at(1.0).shape == ()
    assert curve.at(1.0).dtype == torch.float64


@exactly
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30))
def test_isotonic_regression_equals_that_of_scikit_learn(values):
    expected = IsotonicRegression(increasing=False).fit_transform(np.arange(len(values)), np.array(values))
    found = [mean for mean, size in isotonic(values) for _ in range(size)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@exactly
@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(1, 5)), min_size=1, max_size=12))
def test_weights_of_isotonic_regression_are_repetitions(pairs):
    values, weights = zip(*pairs, strict=True)
    expected = IsotonicRegression(increasing=False).fit_transform(np.arange(len(values)), values, sample_weight=weights)
    found = [mean for mean, size in isotonic(values, weights) for _ in range(size)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


# Radius


@exactly
@given(cells(), shares, shares)
def test_quantile_falls_as_accuracy_rises(cells, a, b):
    curve = survival(cells, GRID)
    assert curve.crossing(min(a, b)) >= curve.crossing(max(a, b))


# Median over rays


@pytest.mark.parametrize("p", [0.975, 0.95])
def test_student_quantile_is_scipys_to_thirteen_parts_in_ten_thousand(p):
    for degrees in range(1, 201):
        assert student_quantile(p, degrees) == pytest.approx(scipy.stats.t.ppf(p, degrees), rel=1.3e-3), degrees


def test_student_quantile_without_degrees_of_freedom_is_infinite():
    assert student_quantile(0.975, 0) == math.inf


VALUES = {
    "normal": lambda n, draw: torch.randn(n, generator=draw).exp(),
    "with 0": lambda n, draw: torch.randn(n, generator=draw).relu(),
    "with inf": lambda n, draw: torch.where(
        torch.rand(n, generator=draw) < 0.4, math.inf, torch.rand(n, generator=draw)
    ),
    "0 and inf": lambda n, draw: torch.where(torch.rand(n, generator=draw) < 0.5, math.inf, 0.0),
    "tied": lambda n, draw: torch.randint(3, (n,), generator=draw).float(),
    "all inf": lambda n, draw: torch.full((n,), math.inf),
    "all 0": lambda n, draw: torch.zeros(n),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_interval_of_the_median_equals_the_slow_one(values):
    for n in range(1, 41):
        drawn = values(n, torch.Generator().manual_seed(n))
        found, expected = median_interval(drawn), reference.median_interval(drawn)
        np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=f"n = {n}")


@pytest.mark.parametrize("n", [100, 1001, 5000])
def test_interval_of_the_median_of_many_values_equals_the_slow_one(n):
    drawn = torch.randn(n, generator=torch.Generator().manual_seed(n))
    np.testing.assert_allclose(median_interval(drawn), reference.median_interval(drawn), rtol=1e-9)


@pytest.mark.parametrize("n", range(1, 6))
def test_below_six_values_the_extremes_are_given_with_their_true_level(n):
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(n))
    low, high, level = median_interval(drawn)
    assert (low, high) == (float(drawn.min()), float(drawn.max()))
    assert level == pytest.approx(1 - 2 ** (1 - n))


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_median_equals_that_of_the_standard_library_and_lies_in_its_interval(values):
    for n in range(1, 41):
        drawn = values(n, torch.Generator().manual_seed(n)).double()
        low, high, _ = median_interval(drawn)
        assert median(drawn) == statistics.median(drawn.tolist())
        assert low <= median(drawn) <= high


@pytest.mark.parametrize("n", [6, 8, 16])
def test_interval_of_the_median_covers_it(n):
    # 4000 draws of n values with the median 1, seed n: standard error 0.0034; the bound of 0.015 is over 4 of them.
    draws = torch.randn(4000, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).exp()
    intervals = [median_interval(row) for row in draws]
    covered = sum(low <= 1 <= high for low, high, _ in intervals) / len(intervals)
    assert abs(covered - 0.95) < 0.015


# Result


def test_default_accuracy_is_a_half_and_three_quarters_for_two_classes():
    assert [default_accuracy(k) for k in (1, 2, 3, 10)] == [0.5, 0.75, 0.5, 0.5]


def test_result_is_frozen_and_gives_its_curve():
    curve = falling_curve(1.0, [0.1, 10.0], [0.8, 0.2])
    values = dict.fromkeys((field.name for field in dataclasses.fields(BasinResult)), 0.5) | {"curve": curve}
    result = BasinResult(**values)
    assert torch.equal(result.accuracy_at(torch.tensor([0.0, 1.0])), curve.at(torch.tensor([0.0, 1.0])))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.radius = 1.0
