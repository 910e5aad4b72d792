"""Train a small classifier on real handwritten digits and watch its neurons and its basins.

Nothing is downloaded: the 1,797 digits (8 × 8 pixels) ship with scikit-learn. The network is measured after 1, 2, 3, 5,
10, 20, … steps: often at first, when it changes fast, and rarely later, which costs little. The script takes well under
a minute on two cores.

    python examples/quickstart.py [--epochs 100] [--logs logs]
"""

from __future__ import annotations

import argparse
import logging
import warnings
from itertools import pairwise

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from netdyn import DynamicsMonitor, diagnose, trial_run

# TensorBoard's page of all curves, without smoothing and filtered to the four kinds to look at first.
FEW = "http://localhost:6006/?smoothing=0&tagFilter=opt_fraction%7C/radius%7Cprobe/%7Coverhead#timeseries"


class Digits(L.LightningModule):
    """A fully connected network of three hidden layers with batch normalisation."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        sizes = [64, width, width, width]
        hidden = [nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(sizes)]
        self.hidden = nn.Sequential(*hidden)
        self.head = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        return self.head(self.hidden(images.flatten(1)))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Cross entropy."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Accuracy on held-out digits."""
        images, labels = batch
        self.log("val_accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Stochastic gradient descent with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and validation digits, pixels between 0 and 1."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images / 16, dtype=torch.float32)[order].reshape(-1, 8, 8)
    y = torch.tensor(labels)[order]
    return TensorDataset(x[:1400], y[:1400]), TensorDataset(x[1400:], y[1400:])


def main() -> None:
    """Train, and print a report before and after."""
    parser = argparse.ArgumentParser(description="Watch a small network learn handwritten digits.")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--logs", default="logs", help="folder for the TensorBoard logs")
    options = parser.parse_args()

    # Hide Lightning's messages about this machine and its advice on loaders.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    L.seed_everything(0, verbose=False)
    train, val = digits()
    model = Digits()
    images, labels = train[:1024]
    held_out = dict(zip(("val_inputs", "val_target"), val[:], strict=True))
    before = diagnose(model, images, labels, **held_out)

    trainer = L.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(options.logs, name="quickstart"),
        callbacks=[DynamicsMonitor(schedule="log")],  # the one line
        log_every_n_steps=5,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=256))

    print("\nOn the first 1,024 training images (the probe of the curves is a different, random choice):")
    print("\nUntrained\n---------")
    print(before)
    print("\nTrained\n-------")
    print(diagnose(model, images, labels, **held_out))
    print("\nIs training left alone, and what does an evaluation cost?\n")
    print(trial_run(Digits(), DataLoader(train, batch_size=32, shuffle=True), accelerator="cpu"))
    print("\nNow look at the curves:\n")
    print(f"    tensorboard --logdir {options.logs}\n")
    print(f"To begin with a few of them: {FEW}")


if __name__ == "__main__":
    main()
