"""Each rule has an example that triggers it, and one just beside it that does not."""

import dataclasses
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import scipy.stats
import torch

from netdyn.basins.curve import falling_curve
from netdyn.basins.result import BasinResult
from netdyn.linear.tails import CLOSE
from netdyn.modes.phases import Phase
from netdyn.probes.guessing import ERRORS, is_guessed
from netdyn.report.basin_findings import FALLBACK, FRAGILE, NARROW
from netdyn.report.findings import (
    AFFINE,
    ALIKE,
    BATCHNORM_GAP,
    DEAD_SHARE,
    DEFECT,
    HIGH,
    ORDER_LEVEL,
    ORDERED_TIMES,
    SHUT,
    STEADY,
    SURE,
    findings,
)

ALPHA = 0.05
NAN = math.nan
TINY = 1e-9
ROOT = Path(__file__).parents[2]


def layer(
    name="fc1",
    opt=NAN,
    constant=0.0,
    tail=NAN,
    defect=0.0,
    transfer=0.7,
    sampled=10**30,
    loss=NAN,
    error=0.0,
    z=NAN,
    dead=0.0,
):
    return SimpleNamespace(
        name=name,
        sampled=sampled,
        opt_fraction=opt,
        order_z=z,
        opt_chance=0.08,
        dead_fraction=dead,
        constant_fraction=constant,
        tail_accuracy=tail,
        tail_change=-loss,
        tail_error=error,
        affine_defect=defect,
        transfer_order=transfer,
    )


def class_curve(radius):
    """Accuracy falls from 1 to 0 at the radius."""
    if not 0 < radius < 9:
        return level(float(radius > 0))
    return falling_curve(1.0, [radius - TINY, radius + TINY], [1.0, 0.0])


def level(share):
    return falling_curve(1.0, [1e-3, 10.0], [share, share])


def basin(radius=1.0, per_class=(1.0, 1.0, 1.0), size=100, curves=None, **changes):
    """Classes of `size` samples, whose accuracy falls at once at their radius, or by curves of their own."""
    plain = dict.fromkeys((field.name for field in dataclasses.fields(BasinResult)), 0.5)
    radii = torch.tensor(per_class, dtype=torch.float64)
    plain |= {"radius": radius, "per_class": radii, "clean": 0.9, "high": 10.0, "level": 0.95}
    plain |= {"noise_classes": None, "per_sample": None, "per_layer": None}
    plain |= {
        "class_sizes": torch.full((len(radii),), size),
        "class_intervals": radii[:, None] * torch.tensor([0.9, 1.2]),
    }
    curves = curves or [None if math.isnan(r) else class_curve(r) for r in per_class]
    plain |= {"curve": dataclasses.replace(falling_curve(0.9, [1.0], [0.5]), classes=tuple(curves))}
    return BasinResult(**plain | changes)


def report(*layers, index=NAN, spread=NAN, mean=NAN, **changes):
    plain = {"layers": layers, "sample_basin": None, "weight_basin": None, "accuracy": 0.9, "val_accuracy": None}
    plain |= {"samples": 200, "num_classes": 10, "alpha": ALPHA, "functional_depth": NAN, "batchnorm_gap": NAN}
    plain |= {"batchnorm_train_gap": changes.get("batchnorm_gap", NAN)} | changes
    guess = plain.setdefault("guess", 1 / plain["num_classes"] if plain["num_classes"] > 1 else 0.0)
    untrained = is_guessed(plain["accuracy"], guess, plain["num_classes"], plain["samples"])
    return SimpleNamespace(**plain, untrained=untrained, phase=Phase(index, spread, mean))


def said(*layers, **changes):
    return findings(report(*layers, **changes))


REGRESSION = {"num_classes": 1, "accuracy": NAN}


def test_nothing_measured_gives_no_findings():
    assert said() == []
    assert said(**REGRESSION) == []


# Untrained


def untrained(accuracy, guess):
    return (
        "The network is untrained, has learnt little or fails on this probe: accuracy is "
        f"{100 * accuracy:.3g} %, and guessing gives {guess}."
    )


