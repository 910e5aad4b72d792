"""Transfer order against counting all pairs of samples, and what must leave it unchanged."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from netdyn.functional import transfer_order
from netdyn.modes import transfer
from reference import NASTY_LAYERS, layers, random_layer

exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)

ACTIVATIONS = {
    "identity": lambda h: h,
    "relu": torch.relu,
    "hardtanh": torch.nn.functional.hardtanh,
    "sign": torch.sign,
    "off": torch.zeros_like,
    "negative": torch.neg,
    "gelu": torch.nn.functional.gelu,
    "absolute": torch.abs,
    "tanh": lambda h: (9 * h).float().tanh(),
}


def same(actual, expected):
    """Equal to the last bit, NaN for NaN."""
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=0, atol=0, equal_nan=True)


def close(actual, expected):
    """Equal within 1e-12, NaN for NaN."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("levels", [None, 5], ids=["no ties", "ties"])
@pytest.mark.parametrize("samples", [1, 2, 32, 33])
def test_transfer_order_of_few_samples_equals_all_pairs(samples, levels, activation):
    layer = random_layer(samples=samples, units=6, levels=levels)
    fields = layer.fields - (2 if levels else 0)
    close(transfer_order(fields, activation(fields)), reference.transfer_order(fields, activation(fields)))


@pytest.mark.parametrize("name", ["identity", "relu", "hardtanh", "sign", "off", "negative"])
@pytest.mark.parametrize("levels", [None, 5], ids=["no ties", "ties"])
def test_transfer_order_of_monotone_activations_equals_all_pairs(levels, name):
    layer = random_layer(samples=500, levels=levels)
    fields = layer.fields - (2 if levels else 0)
    outputs = ACTIVATIONS[name](fields)
    close(transfer_order(fields, outputs), reference.transfer_order(fields, outputs))


@pytest.mark.parametrize("layer", NASTY_LAYERS.values(), ids=NASTY_LAYERS)
def test_transfer_order_through_relu_equals_all_pairs(layer):
    outputs = layer.fields.relu()
    close(transfer_order(layer.fields, outputs), reference.transfer_order(layer.fields, outputs))


@pytest.mark.parametrize("off", [0, 1, 2, 700, 999, 1000])
def test_transfer_order_through_relu_counts_the_pairs_switched_off(off):
    fields = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).float()[:, None] - off + 1
    share = transfer_order(fields, fields.relu()).item()
    assert share == pytest.approx(1 - off * (off - 1) / (1000 * 999), abs=1e-15)


def test_transfer_order_of_a_million_samples_is_exact():
    fields = torch.arange(1_000_000, dtype=torch.float64)[:, None] - 499_999
    assert transfer_order(fields, fields.relu()).item() == pytest.approx(1 - 499_999 / (2 * 999_999), abs=1e-15)


@pytest.mark.parametrize("name", ["gelu", "absolute"])
def test_transfer_order_by_shifts_comes_near_all_pairs(name):
    # 16 shifts of 2,000 samples are 32,000 pairs: standard deviation at most 0.003 per unit; the bound is 4 of these.
    fields = random_layer(samples=2000, units=8).fields
    outputs = ACTIVATIONS[name](fields)
    error = transfer_order(fields, outputs) - torch.from_numpy(reference.transfer_order(fields, outputs))
    assert error.abs().max() < 0.012


@pytest.mark.parametrize("samples", [34, 200])
def test_transfer_order_by_shifts_counts_the_pairs_of_sixteen_distances(samples):
    layer = random_layer(samples=samples, units=3, levels=9)
    fields, outputs = layer.fields, (layer.fields - 4).abs()
    distances = torch.randperm(samples - 1, generator=torch.Generator().manual_seed(0))[:16] + 1
    kept, pairs = torch.zeros(2, 3, dtype=torch.float64)
    for distance in distances.tolist():
        for first in range(samples):
            second = (first + distance) % samples
            apart, moved = (value[first] - value[second] for value in (fields, outputs))
            kept, pairs = kept + (apart * moved > 0), pairs + (apart != 0)
    close(transfer_order(fields, outputs), kept / pairs)


