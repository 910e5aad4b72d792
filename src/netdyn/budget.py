"""The share of the training time that evaluations may take."""

from __future__ import annotations

import time
from typing import Any

#: Seconds that the figures of a report are expected to take, unless the first ones took longer: an untrained network
#: has fewer.
DRAWING = 1.0


class Budget:
    """The seconds that evaluations have taken so far, and whether another one fits.

    ``share`` limits them, as a share of the training time without evaluations. None: no limit.
    """

    def __init__(self, share: float | None) -> None:
        self.share = share
        # Seconds: of all evaluations with sending and drawing, and of the last one without.
        self.spent = self.last = 0.0
        self.drawing: float | None = None  # seconds of the first drawing; None before it
        self._before = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Start or resume the clock of the training."""
        self._since = time.monotonic()

    def stop(self) -> None:
        """Stop the clock of the training."""
        self._before, self._since = self._elapsed(time.monotonic()), None

    def trained(self, now: float | None = None) -> float:
        """Seconds of training until ``now`` (None: the present), without evaluations."""
        return self._elapsed(time.monotonic() if now is None else now) - self.spent

    def overhead(self, trained: float | None = None) -> float:
        """Seconds spent, as a share of ``trained`` seconds of training (None: all so far)."""
        return self.spent / max(self.trained() if trained is None else trained, 1e-9)

    def affords(self, seconds: float) -> bool:
        """Whether so many seconds more are within the limit."""
        return self.share is None or self.spent + seconds <= self.share * self.trained()

    @property
    def figures(self) -> float:
        """Seconds that the figures of a report take, as far as that is known."""
        return max(DRAWING, self.drawing or 0.0)

    def state_dict(self) -> dict[str, float | None]:
        """The seconds so far."""
        elapsed = self._elapsed(time.monotonic())
        return {"spent": self.spent, "last_cost": self.last, "drawing": self.drawing, "trained": elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from an earlier :meth:`state_dict`."""
        self.spent, self.last, self.drawing = state["spent"], state["last_cost"], state["drawing"]
        self._before = state["trained"]

    def _elapsed(self, now: float) -> float:
        return self._before + (0.0 if self._since is None else now - self._since)
