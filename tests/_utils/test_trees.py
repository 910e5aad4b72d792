"""Trees of tensors: counted, cut, fingerprinted and disturbed alike, whatever their structure, order and batches."""

import math
from collections import OrderedDict, UserDict, defaultdict, namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netdyn._utils.random import fingerprints, seeded
from netdyn._utils.trees import (
    blocks,
    copied,
    count,
    finite,
    has_floating,
    leaf_names,
    map_tensors,
    sample_tensors,
    spread,
    take,
    tensors,
)
from netdyn.basins.input_noise import disturb, standard_noise

exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)

Pair = namedtuple("Pair", "image mask")
IMAGES = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(20).reshape(5, 4)
MASK = torch.arange(5) % 2 == 0

TREES = {
    "tensor": IMAGES,
    "tuple": (IMAGES, IDS),
    "list": [IMAGES, IDS],
    "dict": {"image": IMAGES, "ids": IDS},
    "ordered dict": OrderedDict(image=IMAGES, ids=IDS),
    "user dict": UserDict(image=IMAGES, ids=IDS),
    "named tuple": Pair(IMAGES, MASK),
    "nested": {"a": [IMAGES, (IDS, {"b": MASK})], "c": Pair(IDS, IMAGES)},
    "other leaves": {"image": IMAGES, "name": "probe", "none": None, "number": 3},
}

every_tree = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)


