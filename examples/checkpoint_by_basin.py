"""Which checkpoint tolerates more noise: the one with the widest basin or the one with the best validation accuracy?

One run on handwritten digits keeps both. One ModelCheckpoint monitors `basin/sample/radius`, another monitors
`val_accuracy`, and EarlyStopping ends the run when the basin stops growing. Then both networks classify digits under
noise on every pixel. These digits were used neither for training nor for choosing. The script takes about half a minute
on two cores.

    python examples/checkpoint_by_basin.py [--epochs 60] [--folder checkpoints]
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from netdyn import DynamicsMonitor
from netdyn.functional import sample_basin

NOISE = (0.0, 0.2, 0.4, 0.6)


class Digits(L.LightningModule):
    """A fully connected network of two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        return self.net(images)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Cross entropy."""
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Accuracy on held-out digits."""
        images, labels = batch
        self.log("val_accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with weight decay."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.1)


def accuracy_under_noise(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, sigma: float) -> float:
    """Mean accuracy over 50 draws of noise, which are the same for every model."""
    draw = torch.Generator().manual_seed(0)
    model.eval()
    with torch.no_grad():
        right = [
            (model(images + sigma * torch.randn(images.shape, generator=draw)).argmax(1) == labels).double().mean()
            for _ in range(50)
        ]
    return float(sum(right) / len(right))


def main() -> None:
    """Train, and compare the two checkpoints."""
    parser = argparse.ArgumentParser(description="Choose a checkpoint by its attraction basin.")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--folder", default="checkpoints", help="folder for the two checkpoints")
    options = parser.parse_args()

    # Hide Lightning's messages about this machine and its advice on loaders.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    L.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    train, val, test = (TensorDataset(x[part], y[part]) for part in (slice(900), slice(900, 1300), slice(1300, None)))

    def keeping(metric: str, name: str) -> ModelCheckpoint:
        return ModelCheckpoint(options.folder, name, monitor=metric, mode="max", enable_version_counter=False)

    checkpoints = {
        "widest basin": keeping("basin/sample/radius", "widest-basin"),
        "best validation accuracy": keeping("val_accuracy", "best-validation"),
    }
    monitor = DynamicsMonitor(measure=["sample_basin"], probe=val, every_n_epochs=1, accuracy=0.8, sample_rays=4)
    stop = EarlyStopping("basin/sample/radius", mode="max", patience=15)
    trainer = L.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[monitor, stop, *checkpoints.values()],
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(Digits(), DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=400))

    unseen, labels = test[:]
    print(f"\nAfter {trainer.current_epoch} epochs, on {len(unseen)} digits that had no part in the choice")
    print(f"{'checkpoint':26s}{'epoch':>6s}{'radius':>8s}" + "".join(f"{f'noise {s:g}':>11s}" for s in NOISE))
    for name, checkpoint in checkpoints.items():
        saved = torch.load(Path(checkpoint.best_model_path), weights_only=True)
        model = Digits()
        model.load_state_dict(saved["state_dict"])
        radius = sample_basin(model, unseen, labels, accuracy=0.8, rays=8).radius
        row = "".join(f"{accuracy_under_noise(model, unseen, labels, sigma):11.3f}" for sigma in NOISE)
        print(f"{name:26s}{saved['epoch']:6d}{radius:8.3f}{row}")


if __name__ == "__main__":
    main()
