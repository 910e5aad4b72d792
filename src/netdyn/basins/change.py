"""How a radius has changed since an earlier evaluation on the same rays, compared in pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from netdyn.basins.interval import (
    LEVEL,
    clustered_error,
    median,
    median_interval,
    shared_error,
    student_quantile,
)


class Change(NamedTuple):
    """The logarithm of a radius over an earlier one, with its 95 % interval.

    Attributes:
        change: log(radius / earlier radius); in weight space the median over rays of each ray's own.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    change: float
    low: float
    high: float


@dataclass(frozen=True)
class Influences:
    """What an evaluation leaves for a later one on the same rays, of the same samples.

    Let A(x) be the accuracy at x = log σ, the mean of the samples' own shares F_s(x), and A(x₀) = a. Other samples
    would have given another mean, A + e. To first order its crossing lies e(x₀)/|A'(x₀)| farther: sample s moves log r
    by ψ_s/S, ψ_s = (F_s(x₀) − a)/|A'(x₀)|. In a second evaluation the same samples with the same noise move it by
    ψ'_s/S, so that the error of the change is that of the mean of ψ'_s − ψ_s. Most samples have much the same outcome
    at both radii, and cancel: two radii that are each uncertain by 5 % may differ by a change known to 1 %.

    Attributes:
        key: What must agree: seed, number of rays and the samples' contents.
        radii: log σ of each ray's crossing, float64 ``[rays]``; of all samples together in sample space, ``[1]``.
        influence: ψ_s of each sample on each of them ``[rays, samples]``, NaN where a ray did not ask it.
        clusters: Number of each sample's content ``[samples]``.
        weight: Weight of each sample in the accuracy ``[samples]``, with the mean 1; None: all the same.
    """

    key: str
    radii: Tensor
    influence: Tensor
    clusters: Tensor
    weight: Tensor | None = None

    def state(self) -> dict[str, Any]:
        """A dict of plain tensors and text, from which ``Influences(**state)`` makes it again."""
        return dict(vars(self))


def key_of(seed: int, rays: int, digests: Tensor) -> str:
    """The key of evaluations that use the same rays of the same samples."""
    return f"{seed} {rays} {int(digests.sum())}"


def sample_change(now: Influences | None, before: Influences | None) -> Change | None:
    """The change of a sample basin's radius; None where the evaluations cannot be compared.

    Its error is that of the mean of ψ'_s − ψ_s, where samples of equal content are one cluster.

    Source:
        netdyn's convention.
    """
    if now is None or before is None or now.key != before.key:
        return None
    ratio = float(now.radii - before.radii)
    error, clusters = clustered_error((now.influence - before.influence)[0], now.clusters, now.weight)
    half = student_quantile((1 + LEVEL) / 2, clusters - 1) * error
    return Change(ratio, ratio - half, ratio + half) if math.isfinite(half) else None


def weight_change(now: Influences | None, before: Influences | None) -> Change | None:
    """The change of a weight basin's radius; None where the evaluations cannot be compared.

    The rays with a crossing in both evaluations, two at least, are the pairs: Hettmansperger and Sheather's interval
    of the median of their log ratios (below 6 rays their extremes, whose level is lower), widened by what the choice of
    the samples adds to all rays alike.

    Source:
        netdyn's convention.
    """
    if now is None or before is None or now.key != before.key:
        return None
    ratios = now.radii - before.radii
    known = ratios.isfinite()
    if int(known.sum()) < 2:
        return None
    ratios, moved = ratios[known], (now.influence - before.influence)[known]
    low, high, _ = median_interval(ratios)
    extra = student_quantile((1 + LEVEL) / 2, moved.shape[1] - 1) * shared_error(moved, now.clusters, now.weight)
    centre = median(ratios)
    return Change(centre, centre - math.hypot(centre - low, extra), centre + math.hypot(high - centre, extra))


def sample_influences(
    key: str, radius: float, influence: Tensor, clusters: Tensor, weight: Tensor | None
) -> Influences:
    """The influences of all samples together on one radius."""
    return Influences(key, torch.tensor([math.log(radius)], dtype=torch.float64), influence[None], clusters, weight)
