"""Effective dimension against all sets of four samples, its bias, and effective rank against singular values."""

import itertools
import math

import pytest
import torch

from netdyn import DynamicsWarning
from netdyn.functional import effective_dimension, effective_rank


def by_fours(fields):
    """Both sums as means over all ordered sets of four different samples."""
    top = bottom = 0.0
    for a, b, c, d in itertools.permutations(fields.double(), 4):
        top += float((a - b).square().sum() * (c - d).square().sum()) / 4
        bottom += float(((a - b) @ (c - d)) ** 2) / 4
    return top / bottom


@pytest.mark.parametrize("shape", [(7, 3), (6, 20), (5, 2)])
def test_equals_the_mean_over_sets_of_four(shape):
    torch.manual_seed(1)
    fields = torch.randn(shape) * torch.linspace(0.5, 2, shape[1]) + 3
    # Of very few samples the estimate may exceed the number of units, where it is cut off.
    expected = min(by_fours(fields), shape[1])
    assert effective_dimension(fields) == pytest.approx(expected, rel=1e-9)


def plain(fields):
    """The ratio of the sample's own eigenvalues."""
    values = torch.linalg.eigvalsh(fields.double().t().cov())
    return float(values.sum() ** 2 / values.square().sum())


@pytest.mark.parametrize("kind", ["normal", "rectified"])
def test_few_samples_do_not_make_it_small(kind):
    # 200 draws of 40 samples of 120 units, with the standard deviations 1 to 3.
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(1, 3, 120)
    variances = scale.square()  # a ReLU multiplies all of them by the same factor
    truth = float(variances.sum() ** 2 / variances.square().sum())
    draws = [torch.randn(40, 120, generator=generator) * scale for _ in range(200)]
    draws = [draw.relu() if kind == "rectified" else draw for draw in draws]
    # As in practice: the two estimates are of the same draw. Their logarithm's mean has a standard error below 0.01.
    found = torch.tensor([math.log(effective_dimension(draw) / truth) for draw in draws])
    error = float(found.std()) / math.sqrt(len(found))
    assert error < 0.01
    assert abs(float(found.mean())) < 0.05
    assert sum(plain(draw) for draw in draws) / len(draws) < 0.45 * truth


def test_neither_scale_nor_shift_nor_rotation_matters():
    torch.manual_seed(0)
    fields = torch.randn(30, 6).double() * torch.arange(1, 7)
    rotation = torch.linalg.qr(torch.randn(6, 6).double())[0]
    for other in (1e-200 * fields, 1e200 * fields, fields + 1000, fields @ rotation):
        assert effective_dimension(other) == pytest.approx(effective_dimension(fields), rel=1e-6)
        assert effective_rank(other) == pytest.approx(effective_rank(fields), rel=1e-6)


def test_one_direction_is_one():
    fields = torch.linspace(-1, 1, 50)[:, None] * torch.ones(4)
    assert effective_dimension(fields) == pytest.approx(1.0, abs=1e-9)
    assert effective_rank(fields) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("shape", [(50, 8), (9, 8)])
def test_rank_is_that_of_the_singular_values(shape):
    torch.manual_seed(0)
    fields = torch.randn(shape) * torch.linspace(0.1, 2, shape[1])
    values = torch.linalg.svdvals(fields.double() - fields.double().mean(0)).tolist()
    share = [value / sum(values) for value in values]
    expected = math.exp(-sum(p * math.log(p) for p in share))
    assert effective_rank(fields) == pytest.approx(expected, rel=1e-5)


def test_the_bound_of_few_samples_is_named():
    torch.manual_seed(0)
    with pytest.warns(DynamicsWarning) as caught:
        rank = effective_rank(torch.randn(20, 300))
    assert rank < 19
    assert str(caught[0].message) == (
        "The effective rank of 20 samples of 300 units is at most 19, whatever the network: pass more samples than "
        "units, or take `effective_dimension`, which is corrected for few samples."
    )
    assert effective_dimension(torch.randn(20, 300)) > 150


@pytest.mark.parametrize("fields", [torch.ones(9, 3), torch.full((9, 3), math.nan), torch.ones(0, 3)])
@pytest.mark.filterwarnings("ignore::netdyn.DynamicsWarning")
def test_without_variance_there_is_no_number(fields):
    assert math.isnan(effective_dimension(fields))
    assert math.isnan(effective_rank(fields))


def test_few_samples_have_no_dimension():
    assert math.isnan(effective_dimension(torch.eye(3)))


def test_samples_and_units_that_are_not_finite_are_left_out():
    torch.manual_seed(0)
    fields = torch.randn(30, 5) * torch.arange(1, 6)
    spoilt = torch.cat([fields, torch.full((30, 1), math.nan)], dim=1)
    spoilt = torch.cat([spoilt, torch.tensor([[math.inf, 0, 0, 0, 0, math.nan]])])
    assert effective_dimension(spoilt) == pytest.approx(effective_dimension(fields), rel=1e-9)
    assert effective_rank(spoilt) == pytest.approx(effective_rank(fields), rel=1e-9)