def leaves(tree):
    """The tensors of a tree, found without netdyn."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict | UserDict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    return [leaf for value in tree for leaf in leaves(value)] if isinstance(tree, list | tuple) else []


def same(actual, expected):
    assert len(leaves(actual)) == len(leaves(expected))
    for a, b in zip(leaves(actual), leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def noise_of(inputs, seed=0, ray=0):
    return standard_noise(inputs, fingerprints(inputs), seed, ray)


# Trees


@every_tree
def test_mapping_keeps_types_keys_and_order(tree):
    mapped = map_tensors(lambda tensor: tensor * 2, tree)
    assert type(mapped) is type(tree)
    assert list(mapped) == list(tree) if isinstance(tree, dict | UserDict) else len(mapped) == len(tree)
    same(mapped, [leaf * 2 for leaf in leaves(tree)])


@every_tree
def test_tensors_are_listed_in_order(tree):
    assert [id(tensor) for tensor in tensors(tree)] == [id(leaf) for leaf in leaves(tree)]


def test_mapping_leaves_what_is_no_tensor_alone():
    mapped = map_tensors(lambda tensor: tensor + 1, TREES["other leaves"])
    assert (mapped["name"], mapped["none"], mapped["number"]) == ("probe", None, 3)


def test_what_is_no_tensor_can_be_mapped_too():
    mapped = map_tensors(lambda tensor: tensor, {"x": [IMAGES, 3], "name": "probe"}, other=lambda leaf: (leaf,))
    assert mapped["x"][0] is IMAGES
    assert (mapped["x"][1], mapped["name"]) == ((3,), ("probe",))


def test_mapping_hands_over_the_twins_of_each_tensor():
    mapped = map_tensors(lambda a, b: (a, b), TREES["nested"], map_tensors(torch.clone, TREES["nested"]))
    assert mapped["a"][0][0] is IMAGES
    assert torch.equal(mapped["c"].image[1], IDS)


@pytest.mark.parametrize(
    ("container", "plain"),
    [(defaultdict(list, x=IMAGES), dict), (type("Only", (list,), {"__init__": lambda self: None})(), list)],
    ids=["mapping", "sequence"],
)
def test_a_container_that_cannot_be_rebuilt_becomes_a_plain_one(container, plain):
    assert type(map_tensors(torch.clone, container)) is plain


# Counting and cutting


@every_tree
def test_the_first_dimension_counts_the_samples(tree):
    assert count(tree) == 5


def test_a_number_in_front_does_not_count():
    assert count((torch.tensor(1.0), IMAGES)) == 5


@pytest.mark.parametrize(
    ("inputs", "kind"), [("text", "str"), ([1, 2], "list"), ({}, "dict"), (torch.tensor(1.0), "Tensor")]
)
def test_without_samples_the_error_names_what_came(inputs, kind):
    with pytest.raises(TypeError) as error:
        count(inputs)
    assert str(error.value) == (
        f"`inputs` must be a tensor, or a sequence or mapping of tensors, with samples first; got {kind}."
    )


@every_tree
@pytest.mark.parametrize("index", [slice(1, 3), slice(4, 9), torch.tensor([3, 0, 3])], ids=["slice", "end", "index"])
def test_every_tensor_is_cut_alike(tree, index):
    same(take(tree, index), [leaf[index] for leaf in leaves(tree)])


@pytest.mark.parametrize("other", [torch.zeros(3, 2), torch.tensor(2.0)], ids=["table", "number"])
def test_a_leaf_without_samples_travels_whole(other):
    assert take((IMAGES, other), slice(0, 2))[1] is other


TABLE = torch.arange(6.0).reshape(3, 2)  # three rows that are no samples


def test_the_tensors_that_have_the_samples_first_are_told():
    inputs = {"image": IMAGES, "scale": torch.tensor(2.0), "table": TABLE, "rest": [MASK, "probe"]}
    assert sample_tensors(inputs) == (True, False, False, True)


def test_a_part_with_as_many_samples_as_a_table_has_rows_leaves_the_table_whole():
    inputs = (IMAGES, TABLE)
    cut = sample_tensors(inputs)
    part = take(inputs, slice(0, 3), cut)
    assert part[1] is TABLE
    assert take(part, torch.tensor([2, 0]), cut)[1] is TABLE
    assert fingerprints(part, cut) == fingerprints(inputs)[:3]
    drawn = standard_noise(part, fingerprints(part, cut), 0, 0, cut)
    assert drawn[1] is None
    assert torch.equal(drawn[0], noise_of(inputs)[0][:3])


@exactly
@given(st.integers(0, 40), st.none() | st.integers(1, 12))
def test_blocks_hold_every_sample_once_and_are_small_enough(number, size):
    parts = list(blocks(number, size))
    assert [i for part in parts for i in range(number)[part]] == list(range(number))
    assert all(part.stop - part.start <= (size or number) for part in parts)


@exactly
@given(st.integers(0, 500), st.integers(1, 100))
def test_spread_takes_samples_at_even_distances(number, wanted):
    chosen = spread(number, wanted).tolist()
    assert chosen == [math.floor(i * number / min(number, wanted)) for i in range(min(number, wanted))]
    assert len(set(chosen)) == min(number, wanted)


# What noise can reach


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (IMAGES, True),
        (IMAGES.bfloat16(), True),
        ((IDS, IMAGES), True),
        (IDS, False),
        ({"ids": IDS, "mask": MASK}, False),
        ((IDS, torch.tensor(0.5)), False),
        ((IDS, torch.zeros(3, 2)), False),
    ],
    ids=["float", "bfloat16", "mixed", "ids", "ids and mask", "ids and a number", "ids and a table"],
)
def test_noise_reaches_only_floating_tensors_with_samples(inputs, expected):
    assert has_floating(inputs) is expected


@pytest.mark.parametrize(("value", "expected"), [(1.0, True), (math.nan, False), (math.inf, False), (-math.inf, False)])
def test_one_entry_that_is_not_finite_is_noticed(value, expected):
    images = IMAGES.clone()
    images[4, 1, 2] = value
    assert bool(finite({"ids": IDS, "x": [images]})) is expected


# Fingerprints


@every_tree
def test_fingerprints_follow_their_samples(tree):
    order = torch.tensor([2, 0, 4, 4])
    whole = fingerprints(tree)
    assert fingerprints(take(tree, order)) == [whole[i] for i in order.tolist()]
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
def test_every_dtype_has_fingerprints_that_tell_samples_apart(dtype):
    rows = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 1, 1]]).to(dtype)
    first, second, third = fingerprints(rows)
    assert first == third != second


def test_a_single_bit_changes_one_fingerprint():
    other = IDS.clone()
    other[3, 1] ^= 1
    assert [a == b for a, b in zip(fingerprints(IDS), fingerprints(other), strict=True)] == [True] * 3 + [False, True]


def test_memory_layout_does_not_change_fingerprints():
    images = IMAGES.transpose(1, 2)
    assert fingerprints(images) == fingerprints(images.contiguous())


# Seeds and noise


def test_seeds_come_from_all_parts_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    seeds = [
        seeded(torch.Generator(), *parts).initial_seed() for parts in [(0, 1), (0, 1), (1, 0), (b"x", 1), ("fc", 0, 1)]
    ]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 4
    assert torch.equal(torch.get_rng_state(), before)


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


def test_whoever_writes_over_disturbed_inputs_does_not_reach_the_originals():
    inputs = {"image": IMAGES.clone(), "ids": IDS.clone()}
    for tensor in disturb(inputs, noise_of(inputs), torch.ones(5)).values():
        tensor.zero_()
    assert torch.equal(inputs["image"], IMAGES)
    assert torch.equal(inputs["ids"], IDS)


@every_tree
def test_a_copy_shares_no_memory_and_no_graph(tree):
    attached = map_tensors(lambda t: t.clone().requires_grad_() if t.is_floating_point() else t.clone(), tree)
    same(copied(attached), tree)
    for tensor, original in zip(leaves(copied(attached)), leaves(attached), strict=True):
        assert tensor.data_ptr() != original.data_ptr()
        assert not tensor.requires_grad


def test_each_sample_may_have_a_ray_of_its_own():
    inputs = {"image": IMAGES, "ids": IDS}
    drawn = standard_noise(inputs, fingerprints(inputs), 0, [3, 0, 1, 3, 2])["image"]
    for row, ray in enumerate([3, 0, 1, 3, 2]):
        assert torch.equal(drawn[row], noise_of(inputs, ray=ray)["image"][row])


@every_tree
def test_every_tensor_has_a_path_that_leads_to_it(tree):
    found = []
    for path in leaf_names(tree):
        leaf = tree
        for key in path.split(".") if path else []:
            leaf = leaf[key] if isinstance(leaf, dict | UserDict) else leaf[int(key)]
        found.append(leaf)
    assert len(found) == len(leaves(tree))
    assert all(a is b for a, b in zip(found, leaves(tree), strict=True))
