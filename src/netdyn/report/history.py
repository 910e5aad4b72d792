"""The layers' numbers at every step so far, and heat maps of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from netdyn.report.results import LayerReport
from netdyn.report.trend import Moment, thinned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Tag of a heat map → the number of a layer that it shows, and its label.
MAPS = {
    "modes/map": ("opt_fraction", "share of order-preserving units"),
    "modes/gradient_map": ("rpd_gradient", "RPD gradient"),
    "linear/map": ("tail_accuracy", "accuracy of the linear tail"),
}
#: Maps of numbers on both sides of 0; the others show shares.
SIGNED = ("modes/gradient_map",)
#: A longer history drops every second step.
LONGEST = 2000


@dataclass
class History:
    """For each step, layer → its numbers in the order of :data:`MAPS`, and what the trend keeps: all of it is plain."""

    steps: list[int] = field(default_factory=list)
    rows: list[dict[str, list[float]]] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)

    def add(self, step: int, layers: Sequence[LayerReport], moment: Moment | None = None) -> None:
        """Add the layers' numbers at a step; drop this and later steps first, if a run has started again.

        The untrained network and the network after the first step may both be logged at step 0: a step may come twice.
        """
        self._forget(step)
        self.steps.append(step)
        self.rows.append({layer.name: [getattr(layer, name) for name, _ in MAPS.values()] for layer in layers})
        self.moments.append(moment or Moment(step))
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

    def figures(self) -> dict[str, Figure]:
        """Tag → heat map, layer × step, in the order of the last step's layers; unknown numbers are blank."""
        from netdyn.report.figures import maps

        drawn: dict[str, Figure] = {}
        # Of two networks at one step the first is drawn before it.
        twice = [step == after for step, after in itertools.pairwise([*self.steps, math.inf])]
        steps = [step - 0.5 * early for step, early in zip(self.steps, twice, strict=True)]
        layers = list(self.rows[-1]) if self.rows else []
        for place, (tag, (_, label)) in enumerate(MAPS.items()):
            values = torch.tensor(
                [[row.get(layer, [math.nan] * len(MAPS))[place] for row in self.rows] for layer in layers]
            )
            known = values[values.isfinite()]
            if len(self.steps) > 1 and len(known):
                most = float(known.abs().max()) or 1.0
                limits = (-most, most) if tag in SIGNED else (0.0, 1.0)
                drawn[tag] = maps.heat_map(values, layers, steps, label, limits)
        return drawn

    def state(self) -> dict[str, Any]:
        """The history as plain lists and numbers."""
        moments = [list(moment) for moment in self.moments]
        return {"steps": list(self.steps), "rows": [dict(row) for row in self.rows], "moments": moments}

    def load(self, state: dict[str, Any]) -> None:
        """Continue the history of an earlier run."""
        self.steps, self.rows = list(state["steps"]), [dict(row) for row in state["rows"]]
        self.moments = [Moment(*moment) for moment in state["moments"]]
