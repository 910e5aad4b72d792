"""LitLogger, the tracker of lightning.ai: scalars, figures as images, and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from netdyn._utils.drawing import styled
from netdyn.loggers.base import Destination, as_list


class LitLogger(Destination):
    """Lightning's ``LitLogger``."""

    shows_figures = True

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Upload figures as images, from files: the package keeps in memory what it is given otherwise."""
        from litlogger import Image

        with styled(), TemporaryDirectory() as folder:
            for number, (tag, figure) in enumerate(figures.items()):
                file = Path(folder) / f"{number}.png"
                figure.savefig(file)
                self.logger.experiment[self.prefix + tag].append(Image(str(file)), step=step)

    def text(self, tag: str, lines: Sequence[str], step: int) -> None:
        """Upload a text."""
        from litlogger import Text

        self.logger.experiment[self.prefix + tag].append(Text(as_list(lines)), step=step)
