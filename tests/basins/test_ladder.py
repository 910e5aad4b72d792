"""Questions in portions, each class in proportion, and levels at even distances within each class."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netdyn.basins.ladder import NEAR, WIDE, latin_levels, portions

exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def questions(draw, most=60):
    labels = torch.tensor(draw(st.lists(st.integers(0, 4), min_size=1, max_size=most)))
    return torch.rand(len(labels), 2, generator=generator(draw(st.integers(0, 99)))).double(), labels


# Portions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 100, 128, 300, 512, 513, 1024, 5000])
def test_every_question_is_in_one_portion(total):
    labels = torch.randint(10, (total,), generator=generator(0))
    parts = portions(torch.rand(total, generator=generator(1)), labels)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(total))
    assert [len(part) for part in parts[:2]] == [min(WIDE, total), min(NEAR, max(total - WIDE, 0))]


@pytest.mark.parametrize("total", [513, 1024, 5000])
def test_portions_have_the_classes_in_proportion(total):
    labels = (torch.rand(total, generator=generator(0)) * 4).square().long() % 10
    for part in portions(torch.rand(total, generator=generator(1)), labels):
        if len(part):
            expected = torch.bincount(labels).double() * len(part) / total
            # Each boundary between classes may add one; a third portion has what two have left.
            assert (torch.bincount(labels[part], minlength=len(expected)) - expected).abs().max() <= 3


def test_portions_do_not_depend_on_the_order_of_questions():
    chance, labels = torch.rand(1000, generator=generator(0)), torch.arange(1000) % 7
    order = torch.randperm(1000, generator=generator(1))
    for part, turned in zip(portions(chance, labels), portions(chance[order], labels[order]), strict=True):
        assert torch.equal(part, order[turned])


# Levels --------------------------------------------------------------------------------------------------------------


@exactly
@given(questions(), st.floats(-7, 0), st.floats(0.1, 7))
def test_each_class_has_one_level_in_each_of_as_many_cells_as_it_has_questions(questions, low, width):
    levels = latin_levels(*questions, low, low + width)
    for k in questions[1].unique():
        own = levels[questions[1] == k]
        cells = ((own - low) / width * len(own) - 1e-9).clamp(min=0).floor().long()
        assert torch.equal(cells.sort().values, torch.arange(len(own)))


@exactly
@given(questions())
def test_levels_do_not_depend_on_the_order_of_questions(questions):
    chance, labels = questions
    order = torch.randperm(len(labels), generator=generator(1))
    assert torch.equal(
        latin_levels(chance[order], labels[order], -7.0, 2.0), latin_levels(chance, labels, -7.0, 2.0)[order]
    )


def test_levels_of_nothing_are_nothing():
    none = torch.zeros(0, dtype=torch.int64)
    assert latin_levels(torch.zeros(0, 2), none, 0.0, 1.0).shape == (0,)
    assert [len(part) for part in portions(torch.zeros(0), none)] == [0, 0, 0]


def test_levels_are_uniform():
    chance = torch.rand(4000, 2, generator=generator(0)).double()
    levels = latin_levels(chance, torch.arange(4000) % 3, math.log(1e-3), math.log(10.0))
    assert levels.min() > math.log(1e-3)
    assert levels.max() < math.log(10.0)
    # Of a Latin hypercube even a histogram is level.
    assert (torch.histc(levels, 20) - 200).abs().max() <= 6
