"""The main numbers at every step so far, and heat maps of the layers'."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from netdyn.report.results import Report
from netdyn.report.trend import Moment, thinned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from netdyn.report.verdict import Verdict

#: Tag of a heat map → the curves of the layers that it shows, and its label.
MAPS = {
    "modes/map": ("modes/opt_fraction", "share of order-preserving units"),
    "modes/gradient_map": ("modes/rpd_gradient", "RPD gradient"),
    "linear/map": ("linear/tail_accuracy", "accuracy of the linear tail"),
}
#: Maps of numbers on both sides of 0; the others show shares.
SIGNED = ("modes/gradient_map",)
#: A longer history drops every second step.
LONGEST = 2000


@dataclass
class History:
    """For each step its scalars of ``detail="layers"`` by tag, and what the trend keeps: all of it is plain."""

    steps: list[int] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)  # of the last step, in order

    def add(self, step: int, report: Report) -> None:
        """Add the numbers of a step; drop this and later steps first, if a run has started again.

        The untrained network and the network after the first step may both be logged at step 0: a step may come twice.
        """
        self._forget(step)
        self.steps.append(step)
        self.rows.append(report.scalars("layers"))
        self.moments.append(report.moment._replace(step=step))
        self.layers = [layer.name for layer in report.layers]
        if len(self.steps) > LONGEST:
            del self.steps[1::2], self.rows[1::2], self.moments[1::2]

    def before(self, step: int) -> tuple[Moment, ...]:
        """The trend of a report at a step: the evaluations before it, as far as they are of the same run."""
        self._forget(step)
        return thinned(self.moments)

    def _forget(self, step: int) -> None:
        """Drop this and later steps, if a run has started again."""
        again = bool(self.steps) and (self.steps[-1] > step or self.steps[-2:] == [step, step])
        while again and self.steps and self.steps[-1] >= step:
            del self.steps[-1], self.rows[-1], self.moments[-1]

    def places(self) -> list[float]:
        """Where each step is drawn: of two networks at one step, the first half a step earlier."""
        twice = [step == after for step, after in itertools.pairwise([*self.steps, math.inf])]
        return [step - 0.5 * early for step, early in zip(self.steps, twice, strict=True)]

    def curve(self, tag: str) -> list[float]:
        """A number at each step; NaN where it is not known."""
        return [row.get(tag, math.nan) for row in self.rows]

    def curves(self, kind: str) -> Tensor:
        """A number of each layer at each step ``[layers, steps]``, such as ``"modes/opt_fraction"``."""
        rows = [self.curve(f"{kind}/{layer}") for layer in self.layers]
        return torch.tensor(rows).reshape(len(self.layers), len(self.steps))

    def figures(self) -> dict[str, Figure]:
        """Tag → heat map, layer × step, in the order of the last step's layers; unknown numbers are blank."""
        from netdyn.report.figures import maps

        drawn: dict[str, Figure] = {}
        for tag, (kind, label) in MAPS.items():
            values = self.curves(kind)
            known = values[values.isfinite()]
            if len(self.steps) > 1 and len(known):
                most, least = float(known.abs().max()) or 1.0, float(known.min())
                # The whole scale is used, but not for differences below a tenth.
                limits = (-most, most) if tag in SIGNED else (least, max(most, least + 0.1))
                drawn[tag] = maps.heat_map(values, self.layers, self.places(), label, limits)
        return drawn

    def overview(self, verdict: Verdict) -> Figure:
        """One picture of the run so far, with the verdict as its title."""
        from netdyn.report.figures.overview import overview

        return overview(self, verdict)

    def state(self) -> dict[str, Any]:
        """The history as plain lists and numbers."""
        return {
            "steps": list(self.steps),
            "rows": [dict(row) for row in self.rows],
            "moments": [list(moment) for moment in self.moments],
            "layers": list(self.layers),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue the history of an earlier run."""
        self.steps, self.rows = list(state["steps"]), [dict(row) for row in state["rows"]]
        self.moments = [Moment(*moment) for moment in state["moments"]]
        self.layers = list(state["layers"])