@pytest.mark.parametrize(("classes", "guess"), [(2, "50 %"), (3, "33.3 %"), (1000, "0.1 %")])
def test_an_accuracy_within_three_standard_errors_of_guessing_counts_as_untrained(classes, guess):
    limit = 1 / classes + ERRORS * math.sqrt((classes - 1) / classes**2 / 200)
    assert said(accuracy=limit - TINY, num_classes=classes) == [untrained(limit, guess)]
    assert said(accuracy=limit + TINY, num_classes=classes) == []
    assert said(accuracy=0.0, num_classes=classes) == [untrained(0, guess)]


def test_of_five_classes_or_more_twice_chance_counts_as_untrained_too():
    many = {"samples": 10**6, "num_classes": 100}
    assert said(accuracy=0.02, **many) == [untrained(0.02, "1 %")]
    assert said(accuracy=0.021, **many) == []
    # A fifth of the way from chance to 1, 20.8 %, would be 17 times chance here.
    assert said(accuracy=0.17, **many) == []
    assert said(accuracy=0.66, samples=10**6, num_classes=3) == []


def test_a_guess_may_be_the_largest_class():
    # 200 samples, of which 90 % are of one class: one standard error is 2.1 points.
    (sentence,) = said(accuracy=0.96, num_classes=2, guess=0.9)
    assert sentence.endswith("accuracy is 96 %, and guessing the largest class gives 90 %.")
    assert said(accuracy=0.97, num_classes=2, guess=0.9) == []


def test_of_an_untrained_network_nothing_is_said_about_order_phase_and_depth():
    order = {"index": 1.0, "spread": 2.0, "mean": 1.0, "functional_depth": 1.0}
    layers = layer(opt=0.5, tail=0.1, loss=0.3), layer("fc2", opt=0.6, tail=0.1, loss=0.0)
    assert said(*layers, accuracy=0.1, **order) == [untrained(0.1, "10 %")]
    assert said(layer(opt=0.01), accuracy=0.1) == [untrained(0.1, "10 %")]
    assert len(said(*layers, accuracy=0.9, **order)) == 3


# Order


def no_order(largest, needed):
    return f"No layer orders the samples by class beyond chance: the largest z is {largest}, and {needed} is needed."


def ordered(name, share, z=None):
    by_chance = f" (z {z}; by chance up to 8 %)" if z else ""
    return (
        f"Order is preserved most in layer {name}: {share} of its live units rank a class high where they are wired to "
        f"raise its logit, and low where they lower it{by_chance}."
    )


def test_one_layer_is_tested_at_one_percent():
    # The 99 % point of a standard normal number is 2.326.
    assert said(layer(opt=0.9, z=2.32)) == [no_order("2.3", "2.3")]
    assert said(layer(opt=0.06, z=2.33)) == [ordered("fc1", "6 %", "2.3")]


def test_of_several_layers_each_is_tested_at_its_part_of_one_percent():
    # 1 - 0.01/4 of a standard normal number lies below 2.807.
    layers = [layer(opt=0.5, z=1.0), layer("fc2", opt=0.4, z=-5.0), layer("fc3", opt=0.3, z=0.0)]
    assert said(*layers, layer("fc4", opt=0.3, z=2.80)) == [no_order("2.8", "2.8")]
    assert said(*layers, layer("fc4", opt=0.3, z=2.81)) == [ordered("fc4", "30 %", "2.8")]


def test_layers_of_noise_do_not_count_among_the_tested():
    noise = layer("fc2", opt=0.9, z=99.0, defect=DEFECT + TINY)
    assert said(layer(opt=0.3, z=2.4), noise)[0] == ordered("fc1", "30 %", "2.4")


def test_the_layer_with_the_largest_share_of_those_with_order_is_named():
    layers = [
        layer(opt=0.3, z=9.0),
        layer("fc2", opt=0.625, z=5.0),
        layer("fc3", opt=0.9, z=1.0),
        layer("fc4", opt=NAN),
    ]
    assert said(*layers) == [ordered("fc2", "62.5 %", "5.0")]


NO_ORDER = "No layer orders the samples by class beyond chance."


@pytest.mark.parametrize("opt", [0.0, ALPHA, ORDERED_TIMES * ALPHA])
def test_without_a_test_small_shares_are_no_order(opt):
    assert said(layer(opt=opt), layer("fc2", opt=0.01), num_classes=3) == [NO_ORDER]


