"""CSV files: scalars in the table, figures and texts as files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from netdyn._utils.drawing import styled
from netdyn.loggers.base import Destination, as_list


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

    def text(self, tag: str, lines: Sequence[str], step: int) -> None:
        """Save the newest text as a file in the folder ``netdyn``."""
        file = Path(self.logger.log_dir) / "netdyn" / f"{self.prefix}{tag}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"step {step}: {as_list(lines)}", encoding="utf-8")
