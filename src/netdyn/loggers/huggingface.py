"""The log of Hugging Face's Trainer: scalars."""

from __future__ import annotations

from collections.abc import Mapping

from netdyn.loggers.base import Destination


class TrainersLog(Destination):
    """``trainer.state.log_history``, and the trackers that the Trainer reports to."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log finite numbers as an entry of their own, at the Trainer's present step."""
        if not values:
            return
        control = self.logger.control
        asked = control.should_log
        try:
            self.logger.log(dict(values))
        finally:
            control.should_log = asked  # an entry counts as the one that the Trainer is about to make
