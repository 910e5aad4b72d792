"""What stands out in a network's basins, in plain sentences; see :mod:`netdyn.report.findings`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from netdyn.basins.result import BasinResult
from netdyn.report.results import Report

#: A class whose radius is smaller than this share of the whole is called narrow, one larger than its inverse wide.
NARROW = 0.5
#: A class that noise is taken for is named above this part of the way from 1/K, an even share, to all samples.
FALLBACK = 0.5
#: Weights are fragile if alone they bear less than this share of what the others do (their median).
FRAGILE = 0.5
#: Of more classes than this the first are named.
MOST_CLASSES = 10
#: Unit and place of a basin's noise.
NOISE = {"sample": ("", "every component of the samples"), "weight": (" standard deviations", "the weights")}


def basins(report: Report) -> list[str]:
    """Both basins; where neither exists, that is one sentence."""
    classes = report.num_classes > 1
    spaces = {"sample": report.sample_basin, "weight": report.weight_basin}
    found = {space: basin for space, basin in spaces.items() if basin is not None}
    missing = {space: basin for space, basin in found.items() if basin.radius == 0}
    sentences = [_no_basin(missing, classes)] if missing else []
    for space, basin in found.items():
        if space in missing:
            continue
        sentences.append(_radius(basin, *NOISE[space], classes))
        if space == "weight":
            sentences += _fragile(basin)
        elif classes:
            sentences += [*_classes_apart(basin), *_fallback(basin)]
    return sentences


def _no_basin(missing: dict[str, BasinResult], classes: bool) -> str:
    """Radius 0: what is asked is not reached even without noise."""
    basin = next(iter(missing.values()))
    clean, target = percent(basin.clean), percent(basin.accuracy)
    right = f"accuracy is {clean}" if classes else f"{clean} of the answers are right"
    return f"There is no {' and no '.join(missing)} basin: without noise {right}, not more than {target}."


def _radius(basin: BasinResult, unit: str, where: str, classes: bool) -> str:
    """The noise that brings accuracy to its target; an infinite radius in words."""
    target = percent(basin.accuracy)
    if math.isinf(basin.radius):
        left = f"accuracy above {target}" if classes else f"more than {target} of the answers right"
        return f"Noise on {where} up to {basin.high:.3g}{unit}, the highest level tried, leaves {left}."
    noise = f"Noise of {basin.radius:.2g}{unit} on {where}"
    return f"{noise} brings accuracy down to {target}." if classes else f"{noise} leaves {target} of the answers right."


def _classes_apart(basin: BasinResult) -> list[str]:
    """Classes below half or above twice the common radius, if that is finite."""
    if math.isinf(basin.radius) or basin.per_class is None:
        return []
    radii = list(enumerate(basin.per_class.tolist()))
    narrow = [k for k, radius in radii if radius < NARROW * basin.radius]
    wide = [k for k, radius in radii if radius > basin.radius / NARROW]
    sentences = []
    if narrow:
        sentences.append(f"Narrow sample basins, less than half as wide: {_classes(narrow)}.")
    if wide:
        sentences.append(f"Wide sample basins, more than twice as wide: {_classes(wide)}.")
    return sentences


def _fallback(basin: BasinResult) -> list[str]:
    """A class named for most samples under the strongest noise: more than halfway from an even share to all."""
    votes = basin.noise_classes
    if votes is None:
        return []
    even = 1 / len(votes)
    if float(votes.max()) <= even + FALLBACK * (1 - even):
        return []
    return [
        f"Under the strongest noise tried the network falls back on class {int(votes.argmax())}: it names it for "
        f"{percent(float(votes.max()))} of the samples."
    ]


def _fragile(basin: BasinResult) -> list[str]:
    """The weights that alone bear least, if that is less than half the median of the others."""
    radii = basin.per_layer or {}
    if len(radii) < 2:
        return []
    name = min(radii, key=lambda key: radii[key])
    usual = median(radius for other, radius in radii.items() if other != name)
    if not 0 < radii[name] < FRAGILE * usual:
        return []
    return [
        f"Most fragile are the weights {name}: on them alone noise of {radii[name]:.2g} standard deviations is enough, "
        "less than half of what is usual for the others."
    ]


def _classes(classes: Sequence[int]) -> str:
    shown = ", ".join(map(str, classes[:MOST_CLASSES])) + (", …" if len(classes) > MOST_CLASSES else "")
    return f"class {shown}" if len(classes) == 1 else f"classes {shown}"


def percent(share: float) -> str:
    """A share in percent, with decimals only where it has them: 50%, 62.5%, 0.3%.

    >>> [percent(share) for share in (0.5, 0.625, 0.00312, 1.0)]
    ['50%', '62.5%', '0.312%', '100%']
    """
    return f"{100 * share:.3g}%"
