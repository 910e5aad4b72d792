"""Grid and curves against definitions and slow twins."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import reference
from netdyn.basins.curve import LOST_CLEAN, Curve, Grid, falling_curve, isotonic, mean_curve, survival

exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)

GRID = Grid(1e-3, 1e1, 4)

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
@given(st.floats(0, 1), measured, st.lists(st.floats(0, 1), max_size=5))
def test_many_crossings_are_those_of_a_walk_along_the_curve(clean, points, wanted):
    curve = falling_curve(clean, *zip(*points, strict=True))
    wanted = torch.tensor([*wanted, clean, *curve.share.tolist()], dtype=torch.float64)
    expected = [reference.curve_crossing(curve, share) for share in wanted.tolist()]
    assert curve.crossings(wanted).tolist() == pytest.approx(expected, rel=1e-9)


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


# Isotonic regression


weighed = st.lists(st.tuples(st.floats(-10, 10), st.floats(0.1, 10)), min_size=1, max_size=30)


@exactly
@given(weighed, st.booleans())
def test_isotonic_regression_equals_scipys(pairs, equal):
    values, weights = zip(*pairs, strict=True)
    weights = [1.0] * len(values) if equal else weights
    expected = scipy.optimize.isotonic_regression(values, weights=weights, increasing=False).x
    pools = isotonic(values, None if equal else weights)
    np.testing.assert_allclose([mean for mean, size in pools for _ in range(size)], expected, atol=1e-9)
    means = [mean for mean, _ in pools]
    assert means == sorted(set(means), reverse=True) or len(pools) == 1 or np.diff(means).max() < 1e-9


@exactly
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.data())
def test_no_falling_sequence_is_nearer_in_squares(values, data):
    weights = data.draw(st.lists(st.integers(1, 5).map(float), min_size=len(values), max_size=len(values)))
    found = np.array([mean for mean, size in isotonic(values, weights) for _ in range(size)])
    others = [sorted(data.draw(st.permutations(values)), reverse=True), sorted(found + 0.01 * np.array(values))[::-1]]
    squares = [(np.array(weights) * (np.array(values) - np.array(other)) ** 2).sum() for other in (found, *others)]
    assert squares[0] <= min(squares) + 1e-12


def test_weights_are_those_of_repeated_measurements():
    once = falling_curve(1.0, [0.1, 1.0, 2.0], [0.3, 0.9, 0.1], [1.0, 3.0, 2.0])
    repeated = falling_curve(1.0, [0.1, *[1.0] * 3, *[2.0] * 2], [0.3, *[0.9] * 3, *[0.1] * 2])
    levels = torch.logspace(-2, 1, 30, dtype=torch.float64)
    torch.testing.assert_close(once.at(levels), repeated.at(levels))
    # The pool's knot lies at the weighted mean of log sigma: 10^(-1/4).
    assert float(once.sigma[0]) == pytest.approx(10**-0.25)
    assert float(once.share[0]) == pytest.approx(0.75)


def test_a_curve_is_nowhere_above_its_clean_share():
    assert falling_curve(0.5, [0.1, 1.0], [0.9, 0.1]).share.tolist() == [0.5, 0.1]


def test_a_level_curve_is_level():
    curve = falling_curve(0.5, [], [])
    assert curve.at(torch.tensor([0.0, 1.0, 100.0])).tolist() == [0.5] * 3
    assert (curve.crossing(0.5), curve.crossing(0.4)) == (0, math.inf)


# The mean over rays


def mean_at(level, rays, weights, slope, floor):
    """The weighted mean over rays at one level, by loops: straight between a ray's levels, a logit's line beyond."""
    total = 0.0
    for ray, weight in zip(rays, weights, strict=True):
        levels, falling = sorted(ray), []
        for asked in levels:
            falling.append(min([ray[asked], *falling]))
        if level < levels[0] or level > levels[-1]:
            end, share = (levels[0], falling[0]) if level < levels[0] else (levels[-1], falling[-1])
            kept = min(max(share, 0.5 / weight), 1 - 0.5 / weight)
            logit = math.log(kept / (1 - kept)) - slope * (level - end)
            own = 1 / (1 + math.exp(-logit))
            own = max(own, share) if level < end else max(own, min(share, floor))
        else:
            own = float(np.interp(level, levels, falling))
        total += weight * own
    return total / sum(weights)


RAYS = [
    {-2.0: 1.0, -1.0: 0.8, 0.5: 0.9, 1.0: 0.0},  # rises once; ends at 1 and at 0
    {-0.5: 0.7, 0.0: 0.35, 0.7: 0.2},
    {1.5: 0.05},
    {-1.5: 1.0, -0.2: 1.0},  # right at all levels that it was asked at
    {1.2: 0.0},
]


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("weights", [[10.0] * 5, [3.0, 20.0, 8.0, 5.0, 4.0]], ids=["equal", "unequal"])
def test_a_mean_curve_is_that_of_the_loop_over_rays(weights, floor):
    curve = mean_curve(0.97, RAYS, weights, 3.0, floor)
    knots = sorted({level for ray in RAYS for level in ray})
    np.testing.assert_allclose(curve.sigma.log().numpy(), knots, atol=1e-12)
    expected = [min(mean_at(level, RAYS, weights, 3.0, floor) for level in knots[: i + 1]) for i in range(len(knots))]
    np.testing.assert_allclose(curve.share.numpy(), np.minimum(expected, 0.97), rtol=1e-12)
    assert (curve.clean, curve.sigma.dtype, curve.share.dtype) == (0.97, torch.float64, torch.float64)
    assert mean_curve(0.6, RAYS, weights, 3.0, floor).share.max() == 0.6


def test_a_mean_curve_has_64_knots_at_most_spread_over_all_levels():
    levels = np.linspace(-1, 1, 200)
    rays = [{float(level): 0.5 for level in levels[start::2]} for start in (0, 1)]
    knots = mean_curve(1.0, rays, [5.0, 5.0], 1.0, 0.0).sigma.log().numpy()
    np.testing.assert_allclose(knots, levels[[round(i * 199 / 63) for i in range(64)]], atol=1e-12)
    assert len(mean_curve(1.0, [{float(level): 0.5 for level in levels[:64]}], [5.0], 1.0, 0.0).sigma) == 64


# Radius


@exactly
@given(cells(), shares, shares)
def test_quantile_falls_as_accuracy_rises(cells, a, b):
    curve = survival(cells, GRID)
    assert curve.crossing(min(a, b)) >= curve.crossing(max(a, b))
