"""Trees of tensors, five samples each, that the tests of inputs, digests and noise share."""

from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch

Pair = namedtuple("Pair", "image mask")
IMAGES = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(20).reshape(5, 4)
MASK = torch.arange(5) % 2 == 0
TABLE = torch.arange(6.0).reshape(3, 2)  # three rows that are no samples

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
