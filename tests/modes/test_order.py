"""Order index, alignment and gradient against their slow twins; calibration."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import reference
from netdyn.functional import class_tuning, order_alignment, order_index, rpd_gradient
from netdyn.modes.shares import mode_shares
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


@pytest.mark.parametrize("classes", [5, 10])
def test_alignment_has_unit_variance_where_classes_are_unequal(classes):
    # 90 % in one class, which lies above the others. n = 65,536, seeds `classes` and 600; 5 standard errors as above.
    # Without the term of the tuning's sum the variance is about 0.75 for 5 classes and 0.6 for 10.
    layer = random_layer(samples=600, units=UNITS, classes=classes, seed=classes)
    target = torch.where(torch.arange(600) < 540, 0, torch.arange(600) % classes)
    tuning = class_tuning(layer.fields + 2.0 * (target == 0)[:, None], target, classes).repeat(1, PATHWAYS)
    pathway = torch.randn(tuning.shape, generator=torch.Generator().manual_seed(600), dtype=torch.float64)
    z, c = order_alignment(tuning, pathway), reference.sign_correlation(classes)
    without = z * (tuning.square().sum(0) + c / (1 - c) * tuning.sum(0).square()).sqrt() / tuning.square().sum(0).sqrt()
    assert abs(z.square().mean() - 1) < 0.03
    assert abs(without.square().mean() - 1) > 0.1


@pytest.mark.parametrize("wrong", [lambda c: 1.0, lambda c: 1 + c], ids=["no factor", "wrong sign"])
def test_calibration_refuses_a_wrong_factor(wrong):
    c = reference.sign_correlation(5)
    z = order_alignment(*randomly_wired(5, 1000)) * math.sqrt((1 - c) / wrong(c))
    assert abs(z.square().mean() - 1) > 0.03
    assert abs((z > 1.6449).double().mean() - 0.05) > 0.01


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


@pytest.mark.parametrize("argument", ["tuning", "pathway"])
def test_a_wrong_shape_is_told_with_the_one_that_is_expected(argument):
    with pytest.raises(ValueError, match=rf"^`{argument}` must have shape \[classes, units\], got"):
        order_index(**TUNING | {argument: torch.ones(3)})


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
