"""Comet: scalars, histograms and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from netdyn._utils.drawing import styled
from netdyn.loggers.base import Destination, as_list


class Comet(Destination):
    """Lightning's ``CometLogger``."""

    shows_figures = True

    def histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Send histograms."""
        for tag, own in values.items():
            self.logger.experiment.log_histogram_3d(own.numpy(), name=self.prefix + tag, step=step)

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Send figures."""
        with styled():
            for tag, figure in figures.items():
                self.logger.experiment.log_figure(self.prefix + tag, figure, step=step)

    def text(self, tag: str, lines: Sequence[str], step: int) -> None:
        """Send a text."""
        self.logger.experiment.log_text(as_list(lines), step=step, metadata={"tag": self.prefix + tag})
