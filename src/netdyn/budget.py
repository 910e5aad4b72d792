"""The share of training's time that evaluations may take."""

from __future__ import annotations

import time


class Budget:
    """What evaluations have taken so far, in seconds, and whether there is room for more.

    Args:
        share: Most that they may take, as a share of the time of training without them; None: as much as they like.

    Attributes:
        spent: Seconds that evaluations, and sending and drawing what they found, have taken.
        last: Seconds of the last evaluation, without sending and drawing.
        drawing: Seconds that the first figures took.

    Example:
        >>> budget = Budget(0.05)
        >>> budget.spent = 1.0
        >>> budget.affords(0.5)
        False
    """

    def __init__(self, share: float | None) -> None:
        self.share = share
        self.spent = self.last = self.drawing = 0.0
        self._before = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Training goes on from here."""
        self._since = time.monotonic()

    def stop(self) -> None:
        """Training has ended, or pauses."""
        self._before, self._since = self._elapsed(time.monotonic()), None

    def trained(self, now: float | None = None) -> float:
        """Seconds of training, up to a time of the clock, without what evaluations have taken."""
        return self._elapsed(time.monotonic() if now is None else now) - self.spent

    def overhead(self, trained: float | None = None) -> float:
        """What was spent, as a share of so many seconds of training (None: of all so far)."""
        return self.spent / max(self.trained() if trained is None else trained, 1e-9)

    def affords(self, seconds: float) -> bool:
        """Whether so much more is within the share."""
        return self.share is None or self.spent + seconds <= self.share * self.trained()

    def state_dict(self) -> dict[str, float]:
        """The seconds so far, as plain numbers."""
        elapsed = self._elapsed(time.monotonic())
        return {"spent": self.spent, "last_cost": self.last, "drawing": self.drawing, "trained": elapsed}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.spent, self.last, self.drawing = state["spent"], state["last_cost"], state["drawing"]
        self._before = state["trained"]

    def _elapsed(self, now: float) -> float:
        return self._before + (0.0 if self._since is None else now - self._since)
