"""Find the destination that fits a logger."""

from __future__ import annotations

import os
from typing import Any

from netdyn.loggers.base import Destination
from netdyn.loggers.tensorboard import LightningTensorBoard, TensorBoard, opened


def destination(logger: Any) -> Destination:
    """The destination for a Lightning logger, a TensorBoard ``SummaryWriter``, or a folder; a TypeError for others."""
    if isinstance(logger, str | os.PathLike):
        return opened(logger)
    # By name, so that no package of a logger is imported; Lightning exists twice, and users derive classes from both.
    names = {base.__name__ for base in type(logger).__mro__}
    if "TensorBoardLogger" in names:
        return LightningTensorBoard(logger)
    if "SummaryWriter" in names:
        return TensorBoard(logger)
    if callable(getattr(logger, "log_metrics", None)):
        return Destination(logger)
    raise TypeError(
        "`loggers` must hold Lightning loggers, TensorBoard SummaryWriters or folders to write event files to, got "
        f"{type(logger).__name__}."
    )
