"""The test of a whole layer against all permutations, and the band that permutations give."""

import copy
import math

import numpy as np
import pytest
import torch

import reference
from netdyn.functional import class_tuning, order_test
from netdyn.modes.order import Wiring
from netdyn.modes.shares import mode_shares
from reference import random_layer


def nasty():
    plain = random_layer(samples=90, units=12, classes=6, levels=5)
    skewed = plain._replace(
        target=torch.tensor([0] * 70 + [1, 1, 1, 2, 2, 3, 4, 4, 4, 4, 4, 5, 5, 5, 1, 2, 3, 4, 5, 5])
    )
    constant, unwired, ternary, holed = (copy.deepcopy(plain) for _ in range(4))
    constant.fields[:, 2:5] = 1.0
    unwired.pathway[:, :4] = 0.0
    ternary.pathway[:] = ternary.pathway.round().clamp(-1, 1)
    holed.fields[4, 1] = math.nan
    yield "plain", plain
    yield "skewed", skewed
    yield "constant units", constant
    yield "unwired units", unwired
    yield "ties in the wiring", ternary
    yield "NaN", holed
    yield "absent class", random_layer(units=8, classes=5)._replace(classes=6, pathway=plain.pathway[:, :8])
    yield "one unit", random_layer(units=1, classes=5)


NASTY = dict(nasty())
every_layer = pytest.mark.parametrize("layer", NASTY.values(), ids=NASTY)


@pytest.mark.parametrize("centre", [True, False])
@every_layer
def test_z_is_that_of_all_permutations(layer, centre):
    z = order_test(layer.tuning, layer.pathway, centre).z
    assert z == pytest.approx(reference.layer_z(layer.tuning, layer.pathway, centre), abs=1e-9)


@every_layer
def test_the_band_is_that_of_the_loop_over_permuted_pathways(layer):
    tuning = reference.as_array(layer.tuning)
    present = [k for k in range(len(tuning)) if not np.isnan(tuning[k]).all()]
    pathway = reference.centred_pathway(layer.pathway, len(tuning))
    live = [i for i in range(tuning.shape[1]) if np.nansum(np.abs(tuning[:, i])) > 0 and pathway[:, i].any()]
    rows = np.random.default_rng(3).permuted(np.tile(np.arange(len(present)), (199, 1)), axis=1)
    shares = []
    for permutation in rows:
        permuted = pathway.copy()
        permuted[present] = pathway[present][permutation]
        z = reference.order_alignment(layer.tuning, permuted, centre=False)
        # The spread is that of centred signs, whatever the order of the rows.
        own = np.nan_to_num(z) * spread_ratio(tuning, permuted)
        shares.append(float(np.mean(own[live] > 1.6448536)))
    found = order_test(layer.tuning, layer.pathway, seed=3).opt_chance
    assert found == sorted(shares)[189]  # exactly, so that an equal share does not exceed it


def spread_ratio(tuning, pathway):
    """The spread of the sum under independent signs, in units of that under the signs of a centred pathway."""
    kept = np.where(np.isnan(tuning) | (pathway == 0), 0.0, tuning)
    c, squares = reference.sign_correlation(len(tuning)), (kept**2).sum(axis=0)
    centred = squares + c * (kept.sum(axis=0) ** 2 - squares)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(squares / centred)


@pytest.mark.parametrize("classes", [5, 10, 60])
def test_z_is_standard_normal_where_all_units_share_one_wiring_and_one_tuning(classes):
    # n = 1,000 wirings, seed `classes`: 32 units that are alike, so that each by itself says the same. Standard error
    # of the mean 0.032, of the variance 0.045: the bounds are 4 of them.
    draw = torch.Generator().manual_seed(classes)
    tuning = torch.rand(classes, 32, generator=draw, dtype=torch.float64) + 2 * torch.rand(classes, 1, generator=draw)
    found = []
    for _ in range(1000):
        row = torch.randn(classes, 1, generator=draw, dtype=torch.float64)
        found.append(order_z(tuning, row + 0.1 * torch.randn(classes, 32, generator=draw, dtype=torch.float64)))
    z = torch.tensor(found)
    assert abs(z.mean()) < 4 * 0.032
    assert abs(z.var() - 1) < 4 * 0.045


