"""Shares of modes against their slow twin, and the rules behind them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from netdyn.functional import class_tuning, order_test
from netdyn.modes.shares import mode_shares
from reference import NASTY_LAYERS, layers, random_layer

exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def shares_of(layer, **options):
    return mode_shares(layer.tuning, layer.pathway, layer.constant, **options)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("classes", [2, 3, 4, 5, 10])
def test_opt_fraction_equals_the_loop(classes, alpha, centre):
    layer = random_layer(units=150, classes=classes, levels=5, seed=classes)
    layer.fields[:, :7] = 1.0
    layer.pathway[:, 5:12] = 0.0
    shares = shares_of(layer, alpha=alpha, centre=centre)
    expected, rule = reference.opt_fraction(layer.tuning, layer.pathway, layer.constant, alpha, centre)
    assert shares.rule == rule
    assert float(shares.opt_fraction) == pytest.approx(expected, abs=1e-12)
    assert float(shares.opt_fraction + shares.npt_fraction) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 10])
def test_constant_and_unwired_units_stay_out_of_the_modes(classes):
    layer = random_layer(units=100, classes=classes)
    layer.fields[:, :10] = 3.0
    layer.pathway[:, 80:] = 0.0
    layer.pathway[:, :3] = 0.0  # constant as well: counted once
    shares, inner = shares_of(layer), layer._replace(fields=layer.fields[:, 10:80], pathway=layer.pathway[:, 10:80])
    assert float(shares.constant_fraction) == pytest.approx(0.1)
    assert float(shares.unwired_fraction) == pytest.approx(0.2)
    assert float(shares.opt_fraction) == pytest.approx(float(shares_of(inner).opt_fraction))


@pytest.mark.parametrize("classes", [2, 10])
def test_units_that_hold_nan_stay_out_of_the_modes(classes):
    layer = random_layer(units=60, classes=classes)
    layer = layer._replace(pathway=layer.tuning)  # all units preserve the order
    layer.fields[3, 30:] = math.nan
    shares, inner = shares_of(layer), layer._replace(fields=layer.fields[:, :30], pathway=layer.pathway[:, :30])
    assert shares.opt_fraction == shares_of(inner).opt_fraction == 1
    assert shares.order_mean == pytest.approx(shares_of(inner).order_mean)
    assert shares.constant_fraction == 0


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("dead", ["constant", "unwired"])
def test_shares_of_a_dead_layer_are_nan(classes, dead):
    layer = random_layer(units=30, classes=classes)
    {"constant": layer.fields, "unwired": layer.pathway}[dead].zero_()
    shares = shares_of(layer)
    assert math.isnan(shares.opt_fraction)
    assert math.isnan(shares.npt_fraction)
    assert float(getattr(shares, f"{dead}_fraction")) == 1


@pytest.mark.parametrize(("units", "rule"), [(19, "none"), (20, "false-discovery")])
def test_false_discovery_rule_needs_twenty_live_units(units, rule):
    layer = random_layer(units=units + 2, classes=3)
    layer.fields[:, 0] = 1.0
    layer.pathway[:, 1] = 0.0
    shares = shares_of(layer)
    assert shares.rule == rule
    assert math.isnan(shares.opt_fraction) == (rule == "none")
    assert math.isnan(shares.npt_fraction) == (rule == "none")
    assert not math.isnan(shares.positive_fraction + shares.order_mean)


@pytest.mark.parametrize(("present", "rule"), [(4, "false-discovery"), (5, "sign-flip")])
def test_rule_goes_by_the_classes_present(present, rule):
    layer = random_layer(units=40, classes=present)
    tuning = class_tuning(layer.fields, layer.target, 8)
    assert mode_shares(tuning, random_layer(units=40, classes=8).pathway, layer.constant).rule == rule


def test_shares_of_a_single_class_are_nan():
    layer = NASTY_LAYERS["one class"]
    shares = shares_of(layer)
    assert math.isnan(shares.opt_fraction)
    assert math.isnan(shares.npt_fraction)


@pytest.mark.parametrize(("sign", "opt"), [(1, 1.0), (-1, 0.0)])
@pytest.mark.parametrize("classes", [2, 4, 10, 20])
def test_units_wired_as_they_are_tuned_are_all_order_preserving(classes, sign, opt):
    layer = random_layer(units=40, classes=classes)
    shares = shares_of(layer._replace(pathway=sign * layer.tuning))
    assert float(shares.opt_fraction) == opt
    assert float(shares.npt_fraction) == 1 - opt


@exactly
@given(layers(), st.booleans())
def test_gradient_beside_the_shares_is_the_moment_of_the_ranks_of_all_live_units(layer, centre):
    expected = reference.rpd_gradient(layer.fields, layer.target, layer.pathway, layer.classes, centre)
    shares = shares_of(layer, class_share=layer.share, centre=centre)
    assert float(shares.rpd_gradient) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def modes_of(index):
    """The shares of two-class units with these order indices."""
    index = torch.as_tensor(index, dtype=torch.float64)
    pathway = torch.tensor([[-1.0], [1.0]]).expand(2, len(index))
    return mode_shares(torch.stack([-index, index]), pathway, torch.zeros(len(index), dtype=torch.bool))


@pytest.mark.parametrize(
    ("index", "opt"),
    [
        # From 0.3 on there are 10 above and 1 below, (1 + 1)/10; from 0.2 on 11 above and 2 below, more than a fifth.
        ([-0.2, -0.3, 0.2, *[0.3] * 5, *[0.4] * 5, *[0.0] * 7], 10),
        ([0.5] * 20, 20),
        ([-0.5] * 20, 0),
        ([0.9] * 4 + [-0.1] * 16, 0),  # four cannot be told from chance
        ([0.9] * 5 + [-0.1] * 15, 5),
        ([0.0] * 15 + [0.1] * 5, 5),  # an index of 0 is no order
        ([0.0] * 20, 0),
        ([0.0] * 2 + [0.5] * 18, 18),
    ],
    ids=["both", "all", "none", "four", "five", "zeros", "only zeros", "few zeros"],
)
def test_false_discovery_rule_counts_from_the_smallest_index_with_few_opposites(index, opt):
    assert modes_of(index).opt_fraction == pytest.approx(opt / len(index))


@exactly
@given(st.lists(st.integers(-4, 6), min_size=20, max_size=40))
def test_false_discovery_rule_equals_the_loop(values):
    index = torch.tensor(values) / 8
    assert modes_of(index).opt_fraction == pytest.approx(reference.discoveries(index).mean())


def test_layer_with_a_few_opposite_units_is_read_as_ordered():
    # 128 units, of which 6 % (8) are truly wired against their tuning, as strongly as the others are wired for it: the
    # share of opposites, (1 + 8)/120, is below a fifth.
    draw = torch.Generator().manual_seed(0)
    index = 0.3 + 0.1 * torch.randn(128, generator=draw)
    index[:8] *= -1
    assert modes_of(index.clamp(-1, 1)).opt_fraction >= 0.9


def test_positive_fraction_and_mean_are_those_of_live_wired_units():
    layer = random_layer(units=60, classes=3)
    layer.fields[:, :10] = 3.0
    layer.pathway[:, 50:] = 0.0
    index, tuning = reference.order_index(layer.tuning, layer.pathway)[10:50], layer.tuning
    # A unit that all classes find alike has the index 0, which is not positive.
    tuning[:, 20] = 0.0
    index[10] = 0.0
    shares = mode_shares(tuning, layer.pathway, layer.constant)
    assert shares.positive_fraction == pytest.approx((index > 0).mean())
    assert shares.order_mean == pytest.approx(index.mean())


@pytest.mark.parametrize("classes", [2, 4])
def test_few_classes_have_no_test_of_the_layer(classes):
    shares = shares_of(random_layer(units=40, classes=classes))
    assert math.isnan(shares.order_z)
    assert math.isnan(shares.opt_chance)


def test_the_layers_test_beside_the_shares_is_the_function():
    layer = random_layer(units=400, classes=6)
    layer.fields[:, :10] = 3.0
    live = layer._replace(fields=layer.fields[:, 10:], pathway=layer.pathway[:, 10:])
    shares = shares_of(layer, alpha=0.1)
    # Sums of the same numbers in other memory may differ in the last digit.
    expected = order_test(live.tuning, live.pathway, alpha=0.1)
    assert (shares.order_z, shares.opt_chance) == pytest.approx(tuple(expected), rel=1e-12)
    # Its band is that of the first of these seeds.
    bands = [order_test(live.tuning, live.pathway, alpha=0.1, seed=seed).opt_chance for seed in range(5)]
    assert shares.opt_chance == bands[0]
    assert len(set(bands)) > 1


# Wrong arguments

LAYER = random_layer(samples=6, units=3, classes=2)
TUNING = {"tuning": LAYER.tuning, "pathway": LAYER.pathway}
WRONG_SHARES = {
    "too many units": ({"pathway": torch.ones(2, 7)}, "pathway", "7"),
    "long constant": ({"constant": torch.zeros(7, dtype=torch.bool)}, "constant", "7"),
    "float constant": ({"constant": torch.zeros(3)}, "constant", "float32"),
    "alpha 0": ({"alpha": 0.0}, "alpha", "0.0"),
    "alpha 1.5": ({"alpha": 1.5}, "alpha", "1.5"),
}


@pytest.mark.parametrize(("changes", "argument", "value"), WRONG_SHARES.values(), ids=WRONG_SHARES)
def test_shares_name_the_wrong_argument_and_its_value(changes, argument, value):
    with pytest.raises((ValueError, TypeError), match=rf"(?s)\b{argument}\b.*{value}"):
        mode_shares(**TUNING | {"constant": LAYER.constant} | changes)
