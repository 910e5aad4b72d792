"""What stands out in a report, in plain sentences; the rule behind each stands beside it, and in docs/findings.md."""

from __future__ import annotations

import math
from collections.abc import Sequence

from netdyn.report.basin_findings import basins, percent
from netdyn.report.results import LayerReport, Report

#: A network that is no more than this share of the way from guessing to perfection reads as untrained.
BEATEN = 0.2
#: An OPT share this many times alpha, and 1/√units (the units of a narrow layer are few, and alike), is more than an
#: untrained network shows.
ORDERED_TIMES = 3.0
#: Gradients lie in ±6(1 − 1/K). Layers whose gradients differ by no more than this part of 6(1 − 1/K) are alike.
ALIKE = 0.1
#: A mean gradient above this part of 6(1 − 1/K) is high.
HIGH = 0.2
#: From this index on (Kendall's correlation of gradient and depth) gradients rise, or fall, from layer to layer.
STEADY = 0.5
#: More constant units than this are worth a sentence.
DEAD_SHARE = 0.2
#: An activation that keeps the order of fewer pairs of samples than this is named.
SHUT = 0.1
#: More accuracy than this gained by the statistics of a batch is worth a sentence.
BATCHNORM_GAP = 0.02
#: Above this affine defect the signs of a layer's wiring are noise.
DEFECT = 0.9
#: Of more layers than this the first are named and the others counted.
MOST_LAYERS = 3


def findings(report: Report) -> list[str]:
    """Sentences about a network: what it knows, its layers, its batch normalisation, its basins."""
    return [
        *_untrained(report),
        *_order(report),
        *_phase(report),
        *_linear_tail(report),
        *_dead(report.layers),
        *_shut(report.layers),
        *_batchnorm(report),
        *_defect(report.layers),
        *basins(report),
    ]


# Training ------------------------------------------------------------------------------------------------------------


def _guesses(accuracy: float, num_classes: int) -> bool:
    """No more than a fifth of the way from 1/K, what guessing gives, to perfection; never so without classes."""
    if num_classes < 2:
        return False
    chance = 1 / num_classes
    return accuracy - chance <= BEATEN * (1 - chance)


def _reads_as_untrained(report: Report) -> bool:
    """By its accuracy, or because it has no functional depth.

    The functional depth knows the share of the largest class, and is NaN where the network hardly beats that.
    """
    tails = [layer.tail_accuracy for layer in report.layers]
    read = bool(tails) and not any(map(math.isnan, tails))
    return _guesses(report.accuracy, report.num_classes) or (read and math.isnan(report.functional_depth))


def _untrained(report: Report) -> list[str]:
    """Accuracy near guessing, unless the statistics of a batch would mend it."""
    if not _reads_as_untrained(report) or _batchnorm(report):
        return []
    return [
        "The network is untrained, has learnt little or fails on this probe: its accuracy is no more than a fifth of "
        "the way from guessing to perfection."
    ]


# Order ---------------------------------------------------------------------------------------------------------------


def _beyond_chance(layer: LayerReport, alpha: float) -> float:
    """OPT share above 3·alpha + 1/√units."""
    return layer.opt_fraction - ORDERED_TIMES * alpha - 1 / math.sqrt(layer.sampled)


def _readable(layers: Sequence[LayerReport]) -> list[LayerReport]:
    """Layers whose OPT share is known, and not noise."""
    return [layer for layer in layers if not math.isnan(layer.opt_fraction) and not layer.affine_defect > DEFECT]


def _order(report: Report) -> list[str]:
    """No layer above 3·alpha + 1/√units: no order beyond chance. Else the one farthest above it is named."""
    known = _readable(report.layers)
    if not known:
        return []
    classes, chance = report.num_classes > 1, percent(report.alpha)
    best = max(known, key=lambda layer: _beyond_chance(layer, report.alpha))
    if _beyond_chance(best, report.alpha) <= 0:
        by = "class" if classes else "their target"
        return [f"No layer orders the samples by {by} beyond what chance would show ({chance} of its units)."]
    how = (
        "rank a class high where they are wired to raise its logit, and low where they lower it"
        if classes
        else "rank the samples by their target as their wiring asks"
    )
    return [
        f"Order is preserved most in layer {best.name}: {percent(best.opt_fraction)} of its live units {how} "
        f"(by chance {chance})."
    ]


