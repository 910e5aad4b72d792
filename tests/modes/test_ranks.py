"""Mid-ranks, class tuning and the rank distribution against their slow twins, and what must leave them unchanged."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from netdyn.functional import class_tuning, midranks, order_index, rank_correlation, rank_distribution, rpd_gradient
from netdyn.modes import ranks
from netdyn.modes.ranks import (
    centre_pathway,
    correlation_from_ranks,
    doubled_midranks,
    finite_samples,
    label_tuning_from_ranks,
)
from reference import NASTY_LAYERS, Layer, layers, random_layer

exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)

INCREASING = {
    "affine": lambda h: 3 * h + 1,
    "cube": lambda h: h**3,
    "exponential": lambda h: h.exp(),
    "saturating": lambda h: h.atan(),
    "float32": lambda h: h.float(),
    "integer": lambda h: h.long(),
}

# A call, the argument at fault and a value that the message must show.
LAYER = random_layer(samples=6, units=3, classes=2)
WRONG = {
    "float target": ({"target": LAYER.target.double()}, "target", "float64"),
    "negative target": ({"target": LAYER.target - 1}, "target", "-1"),
    "target too large": ({"target": LAYER.target + 6}, "target", "7"),
    "target too short": ({"target": LAYER.target[:5]}, "target", "5"),
    "2-D target": ({"target": LAYER.target[:, None]}, "target", "6, 1"),
    "1-D fields": ({"fields": LAYER.fields[:, 0]}, "fields", "6"),
    "3-D fields": ({"fields": LAYER.fields[:, :, None]}, "fields", "6, 3, 1"),
    "no class": ({"num_classes": 0}, "num_classes", "0"),
}


def same(actual, expected):
    """Equal to the last bit, NaN for NaN."""
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=0, atol=0, equal_nan=True)


def close(actual, expected):
    """Equal within 1e-12, NaN for NaN."""
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=0, atol=1e-12, equal_nan=True)


def distribution(layer, **options):
    return rank_distribution(layer.fields, layer.target, layer.pathway, layer.classes, **options)


# Mid-ranks


@pytest.mark.parametrize("layer", NASTY_LAYERS.values(), ids=NASTY_LAYERS)
def test_midranks_equal_scipy(layer):
    same(midranks(layer.fields), reference.midranks(layer.fields))


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor([3, 1, 3, 2]),
        torch.tensor([3, 1, 3, 2], dtype=torch.int8),
        torch.tensor([2**53 + 1, 2**53, 2**53 + 1]),
        torch.tensor([[-0.0, math.inf], [0.0, math.inf], [5e-324, -math.inf]], dtype=torch.float64),
        torch.tensor([1.0, math.nan, 0.0]),
        torch.tensor([7.0]),
        torch.arange(12.0).reshape(3, 4).T,
        torch.tensor([1.0, 1.0078125, 1.0], dtype=torch.bfloat16),
    ],
    ids=["int64", "int8", "beyond float64", "zeros and infinities", "NaN", "one", "transposed", "bfloat16"],
)
def test_midranks_of_any_dtype_equal_scipy(x):
    same(midranks(x), reference.midranks(x).astype(float))


@pytest.mark.parametrize("samples", [65_536, 1_000_000])
def test_midranks_of_many_equal_values_are_exact(samples):
    same(midranks(torch.ones(samples)), torch.full((samples,), (samples + 1) / 2, dtype=torch.float64))


def test_midranks_of_a_million_values_in_two_ties_are_exact():
    ranks = midranks((torch.arange(1_000_000) % 4 == 0).to(torch.bfloat16))
    assert ranks[:2].tolist() == [750_000 + 250_001 / 2, 750_001 / 2]
    assert ranks.sum().item() == 1_000_000 * 1_000_001 / 2


def test_midranks_leave_their_input_alone():
    x = torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 3.0]], requires_grad=True)
    ranks = midranks(x)
    assert x.tolist() == [[2.0, 1.0], [1.0, 2.0], [3.0, 3.0]]
    assert not ranks.requires_grad


@exactly
@given(layers())
def test_midranks_sum_to_the_triangular_number(layer):
    samples = len(layer.target)
    assert (midranks(layer.fields).sum(dim=0) == samples * (samples + 1) / 2).all()


@exactly
@given(layers())
def test_midranks_of_the_negative_are_the_reflection(layer):
    same(midranks(-layer.fields), len(layer.target) + 1 - midranks(layer.fields))


# Class tuning


@pytest.mark.parametrize("layer", NASTY_LAYERS.values(), ids=NASTY_LAYERS)
def test_tuning_equals_counting_pairs(layer):
    close(class_tuning(layer.fields, layer.target, layer.classes), layer.tuning)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_tuning_takes_integer_labels_of_any_width(dtype):
    layer = NASTY_LAYERS["K = 10"]
    close(class_tuning(layer.fields, layer.target.to(dtype), 10), layer.tuning)


@pytest.mark.parametrize("samples", [65_536, 1_000_000])
def test_tuning_of_a_constant_unit_is_zero_at_any_size(samples):
    tuning = class_tuning(torch.ones(samples, 1), torch.arange(samples) % 3, 3)
    assert tuning.tolist() == [[0.0]] * 3


def test_tuning_of_a_million_tied_values_is_exact():
    fields, target = torch.arange(1_000_000) % 4 // 2, torch.arange(1_000_000) % 2
    fields[0], fields[2] = 1, 2
    # Even classes but for two samples of class 0: one gained 500,000 wins less losses, the other 250,000.
    expected = torch.tensor([[750_000 / 500_000**2], [-750_000 / 500_000**2]], dtype=torch.float64)
    torch.testing.assert_close(class_tuning(fields[:, None].float(), target, 2), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("fields", "expected"), [([0, 1, 2, 3], 1.0), ([3, 2, 1, 0], -1.0), ([0, 1, 1, 0], 0.0)])
def test_tuning_is_one_for_the_class_on_top(fields, expected):
    tuning = class_tuning(torch.tensor(fields).double()[:, None], torch.tensor([0, 0, 1, 1]), 2)
    assert tuning.tolist() == [[-expected], [expected]]


def test_tuning_is_nan_for_classes_without_a_pair():
    fields = torch.tensor([[1.0], [2.0], [3.0]])
    same(class_tuning(fields, torch.tensor([0, 2, 2]), 3), torch.tensor([[-1.0], [math.nan], [1.0]]).double())
    assert class_tuning(fields, torch.tensor([1, 1, 1]), 3).isnan().all()


@exactly
@given(layers())
def test_tuning_weighted_by_its_pairs_sums_to_zero(layer):
    pairs = layer.share * (1 - layer.share)
    weighted = pairs @ class_tuning(layer.fields, layer.target, layer.classes).nan_to_num()
    close(weighted, torch.zeros_like(weighted))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
@pytest.mark.parametrize("levels", [None, 4], ids=["no ties", "ties"])
def test_tuning_to_labels_is_that_to_each_label_as_a_class_of_its_own(levels, dtype):
    fields = random_layer(samples=50, levels=levels).fields
    # Rare, frequent, on all samples and on none: labels that leave no pair are NaN.
    labels = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.1, 0.7, 1.0, -1.0])
    found = label_tuning_from_ranks(doubled_midranks(fields), labels.to(dtype))
    assert found.dtype == torch.float64
    for label, tuning in zip(labels.t(), found, strict=True):
        close(tuning, reference.class_tuning(fields, label.long(), 2)[1])
    assert found[2:].isnan().all()
    assert not found[:2].isnan().any()


# Rank correlation


def test_rank_correlation_stays_within_one_where_sums_are_rounded(monkeypatch):
    # Apple's devices have float32 alone. Without its bounds it is ±(1 + 2e-6) for 2,000 ranks.
    monkeypatch.setattr(ranks, "statistic_dtype", lambda device: torch.float32)
    rows = 2 * torch.stack([torch.randperm(2000, generator=torch.Generator().manual_seed(s)) for s in range(20)]) + 2
    found = correlation_from_ranks(torch.cat([rows, 4002 - rows]), rows)
    assert (found.min(), found.max()) == (-1, 1)


# The pathway centred


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_an_entry_within_rounding_of_the_mean_is_zero_at_any_scale(scale):
    sizes = scale * torch.rand(2, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, second = -sizes[0], sizes[1]
    rows = torch.stack([first, second, (first + second) / 2])
    centred = centre_pathway(rows, 3)
    assert not centred[2].any()
    torch.testing.assert_close(centred[:2], torch.stack([first - second, second - first]) / 2, rtol=1e-9, atol=0)
    rounded = rows - rows[0]
    assert (rounded - rounded.mean(dim=0))[2].any()


# Samples that are not finite


def test_finite_fields_are_kept_as_they_are():
    fields = random_layer().fields
    found, kept = finite_samples(fields)
    assert found is fields
    assert kept is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_samples_with_one_field_that_is_not_finite_are_left_out(value):
    fields = random_layer(samples=9, units=3).fields
    fields[2, 1] = fields[5, 0] = fields[5, 2] = value
    found, kept = finite_samples(fields)
    assert kept.tolist() == [True, True, False, True, True, False, True, True, True]
    same(found, fields[[0, 1, 3, 4, 6, 7, 8]])


def test_a_unit_that_is_never_finite_makes_no_sample_unusable_and_is_nan():
    fields = random_layer(samples=9, units=4).fields
    fields[:, 0], fields[:, 3], fields[4, 2] = math.nan, math.inf, -math.inf
    found, kept = finite_samples(fields)
    assert kept.tolist() == [True] * 4 + [False] + [True] * 4
    assert found[:, [0, 3]].isnan().all()
    same(found[:, [1, 2]], fields[kept][:, [1, 2]])


def test_fields_whose_sum_is_too_large_are_all_kept():
    fields = torch.full((4, 2), 3e38)
    found, kept = finite_samples(fields)
    assert kept.tolist() == [True] * 4
    same(found, fields)


# Rank distribution


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("bins", [1, 3, 20])
@pytest.mark.parametrize("layer", NASTY_LAYERS.values(), ids=NASTY_LAYERS)
def test_distribution_equals_the_histogram_in_fractions(layer, bins, centre):
    expected = reference.rank_distribution(layer.fields, layer.target, layer.pathway, layer.classes, bins, centre)
    close(distribution(layer, bins=bins, centre=centre), expected)


def test_distribution_has_twenty_bins_unless_told():
    same(distribution(LAYER), distribution(LAYER, bins=20))
    assert distribution(LAYER).shape == (2, 20)


def test_distribution_halves_a_rank_on_an_edge():
    # Four samples in two ties have u = 1/4 and 3/4, each on an inner edge of four bins.
    pathway = torch.tensor([[-1.0], [1.0]])
    density = rank_distribution(
        torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.tensor([0, 0, 1, 1]), pathway, 2, bins=4
    )
    assert density.tolist() == [[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]]


def test_distribution_of_a_million_samples_is_exact():
    # Class 0 is one tie at u = 1/4, class 1 one tie at u = 3/4, which its negative pathway turns to 1/4.
    fields = (torch.arange(1_000_000) % 2).float()[:, None]
    density = rank_distribution(fields, fields[:, 0].long(), torch.tensor([[1.0], [-1.0]]), 2, bins=4)
    assert density.tolist() == [[2.0, 2.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0]]


@exactly
@given(layers(), st.integers(1, 12), st.booleans())
def test_distribution_has_unit_area_or_none(layer, bins, centre):
    area = distribution(layer, bins=bins, centre=centre).mean(dim=1)
    close(area[~area.isnan()], torch.ones(int((~area.isnan()).sum()), dtype=torch.float64))


@exactly
@given(layers(), st.integers(1, 12), st.booleans())
def test_distribution_of_tied_layers_equals_the_histogram_in_fractions(layer, bins, centre):
    expected = reference.rank_distribution(layer.fields, layer.target, layer.pathway, layer.classes, bins, centre)
    close(distribution(layer, bins=bins, centre=centre), expected)


@exactly
@given(layers(), st.integers(1, 12), st.booleans())
def test_distribution_is_mirrored_by_the_opposite_pathway(layer, bins, centre):
    mirrored = distribution(layer._replace(pathway=-layer.pathway), bins=bins, centre=centre)
    same(mirrored, distribution(layer, bins=bins, centre=centre).flip(1))


@exactly
@given(layers(), st.booleans())
def test_distribution_is_mirrored_by_the_opposite_field(layer, centre):
    same(distribution(layer._replace(fields=-layer.fields), centre=centre), distribution(layer, centre=centre).flip(1))


@exactly
@given(layers(), st.integers(-3, 3))
def test_distribution_ignores_a_row_added_to_all_logits(layer, row):
    same(distribution(layer._replace(pathway=layer.pathway + row)), distribution(layer))


def fitted_slope(density):
    """Least-squares slope of the piecewise constant density itself: 12 (sum_j c_j P_j - 1/2) over bin centres c_j."""
    bins = density.shape[1]
    centres = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    return (12 * ((density / bins) @ centres - 0.5)).nanmean()


@pytest.mark.parametrize("levels", [None, 7], ids=["no ties", "ties"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_distribution_in_as_many_bins_as_samples_has_exactly_the_gradient_as_slope(classes, levels):
    # u = (2r - 1)/2S is then a bin's centre, or, for a tie of even size, an edge, whose halves balance.
    layer = random_layer(samples=121, classes=classes, levels=levels)
    slope = fitted_slope(distribution(layer, bins=121))
    close(slope, rpd_gradient(layer.tuning, layer.pathway, layer.share))


@pytest.mark.parametrize("seed", range(4))
def test_distribution_in_twenty_bins_has_nearly_the_gradient_as_slope(seed):
    # A bin moves a rank by sd 0.05/sqrt(12); over 20 x 100 ranks in each of 4 classes the slope moves by sd 0.002.
    # The bound is 5 of these.
    layer = random_layer(samples=400, units=20, classes=4, seed=seed)
    layer = layer._replace(fields=layer.fields + layer.pathway[layer.target])
    gradient = rpd_gradient(layer.tuning, layer.pathway, layer.share)
    assert gradient > 1
    assert abs(fitted_slope(distribution(layer)) - gradient) < 0.01


# What leaves every rank statistic as it is


@exactly
@given(layers(), st.sampled_from(sorted(INCREASING)))
def test_rank_statistics_survive_increasing_maps(layer, name):
    mapped = layer._replace(fields=INCREASING[name](layer.fields))
    same(midranks(mapped.fields), midranks(layer.fields))
    same(
        class_tuning(mapped.fields, layer.target, layer.classes),
        class_tuning(layer.fields, layer.target, layer.classes),
    )
    same(distribution(mapped), distribution(layer))


@exactly
@given(layers(), st.randoms(use_true_random=False))
def test_rank_statistics_survive_permuted_samples(layer, random):
    order = torch.tensor(random.sample(range(len(layer.target)), len(layer.target)))
    shuffled = layer._replace(fields=layer.fields[order], target=layer.target[order])
    same(midranks(shuffled.fields), midranks(layer.fields)[order])
    same(class_tuning(shuffled.fields, shuffled.target, layer.classes), class_tuning(*layer[:2], layer.classes))
    same(distribution(shuffled), distribution(layer))


@exactly
@given(layers())
def test_rank_statistics_of_a_unit_ignore_its_neighbours(layer):
    alone = Layer(layer.fields[:, :1], layer.target, layer.pathway[:, :1], layer.classes)
    same(midranks(alone.fields), midranks(layer.fields)[:, :1])
    tuning = class_tuning(layer.fields, layer.target, layer.classes)
    same(class_tuning(alone.fields, layer.target, layer.classes), tuning[:, :1])
    close(order_index(tuning[:, :1], alone.pathway), order_index(tuning, layer.pathway)[:1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rank_statistics_are_float64(dtype):
    layer = LAYER._replace(fields=LAYER.fields.to(dtype), pathway=LAYER.pathway.to(dtype))
    results = [midranks(layer.fields), class_tuning(layer.fields, layer.target, 2), distribution(layer)]
    assert [result.dtype for result in results] == [torch.float64] * 3


# Wrong arguments


@pytest.mark.parametrize(("changes", "argument", "value"), WRONG.values(), ids=WRONG)
def test_tuning_names_the_wrong_argument_and_its_value(changes, argument, value):
    arguments = {"fields": LAYER.fields, "target": LAYER.target, "num_classes": 2} | changes
    with pytest.raises((ValueError, TypeError), match=rf"(?s)\b{argument}\b.*{value}"):
        class_tuning(**arguments)


WRONG_DISTRIBUTION = WRONG | {
    "too many units": ({"pathway": torch.ones(2, 7)}, "pathway", "7"),
    "too many classes": ({"pathway": torch.ones(5, 3)}, "pathway", "5"),
    "1-D pathway": ({"pathway": LAYER.pathway[0]}, "pathway", "3"),
    "no bins": ({"bins": 0}, "bins", "0"),
    "fractional bins": ({"bins": 2.5}, "bins", "2.5"),
}


@pytest.mark.parametrize(("changes", "argument", "value"), WRONG_DISTRIBUTION.values(), ids=WRONG_DISTRIBUTION)
def test_distribution_names_the_wrong_argument_and_its_value(changes, argument, value):
    arguments = {"fields": LAYER.fields, "target": LAYER.target, "pathway": LAYER.pathway, "num_classes": 2} | changes
    with pytest.raises((ValueError, TypeError), match=rf"(?s)\b{argument}\b.*{value}"):
        rank_distribution(**arguments)


@pytest.mark.parametrize(
    ("x", "value"), [(torch.zeros(2, 3, 4), "2, 3, 4"), (torch.tensor(1.0), r"\[\]|\(\)|0"), ([1.0, 2.0], "list")]
)
def test_midranks_names_a_wrong_argument_and_its_value(x, value):
    with pytest.raises((ValueError, TypeError), match=rf"(?s)\bx\b.*({value})"):
        midranks(x)


@pytest.mark.parametrize("units", [0, 3])
def test_without_samples_there_are_no_ranks_and_nothing_is_known(units):
    fields, none = torch.zeros(0, units), torch.zeros(0, dtype=torch.int64)
    assert midranks(fields).shape == (0, units)
    assert midranks(torch.zeros(0)).shape == (0,)
    assert class_tuning(fields, none, 3).isnan().all()
    assert rank_correlation(fields, torch.zeros(0)).isnan().all()
    density = rank_distribution(fields, none, torch.zeros(3, units), 3, bins=4)
    assert density.shape == (3, 4)
    assert density.isnan().all()
