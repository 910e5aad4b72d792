"""Shares with intervals, and rank correlations with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Bootstrap samples, and the normal quantile of a 95 % interval.
REPEATS, NORMAL = 2000, 1.959964
Numbers = NDArray[np.float64]


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    >>> [round(end, 3) for end in wilson(0, 60)]
    [0.0, 0.06]
    """
    if of == 0:
        return math.nan, math.nan
    share, squared = hits / of, NORMAL**2
    centre = (share + squared / (2 * of)) / (1 + squared / of)
    half = NORMAL / (1 + squared / of) * math.sqrt(share * (1 - share) / of + squared / (4 * of**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def balanced_accuracy(truths: Sequence[str], said: Sequence[str]) -> float:
    """Mean over the true levels of the share that is recognised.

    >>> balanced_accuracy(["a", "a", "b"], ["a", "b", "b"])
    0.75
    """
    levels = sorted(set(truths))
    shares = [np.mean([s == t for t, s in zip(truths, said, strict=True) if t == level]) for level in levels]
    return float(np.mean(shares))


def area(low: ArrayLike, high: ArrayLike) -> float:
    """The chance that a value of ``high`` exceeds one of ``low``, ties counting half (area under the ROC curve).

    >>> area([1, 2], [2, 3])
    0.875
    """
    a, b = np.asarray(low, float)[:, None], np.asarray(high, float)[None]
    return float(((b > a) + 0.5 * (b == a)).mean()) if a.size and b.size else math.nan


def best_threshold(low: ArrayLike, high: ArrayLike) -> tuple[float, float]:
    """The threshold with the fewest errors, as the mean of both shares, and that share of right answers.

    It lies half-way between two values; of several that are equally good it is the middle one.

    >>> best_threshold([0.1, 0.2], [0.4, 0.6])
    (0.3, 1.0)
    """
    a, b = np.asarray(low, float), np.asarray(high, float)
    values = np.unique(np.concatenate([a, b]))
    cuts = (values[1:] + values[:-1]) / 2
    right = np.array([((a < cut).mean() + (b > cut).mean()) / 2 for cut in cuts])
    good = cuts[right >= right.max() - 1e-12]
    return round(float(good[(len(good) - 1) // 2]), 6), float(right.max())


def kendall(x: ArrayLike, y: ArrayLike, strata: Sequence[object] | None = None) -> float:
    """Kendall's τ_b; with strata over the pairs within them.

    >>> kendall([1, 2, 3], [1, 3, 2]), kendall([1, 2, 9, 8], [2, 1, 3, 4], strata="aabb")
    (0.3333333333333333, -1.0)
    """
    return _ratio(*_signs(x, y, strata), np.ones((len(np.asarray(x)),) * 2))


def interval(
    x: ArrayLike, y: ArrayLike, clusters: Sequence[object], within: bool, repeats: int = REPEATS, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of τ under a bootstrap of whole clusters; ``within`` takes these as strata."""
    signs = _signs(x, y, clusters if within else None)
    member = _places(clusters)
    total = int(member.max()) + 1
    times = np.random.default_rng(seed).multinomial(total, np.full(total, 1 / total), size=repeats)
    found = []
    for drawn in times:
        often = drawn[member].astype(float)
        # Of a stratum drawn n times, each copy has its own pairs; over all trainings copies make pairs with each other.
        pairs = often[:, None] * (np.ones(len(often)) if within else often)[None]
        found.append(_ratio(*signs, pairs))
    known = np.array(found)[np.isfinite(found)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (math.nan, math.nan)
    return float(low), float(high)


def _places(names: Sequence[object]) -> NDArray[np.int64]:
    """Each name as the number of its first appearance."""
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names])


def _signs(x: ArrayLike, y: ArrayLike, strata: Sequence[object] | None) -> tuple[Numbers, Numbers]:
    """The signs of the differences of all pairs that count, zero for the others."""
    values = [np.asarray(v, float) for v in (x, y)]
    signs = [np.sign(v[:, None] - v[None]) for v in values]
    if strata is not None:
        member = _places(strata)
        signs = [sign * (member[:, None] == member[None]) for sign in signs]
    return signs[0], signs[1]


def _ratio(a: Numbers, b: Numbers, pairs: Numbers) -> float:
    below = math.sqrt(float((pairs * a * a).sum()) * float((pairs * b * b).sum()))
    return float((pairs * a * b).sum()) / below if below > 0 else math.nan
