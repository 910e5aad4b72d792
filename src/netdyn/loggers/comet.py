"""Comet: scalars, histograms and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from netdyn.loggers.base import Destination
from netdyn.report.figures.canvas import styled


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
