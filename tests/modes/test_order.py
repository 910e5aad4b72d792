"""Order index, alignment, gradient and shares of modes against their slow twins; calibration."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import reference
from netdyn.functional import class_tuning, order_alignment, order_index, rpd_gradient
from netdyn.modes.order import mode_shares
from reference import NASTY_LAYERS, layers, random_layer

exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def same(actual, expected):
    """Equal to the last bit, NaN for NaN."""
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=0, atol=0, equal_nan=True)


def close(actual, expected):
    """Equal within 1e-12, NaN for NaN."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def unambiguous(layer):
    """Whether every live unit has a tuning: with balanced classes a varying unit may have the tuning 0 throughout."""
    return not ((layer.tuning.nan_to_num() == 0).all(dim=0) & ~layer.constant).any()


# Order index, alignment and gradient


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("layer", NASTY_LAYERS.values(), ids=NASTY_LAYERS)
def test_index_equals_the_loop(layer, centre):
    close(
        order_index(layer.tuning, layer.pathway, centre=centre),
        reference.order_index(layer.tuning, layer.pathway, centre),
    )


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("layer", NASTY_LAYERS.values(), ids=NASTY_LAYERS)
def test_alignment_equals_the_loop(layer, centre):
    expected = reference.order_alignment(layer.tuning, layer.pathway, centre)
    close(order_alignment(layer.tuning, layer.pathway, centre=centre), expected)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("layer", NASTY_LAYERS.values(), ids=NASTY_LAYERS)
def test_gradient_equals_the_moment_of_the_ranks(layer, centre):
    expected = reference.rpd_gradient(layer.fields, layer.target, layer.pathway, layer.classes, centre)
    close(rpd_gradient(layer.tuning, layer.pathway, layer.share, centre=centre), expected)


@exactly
@given(layers(), st.booleans())
def test_index_and_alignment_of_tied_layers_equal_the_loop(layer, centre):
    tuning = layer.tuning
    close(order_index(tuning, layer.pathway, centre=centre), reference.order_index(tuning, layer.pathway, centre))
    close(
        order_alignment(tuning, layer.pathway, centre=centre), reference.order_alignment(tuning, layer.pathway, centre)
    )


@exactly
@given(layers(), st.booleans())
def test_gradient_of_tied_layers_equals_the_moment_of_the_ranks(layer, centre):
    assume(unambiguous(layer))
    expected = reference.rpd_gradient(layer.fields, layer.target, layer.pathway, layer.classes, centre)
    close(rpd_gradient(layer.tuning, layer.pathway, layer.share, centre=centre), expected)


@exactly
@given(layers(), st.booleans())
def test_opposite_pathway_negates_index_alignment_and_gradient(layer, centre):
    tuning, pathway = layer.tuning, layer.pathway
    same(order_index(tuning, -pathway, centre=centre), -order_index(tuning, pathway, centre=centre))
    same(order_alignment(tuning, -pathway, centre=centre), -order_alignment(tuning, pathway, centre=centre))
    gradient = rpd_gradient(tuning, pathway, layer.share, centre=centre)
    same(rpd_gradient(tuning, -pathway, layer.share, centre=centre), -gradient)


@exactly
@given(layers(), st.integers(-3, 3))
def test_row_added_to_all_logits_changes_neither_index_alignment_nor_gradient(layer, row):
    tuning, pathway = layer.tuning, layer.pathway
    same(order_index(tuning, pathway + row), order_index(tuning, pathway))
    same(order_alignment(tuning, pathway + row), order_alignment(tuning, pathway))
    same(rpd_gradient(tuning, pathway + row, layer.share), rpd_gradient(tuning, pathway, layer.share))


@exactly
@given(layers(), st.integers(-6, 6))
def test_scale_of_the_pathway_changes_neither_index_nor_alignment(layer, exponent):
    same(order_index(layer.tuning, layer.pathway * 10.0**exponent), order_index(layer.tuning, layer.pathway))
    same(order_alignment(layer.tuning, layer.pathway * 10.0**exponent), order_alignment(layer.tuning, layer.pathway))


@exactly
@given(layers(), st.booleans())
def test_index_stays_within_one(layer, centre):
    index = order_index(layer.tuning, layer.pathway, centre=centre)
    assert (index[~index.isnan()].abs() <= 1).all()


