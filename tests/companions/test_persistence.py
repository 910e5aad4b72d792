"""Neural persistence against Kruskal's algorithm, edge by edge, and scipy's spanning tree."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree

from netdyn.companions.persistence import spanning_tree
from netdyn.functional import neural_persistence, weight_variance


def kruskal(edges):
    """The maximum spanning tree's weights: the strongest edges that join two parts."""
    left, right = edges.shape
    part = list(range(left + right))
    tree = []
    for weight, i, j in sorted(((edges[i, j], i, left + j) for i in range(left) for j in range(right)), reverse=True):
        if part[i] != part[j]:
            part = [part[i] if own == part[j] else own for own in part]
            tree.append(weight)
    return tree


def persistence(weight, p=2):
    """By the definition: each part that ends has lived 1 − w."""
    edges = weight.abs() / weight.abs().max()
    lives = [1 - w for w in kruskal(edges.flatten(1).double().numpy())]
    return (sum(life**p for life in lives) / len(lives)) ** (1 / p)


def matrices():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    yield "normal", normal(7, 12)
    yield "wide", normal(2, 40)
    yield "one output", normal(1, 9)
    yield "one input", normal(9, 1)
    yield "one edge", normal(1, 1)
    yield "ties", normal(8, 8).sign()
    yield "few values", torch.randint(0, 3, (9, 6), generator=generator).float()
    yield "dead inputs", normal(6, 9) * torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 0, 1])
    yield "a kernel", normal(4, 3, 3, 3)
    yield "half precision", normal(5, 6).half()
    yield "tiny", normal(5, 6).double() * 1e-300
    yield "transposed", normal(6, 5).t()


CASES = dict(matrices())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_equals_the_definition(name, p):
    assert neural_persistence(CASES[name], p) == pytest.approx(persistence(CASES[name].double(), p), rel=1e-9)


@pytest.mark.parametrize("shape", [(30, 50), (1, 20), (64, 3)])
def test_the_tree_is_that_of_scipy(shape):
    edges = np.random.default_rng(0).random(shape)
    left, right = shape
    costs = np.zeros((left + right,) * 2)
    costs[:left, left:] = 2 - edges  # none is 0, which scipy takes for no edge
    expected = 2 - np.sort(minimum_spanning_tree(costs).data)
    assert np.sort(spanning_tree(edges))[::-1] == pytest.approx(expected)


def test_equal_weights_have_none_and_a_single_one_has_all():
    assert neural_persistence(torch.full((3, 4), -2.0)) == 0.0
    single = torch.zeros(3, 4)
    single[1, 2] = 5.0
    # One of the six edges of the tree has the weight 1, the others 0.
    assert neural_persistence(single) == pytest.approx(math.sqrt(5 / 6))


def test_neither_scale_nor_sign_nor_order_matters():
    weight = CASES["normal"]
    shuffled = weight[torch.randperm(7)][:, torch.randperm(12)]
    for other in (-weight, 3 * weight, weight.t(), shuffled):
        assert neural_persistence(other) == pytest.approx(neural_persistence(weight), rel=1e-6)


def test_the_authors_normalisation_and_their_part_that_never_ends():
    weight = CASES["normal"]
    lives = 1 - np.array(kruskal((weight.abs() / 10).double().numpy()))
    expected = math.sqrt((np.square(lives).sum() + 1) / math.sqrt(18) ** 2)
    assert neural_persistence(weight, largest=10.0, whole=True) == pytest.approx(expected)


def test_variance_is_that_of_the_normalised_weights():
    for weight in CASES.values():
        edges = weight.abs().double() / weight.abs().max().double()
        assert weight_variance(weight) == pytest.approx(edges.var(correction=0).item(), abs=1e-9)
    assert weight_variance(torch.tensor([[2.0, 0.0]]), largest=4.0) == pytest.approx(1 / 16)


@pytest.mark.parametrize("weight", [torch.zeros(2, 3), torch.tensor([[1.0, math.nan]]), torch.tensor([[math.inf, 1]])])
def test_without_finite_weights_there_is_no_number(weight):
    assert math.isnan(neural_persistence(weight))
    assert math.isnan(weight_variance(weight))


def test_wrong_arguments_are_named():
    weight = torch.ones(2, 2)
    for call, error, message in (
        (lambda: neural_persistence([[1.0]]), TypeError, "`weight` must be a tensor [outputs, inputs], got list."),
        (
            lambda: neural_persistence(torch.ones(3)),
            ValueError,
            "`weight` must have shape [outputs, inputs, …] and entries, got shape [3].",
        ),
        (lambda: neural_persistence(weight, 0.5), ValueError, "`p` must be a finite number of at least 1, got 0.5."),
        (
            lambda: neural_persistence(weight, math.inf),
            ValueError,
            "`p` must be a finite number of at least 1, got inf.",
        ),
        (
            lambda: neural_persistence(weight, largest=0.5),
            ValueError,
            "`largest` must be at least the largest absolute weight, 1, got 0.5.",
        ),
    ):
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == message
