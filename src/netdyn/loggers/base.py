"""What every logger is to a monitor: a destination of numbers, and for some of pictures and texts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from netdyn.tags import Tag


class Destination:
    """A logger that takes scalars alone, such as Lightning's CSVLogger; what else is sent to it is left out.

    A logger that can show more has a class of its own that overrides the methods below.

    Args:
        logger: An object with Lightning's ``log_metrics(metrics, step)``.

    Attributes:
        shows_figures: Whether it is worth drawing figures for it.
    """

    shows_figures = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return type(self.logger).__name__

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Send finite numbers, by tag."""
        self.logger.log_metrics(metrics=dict(values), step=step)

    def histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Send finite float32 values, by tag."""

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Send matplotlib figures, by tag."""

    def about(self, tags: Iterable[Tag], prefix: str) -> None:
        """Send the table of tags, once per run."""

    def arrange(self, measure: Collection[str], prefix: str) -> None:
        """Arrange the page on which the numbers are shown."""

    def close(self) -> None:
        """Close what was opened here."""
