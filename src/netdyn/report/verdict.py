"""How a training stands, in one line. docs/evidence.md gives the rules, and how often each of them is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from netdyn.probes.guessing import is_guessed
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
# The thresholds come from one half of the trainings in docs/evidence.md, and have been judged on the other.
#: Fewest samples in a probe that a verdict can rest on.
FEWEST_SAMPLES = 64
#: A loss this many times that of guessing, or the lowest of the run if that is larger, has risen; below this accuracy
#: the network has lost what it knew.
RISEN, LOST = 2.0, 0.5
#: A layer with a larger share of dead units is dead.
DEAD = 0.6
#: Larger gains with batch statistics on the training probe mean stale ones.
STALE = 0.08
#: Larger gaps between training and validation accuracy are overfitting, if they are this many standard errors too;
#: smaller ones than the first are none.
NARROW, WIDE, ERRORS = 0.09, 0.1, 2.0
#: Validation samples that rank farther from ½ than this, by their distances to the training samples, lie elsewhere.
APART = 0.08
#: From this training accuracy on a network has learnt its data.
LEARNT = 0.88


@dataclass(frozen=True)
class Verdict:
    """How a training stands.

    Attributes:
        level: One of :data:`LEVELS`.
        numbers: The numbers that the verdict rests on, by their tags where they have one.
        advice: What to try; empty where nothing needs to be done.
        reason: One sentence with the numbers.

    Examples:
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
        return f"docs/evidence.md#{self.level.replace(' ', '-')}"

    def __str__(self) -> str:
        return f"{self.level}: {self.reason}." + (f" Try: {self.advice}." if self.advice else "")


@dataclass(frozen=True)
class Numbers:
    """What the rules read, each from the report; NaN for what was not measured.

    Attributes:
        samples: Number of samples in the training probe.
        classes: Number of classes; 1 without classes.
        guess: The accuracy of guessing.
        accuracy: Accuracy on the training probe.
        val_accuracy: Accuracy on the validation probe.
        loss: Mean cross-entropy on the training probe.
        finite: Share of samples with finite outputs.
        dead: Largest share of dead units of a layer.
        gap: Batch-norm gap, on the validation probe if there is one.
        train_gap: Batch-norm gap on the training probe.
        apart: How validation samples rank by their distance to the training samples, see ``coverage/apart``.
        val_samples: Number of samples in the validation probe; 0 if that is not known.
        untouched: Whether the network has not been trained yet; None if its run is not known.
    """

    samples: int
    classes: int
    guess: float
    accuracy: float
    val_accuracy: float = math.nan
    loss: float = math.nan
    finite: float = 1.0
    dead: float = math.nan
    gap: float = math.nan
    train_gap: float = math.nan
    apart: float = math.nan
    val_samples: int = 0
    untouched: bool | None = False

    @property
    def held_out(self) -> int:
        """Number of samples in the validation probe; where it is not known, that of the training probe."""
        return self.val_samples or self.samples


def restores(accuracy: float, gap: float, guess: float, classes: int, samples: int) -> bool:
    """Whether batch statistics raise an accuracy by more than :data:`STALE`, to more than guessing explains."""
    return gap > STALE and not is_guessed(accuracy + gap, guess, classes, samples)


def verdict(report: Report, earlier: Sequence[Moment] = ()) -> Verdict:
    """The verdict on a network, which the earlier evaluations of its run can make more precise.

    Args:
        report: What was measured.
        earlier: The earlier evaluations of its run, oldest first.
    """
    return judge(
        Numbers(
            samples=report.samples,
            classes=report.num_classes,
            guess=report.guess,
            accuracy=report.accuracy,
            val_accuracy=math.nan if report.val_accuracy is None else report.val_accuracy,
            loss=report.loss,
            finite=report.finite,
            dead=report.dead_max,
            gap=report.batchnorm_gap,
            train_gap=report.batchnorm_train_gap,
            apart=math.nan if report.coverage is None else report.coverage.apart,
            val_samples=report.val_samples,
            untouched=None if report.step is None and not earlier else report.step == 0 and not earlier,
        ),
        earlier,
    )


