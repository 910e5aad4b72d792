"""A result: what it gives, and that it stays as it is."""

import dataclasses
import math

import pytest
import torch

from netdyn.basins.curve import falling_curve
from netdyn.basins.result import BasinResult

#: Quantiles of a curve that stand for its rays.
QUANTILES = 256


def made(**changes):
    curve = falling_curve(1.0, [0.1, 10.0], [0.8, 0.2])
    values = dict.fromkeys((field.name for field in dataclasses.fields(BasinResult)), 0.5) | {"curve": curve}
    return BasinResult(**values | {"radii": None, "clean": 1.0} | changes)


def test_result_is_frozen_and_gives_its_curve():
    result, levels = made(), torch.tensor([[0.0, 1.0, 5.0]])
    assert torch.equal(result.accuracy_at(levels), result.curve.at(levels))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.radius = 1.0


def test_curves_of_classes_are_those_of_the_curve():
    own = (falling_curve(0.5, [], []), None)
    assert made(curve=dataclasses.replace(made().curve, classes=own)).class_curves is own
    assert made().class_curves == ()


def test_spread_is_that_of_the_rays_where_they_are_known():
    radii = torch.tensor([[0.0, 1.0], [2.0, math.inf]])
    assert made(radii=radii).spread().tolist() == [0.0, 1.0, 2.0, math.inf]


def test_spread_of_a_curve_are_its_quantiles():
    found = made().spread()
    # Of the accuracy of 1 a fifth is never lost.
    assert len(found) == pytest.approx(0.8 * QUANTILES, abs=1)
    assert (found.diff() > 0).all()
    for sigma in (0.05, 0.1, 1.0, 5.0):
        lost = float((found < sigma).double().sum()) / QUANTILES
        assert lost == pytest.approx(1 - float(made().accuracy_at(sigma)), abs=0.01)


def test_spread_of_a_curve_is_where_it_has_fallen_by_equal_parts_exactly():
    curve = falling_curve(0.9, [0.1, 10.0], [0.8, 0.0])
    found = made(curve=curve, clean=0.9).spread()
    expected = [curve.crossing(0.9 * k / (QUANTILES + 1)) for k in range(QUANTILES, 0, -1)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("clean", [0.0, 1.0])
def test_spread_of_a_level_curve_is_empty(clean):
    assert made(clean=clean, curve=falling_curve(clean, [], [])).spread().tolist() == []
