"""Schedules: whether an evaluation is due at an optimiser step."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from netdyn._utils.checks import whole


@dataclass(frozen=True)
class Every:
    """Every ``n`` optimiser steps, by ModelCheckpoint's rule: a multiple that the count jumps over is skipped."""

    n: int

    def __str__(self) -> str:
        return f"every {self.n} optimiser steps" if self.n > 1 else "at every optimiser step"

    def due(self, before: int, now: int) -> bool:
        """Whether ``now`` is a new multiple of ``n``."""
        return now != before and now % self.n == 0


@dataclass(frozen=True)
class AtSteps:
    """At the listed optimiser steps; if the count jumps over one, at the next step seen."""

    steps: tuple[int, ...]

    def __str__(self) -> str:
        return f"at {len(self.steps)} given optimiser steps"

    def due(self, before: int, now: int) -> bool:
        """Whether a listed step lies in ``(before, now]``."""
        return bisect.bisect_right(self.steps, before) < bisect.bisect_right(self.steps, now)


#: Steps per decade of the "log" schedule: 1, 2, 3, 5, 10, 20, 30, 50, …
_DECADE = (1, 2, 3, 5)


@dataclass(frozen=True)
class LogSpaced:
    """At 1, 2, 3, 5, 10, 20, 30, 50, 100, … optimiser steps: many points early, few late."""

    def __str__(self) -> str:
        return "at 1, 2, 3, 5, 10, 20, … optimiser steps"

    def due(self, before: int, now: int) -> bool:
        """Whether a step of the series lies in ``(before, now]``."""
        decade = 1
        while decade <= now:
            if any(before < decade * digit <= now for digit in _DECADE):
                return True
            decade *= 10
        return False


#: Each decides whether an evaluation is due at step ``now``, if the step asked about before was ``before``.
Schedule = Every | AtSteps | LogSpaced


def by_steps(every_n_train_steps: int | None, schedule: Literal["log"] | Iterable[int] | None) -> Schedule:
    """The schedule of a monitor's arguments: a period, ``"log"`` or a list of steps; None: ``"log"``."""
    if every_n_train_steps is not None:
        return Every(whole("every_n_train_steps", every_n_train_steps))
    if schedule is None:
        return LogSpaced()
    if isinstance(schedule, str):
        if schedule != "log":
            raise ValueError(f"`schedule` must be 'log' or a list of optimiser steps, got {schedule!r}.")
        return LogSpaced()
    if not isinstance(schedule, Iterable):
        raise TypeError(f"`schedule` must be 'log' or a list of optimiser steps, got {schedule!r}.")
    given = list(schedule)
    try:
        steps = tuple(sorted({whole("schedule", step) for step in given}))
    except TypeError:
        raise TypeError(f"`schedule` must hold whole numbers of optimiser steps, got {given!r}.") from None
    if not steps:
        raise ValueError("`schedule` must name at least one optimiser step, got an empty list.")
    return AtSteps(steps)


def only_one(
    *, every_n_epochs: Any = None, every_n_train_steps: Any = None, schedule: Any = None, **others: Any
) -> dict[str, Any]:
    """The cadence among the options of a callback, by name, or nothing; a ValueError if there are two."""
    cadences = {"every_n_epochs": every_n_epochs, "every_n_train_steps": every_n_train_steps, "schedule": schedule}
    given = {name: value for name, value in cadences.items() if value is not None}
    if len(given) > 1:
        shown = " and ".join(f"{name}={value!r}" for name, value in given.items())
        raise ValueError(f"Only one of {', '.join(f'`{name}`' for name in cadences)} can be given, got {shown}.")
    return given
