"""Netdyn's side of the two comparisons of the weight radius, at two precisions.

784-256-256-10 after 400 steps of Adam, with a probe of 1,024 of its training samples in one batch. Each ray has 128 of
them, and their number is doubled from the default 16 until the 95 % interval is as narrow as that of 8 rays on all
samples, or ± 5 % of the radius, on average over five seeds. The search with that number is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

from pairs import Clock, Options, Row, Target, alternate, ratios, row
from torch import Tensor, nn

from netdyn.functional import weight_basin

PRECISION = 0.05
SEEDS = range(5)
#: The rays that a search on all samples takes, for comparison.
FEW = 8


def half_width(network: nn.Module, x: Tensor, y: Tensor, rays: int, samples: int = 128) -> float:
    """Half the width of the interval of log radius, on average over seeds."""
    intervals = [weight_basin(network, x, y, rays=rays, samples=samples, seed=seed).interval for seed in SEEDS]
    return fmean(math.log(high / low) / 2 for low, high in intervals)


def rays_needed(network: nn.Module, x: Tensor, y: Tensor, wanted: float, most: int) -> int:
    """The number of rays for an interval of so much half-width."""
    rays = 16
    while rays < most and half_width(network, x, y, rays) > wanted:
        rays *= 2
    return rays


def compare(
    options: Options,
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    other: Callable[[], object],
    against: str,
    faster: float | None,
) -> list[Row]:
    """Two rows: to the interval of few rays on all samples, at best ``faster`` times, and to ± 5 %."""
    most = options.pick(128, 16)
    same = rays_needed(network, x, y, half_width(network, x, y, FEW, len(x)), most)
    precise = rays_needed(network, x, y, PRECISION, most)
    works = {
        "same": lambda: weight_basin(network, x, y, rays=same),
        "precise": lambda: weight_basin(network, x, y, rays=precise),
        "other": other,
    }
    taken = alternate(works, options.pick(5, 1), Clock(options))

    def compared(what: str, work: str, wanted: float | None) -> Row:
        target = None if wanted is None else Target(wanted, at_most=False, unit="× faster")
        found = ratios(taken["other"], taken[work])
        return row(what, against, found, target, unit="× faster", threads=options.threads)

    return [
        compared(f"weight radius to the interval of {FEW} rays on all samples, {same} rays", "same", faster),
        compared(f"weight radius ± 5 %, {precise} rays", "precise", 3),
    ]
