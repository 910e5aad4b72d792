"""What stands out in a report, in plain sentences. docs/findings.md gives the rule behind each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

from netdyn.linear.tails import CLOSE
from netdyn.report.basin_findings import basins, percent
from netdyn.report.results import LayerReport, Report
from netdyn.report.verdict import STALE, restores

#: Order is seen in a layer if its own test finds it at this level, divided by the number of layers. With fewer than
#: five classes: if its OPT share exceeds this many times alpha plus 1/√units (few units are often similar).
ORDER_LEVEL, ORDERED_TIMES = 0.01, 3.0
#: Gradients lie in ±6(1 − 1/K). As shares of 6(1 − 1/K): the most by which alike ones differ; above which one is high.
ALIKE, HIGH = 0.1, 0.2
#: Gradients rise with depth if the index (Kendall's correlation of both) is at least this, and fall at minus this.
STEADY = 0.5
#: A layer is reported if more of its units are dead or constant, or if its activation keeps the order of fewer pairs.
DEAD_SHARE, SHUT = 0.2, 0.1
#: Standard errors by which a tail's loss must lie on one side of what is allowed: a one-sided test at 5 %.
SURE = 1.64
#: The batch-norm gap is reported above this, as by the verdict.
BATCHNORM_GAP = STALE
#: Above this affine defect the signs of a layer's wiring are noise.
DEFECT = 0.9
#: Above this a network is not affine after a layer even without activations.
AFFINE = 0.05
#: Up to this many layers are named; the others are counted.
MOST_LAYERS = 3


def findings(report: Report) -> list[str]:
    """Sentences about a network: its accuracy, its layers, its batch normalisation and its basins."""
    return [sentence for sentence, _ in with_rules(report)]


def with_rules(report: Report) -> list[tuple[str, str]]:
    """Each sentence with the rule by which it is said."""
    return [(sentence, rule) for find, rule in RULES for sentence in find(report)]


def _untrained(report: Report) -> list[str]:
    """An accuracy that guessing explains, unless batch statistics would restore it."""
    known = report.guess, report.num_classes, report.samples
    restored = restores(report.accuracy, report.batchnorm_train_gap, *known)
    if not report.untrained or restored or _batchnorm(report):
        return []
    largest = report.guess > 1 / report.num_classes + 1e-12
    return [
        "The network is untrained, has learnt little or fails on this probe: accuracy is "
        f"{percent(report.accuracy)}, and guessing{' the largest class' if largest else ''} gives "
        f"{percent(report.guess)}."
    ]


def _ordered(report: Report) -> list[LayerReport]:
    """The layers that order the samples beyond chance: by their own test, which five classes allow, or by OPT share."""
    known = _readable(report.layers)
    tested = [layer for layer in known if not math.isnan(layer.order_z)]
    if tested:
        return [layer for layer in tested if layer.order_z > _critical(len(tested))]
    limit = ORDERED_TIMES * report.alpha
    return [layer for layer in known if layer.opt_fraction > limit + 1 / math.sqrt(layer.sampled)]


def _critical(layers: int) -> float:
    """What z exceeds by chance in any of so many layers in 1 % of cases."""
    return NormalDist().inv_cdf(1 - ORDER_LEVEL / layers)


def _readable(layers: Sequence[LayerReport]) -> list[LayerReport]:
    """Layers whose OPT share is known and means something."""
    return [layer for layer in layers if not math.isnan(layer.opt_fraction) and not layer.affine_defect > DEFECT]


def _order(report: Report) -> list[str]:
    """The layer with the largest OPT share of those that show order; if none does, there is none beyond chance."""
    known, ordered = _readable(report.layers), _ordered(report)
    if not known or report.untrained:
        return []
    classes = report.num_classes > 1
    tests = [layer.order_z for layer in known if not math.isnan(layer.order_z)]
    if not ordered:
        shown = f": the largest z is {max(tests):.1f}, and {_critical(len(tests)):.1f} is needed" if tests else ""
        return [f"No layer orders the samples by {'class' if classes else 'their target'} beyond chance{shown}."]
    best = max(ordered, key=lambda layer: layer.opt_fraction)
    how = "rank the samples by their target in the direction of their wiring"
    if classes:
        how = "rank a class high where they are wired to raise its logit, and low where they lower it"
    chance = f" (z {best.order_z:.1f}; by chance up to {percent(best.opt_chance)})" if tests else ""
    return [
        f"Order is preserved most in layer {best.name}: {percent(best.opt_fraction)} of its live units {how}{chance}."
    ]


def _phase(report: Report) -> list[str]:
    """The learning phase: gradients alike and high (III), falling (I) or rising (II) from layer to layer."""
    phase = report.phase
    noisy = any(layer.affine_defect > DEFECT for layer in report.layers)
    if math.isnan(phase.index) or report.untrained or not _ordered(report) or noisy:
        return []
    largest = 6 * (1 - 1 / report.num_classes)
    if phase.spread <= ALIKE * largest:
        alike = "All layers order the samples by class, strongly and about equally (learning phase III)."
        return [alike] if phase.mean > HIGH * largest else []
    if phase.mean > 0 and phase.index >= STEADY:
        return ["Later layers order the samples by class more than earlier ones (learning phase II)."]
    if phase.mean > 0 and phase.index <= -STEADY:
        return ["Earlier layers order the samples by class more than later ones (learning phase I)."]
    return []


def _linear_tail(report: Report) -> list[str]:
    """The layers from the functional depth on, and the accuracy that removing their activations costs.

    Said where tests of the paired losses agree with that depth: no more than allowed from there on, more just before.
    """
    layers, total = report.layers, len(report.layers)
    if math.isnan(report.functional_depth) or report.untrained or not layers:
        return []
    depth = int(report.functional_depth)
    tail, before = layers[depth:], layers[max(depth - 1, 0) : depth]
    if any(layer.affine_defect > DEFECT for layer in (*tail, *before)):
        return []
    kept = all(layer.tail_change - SURE * layer.tail_error > -CLOSE for layer in tail)
    if not kept or not all(layer.tail_change + SURE * layer.tail_error < -CLOSE for layer in before):
        return []
    linear = total - depth
    rest = any(layer.affine_defect > AFFINE for layer in tail)
    other = ". Max-pooling, normalisation, gates and attention stay, and are not linear" if rest else ""
    lost = -layers[min(depth, total - 1)].tail_change
    points = f"{100 * abs(lost):.1f}"
    change = f"{'costs' if lost > 0 else 'gains'} {points} {'point' if points == '1.0' else 'points'} of accuracy"
    change = "costs no accuracy" if points == "0.0" else change
    if linear < 2:
        which = f"{'The' if linear else 'Even the'} last of {total} layers" if total > 1 else "The only layer"
        acts = ("needs no activation" if other else "acts linearly") if linear else "does not act linearly"
        removed = "it" if other and linear else "its activation"
        return [f"{which} {acts}: removing {removed} {change}{other if linear else ''}."]
    which = "Both layers" if total == 2 else f"All {total} layers"
    which = which if linear == total else f"The last {linear} of {total} layers"
    act = "need no activations" if other else "act linearly"
    return [f"{which} {act}: removing {'them' if other else 'their activations'} {change}{other}."]


def _dead(layers: Sequence[LayerReport]) -> list[str]:
    """Layers in which more than a fifth of the units are dead, or constant."""
    dead = {layer.name: layer.dead_fraction for layer in layers}
    constant = {layer.name: layer.constant_fraction for layer in layers}
    return [
        *_many(dead, "whose input varies are dead: their activation has the same output for every sample"),
        *_many(constant, "get the same input for every sample"),
    ]


def _many(shares: Mapping[str, float], what: str) -> list[str]:
    found = [name for name, share in shares.items() if share > DEAD_SHARE]
    shown = [f"{percent(shares[name])} of the units of layer {name} {what}." for name in found[:MOST_LAYERS]]
    if more := len(found) - len(shown):
        shown.append(
            f"In {more} more {'layer' if more == 1 else 'layers'}, over {percent(DEAD_SHARE)} of the units {what}."
        )
    return shown


def _shut(layers: Sequence[LayerReport]) -> list[str]:
    """Layers whose activation keeps the order of less than a tenth of the pairs of samples."""
    found = [layer.name for layer in layers if layer.transfer_order < SHUT]
    if not found:
        return []
    return [
        f"The activation of {_names(found)} keeps the order of less than {percent(SHUT)} of the pairs of samples: it "
        "cuts off or inverts nearly everything that reaches it."
    ]


def _batchnorm(report: Report) -> list[str]:
    """More than 8 points gained with batch statistics, to an accuracy that is better than guessing.

    On both probes this is the statistics' fault. On the validation probe alone they fit the training data and not it.
    """
    gap = report.batchnorm_gap
    measured_on = report.accuracy if report.val_accuracy is None else report.val_accuracy
    known = report.guess, report.num_classes, report.samples
    if math.isnan(report.batchnorm_train_gap) or not restores(measured_on, gap, *known):
        return []
    higher = f"With batch statistics in batch normalisation, accuracy is {100 * gap:.1f} points higher"
    if report.batchnorm_train_gap > BATCHNORM_GAP:
        return [f"{higher}: the running statistics lag behind or are corrupted."]
    return [
        f"{higher} on the validation probe but not on the training probe: the validation data are distributed "
        "otherwise than the training data."
    ]


def _defect(layers: Sequence[LayerReport]) -> list[str]:
    """Layers with an affine defect above 0.9."""
    found = [layer.name for layer in layers if layer.affine_defect > DEFECT]
    if not found:
        return []
    return [
        f"The wiring from {_names(found)} to the outputs changes so much from sample to sample that OPT, NPT, gradient "
        "and linear tail mean nothing there."
    ]


def _names(layers: Sequence[str]) -> str:
    shown = ", ".join(layers[:MOST_LAYERS])
    if len(layers) > MOST_LAYERS:
        shown += f" and {len(layers) - MOST_LAYERS} more"
    return f"layer {shown}" if len(layers) == 1 else f"layers {shown}"


#: The kinds of findings, in their order, and the rule of each in short. docs/findings.md has the whole rules.
RULES: tuple[tuple[Callable[[Report], list[str]], str], ...] = (
    (_untrained, "guessing explains the accuracy, within three standard errors or up to twice 1/K."),
    (
        _order,
        "a layer has order where a test that shuffles its wiring finds it; by chance it finds some in "
        f"{percent(ORDER_LEVEL)} of networks without order. With fewer than five classes there is no such test: the "
        f"share of units in order must be above {ORDERED_TIMES:g} times alpha, plus 1/√(number of units).",
    ),
    (
        _phase,
        f"the rank correlation of gradient and depth is at least {STEADY:g} on either side; alike: gradients differ by "
        f"at most {percent(ALIKE)} of the largest possible one, and their mean exceeds {percent(HIGH)} of it.",
    ),
    (
        _linear_tail,
        f"layers act linearly where the network loses at most {CLOSE:g} of accuracy without their activations, by a "
        "paired test at 5 %.",
    ),
    (lambda report: _dead(report.layers), f"more than {percent(DEAD_SHARE)} of a layer's units."),
    (lambda report: _shut(report.layers), f"less than {percent(SHUT)} of the pairs of samples keep their order."),
    (_batchnorm, f"batch statistics gain more than {BATCHNORM_GAP:g} of accuracy."),
    (lambda report: _defect(report.layers), f"the affine defect exceeds {DEFECT:g}."),
    (
        basins,
        "a radius is the noise at which accuracy falls to its target; classes and weights are named where theirs is "
        "half or twice the usual one, classes by a binomial test.",
    ),
)
