"""Medians, quantiles and standard errors against definitions, slow twins and simulation."""

import math
import statistics

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from netdyn.basins.interval import (
    binomial_tail,
    clustered_error,
    mean_of,
    median,
    median_interval,
    shared_error,
    student_quantile,
    widened,
)

exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("p", [0.975, 0.95])
def test_student_quantile_is_scipys_to_thirteen_parts_in_ten_thousand(p):
    for degrees in range(1, 201):
        assert student_quantile(p, degrees) == pytest.approx(scipy.stats.t.ppf(p, degrees), rel=1.3e-3), degrees


def test_student_quantile_without_degrees_of_freedom_is_infinite():
    assert student_quantile(0.975, 0) == math.inf


@pytest.mark.parametrize("p", [0.975, 0.8, 0.6])
def test_student_quantile_of_one_and_two_degrees_of_freedom_is_exact(p):
    # By the distribution functions: SciPy 1.15's own quantiles are good to 11 digits alone.
    one, two = (student_quantile(p, degrees) for degrees in (1, 2))
    assert 0.5 + math.atan(one) / math.pi == pytest.approx(p, abs=1e-14)
    assert 0.5 + two / (2 * math.sqrt(2 + two**2)) == pytest.approx(p, abs=1e-14)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_binomial_tail_is_scipys(share):
    for number in (1, 2, 7, 1000):
        for count in {0, 1, number // 2, number - 1, number, number + 1}:
            expected = scipy.stats.binom.cdf(count, number, share)
            assert binomial_tail(count, number, share) == pytest.approx(expected, rel=1e-9), (count, number)


def test_mean_is_weighted_if_weights_are_given():
    values, weight = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([2.5, 0.25, 0.25])
    assert mean_of(values) == pytest.approx(2 / 3)
    assert mean_of(values, weight) == pytest.approx(0.5 / 3)
    # A share of true and false is a mean too.
    assert mean_of(values > 0.5, weight) == pytest.approx(0.5 / 3)


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


# Known outcomes ------------------------------------------------------------------------------------------------------


def test_a_level_that_order_statistics_have_exactly_needs_none_beyond_them():
    # 1 - 2 P(Bin(6, 1/2) < 2) = 1 - 14/64: the second smallest and largest, though the extremes are infinite.
    found = median_interval(torch.tensor([-math.inf, 1.0, 2.0, 3.0, 4.0, math.inf]), 1 - 14 / 64)
    assert found == (1.0, 4.0, 1 - 14 / 64)


def test_interval_of_the_median_on_known_values():
    # P(B <= 1) = 9/256 and P(B <= 0) = 1/256 for 8 values: levels .9922 and .9297 of the extremes and the next ones.
    share = (0.99219 - 0.95) / (0.99219 - 0.92969)
    weight = 7 * share / (1 + 6 * share)
    low, high, level = median_interval(torch.tensor([8.0, 1, 7, 2, 6, 3, 5, 4]))
    assert (low, high) == pytest.approx((1 + weight, 8 - weight), abs=1e-3)
    assert level == 0.95


# Clusters ------------------------------------------------------------------------------------------------------------

clustered = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=1, max_size=30)


@exactly
@given(clustered)
def test_error_of_a_clustered_mean_equals_the_slow_one(pairs):
    values, cluster = (torch.tensor(column) for column in zip(*pairs, strict=True))
    error, clusters = clustered_error(values.double(), cluster)
    assert clusters == len(set(cluster.tolist()))
    assert error == pytest.approx(reference.clustered_error(values.double(), cluster), abs=1e-9)


@exactly
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5), st.floats(0.1, 4)), min_size=1, max_size=30))
def test_error_of_a_weighted_mean_equals_the_slow_one(rows):
    values, cluster, weight = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    weight = weight / weight.mean()
    error, clusters = clustered_error(values, cluster.long(), weight)
    assert clusters == len(set(cluster.tolist()))
    assert error == pytest.approx(reference.clustered_error(values, cluster, weight), abs=1e-9)


def test_error_of_a_weighted_mean_is_its_spread():
    # 4000 draws of 60 values whose weights are drawn with them, seed 0: relative standard error of a spread 0.011.
    draw = generator(0)
    values = torch.randn(4000, 60, generator=draw).double()
    weight = torch.where(torch.rand(4000, 60, generator=draw) < 0.3, 3.0, 0.5).double()
    weight = weight / weight.mean(dim=1, keepdim=True)
    errors = [clustered_error(v, torch.arange(60), w)[0] for v, w in zip(values, weight, strict=True)]
    spread = float((values * weight).mean(dim=1).std())
    assert float(torch.tensor(errors).square().mean().sqrt()) == pytest.approx(spread, rel=0.05)