def test_transfer_order_by_shifts_copies_few_units_at_a_time(monkeypatch):
    fields = random_layer(samples=100, units=7).fields
    expected, seen = transfer_order(fields, fields.abs()), []
    roll = torch.Tensor.roll
    monkeypatch.setattr(torch.Tensor, "roll", lambda rows, *args: seen.append(rows.numel()) or roll(rows, *args))
    monkeypatch.setattr(transfer, "AT_ONCE", 320)
    same(transfer_order(fields, fields.abs()), expected)
    assert max(seen) == 300
    monkeypatch.setattr(transfer, "AT_ONCE", 1)
    same(transfer_order(fields, fields.abs()), expected)


def test_transfer_order_by_shifts_repeats_itself_and_leaves_the_generator_alone():
    fields = random_layer(samples=200).fields
    before = torch.get_rng_state()
    first = transfer_order(fields, fields.abs())
    same(torch.get_rng_state(), before)
    torch.rand(3)
    same(transfer_order(fields, fields.abs()), first)


def test_transfer_order_counts_only_pairs_with_different_fields():
    # Two equal fields with different outputs, either way round: that pair does not count, all others keep order.
    fields = torch.tensor([0.0, *range(39)])[:, None].expand(40, 2)
    outputs = fields.clone()
    outputs[:2] = torch.tensor([[-1.0, -2.0], [-2.0, -1.0]])
    assert transfer_order(fields, outputs).tolist() == [1.0, 1.0]


def test_transfer_order_of_a_unit_ignores_its_neighbours():
    fields = random_layer(samples=100).fields
    outputs = torch.cat([fields[:, :2].relu(), fields[:, 2:].abs()], dim=1)
    alone = torch.cat([transfer_order(fields[:, [i]], outputs[:, [i]]) for i in range(5)])
    same(transfer_order(fields, outputs), alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_transfer_order_is_float64(dtype):
    fields = random_layer(samples=20).fields.to(dtype)
    assert transfer_order(fields, fields.relu()).dtype == torch.float64


@exactly
@given(layers(), st.sampled_from(sorted(ACTIVATIONS)), st.randoms(use_true_random=False))
def test_transfer_order_of_few_samples_survives_their_permutation(layer, name, random):
    order = torch.tensor(random.sample(range(len(layer.target)), len(layer.target)))
    outputs = ACTIVATIONS[name](layer.fields)
    same(transfer_order(layer.fields[order], outputs[order]), transfer_order(layer.fields, outputs))


@exactly
@given(layers(), st.sampled_from(["affine", "cube", "exponential"]))
def test_transfer_order_survives_increasing_maps(layer, name):
    increasing = {"affine": lambda h: 3 * h + 1, "cube": lambda h: h**3, "exponential": torch.exp}[name]
    outputs = layer.fields.abs()
    same(transfer_order(increasing(layer.fields), increasing(outputs)), transfer_order(layer.fields, outputs))


@pytest.mark.parametrize(
    ("fields", "outputs", "argument", "value"),
    [
        (torch.zeros(6, 3), torch.zeros(6, 2), "outputs", "6, 2"),
        (torch.zeros(6, 3), torch.zeros(5, 3), "outputs", "5, 3"),
        (torch.zeros(6), torch.zeros(6), "fields", "6"),
    ],
    ids=["too few units", "too few samples", "1-D"],
)
def test_transfer_order_names_the_wrong_argument_and_its_value(fields, outputs, argument, value):
    with pytest.raises((ValueError, TypeError), match=rf"(?s)\b{argument}\b.*{value}"):
        transfer_order(fields, outputs)


@pytest.mark.parametrize("argument", ["fields", "outputs"])
def test_transfer_order_tells_a_wrong_shape_with_the_one_that_is_expected(argument):
    arguments = {"fields": torch.zeros(6, 3), "outputs": torch.zeros(6, 3)} | {argument: torch.zeros(6)}
    with pytest.raises(ValueError, match=rf"^`{argument}` must have shape \[samples, units\], got"):
        transfer_order(**arguments)
