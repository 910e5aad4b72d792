"""What claims about RPDs and linear tails rest on: the L-map, and how much of the network it is.

The affine defect of a layer is the share of its wiring that differs between samples: 0 in networks whose layers after
their activations are affine. The linear share is the squared correlation of the network's logits with those of the
network without the activations from that layer on; the L-map describes the rest no more than a sketch does.
"""

from __future__ import annotations

from claims import Part
from training import Row

from netdyn import Report

MOST_DEFECT, LEAST_SHARE = 0.1, 0.5


def shares_and_defects(report: Report) -> Row:
    """Linear share and affine defect of each layer, from a report that measured ``"linear"``."""
    row: Row = {f"share {at}": layer.linear_share for at, layer in enumerate(report.layers)}
    return row | {f"defect {at}": layer.affine_defect for at, layer in enumerate(report.layers)}


def l_map(where: str, rows: list[Row]) -> list[Part]:
    """Whether the L-map is the same for all samples, and most of the network, from one row per seed."""
    layers = range(sum(name.startswith("defect ") for name in rows[0]))
    defects = [max(row[f"defect {at}"] for at in layers) for row in rows]
    found = [
        Part(
            f"{where}: no layer's affine defect exceeds {MOST_DEFECT}: the L-map is the same for all samples",
            defects,
            [defect <= MOST_DEFECT for defect in defects],
            place=("l_map", where, "largest affine defect"),
        )
    ]
    for at, name in [(layers[0], "first"), (layers[-1], "last")][: len(layers)]:
        shares = [row[f"share {at}"] for row in rows]
        found.append(
            Part(
                f"{where}: the linear share from the {name} layer on is at least {LEAST_SHARE}",
                shares,
                [share >= LEAST_SHARE for share in shares],
                place=("l_map", where, f"linear share, {name} layer"),
            )
        )
    return found
