"""Noise levels that show roughly where accuracy falls: samples are asked once, each at a level of its own.

A *question* is a ray of a sample; ``[questions]`` are all rays of all samples, ray by ray.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from netdyn._utils.trees import evenly_spaced

#: Questions over the whole range of noise levels, and about the place that they have shown.
WIDE, NEAR = 128, 384
#: How far about it, in log σ.
ABOUT = 1.0


def by_class(chance: Tensor, labels: Tensor) -> Tensor:
    """Indices of all items ``[items]``, class by class, and within a class in the order of ``chance``."""
    return torch.from_numpy(np.lexsort((chance.numpy(), labels.numpy())))


def portions(chance: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of ``WIDE``, of ``NEAR`` and of the other questions, the classes in proportion in each portion.

    ``chance`` is a number in [0, 1) for each question, made from its content: the order of samples does not matter.
    """
    order = by_class(chance, labels)
    wide = _every(len(order), WIDE)
    rest = order[~wide]
    near = _every(len(rest), NEAR)
    return order[wide], rest[near], rest[~near]


def _every(total: int, wanted: int) -> Tensor:
    """A choice of ``wanted`` of ``total`` places at even distances (all, if there are fewer), bool ``[total]``."""
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[evenly_spaced(total, wanted)] = True
    return chosen


def latin_levels(chance: Tensor, labels: Tensor, low: float, high: float) -> Tensor:
    """A Latin hypercube of levels in each class, from two numbers in [0, 1) per question ``[questions, 2]``.

    >>> latin_levels(torch.tensor([[0.5, 0.0], [0.2, 0.0]]), torch.tensor([3, 3]), 0.0, 1.0)
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    order = by_class(chance[:, 0], labels)
    size = torch.bincount(labels)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - torch.repeat_interleave(size.cumsum(0) - size, size)
    return low + (high - low) * (place + chance[:, 1]).double() / size[labels].clamp(min=1)
