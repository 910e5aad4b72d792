"""Sort each unit's samples: their order, and which neighbours in that order differ.

Layout: rows ``[units, samples]``, the transpose of local fields, since a row then lies in one piece of memory.

Sorting takes most of the time of reading a layer, so that all statistics use the same sort. Its result is ``order
[units, samples]``, the samples from the smallest value to the largest, and ``differs [units, samples − 1]``, whether
neighbours in that order have different values.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

#: Values sorted at a time: on a CPU few enough to fit in a core's cache together with the results, on other devices
#: few enough for their memory.
AT_ONCE = {"cpu": 1 << 18}
AT_ONCE_ELSEWHERE = 1 << 26
#: The lower half of a key.
_LOW = (1 << 32) - 1


def unit_rows(values: Tensor) -> Tensor:
    """``[samples, units]`` as rows. Half precision is widened, which is exact, since it sorts no faster."""
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return wide.detach().t().contiguous()


def holds_nan(rows: Tensor) -> Tensor:
    """Which rows hold NaN, bool ``[units]``."""
    if not rows.is_floating_point() or rows.shape[1] == 0:
        return torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    return rows.amax(dim=1).isnan()


def unit_blocks(rows: Tensor) -> Iterator[slice]:
    """The units, a few at a time; at least one block.

    >>> list(unit_blocks(torch.zeros(3, 1 << 17)))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    units, samples = rows.shape
    step = max(AT_ONCE.get(rows.device.type, AT_ONCE_ELSEWHERE) // max(samples, 1), 1)
    for begin in range(0, max(units, 1), step):
        yield slice(begin, min(begin + step, units))


def sort_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``order`` and ``differs`` of some rows; the order of a row that holds NaN means nothing.

    >>> order, differs = sort_rows(torch.tensor([[3.0, -1.0, 3.0, 0.0]]))
    >>> order.tolist(), differs.tolist()
    ([[1, 3, 0, 2]], [[True, True, False]])
    """
    if rows.device.type == "cpu" and rows.dtype == torch.float32:
        return _sort_keys(rows)
    if rows.device.type == "cpu" and rows.dtype == torch.float64:
        # NumPy's sort is several times faster than torch's.
        order = torch.from_numpy(np.argsort(rows.numpy(), axis=1))
        ordered = rows.gather(1, order)
    else:
        ordered, order = torch.sort(rows, dim=1)
    return order, ordered[:, 1:] != ordered[:, :-1]


def _sort_keys(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sort whole numbers that hold a value in their upper half and its index in the lower: no second array is needed.

    Read as integers, the bits of float32 numbers that are not negative have the order of the values. Those of negative
    numbers have the reverse order, which flipping all bits but the sign corrects. Adding zero makes −0 and 0 the same.
    """
    bits = (rows + 0.0).view(torch.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long().bitwise_left_shift_(32)
    keys |= torch.arange(rows.shape[1])
    keys.numpy().sort(axis=1)
    values = keys >> 32
    return keys.bitwise_and_(_LOW), values[:, 1:] != values[:, :-1]


def first_of_ties(differs: Tensor) -> Tensor:
    """Position of the first of each element's group of ties, for all elements but a row's first (which has 0).

    It is also the number of elements with a smaller value.
    """
    position = torch.arange(1, differs.shape[1] + 1, device=differs.device)
    return torch.where(differs, position, 0).cummax(dim=1).values


def last_of_ties(differs: Tensor) -> Tensor:
    """Position of the last of each element's group of ties, for all elements but a row's last."""
    samples = differs.shape[1] + 1
    # Counted from the other end, the last is the first.
    return samples - 1 - first_of_ties(differs.flip(1)).flip(1)


def ranks_from(order: Tensor, differs: Tensor) -> Tensor:
    """Twice the mid-rank of every element within its row, int64 ``[units, samples]``.

    Without ties the values are 2, 4, …, 2S. A group of ties at sorted positions f…l (from 0) has the mean rank
    (f + l)/2 + 1, so that its doubled rank f + l + 2 is whole.
    """
    units, samples = order.shape
    ranks = torch.arange(2, 2 * samples + 2, 2, device=order.device).expand(units, samples)
    if order.device.type != "cpu":
        # Testing for ties would wait for the device.
        ranks = _tied_ranks(differs)
    elif bool((tied := ~differs.all(dim=1)).any()):
        ranks = ranks.clone()
        ranks[tied] = _tied_ranks(differs[tied])
    return torch.empty_like(order).scatter_(1, order, ranks)


def _tied_ranks(differs: Tensor) -> Tensor:
    """Twice the mid-ranks in sorted order."""
    units, others = differs.shape
    edge = torch.zeros(units, 1, dtype=torch.int64, device=differs.device)
    first = torch.cat([edge, first_of_ties(differs)], dim=1)
    last = torch.cat([last_of_ties(differs), edge + others], dim=1)
    return first + last + 2
