"""A run so far, in a few numbers per evaluation: small enough to be kept in every report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

#: Most evaluations that a report keeps of its run.
MOST = 200


class Moment(NamedTuple):
    """One evaluation of a run; NaN for what was not measured.

    Attributes:
        step: The step at which it was made.
        accuracy: Accuracy on the training probe.
        val_accuracy: Accuracy on the validation probe.
        sample_radius: Radius of the sample basin.
        weight_radius: Radius of the weight basin.
        loss: Mean cross-entropy on the training probe.
        train_gap: Batch-norm gap on the training probe.
    """

    step: int
    accuracy: float = math.nan
    val_accuracy: float = math.nan
    sample_radius: float = math.nan
    weight_radius: float = math.nan
    loss: float = math.nan
    train_gap: float = math.nan


def thinned(moments: Sequence[Moment], most: int = MOST) -> tuple[Moment, ...]:
    """At most ``most`` moments, evenly chosen; the last one is always among them.

    >>> [moment.step for moment in thinned([Moment(step) for step in range(10)], most=4)]
    [0, 3, 6, 9]
    """
    every = -(-len(moments) // most) if moments else 1
    return tuple(moments[(len(moments) - 1) % every :: every])