def _phase(report: Report) -> list[str]:
    """Gradients of layers that order: alike and high (III), falling (I) or rising (II) from layer to layer."""
    phase, known = report.phase, _readable(report.layers)
    ordered = any(_beyond_chance(layer, report.alpha) > 0 for layer in known)
    noisy = any(layer.affine_defect > DEFECT for layer in report.layers)
    if math.isnan(phase.index) or _reads_as_untrained(report) or not ordered or noisy:
        return []
    largest = 6 * (1 - 1 / report.num_classes)
    if phase.spread <= ALIKE * largest:
        alike = "All layers order the samples by class, strongly and about equally (learning phase III)."
        return [alike] if phase.mean > HIGH * largest else []
    if phase.mean <= 0:
        return []
    if phase.index >= STEADY:
        return ["Later layers order the samples by class more than earlier ones (learning phase II)."]
    if phase.index <= -STEADY:
        return ["Earlier layers order the samples by class more than later ones (learning phase I)."]
    return []


# Layers --------------------------------------------------------------------------------------------------------------


def _linear_tail(report: Report) -> list[str]:
    """The layers from the functional depth on, and what is lost without their activations."""
    layers, depth = report.layers, report.functional_depth
    if math.isnan(depth) or not layers or any(layer.affine_defect > DEFECT for layer in layers[int(depth) :]):
        return []
    total = len(layers)
    linear = total - int(depth)
    first = layers[min(int(depth), total - 1)]
    lost = _points_lost(report.accuracy - first.tail_accuracy)
    if linear == 0:
        which = "The only layer" if total == 1 else f"Even the last of {total} layers"
        return [f"{which} does not act linearly: taking its activation away {lost}."]
    if linear == 1:
        which = "The only layer" if total == 1 else f"The last of {total} layers"
        return [f"{which} acts linearly: taking its activation away {lost}."]
    which = f"All {total} layers" if linear == total else f"The last {linear} of {total} layers"
    return [f"{which} act linearly: taking their activations away {lost}."]


def _points_lost(lost: float) -> str:
    points = f"{100 * abs(lost):.1f}"
    if points == "0.0":
        return "costs no accuracy"
    return f"{'costs' if lost > 0 else 'gains'} {points} {'point' if points == '1.0' else 'points'} of accuracy"


def _dead(layers: Sequence[LayerReport]) -> list[str]:
    """Layers with more than a fifth of their units constant."""
    found = [layer for layer in layers if layer.constant_fraction > DEAD_SHARE]
    shown = [
        f"{percent(layer.constant_fraction)} of the units of layer {layer.name} say the same for every sample."
        for layer in found[:MOST_LAYERS]
    ]
    if more := len(found) - len(shown):
        shown.append(
            f"In {more} more {'layer' if more == 1 else 'layers'} over {DEAD_SHARE:.0%} of the units say the same for "
            "every sample."
        )
    return shown


def _shut(layers: Sequence[LayerReport]) -> list[str]:
    """Layers whose activation keeps the order of less than a tenth of the pairs of samples."""
    found = [layer.name for layer in layers if layer.transfer_order < SHUT]
    if not found:
        return []
    return [
        f"The activation of {_names(found)} keeps the order of less than {SHUT:.0%} of the pairs of samples: it cuts "
        "off or turns round nearly all that reaches it."
    ]


def _batchnorm(report: Report) -> list[str]:
    """Over 2 points gained with the statistics of a batch, and more than guessing then."""
    gap = report.batchnorm_gap
    measured_on = report.accuracy if report.val_accuracy is None else report.val_accuracy
    if not gap > BATCHNORM_GAP or _guesses(measured_on + gap, report.num_classes):
        return []
    return [
        f"With the statistics of a batch in batch normalisation accuracy is {100 * gap:.1f} points higher: the "
        "network's own running statistics lag behind or were spoilt."
    ]


def _defect(layers: Sequence[LayerReport]) -> list[str]:
    """Layers with an affine defect above 0.9."""
    found = [layer.name for layer in layers if layer.affine_defect > DEFECT]
    if not found:
        return []
    return [
        f"The wiring from {_names(found)} to the outputs changes so much from sample to sample that OPT, NPT, gradient "
        "and linear tail say nothing there."
    ]


def _names(layers: Sequence[str]) -> str:
    shown = ", ".join(layers[:MOST_LAYERS])
    if len(layers) > MOST_LAYERS:
        shown += f" and {len(layers) - MOST_LAYERS} more"
    return f"layer {shown}" if len(layers) == 1 else f"layers {shown}"
