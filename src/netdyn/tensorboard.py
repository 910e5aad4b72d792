"""What only TensorBoard can show; the only user of a SummaryWriter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from netdyn.canvas import pixels


def writers(loggers: Iterable[Any]) -> list[tuple[Any, str]]:
    """The SummaryWriters behind the TensorBoard loggers among ``loggers``, each with what it puts before a tag.

    They are told by their class's name: Lightning has it twice (``lightning.pytorch``, ``pytorch_lightning``), and
    users derive from either.
    """
    found = [logger for logger in loggers if any(b.__name__ == "TensorBoardLogger" for b in type(logger).__mro__)]
    # Lightning itself joins a logger's prefix to the names of scalars, with a hyphen.
    return [(logger.experiment, f"{prefix}-" if (prefix := getattr(logger, "_prefix", "")) else "") for logger in found]


def add_histograms(loggers: Iterable[Any], histograms: Mapping[str, Tensor], step: int) -> None:
    """Write histograms of finite float32 values (TensorBoard's writer stumbles over others) at a step."""
    for writer, prefix in writers(loggers):
        for tag, values in histograms.items():
            writer.add_histogram(prefix + tag, values.numpy(), global_step=step)


def add_figures(loggers: Iterable[Any], figures: Mapping[str, Any], step: int) -> None:
    """Write matplotlib figures as images at a step."""
    drawn = {tag: pixels(figure) for tag, figure in figures.items()}
    for writer, prefix in writers(loggers):
        for tag, image in drawn.items():
            writer.add_image(prefix + tag, image.numpy(), global_step=step, dataformats="HWC")