def test_without_a_test_chance_is_measured_in_units_of_alpha():
    assert said(layer(opt=0.3), alpha=0.2) == [NO_ORDER]
    assert said(layer(opt=0.3), alpha=0.01) == [ordered("fc1", "30 %")]


def test_without_a_test_few_units_must_show_more():
    # Of 16 units 0.15 + 1/4 may be chance.
    assert said(layer(opt=0.3999, sampled=16)) == [NO_ORDER]
    assert said(layer(opt=0.4001, sampled=16)) == [ordered("fc1", "40 %")]


def test_layers_without_a_rule_and_layers_of_noise_are_not_named():
    assert said(layer(opt=NAN)) == []
    assert "Order" not in " ".join(said(layer(opt=0.9, z=9.0, defect=DEFECT + TINY)))
    assert said(layer(opt=0.9, z=9.0, defect=DEFECT)) == [ordered("fc1", "90 %", "9.0")]
    assert said(layer(opt=0.9, z=9.0, defect=NAN)) == [ordered("fc1", "90 %", "9.0")]


def test_findings_on_numbers_name_no_class():
    assert said(layer(opt=0.1), **REGRESSION) == ["No layer orders the samples by their target beyond chance."]
    assert said(layer(opt=0.5), **REGRESSION) == [
        "Order is preserved most in layer fc1: 50 % of its live units rank the samples by their target in the "
        "direction of their wiring."
    ]


# Phases


LARGEST = 6 * (1 - 1 / 10)
ONE = "Earlier layers order the samples by class more than later ones (learning phase I)."
TWO = "Later layers order the samples by class more than earlier ones (learning phase II)."
THREE = "All layers order the samples by class, strongly and about equally (learning phase III)."


def phase_of(index, spread, mean, *, opt=0.5, **changes):
    sentences = said(layer(opt=opt, **changes), layer("fc2", opt=opt), index=index, spread=spread, mean=mean)
    return [sentence for sentence in sentences if "phase" in sentence]


@pytest.mark.parametrize("mean", [0.01, 2.0])
def test_rising_gradients_are_phase_two_and_falling_ones_phase_one(mean):
    spread = ALIKE * LARGEST + TINY
    assert phase_of(STEADY, spread, mean) == phase_of(1.0, spread, mean) == [TWO]
    assert phase_of(-STEADY, spread, mean) == phase_of(-1.0, spread, mean) == [ONE]
    assert phase_of(STEADY - TINY, spread, mean) == phase_of(TINY - STEADY, spread, mean) == []


@pytest.mark.parametrize("index", [-1.0, 0.0, 1.0])
def test_gradients_that_are_alike_are_phase_three_if_high(index):
    assert phase_of(index, ALIKE * LARGEST, HIGH * LARGEST + TINY) == [THREE]
    assert phase_of(index, ALIKE * LARGEST, HIGH * LARGEST) == []
    assert phase_of(index, 0.0, -3.0) == []


def test_gradients_against_the_wiring_are_no_phase():
    assert phase_of(1.0, 2.0, 0.0) == phase_of(1.0, 2.0, -0.5) == []


def test_a_single_layer_is_in_no_phase():
    assert phase_of(NAN, 0.0, 2.0) == []


def test_without_order_beyond_chance_or_with_layers_of_noise_there_is_no_phase():
    assert phase_of(1.0, 2.0, 1.0, opt=ORDERED_TIMES * ALPHA) == []
    assert phase_of(1.0, 2.0, 1.0, defect=DEFECT + TINY) == []
    assert phase_of(1.0, 2.0, 1.0, defect=DEFECT) == [TWO]


def test_the_scale_of_gradients_depends_on_the_number_of_classes():
    # Of two classes gradients end at 3: a spread of 0.3 is alike there, and 0.4 is not.
    two = {"index": 1.0, "mean": 2.0, "num_classes": 2}
    assert said(layer(opt=0.5), spread=0.3, **two)[-1] == THREE
    assert said(layer(opt=0.5), spread=0.4, **two)[-1] == TWO
    assert phase_of(1.0, 0.4, 2.0) == [THREE]


# Linear tails


