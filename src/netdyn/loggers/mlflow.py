"""MLflow: scalars under names that it accepts, figures and texts as artifacts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from netdyn._utils.drawing import styled
from netdyn.loggers.base import Destination, as_list


class MLflow(Destination):
    """Lightning's ``MLFlowLogger``."""

    shows_figures = True

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Send finite numbers; a character that MLflow does not take, as the colon in ``fc:1``, becomes a hyphen."""
        super().scalars({re.sub(r"[^\w/. -]", "-", tag, flags=re.ASCII): value for tag, value in values.items()}, step)

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Save figures as PNG files among the run's artifacts, in a folder for each tag."""
        client, run_id = self.logger.experiment, self.logger.run_id
        with styled():
            for tag, figure in figures.items():
                client.log_figure(run_id, figure, f"netdyn/{self.prefix}{tag}/step_{step:08d}.png")

    def text(self, tag: str, lines: Sequence[str], step: int) -> None:
        """Save the newest text among the run's artifacts."""
        file = f"netdyn/{self.prefix}{tag}.txt"
        self.logger.experiment.log_text(self.logger.run_id, f"step {step}: {as_list(lines)}", file)
