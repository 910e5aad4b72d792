"""Sort each unit's samples, in rows ``[units, samples]``; sorting takes most of a layer's time and is done once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

#: Values sorted at a time: on a CPU few enough to fit in a core's cache together with the results, on other devices
#: few enough for their memory.
AT_ONCE = {"cpu": 1 << 18}
AT_ONCE_ELSEWHERE = 1 << 26


def unit_rows(values: Tensor) -> Tensor:
    """``[samples, units]`` as rows. Half precision is widened, which is exact, since it sorts no faster."""
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return wide.detach().t().contiguous()


def holds_nan(rows: Tensor) -> Tensor:
    """Which rows hold NaN, bool ``[units]``."""
    # The largest number of a row that holds NaN is NaN. A row without samples has none.
    return rows.amax(dim=1).isnan() if rows.shape[1] else rows.new_zeros(len(rows), dtype=torch.bool)


def all_equal(rows: Tensor) -> Tensor:
    """Which rows hold one number throughout, bool ``[units]``: none with NaN, all without samples."""
    return rows.amin(dim=1) == rows.amax(dim=1) if rows.shape[1] else rows.new_ones(len(rows), dtype=torch.bool)


def unit_blocks(rows: Tensor) -> Iterator[slice]:
    """The units, a few at a time; at least one block."""
    units, samples = rows.shape
    step = max(AT_ONCE.get(rows.device.type, AT_ONCE_ELSEWHERE) // max(samples, 1), 1)
    for begin in range(0, max(units, 1), step):
        yield slice(begin, min(begin + step, units))


def sort_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's ``order``, and ``differs``, whether neighbours in it do ``[units, samples − 1]``; not for NaN."""
    if rows.device.type == "cpu" and rows.dtype == torch.float32:
        return _sort_keys(rows)
    if rows.device.type == "cpu" and rows.dtype == torch.float64:
        # NumPy's sort is several times faster than torch's.
        order = torch.from_numpy(np.argsort(rows.numpy(), axis=1))
        ordered = rows.gather(1, order)
    else:
        ordered, order = torch.sort(rows)
    return order, ordered[:, 1:] != ordered[:, :-1]


def _sort_keys(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sort whole numbers that hold a value in their upper half and its index in the lower: no second array needed."""
    # The bits of float32 numbers have the order of the values as integers, those of negative ones once all bits but the
    # sign are flipped. Adding zero makes −0 and 0 the same.
    bits = (rows + 0.0).view(torch.int32)
    keys = torch.add(torch.arange(rows.shape[1]), bits ^ ((bits >> 31) & 0x7FFFFFFF), alpha=1 << 32)
    keys.numpy().sort(axis=1)
    values = keys >> 32
    return keys.bitwise_and_((1 << 32) - 1), values[:, 1:] != values[:, :-1]


def first_of_ties(differs: Tensor) -> Tensor:
    """Number of elements with a smaller value: the first position of the element's ties. Without a row's first (0)."""
    position = torch.arange(1, differs.shape[1] + 1, dtype=torch.int32, device=differs.device)
    if differs.device.type != "cpu":
        return torch.where(differs, position, 0).cummax(dim=1).values
    # NumPy's running maximum is five times faster than torch's, which also finds where it is.
    first = differs.numpy() * position.numpy()
    return torch.from_numpy(np.maximum.accumulate(first, axis=1, out=first))


def pairs_apart(differs: Tensor) -> Tensor:
    """Number of pairs of elements of each row that are not tied, int64 ``[units]``; ``differs`` as in sorted order."""
    if differs.device.type != "cpu":
        return first_of_ties(differs).sum(dim=1)
    # All but the m(m + 1)/2 pairs among m + 1 equal elements, such as the zeros of a ReLU. Only where more than one
    # value is tied must each element be looked at.
    apart, places = differs.numpy(), differs.shape[1]
    tied = places - np.count_nonzero(apart, axis=1)
    found = (places * (places + 1) - tied * (tied + 1)) // 2
    values = np.count_nonzero(apart[:, :-1] & ~apart[:, 1:], axis=1) + ~apart[:, :1].all(axis=1)
    if len(several := np.flatnonzero(values > 1)):
        found[several] = first_of_ties(torch.from_numpy(apart[several])).sum(dim=1).numpy()
    return torch.from_numpy(found)


def last_of_ties(differs: Tensor) -> Tensor:
    """Position of the last of each element's ties, for all elements but a row's last."""
    return differs.shape[1] - first_of_ties(differs.flip(1)).flip(1)


def ranks_from(order: Tensor, differs: Tensor) -> Tensor:
    """Twice the mid-rank of every element within its row, int64 ``[units, samples]``."""
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
    """Twice the mid-ranks in sorted order: ties at positions f…l (from 0) have the mean rank (f + l)/2 + 1."""
    units, others = differs.shape
    edge = torch.zeros(units, 1, dtype=torch.int64, device=differs.device)
    first = torch.cat([edge, first_of_ties(differs)], dim=1)
    last = torch.cat([last_of_ties(differs), edge + others], dim=1)
    return first + last + 2
