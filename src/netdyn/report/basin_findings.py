"""What stands out in a network's basins; see :mod:`netdyn.report.findings`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from netdyn.basins.interval import binomial_tail
from netdyn.basins.result import BasinResult
from netdyn.report.results import Report

#: A class is narrow if its radius is below this share of the radius over all samples, and wide above its inverse.
NARROW = 0.5
#: Largest chance that any class is called narrow, or any wide, if that were none of them.
FALSE_ALARMS = 0.025
#: The class predicted most under the strongest noise is reported above this share of the way from 1/K to 1.
FALLBACK = 0.5
#: A weight tensor is fragile if its own radius is below this share of the median of the others.
FRAGILE = 0.5
#: Up to this many classes are named.
MOST_CLASSES = 10
#: Unit of the noise, and what it falls on.
NOISE = {"sample": ("", "every component of the samples"), "weight": ("standard deviation", "the weights")}


def basins(report: Report) -> list[str]:
    """Sentences on both basins; one sentence if neither exists."""
    classes = report.num_classes > 1
    spaces = {"sample": report.sample_basin, "weight": report.weight_basin}
    found = {space: basin for space, basin in spaces.items() if basin is not None}
    missing = {space: found.pop(space) for space, basin in spaces.items() if basin is not None and basin.radius == 0}
    sentences = [_no_basin(missing, classes)] if missing else []
    for space, basin in found.items():
        sentences.append(_radius(basin, *NOISE[space], classes))
        if space == "weight":
            sentences += _fragile(basin)
        elif classes:
            sentences += [*_classes_apart(basin), *_fallback(basin)]
    return sentences


def _no_basin(missing: dict[str, BasinResult], classes: bool) -> str:
    """A radius of 0: accuracy is too low even without noise."""
    basin = next(iter(missing.values()))
    clean, target = percent(basin.clean), percent(basin.accuracy)
    right = f"accuracy is {clean}" if classes else f"{clean} of the answers are right"
    basins = " and no ".join(f"{space} basin" for space in missing)
    return f"There is no {basins}: without noise, {right}, not above {target}."


def _radius(basin: BasinResult, unit: str, where: str, classes: bool) -> str:
    """The noise that brings accuracy down to its target; an infinite radius in words."""
    target = percent(basin.accuracy)
    if math.isinf(basin.radius):
        left = f"accuracy above {target}" if classes else f"more than {target} of the answers right"
        return f"Noise on {where} up to {_amount(basin.high, unit)}, the highest level tried, leaves {left}."
    noise = f"Noise of {_amount(basin.radius, unit)} on {where}"
    return f"{noise} brings accuracy down to {target}." if classes else f"{noise} leaves {target} of the answers right."


def _amount(noise: float, unit: str) -> str:
    """Noise with its unit: "1.01 standard deviations"."""
    number = f"{noise:.3g}"
    return f"{number} {unit}{'' if number == '1' else 's'}" if unit else number


def _classes_apart(basin: BasinResult) -> list[str]:
    """Classes whose radius is below half or above twice the radius over all samples, if that is finite, by a test.

    Were a class's radius half that of all samples, the number of its samples right at that noise level would be
    binomial. It is narrow where so few are improbable, with K classes below 0.025/K, and wide where so many are.
    """
    if math.isinf(basin.radius) or basin.per_class is None or basin.class_sizes is None:
        return []
    found: dict[str, list[int]] = {"less than half": [], "more than twice": []}
    improbable = FALSE_ALARMS / len(basin.per_class)
    for k, curve in enumerate(basin.class_curves):
        if curve is None:
            continue
        size, radius = int(basin.class_sizes[k]), float(basin.per_class[k])
        narrow, wide = NARROW * basin.radius, basin.radius / NARROW
        # The curve gives shares, not counts: rounded away from what would be improbable.
        few, many = math.ceil(size * float(curve.at(narrow))), math.floor(size * float(curve.at(wide)))
        if radius < narrow and binomial_tail(few, size, basin.accuracy) < improbable:
            found["less than half"].append(k)
        # As many right or more are as many wrong or fewer.
        elif radius > wide and binomial_tail(size - many, size, 1 - basin.accuracy) < improbable:
            found["more than twice"].append(k)
    return [
        f"Sample basins {how} as wide as over all samples (radius, {percent(basin.level)} interval): "
        f"{_classes(some, basin)}."
        for how, some in found.items()
        if some
    ]


def _fallback(basin: BasinResult) -> list[str]:
    """The class predicted most under the strongest noise, if its share is more than halfway from 1/K to 1."""
    votes = basin.noise_classes
    if votes is None or float(votes.max()) <= 1 / len(votes) + FALLBACK * (1 - 1 / len(votes)):
        return []
    return [
        f"Under the strongest noise tried, the network predicts class {int(votes.argmax())} for "
        f"{percent(float(votes.max()))} of the samples."
    ]


def _fragile(basin: BasinResult) -> list[str]:
    """The weight tensor with the smallest radius of its own, if that is below half the median of the others."""
    radii = basin.per_layer or {}
    if len(radii) < 2:
        return []
    name = min(radii, key=lambda key: radii[key])
    usual = median(radius for other, radius in radii.items() if other != name)
    if not 0 < radii[name] < FRAGILE * usual:
        return []
    return [
        f"The most fragile weights are {name}: their own radius is {_amount(radii[name], NOISE['weight'][0])}, less "
        "than half the median of the others."
    ]


def _classes(classes: Sequence[int], basin: BasinResult) -> str:
    shown = ", ".join(f"{k} ({class_radius(basin, k)})" for k in classes[:MOST_CLASSES])
    shown += ", …" if len(classes) > MOST_CLASSES else ""
    return f"class {shown}" if len(classes) == 1 else f"classes {shown}"


def class_radius(basin: BasinResult, k: int) -> str:
    """A class's radius with its interval: "0.31, 0.25 to 0.4"."""
    assert basin.per_class is not None
    ends = [math.nan, math.nan] if basin.class_intervals is None else basin.class_intervals[k].tolist()
    values = (float(basin.per_class[k]), *ends)
    radius, low, high = (f"above {basin.high:.3g}" if math.isinf(value) else f"{value:.2g}" for value in values)
    return f"{radius}, {low} to {high}"


def percent(share: float) -> str:
    """A share in percent, to three digits."""
    return f"{100 * share:.3g} %"