def judge(numbers: Numbers, earlier: Sequence[Moment] = ()) -> Verdict:
    """The first rule that applies decides; a comparison with NaN is never true, so what is missing decides nothing."""
    if numbers.samples < FEWEST_SAMPLES:
        has = f"{numbers.samples} {'sample' if numbers.samples == 1 else 'samples'}"
        few = f"the probe has {has}, and a verdict needs {FEWEST_SAMPLES}"
        return Verdict(NO_FINDING, {"samples": float(numbers.samples)}, "a larger probe", few)
    for rule in (_diverged, _stale, _dead, _without_accuracy, _untrained, _shift, _overfitting, _learning, _healthy):
        if (found := rule(numbers, earlier)) is not None:
            return found
    return _between(numbers)


def _diverged(numbers: Numbers, earlier: Sequence[Moment]) -> Verdict | None:
    lower = "go back to an earlier checkpoint and lower the learning rate, or clip the gradients"
    if numbers.finite < 1:
        lost = f"the outputs are not finite for {100 * (1 - numbers.finite):.3g} % of the samples"
        return Verdict("diverged", {"finite": numbers.finite}, lower, lost)
    losses = [moment.loss for moment in earlier if not math.isnan(moment.loss)]
    before = max(math.log(numbers.classes), min(losses, default=0.0)) if numbers.classes > 1 else math.nan
    if numbers.untouched or not (numbers.accuracy < LOST and numbers.loss > RISEN * before):
        return None
    risen = f"the loss is {numbers.loss:.3g}, where {'it had been' if losses else 'guessing has'} {before:.3g}"
    return Verdict("diverged", {"loss": numbers.loss, "probe/accuracy": numbers.accuracy}, lower, risen)


def _stale(numbers: Numbers, earlier: Sequence[Moment]) -> Verdict | None:
    renewed = numbers.accuracy + numbers.train_gap
    if not restores(numbers.accuracy, numbers.train_gap, numbers.guess, numbers.classes, numbers.samples):
        return None
    if earlier and not earlier[-1].train_gap > STALE:
        young = (
            f"batch statistics raise training accuracy from {numbers.accuracy:.3f} to {renewed:.3f}, for the first time"
        )
        return Verdict(NO_FINDING, {"batchnorm/train_gap": numbers.train_gap}, "another evaluation", young)
    advice = "recompute the statistics with torch.optim.swa_utils.update_bn, or raise the momentum of the layers"
    reason = f"training accuracy {numbers.accuracy:.3f}, and {renewed:.3f} with batch statistics in batch normalisation"
    return Verdict("stale batch norm", {"batchnorm/train_gap": numbers.train_gap}, advice, reason)


def _dead(numbers: Numbers, earlier: Sequence[Moment]) -> Verdict | None:
    if not numbers.dead > DEAD:
        return None
    advice = "start again with a lower learning rate, or with LeakyReLU or GELU, and check the biases"
    share = f"{100 * numbers.dead:.3g} % of the units of a layer have the same output for every sample"
    return Verdict("dead units", {"modes/dead_max": numbers.dead}, advice, share)


def _without_accuracy(numbers: Numbers, earlier: Sequence[Moment]) -> Verdict | None:
    if numbers.classes > 1 and not math.isnan(numbers.accuracy):
        return None
    return Verdict(NO_FINDING, {}, "", "without classes only divergence and dead units are judged, and there are none")


def _untrained(numbers: Numbers, earlier: Sequence[Moment]) -> Verdict | None:
    if not is_guessed(numbers.accuracy, numbers.guess, numbers.classes, numbers.samples):
        return None
    advice = "" if numbers.untouched else "a higher learning rate or more steps; check the labels"
    advice = f"if it has been trained, {advice}" if numbers.untouched is None else advice
    reason = f"{_reached(numbers)}, and guessing gives {numbers.guess:.3f}"
    return Verdict("untrained", _accuracies(numbers), advice, reason)


def _shift(numbers: Numbers, earlier: Sequence[Moment]) -> Verdict | None:
    if not _gap(numbers):
        return None
    restored = numbers.gap > STALE
    if not restored and not abs(numbers.apart - 0.5) > APART:
        return None
    found = _accuracies(numbers) | {"coverage/apart": numbers.apart, "batchnorm/gap": numbers.gap}
    why = f"{numbers.val_accuracy + numbers.gap:.3f} with the statistics of its own batch"
    if not restored:
        side, how = ("away from", "farther") if numbers.apart > 0.5 else ("close to", "nearer")
        share = f"{100 * max(numbers.apart, 1 - numbers.apart):.0f} %"
        why = f"in {share} of comparisons with a training sample the validation sample is the {how} one"
        why = f"the validation data lie {side} the training data ({why})"
    advice = (
        "shuffle before you split, give both data sets the same preparation, or augment the training data accordingly"
    )
    return Verdict("distribution shift", found, advice, f"{_reached(numbers)}, {why}")


