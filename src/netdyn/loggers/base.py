"""The interface of a destination: scalars, and for some destinations histograms, figures and texts."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from netdyn.tags import Tag


def as_list(lines: Sequence[str]) -> str:
    """A line and sentences about it as plain text, an item per sentence."""
    return "\n- ".join(lines) + "\n"


class Destination:
    """A logger that takes only scalars, by Lightning's ``log_metrics``; subclasses show more."""

    shows_figures = False  # whether figures are drawn for it

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @property
    def name(self) -> str:
        """Name of the logger in messages."""
        return type(self.logger).__name__

    @property
    def folder(self) -> str | None:
        """The folder of the run's files, if there is one."""
        found = getattr(self.logger, "log_dir", None)
        return os.fspath(found) if isinstance(found, str | os.PathLike) else None

    @property
    def prefix(self) -> str:
        """What Lightning's loggers put before every name, joined by a hyphen; elsewhere nothing."""
        own = getattr(self.logger, "_prefix", "")
        return f"{own}-" if own else ""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Send finite numbers, by tag."""
        self.logger.log_metrics(metrics=dict(values), step=step)

    def histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Send finite float32 values, by tag."""

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Send matplotlib figures, by tag."""

    def text(self, tag: str, lines: Sequence[str], step: int) -> None:
        """Send a text: a line, and sentences about it. They are plain, and may hold any letters."""

    def about(self, tags: Iterable[Tag], prefix: str) -> None:
        """Send the table of tags, once per run, each tag after the prefix."""

    def arrange(self, measure: Collection[str], prefix: str) -> None:
        """Arrange the page that shows the numbers."""

    def close(self) -> None:
        """Complete what was sent, and close the files that were opened here."""

    @property
    def page(self) -> str:
        """The command that shows the numbers; empty where there is none."""
        return ""