def test_error_without_copies_is_the_usual_one():
    values = torch.rand(50, generator=generator(0), dtype=torch.float64)
    error, clusters = clustered_error(values, torch.randperm(50))
    assert clusters == 50
    assert error == pytest.approx(float(values.std()) / math.sqrt(50))


def test_copies_do_not_make_the_error_smaller():
    values, cluster = torch.rand(50, generator=generator(0), dtype=torch.float64), torch.arange(50)
    once, four = clustered_error(values, cluster), clustered_error(values.repeat(4), cluster.repeat(4))
    assert four == (pytest.approx(once[0]), 50)


def test_error_of_clustered_means_is_their_spread():
    # 4000 draws of 40 values in 10 clusters, seed 0: the relative standard error of a spread is 0.011.
    draw, cluster = generator(0), torch.arange(40) % 10
    values = (torch.randn(4000, 10, generator=draw)[:, cluster] + torch.randn(4000, 40, generator=draw)).double()
    errors = torch.tensor([clustered_error(row, cluster)[0] for row in values], dtype=torch.float64)
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.mean(dim=1).std()), rel=0.05)


# What rays share -----------------------------------------------------------------------------------------------------


@st.composite
def outcomes(draw):
    """Outcomes [rays, samples], NaN where not asked, at least one on each ray, and clusters."""
    rays, samples = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    numbers = st.lists(st.sampled_from([0.0, 0.25, 1.0, math.nan]), min_size=samples, max_size=samples)
    right = torch.tensor([[0.5, *row[1:]] for row in draw(st.lists(numbers, min_size=rays, max_size=rays))])
    cluster = draw(st.lists(st.integers(0, 3), min_size=samples, max_size=samples))
    return right.double(), torch.unique(torch.tensor(cluster), return_inverse=True)[1]


@exactly
@given(outcomes())
def test_error_that_rays_share_equals_the_slow_one(outcomes):
    assert shared_error(*outcomes) == pytest.approx(reference.shared_error(*outcomes), abs=1e-9)


@exactly
@given(outcomes(), st.lists(st.floats(0.1, 4), min_size=8, max_size=8))
def test_error_that_rays_share_of_weighted_samples_equals_the_slow_one(outcomes, weight):
    weight = torch.tensor(weight[: outcomes[0].shape[1]], dtype=torch.float64)
    assert shared_error(*outcomes, weight) == pytest.approx(reference.shared_error(*outcomes, weight), abs=1e-9)


@pytest.mark.parametrize("asked", [1.0, 0.4])
def test_error_that_rays_share_is_that_of_the_samples_own_part(asked):
    # f_rs = 1 where u_s + e_rs > 0, both normal with spread 1: the mean over rays of sample s is Phi(u_s), uniform, of
    # variance 1/12. 200 draws of 12 rays x 60 samples, seed 0: relative standard error of a mean square of 0.02.
    draw, squares = generator(0), []
    for _ in range(200):
        right = (torch.randn(60, generator=draw) + torch.randn(12, 60, generator=draw) > 0).double()
        right[torch.rand(12, 60, generator=draw) > asked] = math.nan
        squares.append(shared_error(right, torch.arange(60)) ** 2)
    assert sum(squares) / 200 == pytest.approx(1 / 12 / 60, rel=0.1)


def test_error_that_rays_share_is_0_on_one_ray_and_where_samples_have_nothing_of_their_own():
    assert shared_error(torch.rand(1, 40, generator=generator(0)).double(), torch.arange(40)) == 0
    assert shared_error(torch.eye(4, dtype=torch.float64), torch.arange(4)) == 0


# Two sources of error ------------------------------------------------------------------------------------------------


def test_widened_interval_has_both_errors():
    low, high = widened((0.5, 4.0), 1.0, 0.1, 30)
    extra = scipy.stats.t.ppf(0.975, 29) * 0.1
    assert math.log(high) == pytest.approx(math.hypot(math.log(4), extra), rel=1e-3)
    assert math.log(low) == pytest.approx(-math.hypot(math.log(2), extra), rel=1e-3)


def test_widened_interval_of_equal_rays_reaches_to_both_sides():
    low, high = widened((2.0, 2.0), 2.0, 0.1, 1000)
    assert low < 2 < high
    assert low * high == pytest.approx(4)


@pytest.mark.parametrize(
    ("interval", "centre", "expected"),
    [((0.0, math.inf), 1.0, (0.0, math.inf)), ((1.0, 2.0), math.inf, (1.0, 2.0)), ((0.0, 0.0), 0.0, (0.0, 0.0))],
)
def test_ends_that_are_not_finite_stay(interval, centre, expected):
    assert widened(interval, centre, 0.5, 30) == expected


def test_a_single_sample_widens_nothing():
    assert widened((0.5, 2.0), 1.0, 0.5, 1) == pytest.approx((0.5, 2.0))
