"""Netdyn's side of the two comparisons of the weight radius, with the number of rays that ± 5 % takes.

784-256-256-10 after 400 steps of Adam, with a probe of 1,024 of its training samples in one batch. The number of rays
is doubled from the default 16 until half the 95 % interval is at most 5 % of the radius. The search with that number of
rays is timed.
"""

from __future__ import annotations

from collections.abc import Callable

from pairs import Clock, Options, Row, Target, alternate, ratios, row
from torch import Tensor, nn

from netdyn.functional import weight_basin

PRECISION = 0.05


def rays_needed(network: nn.Module, x: Tensor, y: Tensor, most: int) -> int:
    """The number of rays for a 95 % interval of the radius within ± 5 %."""
    rays = 16
    while rays < most:
        low, high = (basin := weight_basin(network, x, y, rays=rays)).interval
        if high - low <= 2 * PRECISION * basin.radius:
            break
        rays *= 2
    return rays


def compare(
    options: Options,
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    other: Callable[[], object],
    against: str,
    wanted: float,
) -> list[Row]:
    """Two rows: with the number of rays that ± 5 % takes, ``wanted`` times faster, and with the default 16."""
    rays = rays_needed(network, x, y, options.pick(64, 16))
    works = {
        "precise": lambda: weight_basin(network, x, y, rays=rays),
        "default": lambda: weight_basin(network, x, y),
        "other": other,
    }
    taken = alternate(works, options.pick(5, 1), Clock(options))
    faster = {"unit": "× faster", "threads": options.threads}
    target = Target(wanted, at_most=False, unit="× faster")
    return [
        row(f"weight radius ± 5 %, {rays} rays", against, ratios(taken["other"], taken["precise"]), target, **faster),
        row("weight radius, the default 16 rays", against, ratios(taken["other"], taken["default"]), **faster),
    ]
