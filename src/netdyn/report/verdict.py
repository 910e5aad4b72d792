"""How a training stands, in one line. docs/evidence.md gives the rules, and how often each of them is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from netdyn.report.results import Report
from netdyn.report.trend import Moment

#: No finding: no rule applies, or there is too little to go by.
NO_FINDING = "no finding"
LEVELS = (
    "untrained",
    "learning",
    "healthy",
    "overfitting",
    "dead units",
    "stale batch norm",
    "distribution shift",
    "diverged",
    NO_FINDING,
)
#: Fewest samples in a probe that a verdict can rest on.
FEWEST_SAMPLES = 64
#: A layer with a larger share of dead units is dead.
DEAD = 0.9
#: Larger gains with batch statistics on the training probe mean stale ones.
STALE = 0.05
#: A larger gap between training and validation accuracy is overfitting.
GAP = 0.1
#: From this training accuracy on a network has learnt its data.
LEARNT = 0.9


@dataclass(frozen=True)
class Verdict:
    """How a training stands.

    Attributes:
        level: One of :data:`LEVELS`.
        numbers: The numbers that the verdict rests on, by their tags where they have one.
        advice: What to try; empty where nothing needs to be done.
        reason: One sentence with the numbers.

    Example:
        >>> print(Verdict("healthy", {"probe/accuracy": 0.98}, "", "training accuracy 0.980, validation 0.962"))
        healthy: training accuracy 0.980, validation 0.962.
    """

    level: str
    numbers: dict[str, float]
    advice: str
    reason: str

    @property
    def rule(self) -> str:
        """The section of the documentation with the verdict's rule and its error rates."""
        return f"evidence.html#{self.level.replace(' ', '-')}"

    def __str__(self) -> str:
        return f"{self.level}: {self.reason}." + (f" Try: {self.advice}." if self.advice else "")


def verdict(report: Report, earlier: Sequence[Moment] = ()) -> Verdict:
    """The verdict on a network, which the earlier evaluations of its run can make more precise."""
    val = math.nan if report.val_accuracy is None else report.val_accuracy
    numbers = {"probe/accuracy": report.accuracy, "probe/val_accuracy": val}
    scalars = report.scalars()
    reached = f"training accuracy {report.accuracy:.3f}" + (f", validation {val:.3f}" if not math.isnan(val) else "")
    if report.samples < FEWEST_SAMPLES:
        few = f"the probe has {report.samples} samples, and a verdict needs {FEWEST_SAMPLES}"
        return Verdict(NO_FINDING, {"samples": float(report.samples)}, "", few)
    dead = scalars.get("modes/dead_max", math.nan)
    if dead > DEAD:
        advice = "lower the learning rate, or use LeakyReLU or GELU"
        return Verdict("dead units", {"modes/dead_max": dead}, advice, f"{dead:.0%} of the units of a layer are dead")
    gap = report.batchnorm_train_gap
    if gap > STALE:
        advice = "recompute the statistics with torch.optim.swa_utils.update_bn, or raise the momentum"
        reason = f"batch statistics raise the training accuracy by {gap:.3f}"
        return Verdict("stale batch norm", {"batchnorm/train_gap": gap}, advice, reason)
    if math.isnan(report.accuracy):
        return Verdict(NO_FINDING, {}, "", "the network has no accuracy")
    if report.untrained:
        return Verdict("untrained", numbers, "train longer, or raise the learning rate", reached)
    if report.accuracy - val > GAP:
        best = max(
            (moment for moment in earlier if not math.isnan(moment.val_accuracy)),
            key=lambda moment: moment.val_accuracy,
            default=None,
        )
        stop = "" if best is None else f"early stop near step {best.step}, "
        return Verdict("overfitting", numbers, f"{stop}more data, augmentation or weight decay", reached)
    if report.accuracy < LEARNT:
        return Verdict("learning", numbers, "", reached)
    if math.isnan(val):
        return Verdict(NO_FINDING, numbers, "pass held-out data as `val_probe`", f"{reached}, and no validation data")
    return Verdict("healthy", numbers, "", reached)
