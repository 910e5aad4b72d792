"""Labels at positions: which axis of outputs and of local fields they are."""

import pytest
import torch

from netdyn.probes.positions import Positions

SHAPES = {
    "pixels, classes first": ((8, 3, 20, 30), (8, 20, 30), (20, 30), False),
    "pixels, classes last": ((8, 20, 30, 3), (8, 20, 30), (20, 30), True),
    "tokens, classes last": ((8, 12, 50), (8, 12), (12,), True),
    "tokens, classes first": ((8, 50, 12), (8, 12), (12,), False),
    "as many tokens as classes": ((8, 12, 12), (8, 12), (12,), False),
    "volumes": ((8, 3, 4, 5, 6), (8, 4, 5, 6), (4, 5, 6), False),
    "one logit for each": ((8, 20, 30), (8, 20, 30), (20, 30), False),
    "one logit in a channel": ((8, 1, 20, 30), (8, 20, 30), (20, 30), False),
    "labels in a channel": ((8, 3, 20, 30), (8, 1, 20, 30), (20, 30), False),
    "both in a channel": ((8, 1, 20, 30), (8, 1, 20, 30), (20, 30), False),
}


@pytest.mark.parametrize(("outputs", "target", "shape", "last"), SHAPES.values(), ids=SHAPES)
def test_positions_are_found_between_outputs_and_labels(outputs, target, shape, last):
    assert Positions.between(outputs, target) == Positions(shape, last)


@pytest.mark.parametrize(
    ("outputs", "target"), [((8, 3, 20, 30), (8, 10, 15)), ((8, 3), (8,)), ((8, 3, 20), (8,)), ((8, 12), (8, 5))]
)
def test_what_does_not_fit_has_no_positions(outputs, target):
    assert Positions.between(outputs, target) is None


def by_hand(value, positions, last):
    """Logits [samples, positions, classes], entry by entry."""
    found = torch.empty(len(value), 6, 4)
    for s in range(len(value)):
        for i in range(2):
            for j in range(3):
                for k in range(4):
                    found[s, 3 * i + j, k] = value[s, i, j, k] if last else value[s, k, i, j]
    return found


@pytest.mark.parametrize("last", [False, True])
def test_logits_are_sorted_by_position(last):
    positions = Positions((2, 3), last)
    value = torch.randn(5, 2, 3, 4) if last else torch.randn(5, 4, 2, 3)
    assert torch.equal(positions.logits(value), by_hand(value, positions, last))
    assert torch.equal(positions.units(value), by_hand(value, positions, last))


FIELDS = {
    "channels first": ((4, 2, 3), False, 4),
    "channels last": ((2, 3, 4), True, 4),
    "flattened positions": ((6, 4), True, 4),
    "one channel": ((2, 3), False, 1),
    "heads": ((5, 2, 3, 4), True, 20),
    "coarser": ((4, 1, 2), False, None),
    "no positions": ((6,), False, None),
}


@pytest.mark.parametrize(("shape", "last", "units"), FIELDS.values(), ids=FIELDS)
def test_fields_with_the_positions_give_units(shape, last, units):
    found = Positions((2, 3), last).units(torch.randn(5, *shape))
    assert (None if found is None else list(found.shape)) == (None if units is None else [5, 6, units])


def test_steps_alone_are_no_units():
    assert Positions((6,)).units(torch.randn(5, 6)) is None


def test_of_axes_of_one_size_the_positions_are_where_they_are_in_the_outputs():
    value = torch.randn(5, 6, 6)
    assert torch.equal(Positions((6,), last=True).units(value), value)
    assert torch.equal(Positions((6,)).units(value), value.movedim(1, 2))
