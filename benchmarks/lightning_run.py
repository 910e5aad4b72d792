"""A plain Lightning run of the benchmarks' network, to which the callback is added."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from workload import Batches, joined, mlp

BATCH = 128


class Classifier(lightning.LightningModule):
    """784-256-256-10, cross-entropy, Adam; logs its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mlp()

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def quiet() -> None:
    """Leave out what Lightning says about devices and folders."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def prepare(
    images: Tensor, labels: Tensor, epochs: int, device: str, callbacks: Sequence[Any], folder: Path | None
) -> tuple[lightning.Trainer, Classifier, DataLoader[Any]]:
    """A trainer, a module and a loader, the same at every call; logs to TensorBoard if a folder is given."""
    quiet()
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        accelerator="cuda" if device.startswith("cuda") else "cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False if folder is None else TensorBoardLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer, Classifier(), DataLoader(Batches(images, labels), BATCH, shuffle=True, collate_fn=joined)