def tail_of(depth, *accuracies, accuracy=0.9, defects=(), error=0.0):
    defects = [*defects, *[0.0] * (len(accuracies) - len(defects))]
    layers = [
        layer(f"fc{i}", tail=a, defect=d, loss=accuracy - a, error=error)
        for i, (a, d) in enumerate(zip(accuracies, defects, strict=True))
    ]
    return [s for s in said(*layers, functional_depth=float(depth), accuracy=accuracy) if "removing" in s]


@pytest.mark.parametrize("loss", [-0.3, 0.0, 0.019])
def test_layers_act_linearly_if_the_test_says_so_too(loss):
    (limit,) = [(CLOSE - loss) / SURE]
    assert len(tail_of(1, 0.3, 0.9 - loss, error=limit - TINY)) == 1
    assert tail_of(1, 0.3, 0.9 - loss, error=limit + TINY) == []
    assert tail_of(1, 0.3, 0.9, 0.9 - loss, error=limit + TINY) == []


def test_the_layer_before_must_lose_more_by_the_test_too():
    error = 0.01
    short = 0.9 - CLOSE - SURE * error
    assert len(tail_of(1, short - TINY, 0.9, error=error)) == 1
    assert tail_of(1, short + TINY, 0.9, error=error) == []
    assert len(tail_of(2, 0.9, short - TINY, error=error)) == 1
    assert tail_of(2, 0.9, short + TINY, error=error) == []


@pytest.mark.parametrize(("loss", "words"), [(0.02 + TINY, "act linearly"), (0.02 - TINY, "not act linearly")])
def test_where_the_loss_is_just_what_is_allowed_a_sentence_is_false_in_a_twentieth_of_the_probes(loss, words):
    """4,000 probes of 1,000 samples, standard error 0.0034; without the test half of the sentences would be false."""
    draw = torch.Generator().manual_seed(0)
    number, samples, gained = 4000, 1000, 0.05
    chance = torch.rand(number, samples, generator=draw)
    change = (chance < gained).double() - (chance > 1 - gained - loss).double()
    means, errors = change.mean(dim=1), change.std(dim=1) / math.sqrt(samples)
    false = alone = 0
    for d, error in zip(means.tolist(), errors.tolist(), strict=True):
        depth = float(d < -CLOSE)
        false += any(words in s for s in said(layer(tail=0.9 + d, loss=-d, error=error), functional_depth=depth))
        alone += (depth == 1) == ("not" in words)
    assert 0.03 < false / number < 0.07
    assert alone / number > 0.4


def test_the_layers_that_act_linearly_are_counted_with_what_they_cost():
    # The two points that the rule of functional depth allows are not the findings' business.
    assert tail_of(5, *[0.3] * 5, 0.898, 0.9, 0.91, 0.9) == [
        "The last 4 of 9 layers act linearly: removing their activations costs 0.2 points of accuracy."
    ]


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (0.884, "costs 1.6 points of accuracy"),
        (0.89, "costs 1.0 point of accuracy"),
        (0.9, "costs no accuracy"),
        (0.9004, "costs no accuracy"),
        (0.8994, "costs 0.1 points of accuracy"),
        (0.914, "gains 1.4 points of accuracy"),
        (0.936, "gains 3.6 points of accuracy"),
    ],
)
def test_the_cost_is_given_in_points(tail, words):
    assert tail_of(1, 0.3, tail, 0.9) == [f"The last 2 of 3 layers act linearly: removing their activations {words}."]


def test_one_layer_and_all_layers_have_words_of_their_own():
    assert tail_of(1, 0.3, 0.9) == ["The last of 2 layers acts linearly: removing its activation costs no accuracy."]
    assert tail_of(0, 0.9) == ["The only layer acts linearly: removing its activation costs no accuracy."]
    assert tail_of(0, 0.895, 0.9) == [
        "Both layers act linearly: removing their activations costs 0.5 points of accuracy."
    ]


def test_where_no_layer_acts_linearly_the_last_one_is_named():
    assert tail_of(2, 0.3, 0.775) == [
        "Even the last of 2 layers does not act linearly: removing its activation costs 12.5 points of accuracy."
    ]
    assert tail_of(1, 0.8) == [
        "The only layer does not act linearly: removing its activation costs 10.0 points of accuracy."
    ]


