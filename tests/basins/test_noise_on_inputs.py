"""Noise on trees of inputs: a function of seed, ray and content, standard normal, and added without a trace."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from netdyn._utils.random import digests
from netdyn._utils.trees import blocks, count, map_tensors, samples_first, take
from netdyn.basins.input_noise import Noise, disturb
from trees import IDS, IMAGES, MASK, TABLE, every_tree

exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def noise_of(inputs, seed=0, ray=0, by_sample=None):
    """Standard normal numbers for each tensor that noise falls on, None for the others, in a tree."""
    by_sample = by_sample or samples_first(inputs)
    rays = torch.as_tensor(ray).expand(count(inputs))
    drawn = iter(Noise.at(nn.Identity(), inputs, by_sample, None, seed).draw(inputs, digests(inputs, by_sample), rays))
    return map_tensors(lambda tensor: next(drawn), inputs)


# Noise


@every_tree
def test_noise_has_the_shapes_of_the_floating_tensors_and_nothing_for_others(tree):
    pairs = []
    map_tensors(lambda tensor, drawn: pairs.append((tensor, drawn)), tree, noise_of(tree))
    assert [drawn is not None for _, drawn in pairs] == [tensor.is_floating_point() for tensor, _ in pairs]
    assert all(drawn.shape == tensor.shape for tensor, drawn in pairs if drawn is not None)


@exactly
@given(st.permutations(range(5)), st.integers(1, 5))
def test_neither_order_nor_batches_change_the_noise(order, size):
    inputs = {"image": IMAGES, "scale": IMAGES[:, 0, 0], "ids": IDS}
    whole = noise_of(inputs)
    shuffled = take(inputs, torch.tensor(order))
    parts = [noise_of(take(shuffled, part)) for part in blocks(5, size)]
    for key in ("image", "scale"):
        assert torch.equal(torch.cat([part[key] for part in parts]), whole[key][list(order)])


def test_equal_samples_have_equal_noise_and_others_not():
    drawn = noise_of(IMAGES[[0, 1, 0]])
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize(("seed", "ray"), [(1, 0), (0, 1)], ids=["seed", "ray"])
def test_another_seed_or_ray_is_other_noise(seed, ray):
    assert not torch.equal(noise_of(IMAGES, seed, ray), noise_of(IMAGES))
    assert torch.equal(noise_of(IMAGES, seed, ray), noise_of(IMAGES, seed, ray))


def test_noise_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    noise_of(IMAGES)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_standard_normal_and_independent():
    # n = 200,000 draws: five standard errors are 0.0112 for the mean and a correlation, 0.0079 for the deviation.
    inputs = {"a": torch.arange(2000.0)[:, None].repeat(1, 100), "b": torch.zeros(2000, 100)}
    drawn = noise_of(inputs)
    for noise in drawn.values():
        assert abs(noise.mean()) < 0.0112
        assert abs(noise.std() - 1) < 0.0079
        assert abs((noise[1:] * noise[:-1]).mean()) < 0.0112
        assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 0.0112
    assert abs((drawn["a"] * drawn["b"]).mean()) < 0.0112


def test_each_sample_may_have_a_ray_of_its_own():
    inputs = {"image": IMAGES, "ids": IDS}
    drawn = noise_of(inputs, ray=[3, 0, 1, 3, 2])["image"]
    for row, ray in enumerate([3, 0, 1, 3, 2]):
        assert torch.equal(drawn[row], noise_of(inputs, ray=ray)["image"][row])


def test_a_part_of_as_many_samples_as_a_table_has_rows_has_no_noise_on_the_table():
    inputs = (IMAGES, TABLE)
    by_sample = samples_first(inputs)
    drawn = noise_of(take(inputs, slice(0, 3), by_sample), by_sample=by_sample)
    assert drawn[1] is None
    assert torch.equal(drawn[0], noise_of(inputs)[0][:3])


# Disturbing


def test_every_sample_has_its_own_noise_level():
    sigma = torch.tensor([0.0, 0.5, 1.0, 2.0, 10.0])
    drawn = noise_of(IMAGES)
    expected = torch.stack([IMAGES[i] + sigma[i] * drawn[i] for i in range(5)])
    torch.testing.assert_close(disturb(IMAGES, drawn, sigma), expected, rtol=0, atol=0)


def test_whole_numbers_and_masks_are_not_disturbed():
    inputs = {"image": IMAGES, "ids": IDS, "mask": MASK, "name": "probe"}
    disturbed = disturb(inputs, noise_of(inputs), torch.ones(5))
    assert torch.equal(disturbed["ids"], IDS)
    assert torch.equal(disturbed["mask"], MASK)
    assert disturbed["name"] == "probe"
    assert not torch.equal(disturbed["image"], IMAGES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_noise_is_added_in_float32_or_better_and_rounded_once(dtype):
    inputs = IMAGES.to(dtype)
    drawn = noise_of(inputs)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = (inputs.to(wide) + 0.01 * torch.ones(5, 1, 1, dtype=torch.float32).to(wide) * drawn.to(wide)).to(dtype)
    disturbed = disturb(inputs, drawn, torch.full((5,), 0.01, dtype=wide))
    assert disturbed.dtype == dtype
    torch.testing.assert_close(disturbed, expected, rtol=0, atol=0)


def test_writing_over_disturbed_inputs_does_not_reach_the_originals():
    inputs = {"image": IMAGES.clone(), "ids": IDS.clone()}
    for tensor in disturb(inputs, noise_of(inputs), torch.ones(5)).values():
        tensor.zero_()
    assert torch.equal(inputs["image"], IMAGES)
    assert torch.equal(inputs["ids"], IDS)
