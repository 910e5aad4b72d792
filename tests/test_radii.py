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
from netdyn.radii import (
    LOST_CLEAN,
    BasinResult,
    Curve,
    Grid,
    default_accuracy,
    falling_curve,
    isotonic,
    median,
    median_interval,
    sample_radius,
    student_quantile,
    survival,
)

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


def cells_of(radii, grid):
    """The cells that bisection ends in where the prediction is lost once and for all at these radii."""
    return (torch.searchsorted(grid.edges(), radii, right=True) - 1).clamp(0, grid.cells - 1)


def right_without_return(cells, grid):
    """Measures at a noise level which rays are right, for rays that never come back."""
    return lambda sigma: grid.radii(cells) > sigma


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
        assert curve.sigma.tolist() == [1.0, 2.0]
        torch.testing.assert_close(curve.share, torch.tensor([0.7, 0.2], dtype=torch.float64))


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
    np.testing.assert_allclose(isotonic(torch.tensor(values, dtype=torch.float64)), expected, atol=1e-9)


# Radius


@exactly
@given(cells(), shares, shares)
def test_quantile_falls_as_accuracy_rises(cells, a, b):
    curve = survival(cells, GRID)
    assert curve.crossing(min(a, b)) >= curve.crossing(max(a, b))


@exactly
@given(cells(), shares, st.integers(0, 2**32))
def test_interval_contains_the_radius_whatever_comes_back(cells, accuracy, seed):
    draw = torch.Generator().manual_seed(seed)
    right = torch.rand(cells.shape, generator=draw) < 0.7
    radius, (low, high), _, _ = sample_radius(cells, GRID, accuracy, lambda sigma: right)
    assert low <= radius <= high


@pytest.mark.parametrize("accuracy", [0.01, 0.5, 0.75, 0.99])
@pytest.mark.parametrize(("cell", "radius"), [(LOST_CLEAN, 0.0), (GRID.cells - 1, math.inf)])
@pytest.mark.parametrize("rays", [1, 8])
def test_all_lost_without_noise_is_radius_0_and_all_censored_is_inf(accuracy, cell, radius, rays):
    cells = torch.full((rays, 20), cell)
    found, interval, radius_of, reentry = sample_radius(cells, GRID, accuracy, pytest.fail)
    assert found == radius
    assert interval == (radius, radius)
    assert reentry == 0
    assert float(radius_of(torch.arange(20) < 5)) == radius


@pytest.mark.parametrize(("lost", "zero"), [(51, True), (50, True), (49, False)])
def test_radius_is_0_from_exactly_the_share_lost_without_noise_on(lost, zero):
    cells = torch.full((1, 100), 7)
    cells[0, :lost] = LOST_CLEAN
    radius, *_ = sample_radius(cells, GRID, 0.5, right_without_return(cells, GRID))
    assert (radius == 0) == zero


@pytest.mark.parametrize(("censored", "infinite"), [(51, True), (50, False), (49, False)])
def test_radius_is_inf_above_exactly_the_share_censored(censored, infinite):
    cells = torch.full((1, 100), 7)
    cells[0, :censored] = GRID.cells - 1
    radius, (low, high), *_ = sample_radius(cells, GRID, 0.5, right_without_return(cells, GRID))
    assert math.isinf(radius) == infinite
    assert high == math.inf
    # The bound is half a sampling error of the share away from 0.5: both ends of the step lie in the interval.
    assert low <= GRID.edges()[8] * (1 + 1e-9)


def test_radius_uses_the_rays_that_come_back():
    # A tenth of all samples in each of the cells 3 to 12; at the uncorrected radius 0.6 of them are right, not 0.5.
    cells = torch.arange(3, 13)[None]
    right = torch.arange(10)[None] < 6
    asked = []
    radius, _, _, reentry = sample_radius(cells, GRID, 0.5, lambda sigma: asked.append(sigma) or right)
    edges = GRID.edges()
    assert asked == [pytest.approx(float(edges[8]))]
    assert reentry == pytest.approx(0.1)
    assert radius == pytest.approx(float(edges[9]))