def test_tails_of_noise_are_not_reported():
    assert tail_of(1, 0.3, 0.9, 0.9, defects=[0.0, 0.0, DEFECT + TINY]) == []
    assert len(tail_of(1, 0.3, 0.9, 0.9, defects=[0.0, 0.0, DEFECT])) == 1
    assert tail_of(1, 0.3, 0.9, 0.9, defects=[1.0]) == []
    assert tail_of(2, 0.3, 0.775, defects=[0.0, 1.0]) == []


def test_what_stays_when_activations_go_is_said_where_it_is_not_linear():
    stays = "Max-pooling, normalisation, gates and attention stay, and are not linear."
    assert tail_of(1, 0.3, 0.9, 0.9, defects=[0.0, AFFINE + TINY, 0.0]) == [
        f"The last 2 of 3 layers need no activations: removing them costs no accuracy. {stays}"
    ]
    assert tail_of(1, 0.3, 0.9, defects=[0.0, AFFINE + TINY]) == [
        f"The last of 2 layers needs no activation: removing it costs no accuracy. {stays}"
    ]
    assert "act linearly" in tail_of(1, 0.3, 0.9, 0.9, defects=[AFFINE + TINY, AFFINE, AFFINE])[0]


def test_a_layer_that_does_not_act_linearly_needs_a_tail_that_means_something():
    assert tail_of(2, 0.3, 0.775, defects=[0.0, AFFINE + TINY]) == tail_of(2, 0.3, 0.775)
    assert tail_of(NAN, 0.9) == []


# Dead units and activations


@pytest.mark.parametrize(("constant", "named"), [(DEAD_SHARE, False), (DEAD_SHARE + 0.01, True), (1.0, True)])
def test_layers_with_many_constant_units_are_named(constant, named):
    sentences = said(layer(constant=constant), layer("fc2"), layer("fc3", constant=NAN))
    assert sentences == (
        [f"{100 * constant:.3g} % of the units of layer fc1 get the same input for every sample."] if named else []
    )


def test_of_many_layers_the_first_three_are_named():
    def dead(number):
        return said(*[layer(f"fc{i}", constant=0.5) for i in range(number)])

    assert dead(3) == [f"50 % of the units of layer fc{i} get the same input for every sample." for i in range(3)]
    assert dead(4) == [*dead(3), "In 1 more layer, over 20 % of the units get the same input for every sample."]
    assert dead(100) == [*dead(3), "In 97 more layers, over 20 % of the units get the same input for every sample."]


def shut(names):
    return (
        f"The activation of {names} keeps the order of less than 10 % of the pairs of samples: it cuts off or "
        "inverts nearly everything that reaches it."
    )


def test_activations_that_let_little_through_are_named():
    assert said(layer(transfer=SHUT), layer(transfer=NAN)) == []
    assert said(layer(transfer=SHUT), layer("fc2", transfer=SHUT - TINY)) == [shut("layer fc2")]
    many = [layer(f"fc{i}", transfer=0.0) for i in range(5)]
    assert said(*many[:3]) == [shut("layers fc0, fc1, fc2")]
    assert said(*many) == [shut("layers fc0, fc1, fc2 and 2 more")]


# Batch normalisation


GAP = (
    "With batch statistics in batch normalisation, accuracy is {} points higher: the running statistics lag behind or "
    "are corrupted."
)


def test_what_batch_statistics_gain_is_reported_above_two_points():
    assert said(batchnorm_gap=BATCHNORM_GAP) == said(batchnorm_gap=NAN) == said(batchnorm_gap=-0.5) == []
    assert said(batchnorm_gap=BATCHNORM_GAP + TINY) == [GAP.format("8.0")]
    assert said(batchnorm_gap=0.471, val_accuracy=0.5) == [GAP.format("47.1")]


def test_a_gap_on_the_validation_probe_alone_is_no_fault_of_the_statistics():
    both = {"batchnorm_gap": 0.471, "val_accuracy": 0.5}
    assert said(**both, batchnorm_train_gap=BATCHNORM_GAP) == [
        "With batch statistics in batch normalisation, accuracy is 47.1 points higher on the validation probe but not "
        "on the training probe: the validation data are distributed otherwise than the training data."
    ]
    assert said(**both, batchnorm_train_gap=BATCHNORM_GAP + TINY) == [GAP.format("47.1")]
    assert said(**both, batchnorm_train_gap=NAN) == []


