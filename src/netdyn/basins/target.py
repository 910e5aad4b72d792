"""The accuracy that defines a radius, and where a radius would mean little."""

from __future__ import annotations

import math

from netdyn._utils import checks

#: A radius is not to be trusted where its accuracy is nearer than this to what noise alone leaves.
FLOOR_MARGIN = 0.05


def default_accuracy(num_classes: int) -> float:
    """One half, as in P1; three quarters for two classes, where one half is what guessing gives."""
    return 0.75 if num_classes == 2 else 0.5


def check_basin(accuracy: float | None, rays: int, low: float, high: float, seed: int) -> None:
    """Check the arguments that both basins share."""
    if accuracy is not None:
        checks.fraction("accuracy", accuracy)
    checks.whole("rays", rays)
    checks.whole("seed", seed, minimum=0)
    checks.noise_range(low, high)


def chance(num_classes: int) -> float:
    """Accuracy of guessing; 0 where there are no classes."""
    return 1 / num_classes if num_classes > 1 else 0.0


def target_accuracy(accuracy: float | None, relative: bool, clean: float, floor: float, num_classes: int) -> float:
    """The absolute accuracy that defines a radius."""
    wanted = default_accuracy(num_classes) if accuracy is None else accuracy
    if not relative:
        return wanted
    # A network that does not beat noise has no basin: no accuracy exceeds 1, so that the radius is 0.
    return floor + wanted * (clean - floor) if clean > floor else 1.0


def warn_of_floor(accuracy: float, floor: float) -> None:
    """Warn if the accuracy that defines a radius is too near to what noise alone leaves."""
    if accuracy < floor + FLOOR_MARGIN:
        checks.warn(
            f"`accuracy` is {accuracy:g}, but noise alone leaves an accuracy of {floor:.2f}: so near to it the radius "
            f"means little. Use {_usable(floor)}relative=True."
        )


def _usable(floor: float) -> str:
    """An accuracy well above what noise leaves, as part of an advice; empty if there is none."""
    usable = round((1 + floor) / 2, 2)
    return f"accuracy={usable:g}, or " if usable >= floor + FLOOR_MARGIN else ""


def warn_of_range(radius: float, accuracy: float, low: float, high: float, top: float) -> bool:
    """Warn if the radius lies outside the noise levels; whether it does."""
    if radius == math.inf:
        checks.warn(
            f"The largest noise level, `high` = {high:g}, leaves an accuracy of {top:.2f}, and `accuracy` is "
            f"{accuracy:.2f}: the radius lies beyond it. Set a larger `high` if noise of that level is small beside "
            f"the inputs, else use {_usable(top)}relative=True."
        )
    elif 0 < radius < low:
        warn_of_low(low)
    return radius != 0 and not low <= radius < math.inf


def warn_of_low(low: float) -> None:
    """Warn that a radius lies below the noise levels."""
    checks.warn(f"The radius lies below the smallest noise level, `low` = {low:g}. Set a smaller `low`.")