@pytest.mark.parametrize("classes", [3, 7, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rows_leave_a_unit_unwired_whatever_their_rounding(classes, dtype):
    # The mean over classes of 500 such rows is off by up to 4 roundings, which must not count as a sign.
    draw = torch.Generator().manual_seed(classes)
    row = torch.randn(500, generator=draw, dtype=torch.float64).to(dtype) * torch.logspace(-30, 30, 500).to(dtype)
    tuning, pathway = torch.linspace(-1, 1, classes, dtype=torch.float64)[:, None], row.expand(classes, 500)
    assert order_index(tuning.expand(classes, 500), pathway).isnan().all()
    assert mode_shares(tuning.expand(classes, 500), pathway, torch.zeros(500, dtype=torch.bool)).unwired_fraction == 1


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_gradient_of_perfect_order_is_its_bound(classes):
    # Unit k is large on class k and wired to logit k alone.
    target = torch.arange(4 * classes) % classes
    fields = (target[:, None] == torch.arange(classes)).double()
    tuning = class_tuning(fields, target, classes)
    share = torch.full((classes,), 1 / classes, dtype=torch.float64)
    eye = torch.eye(classes, dtype=torch.float64)
    close(rpd_gradient(tuning, eye, share, centre=False), 6 * (1 - 1 / classes))
    close(rpd_gradient(tuning, -eye, share, centre=False), -6 * (1 - 1 / classes))


def test_single_logit_counts_as_two_opposite_ones():
    layer = random_layer(classes=2)
    logit = layer.pathway[:1]
    for centre in (True, False):
        two = torch.cat([-logit / 2, logit / 2])
        same(order_index(layer.tuning, logit, centre=centre), order_index(layer.tuning, two, centre=centre))
        same(order_alignment(layer.tuning, logit, centre=centre), order_alignment(layer.tuning, two, centre=centre))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_order_statistics_are_float64(dtype):
    layer = random_layer()
    tuning, pathway = layer.tuning.to(dtype), layer.pathway.to(dtype)
    results = [
        order_index(tuning, pathway),
        order_alignment(tuning, pathway),
        rpd_gradient(tuning, pathway, layer.share),
    ]
    assert [result.dtype for result in results] == [torch.float64] * 3


# Calibration: under random wiring the alignment has variance 1, and alpha of the units count as order-preserving

PATHWAYS = 512
UNITS = 128


def randomly_wired(classes, samples, present=None):
    """Tuning of 128 random units, each wired by 512 random Gaussian pathways: [K, 65,536] twice."""
    layer = random_layer(samples=samples, units=UNITS, classes=present or classes, seed=classes)
    draw = torch.Generator().manual_seed(samples)
    tuning = class_tuning(layer.fields, layer.target, classes).repeat(1, PATHWAYS)
    return tuning, torch.randn(tuning.shape, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("samples", [100, 1000])
@pytest.mark.parametrize("classes", [5, 10, 20])
def test_sign_flip_test_finds_alpha_of_randomly_wired_units(classes, samples):
    # n = 65,536 sign vectors on 128 units, seeds `classes` and `samples`: standard error 0.0009 from the wiring.
    # The bound of 0.01 is 11 of these; what it leaves room for is the normal approximation with few classes.
    tuning, pathway = randomly_wired(classes, samples)
    shares = mode_shares(tuning, pathway, torch.zeros(tuning.shape[1], dtype=torch.bool))
    assert shares.rule == "sign-flip"
    assert abs(shares.opt_fraction - 0.05) < 0.01


@pytest.mark.parametrize(("classes", "present"), [(5, 5), (10, 10), (20, 20), (20, 6), (40, 20)])
def test_alignment_has_unit_variance_under_random_wiring(classes, present):
    # n = 65,536, seeds `classes` and 600; z^2 has a standard deviation below 1.5: the bound is 5 standard errors.
    z = order_alignment(*randomly_wired(classes, 600, present))
    assert abs(z.square().mean() - 1) < 0.03


@pytest.mark.parametrize("classes", [5, 10, 20])
def test_uncentred_alignment_has_unit_variance_under_random_wiring(classes):
    # n = 65,536, seeds `classes` and 600, 5 standard errors as above.
    z = order_alignment(*randomly_wired(classes, 600), centre=False)
    assert abs(z.square().mean() - 1) < 0.03


@pytest.mark.parametrize("wrong", [lambda c: 1.0, lambda c: 1 + c], ids=["no factor", "wrong sign"])
def test_calibration_refuses_a_wrong_factor(wrong):
    c = reference.sign_correlation(5)
    z = order_alignment(*randomly_wired(5, 1000)) * math.sqrt((1 - c) / wrong(c))
    assert abs(z.square().mean() - 1) > 0.03
    assert abs((z > 1.6449).double().mean() - 0.05) > 0.01


# Shares of modes


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
    layer.fields[3, 30:] = math.nan
    shares, inner = shares_of(layer), layer._replace(fields=layer.fields[:, :30], pathway=layer.pathway[:, :30])
    assert float(shares.opt_fraction) == pytest.approx(float(shares_of(inner).opt_fraction))
    assert float(shares.constant_fraction) == 0


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("dead", ["constant", "unwired"])
def test_shares_of_a_dead_layer_are_nan(classes, dead):
    layer = random_layer(units=30, classes=classes)
    {"constant": layer.fields, "unwired": layer.pathway}[dead].zero_()
    shares = shares_of(layer)
    assert math.isnan(shares.opt_fraction)
    assert math.isnan(shares.npt_fraction)
    assert float(getattr(shares, f"{dead}_fraction")) == 1


@pytest.mark.parametrize(
    ("units", "alpha", "rule"), [(19, 0.05, "none"), (20, 0.05, "mirror"), (9, 0.1, "none"), (10, 0.1, "mirror")]
)
def test_mirror_rule_needs_one_over_alpha_units(units, alpha, rule):
    shares = shares_of(random_layer(units=units, classes=3), alpha=alpha)
    assert shares.rule == rule
    assert math.isnan(shares.opt_fraction) == (rule == "none")
    assert math.isnan(shares.npt_fraction) == (rule == "none")


@pytest.mark.parametrize(("present", "rule"), [(4, "mirror"), (5, "sign-flip")])
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


@pytest.mark.parametrize(
    ("index", "opt"),
    [
        # The 5 % quantile of 21 values is the second smallest.
        ([-0.9, -0.4, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, *[0.45] * 9], 14),  # 0.4 is not above 0.4
        ([-0.1, *[0.5] * 20], 20),  # a positive tail leaves the threshold at 0
    ],
    ids=["negative tail", "positive tail"],
)
def test_mirror_rule_counts_what_exceeds_the_reflected_tail_and_zero(index, opt):
    index = torch.tensor(index, dtype=torch.float64)
    tuning, pathway = torch.stack([-index, index]), torch.tensor([[-1.0], [1.0]]).expand(2, 21)
    shares = mode_shares(tuning, pathway, torch.zeros(21, dtype=torch.bool))
    assert float(shares.opt_fraction) == pytest.approx(opt / 21)


# Wrong arguments

LAYER = random_layer(samples=6, units=3, classes=2)
TUNING = {"tuning": LAYER.tuning, "pathway": LAYER.pathway}
WRONG_PATHWAY = {
    "too many units": ({"pathway": torch.ones(2, 7)}, "pathway", "7"),
    "too many classes": ({"pathway": torch.ones(5, 3)}, "pathway", "5"),
    "1-D pathway": ({"pathway": LAYER.pathway[0]}, "pathway", "3"),
    "3-D tuning": ({"tuning": torch.ones(2, 3, 4)}, "tuning", "2, 3, 4"),
    "list of tunings": ({"tuning": [[0.5]]}, "tuning", "list"),
}
WRONG_SHARES = {
    "long constant": ({"constant": torch.zeros(7, dtype=torch.bool)}, "constant", "7"),
    "float constant": ({"constant": torch.zeros(3)}, "constant", "float32"),
    "alpha 0": ({"alpha": 0.0}, "alpha", "0.0"),
    "alpha 1.5": ({"alpha": 1.5}, "alpha", "1.5"),
}


@pytest.mark.parametrize("function", [order_index, order_alignment])
@pytest.mark.parametrize(("changes", "argument", "value"), WRONG_PATHWAY.values(), ids=WRONG_PATHWAY)
def test_index_and_alignment_name_the_wrong_argument_and_its_value(function, changes, argument, value):
    with pytest.raises((ValueError, TypeError), match=rf"(?s)\b{argument}\b.*{value}"):
        function(**TUNING | changes)


@pytest.mark.parametrize(
    ("changes", "argument", "value"),
    [*WRONG_PATHWAY.values(), ({"class_share": torch.ones(5) / 5}, "class_share", "5")],
    ids=[*WRONG_PATHWAY, "too many shares"],
)
def test_gradient_names_the_wrong_argument_and_its_value(changes, argument, value):
    with pytest.raises((ValueError, TypeError), match=rf"(?s)\b{argument}\b.*{value}"):
        rpd_gradient(**TUNING | {"class_share": LAYER.share} | changes)


@pytest.mark.parametrize(
    ("changes", "argument", "value"), (WRONG_PATHWAY | WRONG_SHARES).values(), ids=WRONG_PATHWAY | WRONG_SHARES
)
def test_shares_name_the_wrong_argument_and_its_value(changes, argument, value):
    with pytest.raises((ValueError, TypeError), match=rf"(?s)\b{argument}\b.*{value}"):
        mode_shares(**TUNING | {"constant": LAYER.constant} | changes)