def test_a_gain_that_ends_at_guessing_means_nothing():
    limit = 0.2
    assert said(accuracy=0.1, batchnorm_gap=limit - 0.1 - TINY) == [untrained(0.1, "10 %")]
    # The gap belongs to the validation probe where there is one.
    assert said(accuracy=0.9, val_accuracy=0.1, batchnorm_gap=limit - 0.1 - TINY) == []
    assert said(accuracy=0.9, val_accuracy=0.1, batchnorm_gap=limit - 0.1 + TINY) == [GAP.format("10.0")]


def test_a_network_that_its_statistics_make_guess_is_not_called_untrained():
    assert said(accuracy=0.1, batchnorm_gap=0.85) == [GAP.format("85.0")]


# Affine defects


def noise(names):
    return (
        f"The wiring from {names} to the outputs changes so much from sample to sample that OPT, NPT, gradient and "
        "linear tail mean nothing there."
    )


def test_layers_whose_wiring_is_noise_are_named():
    assert said(layer(defect=DEFECT), layer(defect=NAN)) == []
    assert said(layer(defect=DEFECT), layer("fc2", defect=DEFECT + TINY)) == [noise("layer fc2")]
    assert said(*[layer(f"fc{i}", defect=1.0) for i in range(4)]) == [noise("layers fc0, fc1, fc2 and 1 more")]


# Basins


def sample(*args, **changes):
    return said(sample_basin=basin(*args, **changes))


def weight(*args, **changes):
    return said(weight_basin=basin(*args, **changes))


def test_radius_is_put_in_words():
    assert sample(radius=0.123, per_class=(0.1, 0.2)) == [
        "Noise of 0.123 on every component of the samples brings accuracy down to 50 %."
    ]
    assert weight(radius=1.38, accuracy=0.625) == [
        "Noise of 1.38 standard deviations on the weights brings accuracy down to 62.5 %."
    ]


@pytest.mark.parametrize(
    ("radius", "amount"),
    [(1.0, "1 standard deviation"), (0.9999, "1 standard deviation"), (1.014, "1.01 standard deviations")],
)
def test_noise_is_given_to_three_digits_in_the_right_number(radius, amount):
    assert weight(radius=radius)[0] == f"Noise of {amount} on the weights brings accuracy down to 50 %."
    (endless,) = weight(radius=math.inf, high=radius)
    assert endless.startswith(f"Noise on the weights up to {amount}, the highest")


def test_radius_zero_means_no_basin():
    none = basin(radius=0.0, clean=0.31, noise_classes=torch.tensor([1.0, 0, 0]), per_layer={"a": 0.0, "b": 0.0})
    why = "without noise, accuracy is 31 %, not above 50 %."
    assert said(sample_basin=none) == [f"There is no sample basin: {why}"]
    assert said(weight_basin=none) == [f"There is no weight basin: {why}"]
    assert said(sample_basin=none, weight_basin=none) == [f"There is no sample basin and no weight basin: {why}"]


def test_infinite_radius_means_that_noise_does_not_reach_that_far():
    assert sample(radius=math.inf, accuracy=0.75) == [
        "Noise on every component of the samples up to 10, the highest level tried, leaves accuracy above 75 %."
    ]
    assert weight(radius=math.inf, high=2.5) == [
        "Noise on the weights up to 2.5 standard deviations, the highest level tried, leaves accuracy above 50 %."
    ]


def test_basins_without_classes_count_answers():
    votes = {"noise_classes": torch.tensor([1.0]), "per_class": (0.01,)}
    found, none, endless = (basin(radius=r, clean=0.31, **votes) for r in (0.5, 0.0, math.inf))
    assert said(sample_basin=found, weight_basin=found, **REGRESSION) == [
        "Noise of 0.5 on every component of the samples leaves 50 % of the answers right.",
        "Noise of 0.5 standard deviations on the weights leaves 50 % of the answers right.",
    ]
    assert said(sample_basin=none, **REGRESSION) == [
        "There is no sample basin: without noise, 31 % of the answers are right, not above 50 %."
    ]
    assert said(weight_basin=endless, **REGRESSION) == [
        "Noise on the weights up to 10 standard deviations, the highest level tried, leaves more than 50 % of the "
        "answers right."
    ]


