"""Medians and quantiles, and how far to trust them."""

from __future__ import annotations

import math
from statistics import NormalDist

from torch import Tensor

#: Confidence level of the intervals.
LEVEL = 0.95


def student_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else Cornish and Fisher's series (error < 0.13 %).

    >>> round(student_quantile(0.975, 1), 3), round(student_quantile(0.975, 10), 3)
    (12.706, 2.228)
    """
    if degrees < 1:
        return math.inf
    if degrees == 1:
        return math.tan(math.pi * (p - 0.5))
    if degrees == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z = NormalDist().inv_cdf(p)
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(degrees) ** power for power, term in enumerate(terms, start=1))


def median_interval(values: Tensor, level: float = LEVEL) -> tuple[float, float, float]:
    """Median's confidence interval from order statistics (Hettmansperger and Sheather), and its level.

    [x_(d), x_(n+1−d)] holds the median with probability γ_d = 1 − 2·P(Bin(n, ½) < d). Between the two d whose γ enclose
    the wanted level the bounds are interpolated. Below six values even the extremes fall short of 95 %: they are
    returned with the level that they have.

    Args:
        values: ``[n]``, may hold 0 and inf.
        level: Wanted confidence level.

    Returns:
        Lower bound, upper bound, level.
    """
    x = values.double().sort().values.tolist()
    n = len(x)
    below = 1  # 2ⁿ·P(Bin(n, ½) < d), for d = 1: whole numbers, of any size
    gamma, d = 1 - 2 * below / 2**n, 1
    if gamma < level:
        return x[0], x[-1], gamma
    while True:
        below += math.comb(n, d)
        following = 1 - 2 * below / 2**n
        if following < level:
            break
        gamma, d = following, d + 1
    part = (gamma - level) / (gamma - following)
    weight = (n - d) * part / (d + (n - 2 * d) * part)
    return _between(x[d - 1], x[d], weight), _between(x[n - d], x[n - d - 1], weight), level


def _between(outer: float, inner: float, weight: float) -> float:
    """(1 − weight)·outer + weight·inner; an infinite bound stays infinite."""
    if weight == 0 or outer == inner:
        return outer
    return outer if math.isinf(outer) else (1 - weight) * outer + weight * inner


def median(values: Tensor) -> float:
    """The median with the mean of the two middle values, also where one of them is infinite."""
    x = values.double().sort().values
    return float((x[(len(x) - 1) // 2] + x[len(x) // 2]) / 2)
