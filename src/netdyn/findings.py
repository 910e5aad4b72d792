"""What stands out in a report, in plain sentences; the rule behind each stands beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from netdyn.radii import BasinResult

#: More constant units than this are worth a sentence.
DEAD_SHARE = 0.2
#: An OPT share this many times alpha, and 1/√units (the units of a narrow layer are few, and alike), is more than an
#: untrained network shows.
ORDERED_TIMES = 3.0
#: A class whose radius is smaller than this share of the whole is called narrow, one larger than its inverse wide.
NARROW = 0.5
#: A class that noise is taken for more often than this is named.
FALLBACK = 0.5


class Layer(Protocol):
    """The part of a layer's report that the rules read."""

    @property
    def name(self) -> str:
        """The layer's name."""

    @property
    def sampled(self) -> int:
        """Number of units measured."""

    @property
    def opt_fraction(self) -> float:
        """Share of order-preserving units."""

    @property
    def constant_fraction(self) -> float:
        """Share of constant units."""


def findings(layers: Sequence[Layer], sample_basin: BasinResult | None, alpha: float) -> list[str]:
    """Sentences about modes, dead units and basins, most general first."""
    return [*_order(layers, alpha), *_dead(layers), *_basin(sample_basin)]


def _order(layers: Sequence[Layer], alpha: float) -> list[str]:
    """No layer above 3·alpha + 1/√units: no order beyond chance. Else the layer with the largest OPT share is named."""
    known = [layer for layer in layers if not math.isnan(layer.opt_fraction)]
    if not known:
        return []
    best = max(known, key=lambda layer: layer.opt_fraction - 1 / math.sqrt(layer.sampled))
    if best.opt_fraction <= ORDERED_TIMES * alpha + 1 / math.sqrt(best.sampled):
        return [
            f"No layer orders the samples by class beyond what wiring at random would show ({alpha:.0%} of its units)."
        ]
    share = f"{best.opt_fraction:.0%} of its units (at random {alpha:.0%})"
    return [f"Order is preserved most in layer {best.name}: by {share}."]


def _dead(layers: Sequence[Layer]) -> list[str]:
    """A layer with more than a fifth of its units constant."""
    return [
        f"{layer.constant_fraction:.0%} of the units of layer {layer.name} say the same for every sample."
        for layer in layers
        if layer.constant_fraction > DEAD_SHARE
    ]


def _basin(basin: BasinResult | None) -> list[str]:
    """Radius 0 and inf; classes below half or above twice the common radius; a class that noise is mostly taken for."""
    if basin is None:
        return []
    if basin.radius == 0:
        return [f"There is no sample basin: without noise accuracy is {basin.clean:.0%}, below {basin.accuracy:.0%}."]
    if math.isinf(basin.radius):
        return [f"Noise up to the highest level tried leaves accuracy above {basin.accuracy:.0%}."]
    sentences = [f"Noise of {basin.radius:.2g} on every input component brings accuracy down to {basin.accuracy:.0%}."]
    radii = list(enumerate(basin.per_class.tolist()))
    narrow = [k for k, radius in radii if radius < NARROW * basin.radius]
    wide = [k for k, radius in radii if radius > basin.radius / NARROW]
    if narrow:
        sentences.append(f"Narrow basins, less than half as wide: {_classes(narrow)}.")
    if wide:
        sentences.append(f"Wide basins, more than twice as wide: {_classes(wide)}.")
    if basin.noise_classes is not None and float(basin.noise_classes.max()) > FALLBACK:
        sentences.append(f"Noise alone is mostly taken for class {int(basin.noise_classes.argmax())}.")
    return sentences


def _classes(classes: Sequence[int]) -> str:
    shown = ", ".join(map(str, classes[:10])) + (", …" if len(classes) > 10 else "")
    return f"class {shown}" if len(classes) == 1 else f"classes {shown}"