@exactly
@given(cells(max_rays=4, max_samples=12), shares, st.integers(0, 2**32))
def test_interval_is_students_over_samples(cells, accuracy, seed):
    assume(cells.shape[1] >= 4)
    curve = survival(cells, GRID)
    raw = curve.crossing(accuracy)
    assume(0 < raw < math.inf)
    right = torch.rand(cells.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    wrong = (~right).double().numpy().mean(axis=0)
    radius, (low, high), _, reentry = sample_radius(cells, GRID, accuracy, lambda sigma: right)
    target = accuracy - (1 - wrong.mean() - accuracy)
    margin = scipy.stats.t.ppf(0.975, len(wrong) - 1) * wrong.std(ddof=1) / math.sqrt(len(wrong))
    assert reentry == pytest.approx(accuracy - target)
    assert radius == pytest.approx(curve.crossing(target), rel=1e-9)
    # The quantile's series is within 0.1 %; the share that it crosses is what is compared.
    for found, share in ((low, target + margin), (high, target - margin)):
        assert curve.crossing(share + 2e-3 * margin) <= found <= curve.crossing(share - 2e-3 * margin)


def test_a_single_sample_has_no_finite_interval():
    cells = torch.tensor([[5], [7], [9]])
    radius, interval, _, _ = sample_radius(cells, GRID, 0.5, right_without_return(cells, GRID))
    assert 0 < radius < math.inf
    assert interval == (0, math.inf)


def test_radius_over_all_samples_is_the_radius_and_over_none_is_nan():
    draw = torch.Generator().manual_seed(3)
    cells = torch.randint(0, GRID.cells, (3, 40), generator=draw)
    right = torch.rand(3, 40, generator=draw) < 0.6
    radius, _, radius_of, _ = sample_radius(cells, GRID, 0.5, lambda sigma: right)
    assert float(radius_of(torch.ones(40, dtype=torch.bool))) == pytest.approx(radius, rel=1e-9)
    assert math.isnan(radius_of(torch.zeros(40, dtype=torch.bool)))


def test_radius_over_some_samples_is_theirs_where_none_comes_back():
    draw = torch.Generator().manual_seed(4)
    middle = torch.randint(2, 7, (2, 60), generator=draw) + 7 * (torch.arange(60) % 2)
    _, _, radius_of, _ = sample_radius(middle, GRID, 0.5, right_without_return(middle, GRID))
    for part in (0, 1):
        chosen = torch.arange(60) % 2 == part
        own = survival(middle[:, chosen], GRID).crossing(0.5)
        # One cell: a ray's own noise level is known no better.
        assert abs(math.log(float(radius_of(chosen)) / own)) <= math.log(1e4) / GRID.cells


# Simulated probes: T = exp(m + z/2), m ~ N(0, 0.7) a sample, z ~ N(0, 1) a ray, so that log T ~ N(0, 0.74).
SPREAD = math.sqrt(0.7**2 + 0.5**2)
PROBES = 2000


def simulate(draw, rays, samples=100):
    centre = 0.7 * torch.randn(samples, generator=draw, dtype=torch.float64)
    return (centre + 0.5 * torch.randn(rays, samples, generator=draw, dtype=torch.float64)).exp()


def coverage(rays, accuracy, interval_of):
    """Share of simulated probes whose interval holds the true radius."""
    truth = math.exp(SPREAD * scipy.stats.norm.ppf(1 - accuracy))
    draw = torch.Generator().manual_seed(rays)
    held = 0
    for _ in range(PROBES):
        radii = simulate(draw, rays)
        low, high = interval_of(cells_of(radii, WIDE), radii, accuracy)
        held += low <= truth <= high
    return held / PROBES


@pytest.mark.parametrize("accuracy", [0.5, 0.75])
@pytest.mark.parametrize("rays", [1, 8])
def test_interval_covers_the_true_radius(rays, accuracy):
    # n = 2000 probes of 100 samples, seed `rays`: standard error 0.005; the bounds are 4 and 6 of them away from 0.95.
    found = coverage(rays, accuracy, lambda cells, radii, a: sample_radius(cells, WIDE, a, radii.__gt__)[1])
    assert 0.93 < found < 0.98


def test_an_interval_over_pooled_rays_would_not_cover():
    # The same simulation; the error counts 800 rays as independent where there are 100 samples.
    def pooled(cells, radii, accuracy):
        curve = survival(cells, WIDE)
        margin = 1.96 * math.sqrt(accuracy * (1 - accuracy) / radii.numel())
        return curve.crossing(accuracy + margin), curve.crossing(accuracy - margin)

    assert coverage(8, 0.5, pooled) < 0.9


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
