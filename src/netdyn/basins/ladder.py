"""Noise levels that show roughly where accuracy falls: some samples are asked once, each at a level of its own.

First a few over the whole range; then more about the place that these have shown. Levels are a Latin hypercube over log
σ within every class, so that each class is asked evenly. They depend on the samples' contents alone, not on their
order.

Layout: a *question* is a ray of a sample; ``[questions]`` are all rays of all samples, ray by ray.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Questions over the whole range of noise levels, and about the place that they have shown.
WIDE, NEAR = 128, 384
#: How far about it, in log σ.
ABOUT = 1.0


def ladder_rays(samples: int) -> int:
    """Rays per sample on the ladder: enough for ``WIDE + NEAR`` questions.

    >>> ladder_rays(1024), ladder_rays(100)
    (1, 6)
    """
    return max(1, math.ceil((WIDE + NEAR) / samples))


def portions(chance: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All questions in three portions: ``WIDE``, ``NEAR`` and the rest, the classes in proportion in each.

    Args:
        chance: A number in [0, 1) for each question ``[questions]``, a function of its content.
        labels: Its class, int64 ``[questions]``.

    Returns:
        Indices of the questions of each portion.
    """
    order = torch.argsort(chance)
    order = order[torch.argsort(labels[order], stable=True)]
    wide = _every(len(order), WIDE)
    rest = order[~wide]
    near = _every(len(rest), NEAR)
    return order[wide], rest[near], rest[~near]


def _every(total: int, wanted: int) -> Tensor:
    """A choice of ``wanted`` of ``total`` places at even distances (all, if there are fewer), bool ``[total]``."""
    chosen = torch.zeros(total, dtype=torch.bool)
    if total:
        chosen[(torch.arange(min(wanted, total)) * total).div(min(wanted, total), rounding_mode="floor")] = True
    return chosen


def latin_levels(chance: Tensor, labels: Tensor, low: float, high: float) -> Tensor:
    """Levels between ``low`` and ``high`` for some questions: each class has them at even distances, but for chance.

    >>> latin_levels(torch.tensor([[0.5, 0.0], [0.2, 0.0]]), torch.tensor([3, 3]), 0.0, 1.0)
    tensor([0.5000, 0.0000], dtype=torch.float64)

    Args:
        chance: Two numbers in [0, 1) for each question ``[questions, 2]``.
        labels: Its class, int64 ``[questions]``.
        low: Smallest level.
        high: Largest level.
    """
    order = torch.argsort(chance[:, 0])
    order = order[torch.argsort(labels[order], stable=True)]
    size = torch.bincount(labels)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - torch.repeat_interleave(size.cumsum(0) - size, size)
    return low + (high - low) * (place + chance[:, 1]).double() / size[labels].clamp(min=1)
