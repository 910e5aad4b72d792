"""One sample that holds NaN changes the numbers of no other: each is that of the probe without it, or nearly."""

import math
import warnings

import pytest
import torch
from torch import nn

from netdyn import diagnose
from netdyn._utils.trees import evenly_chosen, usable
from netdyn.functional import batchnorm_gap, coverage, linear_share, linear_substitution_map

SAMPLES = 300


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def learnt(norm):
    """A network that has learnt three classes, and its data."""
    centres = 3 * gaussian(3, 6, seed=1)
    y = torch.arange(SAMPLES) % 3
    x = centres[y] + gaussian(SAMPLES, 6, seed=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 16), norm(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval(), x, y


def quietly(work):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d])
@pytest.mark.parametrize("place", [0, SAMPLES // 2])
def test_a_broken_sample_leaves_the_report_as_it_is(norm, place):
    network, x, y = learnt(norm)
    broken = x.clone()
    broken[place, 2] = math.nan
    own = torch.arange(SAMPLES) != place
    val = x + 0.1
    with_it = quietly(lambda: diagnose(network, broken, y, val_inputs=val, val_target=y))
    without = quietly(lambda: diagnose(network, x[own], y[own], val_inputs=val, val_target=y))
    assert with_it.verdict.level == without.verdict.level == "healthy"
    assert with_it.accuracy == pytest.approx(without.accuracy * (SAMPLES - 1) / SAMPLES)
    assert with_it.finite == 1
    assert with_it.loss == pytest.approx(without.loss)
    for name in ("batchnorm_gap", "batchnorm_train_gap"):
        assert getattr(with_it, name) == pytest.approx(getattr(without, name), abs=0.02, nan_ok=True)
    assert with_it.coverage.own == pytest.approx(without.coverage.own, abs=0.02)
    assert with_it.coverage.distance == pytest.approx(without.coverage.distance)
    assert with_it.characteristic_maps.isfinite().all()
    for a, b in zip(with_it.layers, without.layers, strict=True):
        assert (a.left_out, b.left_out) == (1, 0)
        assert a.unwired_fraction == b.unwired_fraction == 0
        assert a.rpd_gradient == pytest.approx(b.rpd_gradient, abs=0.1)
        assert a.linear_share == pytest.approx(b.linear_share, abs=0.05)
        assert a.tail_accuracy == pytest.approx(b.tail_accuracy, abs=0.05)


def test_functions_leave_broken_samples_out():
    network, x, y = learnt(nn.LayerNorm)
    broken = x.clone()
    broken[0] = math.nan
    for pathway in linear_substitution_map(network, broken).values():
        assert pathway.isfinite().all()
    assert all(0 < share <= 1 for share in quietly(lambda: linear_share(network, broken)).values())
    network, x, y = learnt(nn.BatchNorm1d)
    expected = batchnorm_gap(network, x[1:], y[1:])
    assert quietly(lambda: batchnorm_gap(network, broken, y)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["training", "validation"])
def test_coverage_has_no_distance_to_a_broken_sample(value, side):
    network, x, y = learnt(nn.LayerNorm)
    val = x + 0.3
    broken = (x if side == "training" else val).clone()
    broken[0, 0] = value
    if side == "training":
        found = quietly(lambda: coverage(network, broken, y, val, y))
        expected = coverage(network, x[1:], y[1:], val, y)
    else:
        found = quietly(lambda: coverage(network, x, y, broken, y))
        expected = coverage(network, x, y, val[1:], y[1:])
    assert found == pytest.approx(expected)


def test_distances_are_right_where_single_precision_is_not_enough():
    """Two clusters 20,000 apart, with distances of about 1 inside: in single precision nothing is left of them."""
    network, _, _ = learnt(nn.LayerNorm)
    x, v = gaussian(200, 6, seed=3), gaussian(100, 6, seed=4)
    side, val_side = torch.arange(200) % 2, torch.arange(100) % 2
    near = coverage(network, x + 20.0 * side[:, None], side, v + 20.0 * val_side[:, None], val_side)
    far = coverage(network, x + 20_000.0 * side[:, None], side, v + 20_000.0 * val_side[:, None], val_side)
    assert far.distance == pytest.approx(near.distance, rel=1e-3)
    assert far.apart == pytest.approx(near.apart, abs=1e-3)


def test_a_network_that_has_diverged_is_told_from_data_that_are_broken():
    network, x, y = learnt(nn.LayerNorm)
    with torch.no_grad():
        network[-1].weight.fill_(math.nan)
    report = quietly(lambda: diagnose(network, x, y, measure=["modes"]))
    assert (report.finite, report.verdict.level) == (0.0, "diverged")
    report = quietly(lambda: diagnose(network, torch.full_like(x, math.nan), y, measure=["sample_basin"]))
    assert math.isnan(report.finite)
    assert report.verdict.level != "diverged"


def test_usable_samples_hold_no_nan_and_masks_may_hold_minus_infinity():
    x = torch.zeros(6, 2, 2)
    assert usable(x) is None
    x[1, 0, 0], x[4, 1, 1], x[5, 0, 1] = math.nan, math.inf, -math.inf
    assert usable(x).tolist() == [0, 2, 3, 5]
    assert usable({"x": x, "mask": torch.full((6, 3), -math.inf)}).tolist() == [0, 2, 3, 5]
    assert evenly_chosen(x, 2).tolist() == [0, 3]
    assert evenly_chosen(x, 9).tolist() == [0, 2, 3, 5]
    assert evenly_chosen(torch.full((4, 1), math.nan), 2).tolist() == [0, 2]
