"""Each rule has an example that it speaks of, and one just beside it that it does not."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from netdyn.findings import DEAD_SHARE, FALLBACK, NARROW, ORDERED_TIMES, findings
from netdyn.radii import BasinResult, falling_curve

ALPHA = 0.05


def layer(name="fc1", opt=0.05, constant=0.0):
    return SimpleNamespace(name=name, sampled=10**30, opt_fraction=opt, constant_fraction=constant)


def basin(radius=1.0, per_class=(1.0, 1.0, 1.0), **changes):
    plain = dict.fromkeys((field.name for field in dataclasses.fields(BasinResult)), 0.5)
    plain |= {"radius": radius, "per_class": torch.tensor(per_class, dtype=torch.float64), "clean": 0.9}
    plain |= {"noise_classes": None, "per_sample": None, "per_layer": None, "curve": falling_curve(0.9, [1.0], [0.5])}
    return BasinResult(**plain | changes)


def test_nothing_measured_is_nothing_to_say():
    assert findings([], None, ALPHA) == []


# Order


NO_ORDER = "No layer orders the samples by class beyond what wiring at random would show (5% of its units)."


@pytest.mark.parametrize("opt", [0.0, ALPHA, ORDERED_TIMES * ALPHA])
def test_shares_that_wiring_at_random_could_show_are_no_order(opt):
    assert findings([layer(opt=opt), layer("fc2", opt=0.01)], None, ALPHA) == [NO_ORDER]


def test_the_layer_with_the_largest_share_beyond_chance_is_named():
    layers = [layer(opt=0.3), layer("fc2", opt=0.62), layer("fc3", opt=math.nan)]
    assert findings(layers, None, ALPHA) == [
        "Order is preserved most in layer fc2: by 62% of its units (at random 5%)."
    ]


def test_chance_is_measured_in_units_of_alpha():
    assert findings([layer(opt=0.3)], None, 0.2) == [NO_ORDER.replace("5%", "20%")]
    assert findings([layer(opt=0.3)], None, 0.01) == [
        "Order is preserved most in layer fc1: by 30% of its units (at random 1%)."
    ]


def test_layers_without_a_rule_are_not_spoken_of():
    assert findings([layer(opt=math.nan)], None, ALPHA) == []


# Constant units


@pytest.mark.parametrize(("constant", "named"), [(DEAD_SHARE, False), (DEAD_SHARE + 0.01, True), (1.0, True)])
def test_layers_with_many_constant_units_are_named(constant, named):
    sentences = findings([layer(opt=math.nan, constant=constant), layer("fc2", opt=math.nan)], None, ALPHA)
    assert sentences == ([f"{constant:.0%} of the units of layer fc1 say the same for every sample."] if named else [])


# Basins


def test_radius_is_put_in_words():
    assert findings([], basin(radius=0.123), ALPHA)[0] == (
        "Noise of 0.12 on every input component brings accuracy down to 50%."
    )


def test_radius_zero_means_no_basin():
    assert findings([], basin(radius=0.0, clean=0.31), ALPHA) == [
        "There is no sample basin: without noise accuracy is 31%, below 50%."
    ]


def test_infinite_radius_means_that_noise_does_not_reach_that_far():
    assert findings([], basin(radius=math.inf, accuracy=0.75), ALPHA) == [
        "Noise up to the highest level tried leaves accuracy above 75%."
    ]


def test_narrow_and_wide_classes_are_named():
    radii = (NARROW - 0.01, 1.0, math.inf, 1 / NARROW + 0.1, 0.0, math.nan)
    assert findings([], basin(per_class=radii), ALPHA)[1:] == [
        "Narrow basins, less than half as wide: classes 0, 4.",
        "Wide basins, more than twice as wide: classes 2, 3.",
    ]


def test_classes_within_a_factor_of_two_and_absent_ones_are_not():
    assert len(findings([], basin(per_class=(NARROW, 1 / NARROW, math.nan)), ALPHA)) == 1


def test_one_class_is_named_in_the_singular_and_of_many_the_first_ten():
    assert findings([], basin(per_class=(1.0, 0.1)), ALPHA)[1] == "Narrow basins, less than half as wide: class 1."
    many = findings([], basin(per_class=(0.1,) * 30), ALPHA)[1]
    assert many == "Narrow basins, less than half as wide: classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …."


def test_sentences_come_in_a_fixed_order():
    sentences = findings([layer(opt=0.5, constant=0.5)], basin(per_class=(0.1, 1.0)), ALPHA)
    assert [sentence.split()[0] for sentence in sentences] == ["Order", "50%", "Noise", "Narrow"]


def test_the_class_that_noise_is_mostly_taken_for_is_named():
    mostly = basin(noise_classes=torch.tensor([0.2, 0.7, 0.1]))
    assert findings([], mostly, ALPHA)[-1] == "Noise alone is mostly taken for class 1."


def test_no_class_is_named_where_noise_is_taken_for_several():
    divided = basin(noise_classes=torch.tensor([FALLBACK, 0.3, 0.2]))
    assert not any("Noise alone" in sentence for sentence in findings([], divided, ALPHA))
