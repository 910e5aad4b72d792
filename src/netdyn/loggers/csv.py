"""CSV files: scalars in the table, figures as PNG files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netdyn.loggers.base import Destination
from netdyn.report.figures.canvas import styled


class CSV(Destination):
    """Lightning's ``CSVLogger``."""

    shows_figures = True

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Save figures in the folder ``netdyn`` beside the table, in a folder for each tag."""
        with styled():
            for tag, figure in figures.items():
                file = Path(self.logger.log_dir) / "netdyn" / f"{self.prefix}{tag}" / f"step_{step:08d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(file)