def _overfitting(numbers: Numbers, earlier: Sequence[Moment]) -> Verdict | None:
    before = [moment.val_accuracy for moment in earlier if not math.isnan(moment.val_accuracy)]
    rising = bool(before) and numbers.val_accuracy > max(before)
    if not _gap(numbers) or (numbers.accuracy < LEARNT and rising):
        return None
    advice, reason = "more data, augmentation, weight decay or a smaller network", _reached(numbers)
    if best := _clearly_best(numbers, earlier):
        reason += f" (it was {best.val_accuracy:.3f} at step {best.step})"
        advice = f"early stop near step {best.step}, {advice}"
    elif is_guessed(numbers.val_accuracy, numbers.guess, numbers.classes, numbers.held_out):
        reason += f", where guessing gives {numbers.guess:.3f}"
        advice = f"check the labels, {advice}"
    return Verdict("overfitting", _accuracies(numbers), advice, reason)


def _gap(numbers: Numbers) -> bool:
    """Whether training accuracy is above validation accuracy by more than the choice of the samples explains."""
    return numbers.accuracy - numbers.val_accuracy > max(WIDE, ERRORS * _error(numbers))


def _error(numbers: Numbers) -> float:
    """Standard error of training accuracy minus validation accuracy."""
    return _error_between(numbers.accuracy, numbers.samples, numbers.val_accuracy, numbers.held_out)


def _error_between(first: float, first_samples: int, second: float, second_samples: int) -> float:
    """Standard error of the difference of two shares of different samples."""
    return math.sqrt(first * (1 - first) / first_samples + second * (1 - second) / second_samples)


def _clearly_best(numbers: Numbers, earlier: Sequence[Moment]) -> Moment | None:
    """The evaluation with the best validation accuracy, if it is above the present one by more than chance.

    As if of different samples, which allows for the choice of the best one.
    """
    known = [moment for moment in earlier if not math.isnan(moment.val_accuracy)]
    if not known:
        return None
    best = max(known, key=lambda moment: moment.val_accuracy)
    before, now, samples = best.val_accuracy, numbers.val_accuracy, numbers.held_out
    return best if before - now > ERRORS * _error_between(before, samples, now, samples) else None


def _learning(numbers: Numbers, earlier: Sequence[Moment]) -> Verdict | None:
    return Verdict("learning", _accuracies(numbers), "", _reached(numbers)) if numbers.accuracy < LEARNT else None


def _healthy(numbers: Numbers, earlier: Sequence[Moment]) -> Verdict | None:
    if math.isnan(numbers.val_accuracy):
        reason = f"{_reached(numbers)}, and no held-out data"
        return Verdict(NO_FINDING, {"probe/accuracy": numbers.accuracy}, "a validation probe", reason)
    if numbers.accuracy - numbers.val_accuracy > NARROW:
        return None
    return Verdict("healthy", _accuracies(numbers), "", _reached(numbers))


def _between(numbers: Numbers) -> Verdict:
    """A gap too large for a healthy network, and too small, or too uncertain, for an overfitting one."""
    gap = numbers.accuracy - numbers.val_accuracy
    where = f"the gap of {gap:.3f} lies between healthy (up to {NARROW:.2f}) and overfitting (above {WIDE:.2f})"
    if gap > WIDE:
        by_chance = ERRORS * _error(numbers)
        where = f"so few samples show a gap of {gap:.3f} by chance too (two standard errors are {by_chance:.3f})"
    advice = "a larger validation probe"
    return Verdict(NO_FINDING, _accuracies(numbers), advice, f"{_reached(numbers)}: {where}")


def _accuracies(numbers: Numbers) -> dict[str, float]:
    found = {"probe/accuracy": numbers.accuracy, "probe/val_accuracy": numbers.val_accuracy}
    return {tag: value for tag, value in found.items() if not math.isnan(value)}


def _reached(numbers: Numbers) -> str:
    held_out = "" if math.isnan(numbers.val_accuracy) else f", validation {numbers.val_accuracy:.3f}"
    return f"training accuracy {numbers.accuracy:.3f}{held_out}"
