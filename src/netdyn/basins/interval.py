"""Medians and quantiles, and how far to trust them."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
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


def binomial_tail(count: int, number: int, share: float) -> float:
    """P(Bin(number, share) ≤ count), summed from logarithms.

    >>> round(binomial_tail(1, 3, 0.5), 6)
    0.5
    """
    if count >= number:
        return 1.0
    own, other, whole = math.log(share), math.log1p(-share), math.lgamma(number + 1)
    return math.fsum(
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(number - k + 1) + k * own + (number - k) * other)
        for k in range(count + 1)
    )


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


def mean_of(values: Tensor, weight: Tensor | None = None) -> float:
    """The mean of ``values [n]``, weighted by ``weight [n]`` if that is given."""
    wide = values.double()
    return float(wide.mean() if weight is None else (wide * weight).sum() / weight.sum())


def clustered_error(values: Tensor, cluster: Tensor, weight: Tensor | None = None) -> tuple[float, int]:
    """Standard error of a mean whose values come in clusters, and the number of clusters C.

    With G_c the sum of the deviations from the mean in cluster c, se² = C/(C − 1)·ΣG_c²/n². Where every value is a
    cluster of its own this is the usual error. Weighted deviations give the linearised error of a ratio.

    Args:
        values: ``[n]``.
        cluster: Number of each value's cluster, int64 ``[n]``.
        weight: Weight of each value in the mean, ``[n]`` with the mean 1; None: all the same.

    >>> clustered_error(torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0, 1, 0, 1]))
    (0.5, 2)
    """
    clusters = len(torch.unique(cluster))
    if clusters < 2:
        return math.inf, clusters
    apart = values.double() - mean_of(values, weight)
    apart = apart if weight is None else apart * weight
    sums = torch.zeros(int(cluster.max()) + 1, dtype=torch.float64).index_add_(0, cluster, apart)
    return math.sqrt(clusters / (clusters - 1) * float(sums.square().sum())) / len(values), clusters


def shared_error(right: Tensor, cluster: Tensor, weight: Tensor | None = None) -> float:
    """Standard error that the choice of the probe's samples adds to an accuracy on every ray alike.

    Of a sample's outcomes on several rays the part that they share is its own: Var_s(E_ray f_rs), found without bias
    from pairs of rays, Σ_s[(Σ_r g_rs)² − Σ_r g_rs²]/Σ_s m_s(m_s − 1) with g_rs = f_rs − mean_s f_rs and m_s the number
    of rays that asked sample s. The error is its root over √S; copies of a sample count as one.

    Args:
        right: Outcomes ``[rays, samples]`` in [0, 1], NaN where a ray did not ask a sample.
        cluster: Number of each sample's content, int64 ``[samples]``.
        weight: Weight of each sample in the accuracy, ``[samples]`` with the mean 1; None: all the same.

    Source:
        netdyn's convention.
    """
    asked = ~right.isnan()
    each = torch.ones(right.shape[1], dtype=torch.float64) if weight is None else weight
    mean = (right.nan_to_num(0.0) * each).sum(dim=1, keepdim=True) / (asked * each).sum(dim=1, keepdim=True)
    apart = ((right - mean) * each).nan_to_num(0.0)
    times = asked.sum(dim=0).double()
    pairs = float((times * (times - 1)).sum())
    if not pairs:
        return 0.0
    shared = float((apart.sum(dim=0).square() - apart.square().sum(dim=0)).sum()) / pairs
    copies = torch.bincount(cluster).double()
    return math.sqrt(max(shared, 0.0) * float(copies.square().sum())) / len(cluster)


def widened(interval: tuple[float, float], centre: float, error: float, samples: int) -> tuple[float, float]:
    """An interval with another source of error added to it: in log σ, each half becomes √(half² + (t·error)²)."""
    extra = student_quantile((1 + LEVEL) / 2, samples - 1) * error if samples > 1 else 0.0

    def moved(end: float, side: int) -> float:
        if not 0 < end < math.inf or not 0 < centre < math.inf:
            return end
        return centre * math.exp(side * math.hypot(math.log(end / centre), extra))

    return moved(interval[0], -1), moved(interval[1], 1)