def test_narrow_and_wide_classes_are_named():
    radii = (NARROW - 0.01, 1.0, math.inf, 1 / NARROW + 0.1, 0.0, NAN)
    assert sample(per_class=radii)[1:] == [
        "Sample basins less than half as wide as over all samples (radius, 95 % interval): classes 0 (0.49, 0.44 to "
        "0.59), 4 (0, 0 to 0).",
        "Sample basins more than twice as wide as over all samples (radius, 95 % interval): classes 2 (above 10, above "
        "10 to above 10), 3 (2.1, 1.9 to 2.5).",
    ]


@pytest.mark.parametrize(("size", "right"), [(20, 3), (20, 4), (200, 80), (200, 81)])
@pytest.mark.parametrize("accuracy", [0.5, 0.75])
def test_a_class_is_narrow_or_wide_if_its_answers_are_improbable(size, right, accuracy):
    """Of three classes one: P(Bin(n, a) <= right) < 0.025 / 3, and likewise for the wrong answers of a wide class."""
    improbable = bool(scipy.stats.binom.cdf(right, size, accuracy) < 0.025 / 3)
    share = level(right / size)
    curves = [share, class_curve(1.0), class_curve(1.0)]
    told = sample(per_class=(0.1, 1.0, 1.0), size=size, curves=curves, accuracy=accuracy)[1:]
    assert [text.split()[2] for text in told] == ["less"] * improbable
    curves[0] = level(1 - right / size)
    improbable = bool(scipy.stats.binom.cdf(right, size, 1 - accuracy) < 0.025 / 3)
    told = sample(per_class=(5.0, 1.0, 1.0), size=size, curves=curves, accuracy=accuracy)[1:]
    assert [text.split()[2] for text in told] == ["more"] * improbable


def test_classes_within_a_factor_of_two_and_absent_ones_are_not():
    assert len(sample(per_class=(NARROW, 1 / NARROW, NAN))) == 1
    assert len(sample(radius=math.inf, per_class=(0.1, math.inf))) == 1


def test_one_class_is_named_in_the_singular_and_of_many_the_first_ten():
    start = "Sample basins less than half as wide as over all samples (radius, 95 % interval): "
    assert sample(per_class=(1.0, 0.1))[1] == f"{start}class 1 (0.1, 0.09 to 0.12)."
    many = sample(per_class=(0.1,) * 30)[1]
    assert many == start + "classes " + ", ".join(f"{k} (0.1, 0.09 to 0.12)" for k in range(10)) + ", …."


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("radius", [0.5, math.inf])
def test_the_class_predicted_under_noise_is_named(classes, radius):
    limit = 1 / classes + FALLBACK * (1 - 1 / classes)

    def fallback(share):
        votes = torch.full((classes,), (1 - share) / (classes - 1), dtype=torch.float64)
        votes[1] = share
        return sample(radius=radius, per_class=(1.0,) * classes, noise_classes=votes)[-1:]

    assert fallback(0.96) == ["Under the strongest noise tried, the network predicts class 1 for 96 % of the samples."]
    assert "predicts class 1" in fallback(limit + TINY)[0]
    assert "predicts class" not in fallback(limit - TINY)[0]
    assert "predicts class" not in fallback(1 / classes)[0]


def test_the_most_fragile_weights_are_named():
    def fragile(**radii):
        return weight(per_layer=radii)[1:]

    limit = FRAGILE * 2.0
    assert fragile(a=2.0, b=limit - 0.01, c=1.5, d=9.0) == [
        "The most fragile weights are b: their own radius is 0.99 standard deviations, less than half the median of "
        "the others."
    ]
    assert fragile(a=2.0, b=limit, c=1.5, d=9.0) == []
    assert len(fragile(a=0.1, b=math.inf)) == 1
    assert fragile(a=math.inf, b=math.inf) == fragile(a=0.1) == fragile(a=0.0, b=1.0) == fragile(a=1.0, b=1.5) == []


# Together


def test_sentences_come_in_a_fixed_order():
    layers = (
        layer(opt=0.5, constant=0.5, tail=0.5, loss=0.4, transfer=0.0),
        layer("fc2", opt=0.6, tail=0.9, loss=0.0),
    )
    sentences = said(
        *layers,
        sample_basin=basin(per_class=(0.1, 1.0)),
        weight_basin=basin(),
        functional_depth=1.0,
        batchnorm_gap=0.125,
        index=1.0,
        spread=2.0,
        mean=1.0,
    )
    starts = ["Order", "Later", "The last", "50 %", "The activation", "With", "Noise", "Sample", "Noise"]
    assert len(sentences) == len(starts)
    assert all(sentence.startswith(start) for sentence, start in zip(sentences, starts, strict=True))


