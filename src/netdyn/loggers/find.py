"""Find the destination that fits a logger."""

from __future__ import annotations

import os
from typing import Any

from netdyn.loggers.base import Destination
from netdyn.loggers.comet import Comet
from netdyn.loggers.csv import CSV
from netdyn.loggers.litlogger import LitLogger
from netdyn.loggers.mlflow import MLflow
from netdyn.loggers.tensorboard import LightningTensorBoard, TensorBoard, opened
from netdyn.loggers.wandb import LightningWandb, Wandb

#: By name, so that no package of a logger is imported; Lightning exists twice, and users derive classes from both.
KINDS: dict[str, type[Destination]] = {
    "TensorBoardLogger": LightningTensorBoard,
    "SummaryWriter": TensorBoard,
    "WandbLogger": LightningWandb,
    "MLFlowLogger": MLflow,
    "CometLogger": Comet,
    "CSVLogger": CSV,
    "LitLogger": LitLogger,
}


def destination(logger: Any, name: str = "loggers") -> Destination:
    """The destination for a Lightning logger, a ``SummaryWriter``, a W&B run or a folder; a TypeError for others."""
    if isinstance(logger, str | os.PathLike):
        return opened(logger)
    for base in type(logger).__mro__:
        if base.__name__ in KINDS:
            return KINDS[base.__name__](logger)
        if base.__name__ == "Run" and base.__module__.startswith("wandb."):
            return Wandb(logger)
    if callable(getattr(logger, "log_metrics", None)):
        return Destination(logger)
    raise TypeError(
        f"`{name}` takes Lightning loggers, TensorBoard SummaryWriters, W&B runs and folders for event files, got "
        f"{type(logger).__name__}."
    )
