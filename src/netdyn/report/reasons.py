"""Why a layer shows "-" in the table of a report, and what was left out: one line for each kind of reason."""

from __future__ import annotations

import math
from collections.abc import Callable

from netdyn.modes.shares import FEWEST_UNITS
from netdyn.report.results import LayerReport, Report


def reasons(report: Report) -> list[str]:
    """One line for each reason why layers have no shares of OPT and NPT units, or lack samples, with their names."""
    read = [layer for layer in report.layers if layer.sampled or layer.unreached == "elsewhere"]
    left = [layer for layer in read if math.isnan(layer.opt_fraction)]
    lines = []
    for why, applies in _KINDS:
        if met := [layer.name for layer in left if applies(layer)]:
            lines.append(f'"-" in {", ".join(met)}: {why}')
        left = [layer for layer in left if not applies(layer)]
    if without := [layer for layer in report.layers if layer.left_out]:
        shown = ", ".join(layer.name for layer in without)
        numbers = ", ".join(str(layer.left_out) for layer in without)
        lines.append(f"samples left out in {shown}: {numbers}, because local fields are not finite.")
    return lines


def _live(layer: LayerReport) -> float:
    return layer.sampled * (1 - layer.constant_fraction - layer.unwired_fraction)


#: The first that applies to a layer is its reason.
_KINDS: tuple[tuple[str, Callable[[LayerReport], bool]], ...] = (
    (
        "the layer runs without gradients, or inside an autograd function of the network's own (an adjoint ODE "
        "solver), so that its wiring to the outputs is unknown.",
        lambda layer: layer.unreached == "untracked",
    ),
    (
        "no gradient leads from the layer to the outputs: the network stops it (detach, no_grad, argmax), or does not "
        "use the layer for them.",
        lambda layer: layer.unreached == "detached",
    ),
    (
        "the layer's fields do not have the positions that have a label each.",
        lambda layer: layer.unreached == "elsewhere",
    ),
    ("the local field of every unit is the same for all samples.", lambda layer: layer.constant_fraction == 1),
    (
        "no live unit is wired to the outputs: every way is multiplied by zero, as by a head or a branch that begins "
        "with zeros.",
        lambda layer: _live(layer) < 0.5,
    ),
    (
        f"fewer than {FEWEST_UNITS} live units are too few to tell OPT from NPT with fewer than five classes.",
        lambda layer: _live(layer) < FEWEST_UNITS,
    ),
    ("the local fields are not finite, or the samples are of one class.", lambda layer: True),
)
