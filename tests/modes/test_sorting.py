"""Order, ties and ranks of rows, against NumPy and scipy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from netdyn.modes import sorting
from netdyn.modes.sorting import (
    all_equal,
    first_of_ties,
    holds_nan,
    last_of_ties,
    pairs_apart,
    ranks_from,
    sort_rows,
    unit_blocks,
    unit_rows,
)

INF = float("inf")
#: Values whose order in float32 is easily got wrong: zeros of both signs, the smallest and largest, infinities.
EDGES = [0.0, -0.0, 1e-45, -1e-45, 1.2e-38, -1.2e-38, 1.0, -1.0, 1.0000001, 3.4e38, -3.4e38, INF, -INF]
ROWS = st.lists(st.lists(st.sampled_from(EDGES), min_size=7, max_size=7), min_size=1, max_size=5)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8]


def agrees(rows):
    """Whether order, ties and ranks of some rows are those of NumPy and scipy."""
    order, differs = sort_rows(rows)
    ordered = rows.gather(1, order)
    assert torch.equal(ordered, rows.sort(dim=1).values)
    assert torch.equal(differs, ordered[:, 1:] != ordered[:, :-1])
    assert torch.equal(order.sort(dim=1).values, torch.arange(rows.shape[1]).expand_as(order))
    expected = 2 * stats.rankdata(rows.double().numpy(), axis=1)
    assert np.array_equal(ranks_from(order, differs).numpy(), expected)


@given(rows=ROWS)
def test_ranks_of_values_that_are_hard_to_order(rows):
    agrees(torch.tensor(rows))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("samples", "units"), [(1, 3), (2, 1), (33, 4), (500, 7), (3, 0)])
def test_ranks_with_many_ties_and_with_few(dtype, samples, units):
    generator = torch.Generator().manual_seed(0)
    for scale in (2, 1000):
        values = torch.randint(0, min(scale, 200), (samples, units), generator=generator).to(dtype)
        agrees(unit_rows(values))


def test_every_float32_stands_in_its_place():
    """Bit patterns from all over the range, ordered as NumPy orders the values."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (20, 5000), generator=generator).int()
    rows = bits.view(torch.float32)
    agrees(rows.where(rows.isfinite(), 0.0))


def test_ties_begin_and_end_where_neighbours_differ():
    differs = torch.tensor([[True, False, False, True], [False, False, False, False], [True, True, True, True]])
    assert first_of_ties(differs).tolist() == [[1, 1, 1, 4], [0, 0, 0, 0], [1, 2, 3, 4]]
    assert last_of_ties(differs).tolist() == [[0, 3, 3, 3], [4, 4, 4, 4], [0, 1, 2, 3]]


def test_rows_of_one_number_and_with_nan_are_found():
    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[1, 1, 1], [0, -0.0, 0], [1, 1, 2], [inf, inf, inf], [inf, -inf, inf], [nan, 1, 1], [nan] * 3])
    assert all_equal(rows).tolist() == [True, True, False, True, False, False, False]
    assert holds_nan(rows).tolist() == [False] * 5 + [True] * 2
    empty = rows[:, :0]
    assert all_equal(empty).all()
    assert not holds_nan(empty).any()


@pytest.mark.parametrize("values", [1, 2, 3, 8, 1000])
@pytest.mark.parametrize("samples", [1, 2, 3, 40])
def test_pairs_that_are_not_tied_are_counted_one_by_one(values, samples):
    rows = torch.randint(0, values, (30, samples), generator=torch.Generator().manual_seed(values)).float()
    rows[:10] = rows[:10].relu() - 1  # and many of one value
    _, differs = sort_rows(rows)
    expected = [sum(a != b for a, b in itertools.combinations(row, 2)) for row in rows.tolist()]
    assert pairs_apart(differs).tolist() == expected


def test_ranks_of_rows_with_ties_are_those_that_other_devices_calculate_for_all_rows():
    rows = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    rows[::3] = rows[::3].round(decimals=1)
    order, differs = sort_rows(rows)
    everywhere = torch.empty_like(order).scatter_(1, order, sorting._tied_ranks(differs))
    assert torch.equal(everywhere, ranks_from(order, differs))


def test_what_was_given_is_not_changed():
    values = torch.tensor([[2.0], [-0.0], [1.0]])
    before = values.clone()
    sort_rows(unit_rows(values))
    assert torch.equal(values.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("samples", [0, 1, 100, 1 << 18, 1 << 19])
@pytest.mark.parametrize("units", [0, 1, 5, 300])
def test_blocks_hold_every_unit_once(samples, units):
    rows = torch.empty(units, samples, dtype=torch.uint8, device="meta")
    blocks = list(unit_blocks(rows))
    assert [unit for part in blocks for unit in range(units)[part]] == list(range(units))
    assert len(blocks) >= 1


def test_blocks_are_small_on_a_cpu():
    rows = torch.empty(300, 1 << 16, dtype=torch.uint8)
    assert {part.stop - part.start for part in unit_blocks(rows)} == {4}


def test_nan_is_found_in_its_row():
    rows = torch.zeros(3, 4)
    rows[1, 2] = torch.nan
    rows[2, 0] = INF
    assert holds_nan(rows).tolist() == [False, True, False]
    assert holds_nan(rows.long()).tolist() == [False, False, False]
    assert holds_nan(rows[:, :0]).tolist() == [False, False, False]
