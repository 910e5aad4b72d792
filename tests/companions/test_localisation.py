"""Inverse participation ratios, entry by entry."""

import math

import pytest
import torch

from netdyn.functional import localisation


def test_equals_the_definition():
    torch.manual_seed(0)
    maps = torch.randn(5, 2, 3, 4)
    expected = [sum(w**4 for w in own) / sum(w**2 for w in own) ** 2 for own in maps.flatten(1).tolist()]
    assert localisation(maps).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 100])
def test_it_runs_from_all_alike_to_a_single_input(n):
    assert localisation(torch.stack([torch.full((n,), -3.0), torch.eye(n)[0]])).tolist() == pytest.approx([1 / n, 1.0])


def test_normal_weights_have_three_over_their_number():
    # 1,000 maps of 784 weights: the standard error of the mean is about 4e-6.
    found = localisation(torch.randn(1000, 784, generator=torch.Generator().manual_seed(0)))
    assert float(found.mean()) == pytest.approx(3 / 784, abs=4e-5)


def test_no_scale_is_too_small_or_too_large():
    maps = torch.tensor([[1.0, 2.0, 3.0]])
    for scale in (1e-30, 1e30):
        assert localisation(maps * scale).tolist() == pytest.approx(localisation(maps).tolist())


def test_a_map_of_zeros_has_no_number():
    assert math.isnan(localisation(torch.zeros(1, 4)).item())


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"^`maps` must have shape \[maps, \*input shape\], got shape \[3\]\.$"):
        localisation(torch.ones(3))
    with pytest.raises(TypeError) as caught:
        localisation([1.0])
    assert str(caught.value) == "`maps` must be a tensor [maps, *input shape], got list."
