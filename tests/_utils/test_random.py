"""Numbers as a function of keys: the same in any batch, standard normal, and independent of each other."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from netdyn._utils.random import (
    BLOCK,
    Contents,
    Kept,
    digests,
    keys,
    normals,
    pairs_by_numpy,
    pairs_by_torch,
    seeded,
    uniforms,
)
from netdyn._utils.trees import samples_first, take
from trees import IDS, IMAGES, TABLE, every_tree

WORD = 1 << 64
STEP = 0x9E3779B97F4A7C15


def near_digests(count, start=0):
    """Digests that differ in few bits: the keys must not need well-mixed digests."""
    return torch.stack([torch.arange(start, start + count), torch.zeros(count, dtype=torch.int64)], dim=1)


def made(count, rows=1000, seed=0, ray=0, place="0"):
    return normals(keys(near_digests(rows), seed, ray, place), count).numpy()


# What a run keeps -----------------------------------------------------------------------------------------------------


def test_numbers_are_kept_by_their_key_as_long_as_there_is_room():
    kept, drawn = Kept(room=100), []

    def draw(size):
        drawn.append(size)
        return [torch.zeros(size // 4), None]

    first = kept.get("a", lambda: draw(60))
    assert kept.get("a", lambda: draw(60)) is first
    kept.get("too large", lambda: draw(44))
    kept.get("too large", lambda: draw(44))
    kept.get("b", lambda: draw(40))
    kept.get("b", lambda: draw(40))
    assert drawn == [60, 44, 44, 40]


# The slow twin --------------------------------------------------------------------------------------------------------


def finalised(state, halfway=0):
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    state = (state + halfway) % WORD
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % WORD
    return state ^ (state >> 31)


def unfinalised(word):
    """The state that gives a word, with nothing added half-way."""
    word ^= word >> 31 ^ word >> 62
    word = word * pow(0x94D049BB133111EB, -1, WORD) % WORD
    word ^= word >> 27 ^ word >> 54
    word = word * pow(0xBF58476D1CE4E5B9, -1, WORD) % WORD
    return word ^ word >> 30 ^ word >> 60


def pair(first, second, j):
    """The pair of numbers j of the row with these keys, in whole numbers and float64."""
    word = finalised((first + (j + 1) * 0x9E3779B97F4A7C15) % WORD, second)
    low, high = (part - (1 << 32) if part >= 1 << 31 else part for part in (word % (1 << 32), word >> 32))
    radius = math.sqrt(max(-2 * math.log(min(abs(low) / 2**31 + 2**-32, 1.0)), 0.0))
    return radius * math.cos(math.pi * high / 2**31), radius * math.sin(math.pi * high / 2**31)


def test_numbers_are_those_of_a_loop_over_whole_numbers():
    key = keys(near_digests(5), 3, torch.arange(5), "0")
    slow = [[pair(int(a) % WORD, int(b) % WORD, j) for j in range(20)] for a, b in key]
    slow = np.array([[x for x, _ in row] + [y for _, y in row] for row in slow])
    np.testing.assert_allclose(normals(key, 40).numpy(), slow, rtol=0, atol=3e-6)


def test_other_devices_make_the_same_numbers_but_for_the_last_digit():
    """Their formulas run on the CPU as well."""
    key = keys(near_digests(200), 3, torch.arange(200), "0")
    for ours, theirs in zip(pairs_by_numpy(key, 5, 405), pairs_by_torch(key, 5, 405), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)


def test_the_finaliser_is_splitmix64s():
    # The first three outputs of SplitMix64 from the seed 1234567, as published with the algorithm.
    state = 1234567
    for expected in (6457827717110365317, 3203168211198807973, 9817491932198370423):
        state = (state + 0x9E3779B97F4A7C15) % WORD
        assert finalised(state) == expected


# The same in any batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 37, 784])
def test_neither_the_batch_nor_the_order_changes_a_row(count):
    key = keys(near_digests(64), 0, 0, "0")
    order = torch.from_numpy(np.random.default_rng(0).permutation(64))
    together = normals(key, count)
    assert together.shape == (64, count)
    assert together.dtype == torch.float32
    assert (normals(key[order], count) == together[order]).all()
    assert all((normals(key[row : row + 1], count)[0] == together[row]).all() for row in range(64))


def test_long_rows_are_made_in_parts(monkeypatch):
    key = keys(near_digests(3), 0, 0, "0")
    whole = normals(key, 1001)
    for block in (1, 7, 64, 500, 501):
        monkeypatch.setitem(BLOCK, "cpu", block)
        assert torch.equal(normals(key, 1001), whole)


def test_each_row_has_its_ray():
    key = keys(near_digests(4), 5, torch.tensor([7, 0, -1, 7]), "0")
    for row, ray in enumerate([7, 0, -1, 7]):
        assert (key[row] == keys(near_digests(4), 5, ray, "0")[row]).all()


def test_no_two_rows_share_a_key():
    every = [keys(near_digests(1000), seed, ray, place) for seed in (0, 1) for ray in range(4) for place in ("0", "1")]
    every = torch.cat(every).numpy()
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

    # SplitMix64 run backwards: these keys give the words.
    states = torch.tensor([(unfinalised(int(word)) - STEP + (WORD >> 1)) % WORD - (WORD >> 1) for word in words])
    key = torch.stack([states, torch.zeros_like(states)], dim=1)
    numbers = normals(key, 2).numpy()
    first, second = pair(int(key[3, 0]) % WORD, 0, 0)
    np.testing.assert_allclose(numbers[3], [first, second], rtol=0, atol=3e-6)
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
    every = torch.from_numpy(rng.integers(-(2**63), 2**63, (2048, 2)))
    smallest = every[every[:, 0].argsort()[: 2048 // share]]
    drawn = torch.cat([normals(keys(smallest, seed, 0, "0"), 32).sum(dim=1) / math.sqrt(32) for seed in range(200)])
    # n = 200 seeds x 2048/share samples, seed 0: rejected once in 1,000.
    assert stats.kstest(drawn.numpy(), "norm").pvalue > 0.001


# Uniform numbers -----------------------------------------------------------------------------------------------------


def test_uniform_numbers_are_uniform_and_independent():
    # n = 100,000, seed 0: each rejected once in 1,000.
    numbers = uniforms(keys(digests(torch.arange(100_000)[:, None]), 0, 0, "u"))
    assert numbers.shape == (100_000, 2)
    assert numbers.dtype == torch.float64
    assert 0 <= float(numbers.min()) <= float(numbers.max()) < 1
    assert all(stats.kstest(column.numpy(), "uniform").pvalue > 0.001 for column in numbers.t())
    # Standard errors of a correlation are 1 / sqrt(n); the bound is 4 of them.
    scaled = (math.sqrt(12) * (numbers - 0.5)).numpy()
    assert abs(correlation(scaled[:, 0], scaled[:, 1])) < 4 / math.sqrt(100_000)
    assert abs(correlation(scaled[1:, 0], scaled[:-1, 0])) < 4 / math.sqrt(100_000)


# Digests and seeds ---------------------------------------------------------------------------------------------------


def test_samples_without_components_are_all_alike():
    assert len(digests(torch.zeros(3, 0)).unique(dim=0)) == 1
    assert len(digests({"a": torch.zeros(3, 0, 2), "b": torch.arange(3)}).unique(dim=0)) == 3
    assert digests(torch.zeros(0, 4)).shape == (0, 2)


@every_tree
def test_digests_follow_their_samples(tree):
    order = torch.tensor([2, 0, 4, 4])
    whole = digests(tree)
    assert (whole.shape, whole.dtype) == ((5, 2), torch.int64)
    assert torch.equal(digests(take(tree, order)), whole[order])
    assert len({tuple(row) for row in whole.tolist()}) == 5


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
    first, second, third = digests(rows).tolist()
    assert first == third != second


def test_a_single_bit_changes_one_digest():
    other = IDS.clone()
    other[3, 1] ^= 1
    before, after = digests(IDS), digests(other)
    assert (before == after).tolist() == [[True] * 2, [True] * 2, [True] * 2, [False] * 2, [True] * 2]


def test_a_part_of_as_many_samples_as_a_table_has_rows_has_digests_without_the_table():
    inputs = (IMAGES, TABLE)
    by_sample = samples_first(inputs)
    assert torch.equal(digests(take(inputs, slice(0, 3), by_sample), by_sample), digests(inputs)[:3])


def test_memory_layout_does_not_change_digests():
    images = IMAGES.transpose(1, 2)
    assert torch.equal(digests(images), digests(images.contiguous()))


def test_digests_depend_on_the_positions_of_words_and_on_the_tensor():
    x, zeros = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
    found = [digests(x), digests(x.flip(1)), digests((x, zeros)), digests((zeros, x))]
    assert len({tuple(row) for rows in found for row in rows.tolist()}) == 4


# Contents


def test_copies_have_one_cluster_and_digests_of_their_own():
    found = Contents.of(IDS[[2, 0, 2, 1, 2, 0]])
    assert [(found.clusters == number).nonzero()[:, 0].tolist() for number in found.clusters[[0, 1, 3]]] == [
        [0, 2, 4],
        [1, 5],
        [3],
    ]
    assert len({tuple(row) for row in found.digests.tolist()}) == 6


def test_the_first_of_several_copies_has_the_digest_of_a_single_sample():
    found, single = Contents.of(IDS[[2, 0, 2]]), Contents.of(IDS[[0, 2]])
    assert torch.equal(found.digests[[1, 0]], single.digests)


def test_contents_of_chosen_samples_are_chosen():
    found, index = Contents.of(IDS), torch.tensor([4, 1])
    assert torch.equal(found.chosen(index).digests, found.digests[index])
    assert torch.equal(found.chosen(index).clusters, found.clusters[index])


def test_the_first_samples_are_the_same_in_any_order():
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(IDS[order][Contents.of(IDS[order]).first(3)], IDS[Contents.of(IDS).first(3)])


def test_seeds_come_from_all_parts_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    seeds = [
        seeded(torch.Generator(), *parts).initial_seed() for parts in [(0, 1), (0, 1), (1, 0), (b"x", 1), ("fc", 0, 1)]
    ]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 4
    assert torch.equal(torch.get_rng_state(), before)
