"""Choose a checkpoint by its basin, without fooling yourself.

Whoever picks the widest of many basins picks chance too, and perhaps a network that has hardly learnt: early in
training a basin can be wide. The recipe: of all checkpoints only those within one point of the best validation accuracy
count, the one with the widest basin is chosen, and its radius is measured again on fresh rays (another `seed`), because
the radius by which it was chosen is too large on average. In the end both networks classify digits under noise that
were used neither for training nor for choosing. The script takes about half a minute on two cores.

    python examples/checkpoint_by_basin.py [--epochs 40] [--folder checkpoints]
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from netdyn.functional import BasinResult, sample_basin

NOISE = (0.0, 0.2, 0.4, 0.6)
#: How far below the best validation accuracy a checkpoint may be.
POINT = 0.01


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


def restored(path: str) -> Digits:
    """The network of a checkpoint."""
    model = Digits()
    model.load_state_dict(torch.load(Path(path), weights_only=True)["state_dict"])
    return model


def main() -> None:
    """Train, choose, and compare with the best checkpoint by validation accuracy."""
    parser = argparse.ArgumentParser(description="Choose a checkpoint by its attraction basin.")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--folder", default="checkpoints", help="folder for the checkpoints of all epochs")
    options = parser.parse_args()

    # Hide Lightning's messages about this machine and its advice on loaders.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    L.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    train, val, test = (TensorDataset(x[part], y[part]) for part in (slice(900), slice(900, 1300), slice(1300, None)))

    keep = ModelCheckpoint(options.folder, "{epoch}", monitor="val_accuracy", mode="max", save_top_k=-1)
    trainer = L.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[keep],
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(Digits(), DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=400))

    def basin(path: str, seed: int) -> BasinResult:
        return sample_basin(restored(path), *val[:], accuracy=0.8, rays=4, seed=seed)

    accuracies = {path: float(accuracy) for path, accuracy in keep.best_k_models.items()}
    best = max(accuracies, key=lambda path: accuracies[path])
    near = [path for path, accuracy in accuracies.items() if accuracy >= accuracies[best] - POINT]
    radii = {path: basin(path, seed=0).radius for path in near}
    widest = max(near, key=lambda path: radii[path])

    unseen, labels = test[:]
    print(f"\n{len(near)} of {len(accuracies)} checkpoints lie within {POINT} of the best validation accuracy.")
    print(f"Noise on {len(unseen)} digits that had no part in the choice:")
    columns = f"{'checkpoint':26s}{'epoch':>6s}{'chosen by':>11s}{'fresh rays':>12s}  {'95 % interval':16s}"
    print(columns + "".join(f"{f'noise {s:g}':>11s}" for s in NOISE))
    for name, path in (("widest basin", widest), ("best validation accuracy", best)):
        fresh = basin(path, seed=1)
        interval = "{:.3f} to {:.3f}".format(*fresh.interval)
        epoch = Path(path).stem.removeprefix("epoch=")
        row = f"{name:26s}{epoch:>6s}{radii[path]:11.3f}{fresh.radius:12.3f}  {interval:16s}"
        model = restored(path)
        print(row + "".join(f"{accuracy_under_noise(model, unseen, labels, sigma):11.3f}" for sigma in NOISE))


if __name__ == "__main__":
    main()
