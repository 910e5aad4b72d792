"""A report as text: summary lines, a table of layers, and findings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from netdyn.basins.result import BasinResult
from netdyn.report.basin_findings import percent
from netdyn.report.findings import findings
from netdyn.report.reasons import reasons
from netdyn.report.results import LayerReport, Report

#: Heading and meaning of each column of the table.
COLUMNS = (
    ("layer", "the module whose output the activation reads"),
    ("units", "number of units"),
    ("OPT", "share of live units that preserve the order of the samples"),
    ("NPT", "share of live units that do not"),
    ("dead", "share of units whose activation has the same output for every sample"),
    ("gradient", "slope of the rank distribution: positive if a class ranks high in the units that raise its logit"),
    ("linear tail", "accuracy when the activations from this layer on are removed"),
)
#: Longer names of layers are shortened in the middle, unless two of them would then be equal.
NAME_WIDTH = 28


def text(report: Report) -> str:
    """The report for a terminal: the verdict, the probe, a table of layers, summary lines, findings."""
    lines = [f"{report.verdict}", probe_line(report)]
    if report.layers:
        names = shortened([layer.name for layer in report.layers], NAME_WIDTH)
        heads = [head for head, _ in COLUMNS]
        cells = [[name, *layer_numbers(layer)] for name, layer in zip(names, report.layers, strict=True)]
        lines += [*_aligned([heads, *cells]), *reasons(report)]
    return "\n".join([*lines, *summary(report), *(f"- {sentence}" for sentence in findings(report))])


def probe_line(report: Report) -> str:
    """The size of the probe, and the accuracy on it."""
    line = f"probe: {report.samples} samples"
    if report.num_classes > 1:
        line += f", {report.num_classes} classes"
    if math.isnan(report.accuracy):
        return line
    line += f", {_accuracy_of(report)} {_number(report.accuracy)}"
    return line if report.val_accuracy is None else f"{line} (validation {_number(report.val_accuracy)})"


def _accuracy_of(report: Report) -> str:
    return "accuracy" if report.num_classes > 1 else "share of right answers"


def layer_numbers(layer: LayerReport) -> list[str]:
    """The cells of a layer's row that follow its name."""
    modes = (layer.opt_fraction, layer.npt_fraction, layer.dead_fraction, layer.rpd_gradient)
    return [str(layer.units), *map(_number, (*modes, layer.tail_accuracy))]


def summary(report: Report) -> list[str]:
    """Phase, functional depth, batch-norm gap and basins, as far as they were measured."""
    lines, phase = [], report.phase
    if not math.isnan(phase.index) and not report.untrained:
        lines.append(
            f"phase: index {_number(phase.index)}, spread {_number(phase.spread)}, mean {_number(phase.mean)} "
            "of the layers' gradients"
        )
    if not math.isnan(report.functional_depth):
        lines.append(f"functional depth: {report.functional_depth:.0f} of {len(report.layers)} layers")
    if not math.isnan(report.batchnorm_gap):
        both = report.val_accuracy is not None and not math.isnan(report.batchnorm_train_gap)
        on_train = f" on the validation probe, {_number(report.batchnorm_train_gap)} on the training probe"
        lines.append(
            f"batch-norm gap: {_number(report.batchnorm_gap)}{on_train if both else ''} (accuracy with batch "
            "statistics minus accuracy with running statistics)"
        )
    if report.companions is not None:
        lines += [f"no {name}: {why}" for name, why in report.companions.left_out.items()]
    for name, basin in (("sample", report.sample_basin), ("weight", report.weight_basin)):
        if basin is not None:
            lines.append(f"{name} basin: {_basin(basin, name, _accuracy_of(report))}")
    for name, change in (("sample", report.sample_change), ("weight", report.weight_change)):
        if change is not None:
            factor, low, high = (f"{math.exp(value):.3g}" for value in change)
            lines.append(f"{name} basin since the last evaluation: radius × {factor} (95 % interval {low} to {high})")
    return lines


def _basin(basin: BasinResult, space: str, accuracy: str) -> str:
    """Radius, interval and censored share; 0 and inf in words. A radius of 0 has no interval."""
    what = "samples still correct" if space == "sample" else "rays still above it"
    kept = f"{100 * basin.censored:.1f} % of the {what} at the highest noise level"
    whole, at = accuracy, accuracy
    if accuracy != "accuracy":
        whole, at = f"the {accuracy}", f"a {accuracy} of"
    if basin.radius == 0:
        return f"radius 0 ({whole} is {basin.clean:.3g} without noise, not above {basin.accuracy:.3g})"
    if math.isinf(basin.radius):
        radius = f"radius beyond {basin.high:.3g}, the highest noise tried, where {whole} is above"
    else:
        radius = f"radius {basin.radius:.3g} at {at}"
    return f"{radius} {basin.accuracy:.3g} ({_interval(basin)}; {kept})"


def _interval(basin: BasinResult) -> str:
    if basin.level <= 0 or any(map(math.isnan, basin.interval)):
        return "no interval: too few rays"
    ends = (f"beyond {basin.high:.3g}" if math.isinf(end) else f"{end:.3g}" for end in basin.interval)
    return f"{percent(basin.level)} interval {' to '.join(ends)}"


def _number(value: float) -> str:
    """Three decimals; "-" for NaN, and no sign at zero."""
    return "-" if math.isnan(value) else f"{round(value, 3) + 0.0:.3f}"


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Names shortened in the middle to ``width`` characters, or to as few more as keep them distinct."""
    for size in range(width, max(map(len, names), default=0)):
        tail = (size - 1) // 2
        cut = [n if len(n) <= size else f"{n[: size - 1 - tail]}…{n[len(n) - tail :]}" for n in names]
        if len(set(cut)) == len(set(names)):
            return cut
    return list(names)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first column aligned left, the others right, two spaces between."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
