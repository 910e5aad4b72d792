"""Trees of tensors: mapped, counted, indexed and copied alike, whatever their structure."""

import math
from collections import UserDict, defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netdyn._utils.trees import (
    blocks,
    copied,
    count,
    evenly_spaced,
    finite,
    has_floating,
    leaf_names,
    map_tensors,
    open_to_noise,
    samples_first,
    take,
    tensors,
)
from trees import IDS, IMAGES, MASK, TABLE, TREES, every_tree, leaves, same

exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)


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
    mapped = map_tensors(lambda tensor: tensor, {"x": [IMAGES, 3], "name": "probe"}, on_other=lambda leaf: (leaf,))
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


# Counting and indexing


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
def test_every_tensor_is_indexed_alike(tree, index):
    same(take(tree, index), [leaf[index] for leaf in leaves(tree)])


@pytest.mark.parametrize("other", [torch.zeros(3, 2), torch.tensor(2.0)], ids=["table", "number"])
def test_a_leaf_without_samples_stays_whole(other):
    assert take((IMAGES, other), slice(0, 2))[1] is other


def test_each_tensor_is_known_to_have_the_samples_first_or_not():
    inputs = {"image": IMAGES, "scale": torch.tensor(2.0), "table": TABLE, "rest": [MASK, "probe"]}
    assert samples_first(inputs) == (True, False, False, True)


def test_a_part_of_as_many_samples_as_a_table_has_rows_leaves_the_table_whole():
    inputs = (IMAGES, TABLE)
    by_sample = samples_first(inputs)
    part = take(inputs, slice(0, 3), by_sample)
    assert part[1] is TABLE
    assert take(part, torch.tensor([2, 0]), by_sample)[1] is TABLE


@exactly
@given(st.integers(0, 40), st.none() | st.integers(1, 12))
def test_blocks_hold_every_sample_once_and_are_small_enough(number, size):
    parts = list(blocks(number, size))
    assert [i for part in parts for i in range(number)[part]] == list(range(number))
    assert all(part.stop - part.start <= (size or number) for part in parts)


@exactly
@given(st.integers(0, 500), st.integers(1, 100))
def test_evenly_spaced_takes_samples_at_even_distances(number, wanted):
    chosen = evenly_spaced(number, wanted).tolist()
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


def test_noise_falls_on_no_mask_beside_token_ids():
    ids, mask, x = torch.ones(3, 2, dtype=torch.long), torch.ones(3, 2), torch.rand(3, 4)
    assert open_to_noise({"ids": ids, "attention_mask": mask}) == (False, False)
    assert open_to_noise({"x": x, "mask": mask}) == (True, True)
    assert open_to_noise({"mask": mask}) == (True,)
    assert open_to_noise((ids, mask)) == (False, True)


@pytest.mark.parametrize(("value", "expected"), [(1.0, True), (math.nan, False), (math.inf, False), (-math.inf, False)])
def test_one_entry_that_is_not_finite_is_noticed(value, expected):
    images = IMAGES.clone()
    images[4, 1, 2] = value
    assert finite({"ids": IDS, "x": [images]}) is expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_large_numbers_are_finite_though_their_sum_is_not(dtype):
    assert finite(torch.full((4, 3), torch.finfo(dtype).max, dtype=dtype))


@every_tree
def test_a_copy_shares_no_memory_and_no_graph(tree):
    attached = map_tensors(lambda t: t.clone().requires_grad_() if t.is_floating_point() else t.clone(), tree)
    same(copied(attached), tree)
    for tensor, original in zip(leaves(copied(attached)), leaves(attached), strict=True):
        assert tensor.data_ptr() != original.data_ptr()
        assert not tensor.requires_grad


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