def order_z(tuning, pathway):
    """As `order_test`, without the band."""
    from netdyn.modes.order import wiring_of
    from netdyn.modes.permutation import layer_z

    return float(layer_z(wiring_of(tuning, pathway, True), torch.ones(len(tuning), dtype=torch.bool)))


@pytest.mark.parametrize("classes", [5, 10])
def test_z_ends_at_the_number_of_classes_less_one(classes):
    eye = torch.eye(classes, dtype=torch.float64)
    assert order_test(2 * eye - 1, eye).z == pytest.approx(classes - 1)
    assert order_test(1 - 2 * eye, eye).z == pytest.approx(1 - classes)


def test_unit_order_and_scale_do_not_matter():
    layer = NASTY["skewed"]
    z, chance = order_test(layer.tuning, layer.pathway)
    mixed = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    other = order_test(layer.tuning[:, mixed], 100 * layer.pathway[:, mixed] + 7.0)
    assert other.z == pytest.approx(z, abs=1e-9)
    assert other.opt_chance == chance


def test_the_band_is_wide_where_units_are_alike():
    # 256 units: all different, or 8 groups of 32 copies.
    many, few = random_layer(samples=300, units=256, classes=10), random_layer(samples=300, units=8, classes=10)
    copies = order_test(few.tuning.repeat(1, 32), few.pathway.repeat(1, 32)).opt_chance
    assert copies >= 2 * order_test(many.tuning, many.pathway).opt_chance


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_give_nan(classes):
    layer = random_layer(units=40, classes=classes)
    assert all(map(math.isnan, order_test(layer.tuning, layer.pathway)))


def test_four_classes_present_of_eight_give_nan():
    layer = random_layer(units=40, classes=4)
    tuning = class_tuning(layer.fields, layer.target, 8)
    assert all(map(math.isnan, order_test(tuning, random_layer(units=40, classes=8).pathway)))


@pytest.mark.parametrize("dead", ["constant", "unwired"])
def test_layer_without_a_live_wired_unit_gives_nan(dead):
    layer = random_layer(units=30, classes=6)
    {"constant": layer.fields, "unwired": layer.pathway}[dead].zero_()
    assert all(map(math.isnan, order_test(layer.tuning, layer.pathway)))


def test_memory_is_bounded_and_blocks_do_not_matter(monkeypatch):
    layer = random_layer(samples=100, units=50, classes=10)
    whole = order_test(layer.tuning, layer.pathway)
    monkeypatch.setattr("netdyn.modes.permutation.AT_ONCE", 3 * 50 * 10)
    assert order_test(layer.tuning, layer.pathway) == whole


@pytest.mark.parametrize(("name", "times"), [("plain", 1), ("ties in the wiring", 199)])
def test_the_spread_is_found_once_where_all_units_are_wired_to_all_classes(monkeypatch, name, times):
    layer, calls, spread = NASTY[name], [], Wiring.spread
    monkeypatch.setattr("netdyn.modes.permutation.AT_ONCE", 1)
    monkeypatch.setattr(Wiring, "spread", lambda wiring, tuning: calls.append(tuning) or spread(wiring, tuning))
    order_test(layer.tuning, layer.pathway)
    assert len(calls) == times


def test_alpha_is_used():
    layer = random_layer(samples=100, units=50, classes=10)
    bands = [order_test(layer.tuning, layer.pathway, alpha=alpha).opt_chance for alpha in (0.05, 0.3)]
    assert bands[1] > bands[0] + 0.1
    shares = mode_shares(layer.tuning, layer.pathway, layer.constant, alpha=0.3)
    assert shares.opt_chance == bands[1]


@pytest.mark.parametrize(
    ("changes", "argument", "value"),
    [
        ({"pathway": torch.ones(5, 7)}, "pathway", "7"),
        ({"pathway": torch.ones(3, 40)}, "pathway", "3"),
        ({"tuning": [[0.5]]}, "tuning", "list"),
        ({"alpha": 1.5}, "alpha", "1.5"),
    ],
)
def test_wrong_arguments_are_named(changes, argument, value):
    layer = random_layer(units=40, classes=5)
    with pytest.raises((ValueError, TypeError), match=rf"(?s)\b{argument}\b.*{value}"):
        order_test(**{"tuning": layer.tuning, "pathway": layer.pathway} | changes)
