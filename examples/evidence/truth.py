"""The true level of a training, from checks that do not use netdyn. Written before any threshold was looked at.

A training is labelled by the first rule of `RULES` that its last network meets, whatever it was made to be; one that
meets none is left out of the error rates and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Checks = dict[str, float]


def _diverged(kind: str, c: Checks) -> bool:
    # NaN is not above anything, so the first comparison takes it too.
    risen = not c["train_loss"] <= 2 * max(c["start_loss"], math.log(10))
    return not math.isfinite(c["train_loss"]) or (risen and c["train_accuracy"] < 0.5)


#: Level, the rule in words, and the rule. Accuracies are of all training samples with the labels that were trained on,
#: and of all test samples.
RULES: tuple[tuple[str, str, Callable[[str, Checks], bool]], ...] = (
    (
        "diverged",
        "training loss not finite, or above twice the initial one and that of guessing, at an accuracy below .5",
        _diverged,
    ),
    (
        "dead units",
        "in some layer at least half of the ReLU units (channels) are 0 for every training sample",
        lambda kind, c: c["off"] >= 0.5,
    ),
    (
        "stale batch norm",
        "statistics computed anew from all training data raise training accuracy by .1 or more",
        lambda kind, c: c["renewed"] - c["train_accuracy"] >= 0.1,
    ),
    (
        "distribution shift",
        "made so; training minus unchanged test accuracy at most .1, and changed test data cost .15 or more",
        lambda kind, c: (
            kind == "shift"
            and c["train_accuracy"] - c["test_accuracy"] <= 0.1
            and c["test_accuracy"] - c["shifted"] >= 0.15
        ),
    ),
    (
        "untrained",
        "training accuracy at most .2, twice that of guessing",
        lambda kind, c: c["train_accuracy"] <= 0.2,
    ),
    (
        "learning",
        "made so; training accuracy below .9, and 300 steps more raise it by .1 or more",
        lambda kind, c: (
            kind == "learning"
            and c["train_accuracy"] < 0.9
            and c["later_accuracy"] - c["train_accuracy"] >= 0.1
            and c["train_accuracy"] - c["test_accuracy"] < 0.15
        ),
    ),
    (
        "overfitting",
        "not made to be shifted; training minus test accuracy .15 or more",
        lambda kind, c: kind != "shift" and c["train_accuracy"] - c["test_accuracy"] >= 0.15,
    ),
    (
        "healthy",
        "not made to be shifted; training accuracy .9 or more, training minus test accuracy at most .06",
        lambda kind, c: (
            kind != "shift" and c["train_accuracy"] >= 0.9 and c["train_accuracy"] - c["test_accuracy"] <= 0.06
        ),
    ),
)
LEVELS = tuple(level for level, _, _ in RULES)


def truth(kind: str, checks: Checks) -> str | None:
    """The true level; None if no rule applies.

    >>> checks = {"start_loss": 2.3, "train_loss": 0.01, "train_accuracy": 1.0, "test_accuracy": 0.7}
    >>> truth("stratum", checks | {"off": 0.1, "renewed": math.nan})
    'overfitting'
    """
    return next((level for level, _, met in RULES if met(kind, checks)), None)
