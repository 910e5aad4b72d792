"""What only TensorBoard can show; the only user of a SummaryWriter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def writers(loggers: Iterable[Any]) -> list[Any]:
    """The SummaryWriters behind the TensorBoard loggers among ``loggers``, told by their class's name.

    Lightning has the class twice (``lightning.pytorch``, ``pytorch_lightning``), and users derive from either.
    """
    return [
        logger.experiment
        for logger in loggers
        if any(base.__name__ == "TensorBoardLogger" for base in type(logger).__mro__)
    ]


def add_histograms(loggers: Iterable[Any], histograms: Mapping[str, Tensor], step: int) -> None:
    """Write histograms of finite float32 values (TensorBoard's writer stumbles over others) at a step."""
    for writer in writers(loggers):
        for tag, values in histograms.items():
            writer.add_histogram(tag, values.numpy(), global_step=step)
