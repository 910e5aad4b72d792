"""Transfer order: how far an activation itself keeps the order of the samples."""

from __future__ import annotations

import torch
from torch import Tensor

from netdyn._utils.checks import matrix
from netdyn.modes.ranks import statistic_dtype
from netdyn.modes.sorting import holds_nan, pairs_apart, sort_rows, unit_blocks, unit_rows

#: Number of cyclic shifts that stand for all pairs of samples if an activation is not monotone.
_SHIFTS = 16
#: Values shifted at a time.
AT_ONCE = 1 << 22


def transfer_order(fields: Tensor, outputs: Tensor) -> Tensor:
    """Share of the pairs of samples with different local fields whose outputs keep that order strictly.

    If the outputs of a unit never fall as its field rises, pairs are only lost as ties: (P − ties out)/(P − ties in),
    with P = S(S − 1)/2 pairs. A ReLU with m fields at or below zero gives 1 − m(m − 1)/(S(S − 1)). For other units the
    pairs (μ, μ + d) of 16 seeded cyclic shifts d are counted (of all shifts, for up to 33 samples).

    Args:
        fields: Local fields ``[samples, units]``.
        outputs: Outputs of the activation, same shape.

    Returns:
        float64 ``[units]`` in [0, 1]; NaN for a constant field and for units that hold NaN.

    Raises:
        TypeError: If an argument is not a tensor.
        ValueError: If the shapes differ.

    Source:
        P1 (v1, v2) asks whether the activation itself preserves the order; the number is netdyn's convention.

    Examples:
        >>> fields = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> transfer_order(fields, fields.relu())
        tensor([0.8333], dtype=torch.float64)
    """
    fields, outputs = matrix("fields", fields, "[samples, units]"), matrix("outputs", outputs, "[samples, units]")
    if fields.shape != outputs.shape:
        raise ValueError(
            f"`outputs` must have the shape of `fields`, {list(fields.shape)}, got shape {list(outputs.shape)}."
        )
    rows, out = unit_rows(fields), unit_rows(outputs)
    return torch.cat([kept_order(rows[part], out[part], *sort_rows(rows[part])) for part in unit_blocks(rows)])


def kept_order(rows: Tensor, out: Tensor, order: Tensor, differs: Tensor) -> Tensor:
    """:func:`transfer_order` of local fields and outputs ``[units, samples]``, whose fields are sorted already."""
    carried = out.gather(1, order)
    rises = carried[:, 1:] > carried[:, :-1]
    # Equal fields with different outputs cannot be counted by neighbours either.
    reversed_ = ((carried[:, 1:] < carried[:, :-1]) | (rises & ~differs)).any(dim=1)
    kept = _ratio(pairs_apart(rises), pairs_apart(differs))
    # To wait for a device here is cheaper than sixteen shifts of all units.
    if bool(reversed_.any()):
        # A few units at a time, since each shift copies them.
        step = max(AT_ONCE // max(rows.shape[1], 1), 1)
        pairs = zip(torch.split(rows[reversed_], step), torch.split(out[reversed_], step), strict=True)
        kept[reversed_] = torch.cat([_kept_by_shifts(*pair) for pair in pairs])
    return kept.masked_fill(holds_nan(rows) | holds_nan(out), torch.nan)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    dtype = statistic_dtype(part.device)
    return part.to(dtype) / whole.to(dtype)


def _kept_by_shifts(rows: Tensor, out: Tensor) -> Tensor:
    samples = rows.shape[1]
    shifts = list(range(1, samples))
    if samples > 2 * _SHIFTS + 1:
        shifts = (1 + torch.randperm(samples - 1, generator=torch.Generator().manual_seed(0))[:_SHIFTS]).tolist()
    kept = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    differ = kept.clone()
    for shift in shifts:
        other, other_output = rows.roll(shift, 1), out.roll(shift, 1)
        above, below = rows > other, rows < other
        kept += ((above & (out > other_output)) | (below & (out < other_output))).sum(dim=1)
        differ += (above | below).sum(dim=1)
    return _ratio(kept, differ)
