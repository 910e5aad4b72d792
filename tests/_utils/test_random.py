"""Numbers as a function of keys: the same in any batch, standard normal, and independent of each other."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from netdyn._utils.random import box_muller, keys, normals, sample_digests, seeded, splitmix64
from netdyn._utils.trees import samples_first, take
from trees import IDS, IMAGES, TABLE, every_tree

WORD = 1 << 64


def digests(count, start=0):
    """Digests of 16 bytes that differ in few bits: the keys must not need well-mixed digests."""
    return [number.to_bytes(16, "little") for number in range(start, start + count)]


def made(count, rows=1000, seed=0, ray=0, place="0"):
    return normals(keys(digests(rows), seed, ray, place), count)


# The slow twin --------------------------------------------------------------------------------------------------------


def finalised(state, halfway=0):
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    state = (state + halfway) % WORD
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % WORD
    return state ^ (state >> 31)


def pair(first, second, j):
    """The pair of numbers j of the row with these keys, in whole numbers and float64."""
    word = finalised((first + (j + 1) * 0x9E3779B97F4A7C15) % WORD, second)
    low, high = (part - (1 << 32) if part >= 1 << 31 else part for part in (word % (1 << 32), word >> 32))
    radius = math.sqrt(max(-2 * math.log(min(abs(low) / 2**31 + 2**-32, 1.0)), 0.0))
    return radius * math.cos(math.pi * high / 2**31), radius * math.sin(math.pi * high / 2**31)


def test_numbers_are_those_of_a_loop_over_whole_numbers():
    key = keys(digests(5), 3, [0, 1, 2, 3, 4], "0")
    slow = [[pair(int(a), int(b), j) for j in range(20)] for a, b in key]
    slow = np.array([[x for x, _ in row] + [y for _, y in row] for row in slow])
    np.testing.assert_allclose(normals(key, 40), slow, rtol=0, atol=3e-6)


def test_the_finaliser_is_splitmix64s():
    # The first three outputs of SplitMix64 from the seed 1234567, as published with the algorithm.
    state = 1234567
    for expected in (6457827717110365317, 3203168211198807973, 9817491932198370423):
        state = (state + 0x9E3779B97F4A7C15) % WORD
        assert finalised(state) == expected
        assert int(splitmix64(np.array([state], dtype=np.uint64))[0]) == expected


# The same in any batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 37, 784])
def test_neither_the_batch_nor_the_order_changes_a_row(count):
    key = keys(digests(64), 0, 0, "0")
    order = np.random.default_rng(0).permutation(64)
    together = normals(key, count)
    assert together.shape == (64, count)
    assert together.dtype == np.float32
    assert (normals(key[order], count) == together[order]).all()
    assert all((normals(key[row : row + 1], count)[0] == together[row]).all() for row in range(64))


def test_long_rows_are_made_in_parts():
    key = keys(digests(3), 0, 0, "0")
    whole = normals(key, 1001)
    for block in (1, 7, 64, 500, 501):
        assert (normals(key, 1001, block) == whole).all()


def test_each_row_has_its_ray():
    key = keys(digests(4), 5, [7, 0, -1, 7], "0")
    for row, ray in enumerate([7, 0, -1, 7]):
        assert (key[row] == keys(digests(4), 5, ray, "0")[row]).all()


def test_no_two_rows_share_a_key():
    every = [keys(digests(1000), seed, ray, place) for seed in (0, 1) for ray in range(4) for place in ("0", "1")]
    every = np.concatenate(every)
    # The second halves of these digests are all 0: there the keys of a seed, a ray and a place are all the same.
    assert len(np.unique(every[:, 0])) == len(every) == 16_000
    assert len(np.unique(every[:, 1])) == 16


# Standard normal ------------------------------------------------------------------------------------------------------

N = 4_000_000


@pytest.fixture(scope="module")
def many():
    return made(N // 1000).astype(np.float64)


def test_distribution_is_the_normal_one(many):
    # n = 4,000,000, seed 0: rejected once in 1,000.
    assert stats.kstest(many.ravel(), "norm").pvalue > 0.001


def test_moments_are_the_normal_ones(many):
    # n = 4,000,000: the k-th moment's variance is (E z^2k − (E z^k)²)/n; bounds of 4 standard errors.
    for k, mean, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10395 - 225)):
        assert abs((many**k).mean() - mean) < 4 * math.sqrt(spread / N), k


@pytest.mark.parametrize("level", [2, 3, 4, 4.5, 5])
def test_tails_are_the_normal_ones(many, level):
    # Counts are Poisson distributed: within 4 standard errors, plus 1 for the smallest.
    expected = 2 * stats.norm.sf(level) * N
    assert abs((np.abs(many) > level).sum() - expected) < 4 * math.sqrt(expected) + 1


def test_all_numbers_are_finite_at_the_ends_of_the_bits():
    """The words whose halves are 0, the most negative and the most positive numbers."""
    halves = [0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
    words = np.array([a | b << 32 for a, b in itertools.product(halves, halves)], dtype=np.uint64)

    numbers = np.concatenate(box_muller(words[None]))
    assert np.isfinite(numbers).all()
    assert np.abs(numbers).max() == pytest.approx(math.sqrt(2 * math.log(2**32)), rel=1e-6)


# Independent ----------------------------------------------------------------------------------------------------------


def correlation(a, b):
    return float((a.astype(np.float64) * b).mean())


@pytest.mark.parametrize("other", [{"seed": 1}, {"seed": -1}, {"ray": 1}, {"ray": 2}, {"place": "1"}], ids=str)
def test_near_equal_seeds_rays_and_places_are_independent(other):
    # n = 400,000 products, and products of squares less 1 with variance 4: bounds of 4 standard errors.
    a, b = made(400), made(400, **other)
    for x, y, spread in ((a, b, 1), (a**2 - 1, b**2 - 1, 4)):
        assert abs(correlation(x, y)) < 4 * math.sqrt(spread / 400_000)


def test_rows_and_columns_are_independent(many):
    # n = 4,000,000 nearly, lags within rows and between rows of consecutive digests, and the two halves of a pair.
    bound = 4 / math.sqrt(N) * 1.01
    half = many.shape[1] // 2
    for lag in (1, 2, 3, 16, half):
        assert abs(correlation(many[:, lag:], many[:, :-lag])) < bound * math.sqrt(
            many.shape[1] / (many.shape[1] - lag)
        )
    for lag in (1, 2, 7, 64):
        assert abs(correlation(many[lag:], many[:-lag])) < bound * math.sqrt(1000 / (1000 - lag))


def test_sums_over_rays_grow_as_those_of_independent_numbers():
    # Sum over 64 rays of each of 200 x 500 places: variance 64, n = 100,000, its standard error is 64 sqrt(2 / n).
    total = sum(made(500, rows=200, ray=ray).astype(np.float64) for ray in range(64))
    assert abs(total.var() - 64) < 4 * 64 * math.sqrt(2 / 100_000)


@pytest.mark.parametrize("share", [8, 64])
def test_samples_of_the_smallest_digests_have_no_noise_of_their_own(share):
    """The floor of the accuracy is measured with these samples: their noise must be as normal as that of all others."""
    rng = np.random.default_rng(0)
    smallest = sorted(rng.bytes(16) for _ in range(2048))[: 2048 // share]
    drawn = np.concatenate(
        [normals(keys(smallest, seed, 0, "0"), 32).sum(axis=1) / math.sqrt(32) for seed in range(200)]
    )
    # n = 200 seeds x 2048/share samples, seed 0: rejected once in 1,000.
    assert stats.kstest(drawn, "norm").pvalue > 0.001


# Digests and seeds ---------------------------------------------------------------------------------------------------


@every_tree
def test_digests_follow_their_samples(tree):
    order = torch.tensor([2, 0, 4, 4])
    whole = sample_digests(tree)
    assert sample_digests(take(tree, order)) == [whole[i] for i in order.tolist()]
    assert len(set(whole)) == 5


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
    ],
    ids=str,
)
def test_every_dtype_has_digests_that_tell_samples_apart(dtype):
    rows = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 1, 1]]).to(dtype)
    first, second, third = sample_digests(rows)
    assert first == third != second


def test_a_single_bit_changes_one_digest():
    other = IDS.clone()
    other[3, 1] ^= 1
    before, after = sample_digests(IDS), sample_digests(other)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, True, False, True]


def test_a_part_of_as_many_samples_as_a_table_has_rows_has_digests_without_the_table():
    inputs = (IMAGES, TABLE)
    by_sample = samples_first(inputs)
    assert sample_digests(take(inputs, slice(0, 3), by_sample), by_sample) == sample_digests(inputs)[:3]


def test_memory_layout_does_not_change_digests():
    images = IMAGES.transpose(1, 2)
    assert sample_digests(images) == sample_digests(images.contiguous())


def test_seeds_come_from_all_parts_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    seeds = [
        seeded(torch.Generator(), *parts).initial_seed() for parts in [(0, 1), (0, 1), (1, 0), (b"x", 1), ("fc", 0, 1)]
    ]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 4
    assert torch.equal(torch.get_rng_state(), before)
