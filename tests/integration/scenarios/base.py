"""The small network and the data that scenarios are made from."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

CLASSES = 5
FEATURES = 6


def points(n: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Five noisy clusters: inputs ``[n, 6]`` and labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(99)) * 2
    labels = torch.arange(n) % CLASSES
    return centres[labels] + torch.randn(n, FEATURES, generator=generator), labels


def dataset(n: int = 64, seed: int = 0) -> TensorDataset:
    """The clusters as a data set."""
    return TensorDataset(*points(n, seed))


def loader(data: Dataset[Any] | None = None, **options: Any) -> DataLoader[Any]:
    """A shuffling loader of batches of 16."""
    return DataLoader(data or dataset(), **{"batch_size": 16, "shuffle": True} | options)


def network(width: int = 12) -> nn.Sequential:
    """Batch normalisation, dropout and an in-place activation."""
    return nn.Sequential(
        nn.Linear(FEATURES, width),
        nn.BatchNorm1d(width),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, CLASSES),
    )


class Classifier(L.LightningModule):
    """A plain classifier; scenarios override what they are about."""

    def __init__(self, net: nn.Module | None = None, lr: float = 0.05) -> None:
        super().__init__()
        self.net = net or network()
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9)]