def examples():
    """What the page of findings quotes, sentence by sentence, from reports."""
    order = {"spread": 2.0, "mean": 1.0}
    layers = layer("hidden.1", opt=0.62), layer("hidden.2", opt=0.3)
    nine = [layer(f"fc{i}", tail=t, loss=0.9 - t) for i, t in enumerate([0.3] * 5 + [0.898] * 4)]
    pooled = [layer(f"fc{i}", tail=t, loss=0.9 - t, defect=0.2) for i, t in enumerate([0.3] * 5 + [0.898] * 4)]
    none = basin(radius=0.0, clean=0.11)
    votes = torch.tensor([0.1, 0.8, 0.1], dtype=torch.float64)
    return {
        *said(accuracy=0.11),
        *said(accuracy=0.91, num_classes=2, guess=0.9),
        *said(layer(opt=0.05)),
        *said(layer(opt=0.05, z=0.3), layer("fc2", opt=0.1, z=1.2)),
        *said(layer("hidden.1", opt=0.62, z=9.3)),
        *said(layer(opt=0.05), **REGRESSION),
        *said(*layers, index=-1.0, **order),
        *said(*layers, index=1.0, **order),
        *said(*layers, index=0.0, spread=0.1, mean=2.0),
        *said(*layers, **REGRESSION),
        *said(*nine, functional_depth=5.0),
        *said(*pooled, functional_depth=5.0),
        *said(*nine[3:5], functional_depth=2.0),
        *said(layer("hidden.1", dead=0.62)),
        *said(layer("hidden.1", constant=0.62)),
        *said(layer("hidden.1", transfer=0.05)),
        *said(batchnorm_gap=0.471),
        *said(batchnorm_gap=0.471, batchnorm_train_gap=0.0, val_accuracy=0.5),
        *said(layer("attention", defect=0.95)),
        *said(sample_basin=basin(radius=0.66, per_class=(0.1, 1, 9), noise_classes=votes)),
        *said(weight_basin=basin(radius=1.38, per_layer={"0.weight": 0.3, "2.weight": 1.4})),
        *said(sample_basin=none, weight_basin=none),
        *said(weight_basin=basin(radius=math.inf)),
        *said(sample_basin=basin(radius=0.66), **REGRESSION),
    }


def test_thresholds_are_those_that_sentences_and_page_name():
    assert (ERRORS, ORDER_LEVEL, ORDERED_TIMES, ALIKE, HIGH, STEADY) == (3.0, 0.01, 3.0, 0.1, 0.2, 0.5)
    assert (DEAD_SHARE, SHUT, BATCHNORM_GAP, DEFECT, CLOSE, SURE) == (0.2, 0.1, 0.08, 0.9, 0.02, 1.64)
    assert AFFINE == 0.05
    assert (NARROW, FALLBACK, FRAGILE) == (0.5, 0.5, 0.5)


def test_the_page_of_findings_quotes_every_sentence_and_no_other():
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    quoted = [" ".join(found.split("\n> ")) for found in re.findall(r"^> (.*(?:\n> .*)*)", page, re.MULTILINE)]
    assert sorted(quoted) == sorted(examples())


def test_no_finding_on_numbers_names_classes_accuracy_or_phases():
    layers = layer(opt=0.5, constant=0.5, transfer=0.0, defect=1.0), layer("fc2", opt=0.4)
    votes, per_class = torch.tensor([1.0]), (0.01,)
    both = basin(radius=0.5, per_class=per_class, noise_classes=votes, per_layer={"0.weight": 0.1, "2.weight": 0.4})
    sentences = said(*layers, sample_basin=both, weight_basin=both, **REGRESSION)
    assert len(sentences) == 7
    assert not [s for s in sentences if re.search("class|logit|phase|accuracy", s)]


def test_no_sentence_equates_order_with_separability():
    assert not [sentence for sentence in examples() if "separab" in sentence.lower()]
