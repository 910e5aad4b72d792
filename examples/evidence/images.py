"""The images of the trainings: scikit-learn's digits (8 × 8), and MNIST at 14 × 14 pixels where it is at hand."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from settings import Setting
from torch import Tensor, nn

# Behind this folder's own modules.
sys.path.append(str(Path(__file__).parents[1] / "reproduce"))
from data import load

#: Samples of each of two validation probes, and most test samples.
VALIDATION = {"digits": 200, "MNIST": 256}
TEST = 5000
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Split:
    """Training data with the labels that are trained on, two validation probes, and test data in neither of them."""

    side: int
    train: Pair
    val: Pair
    val_again: Pair
    test: Pair


@lru_cache(maxsize=2)
def _all(name: str, folder: str | None) -> tuple[int, Pair, Pair]:
    """Side of an image; images and labels for training and validation; the same for testing."""
    found = load(folder if name == "MNIST" else None, "cpu")
    if name == "digits":
        return 8, (torch.cat([found.x, found.test_x]), torch.cat([found.y, found.test_y])), (found.x[:0], found.y[:0])
    halved = [nn.functional.avg_pool2d(x.reshape(-1, 28, 28), 2).flatten(1) for x in (found.x, found.test_x)]
    return 14, (halved[0], found.y), (halved[1][:TEST], found.test_y[:TEST])


def split(setting: Setting, folder: str | None) -> Split:
    """The data of a training; all networks of a stratum get the same."""
    side, (x, y), test = _all(setting.data, folder)
    draw = torch.Generator().manual_seed(10_007 * setting.seed + 1)
    order, probe = torch.randperm(len(x), generator=draw), VALIDATION[setting.data]
    first, second, train = order[:probe], order[probe : 2 * probe], order[2 * probe : 2 * probe + setting.samples]
    rest = order[2 * probe + setting.samples :]
    labels = y[train].clone()
    wrong = torch.randperm(len(labels), generator=draw)[: round(setting.noise * len(labels))]
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, (len(wrong),), generator=draw)) % 10
    if setting.kind == "untrained" and setting.variant == "labels":
        labels = labels[torch.randperm(len(labels), generator=draw)]
    pairs = [(x[part], y[part]) for part in (first, second)]
    return Split(side, (x[train], labels), *pairs, test if len(test[0]) else (x[rest], y[rest]))


def shifted(x: Tensor, how: str) -> Tensor:
    """Images as a camera that was not there in training might give them: brighter, blurred or rotated by 40 degrees.

    >>> (
    ...     torch.allclose(shifted(torch.zeros(1, 64), "bright"), torch.tensor(0.4)),
    ...     shifted(torch.ones(1, 64), "none").sum(),
    ... )
    (True, tensor(64.))
    """
    side = round(x.shape[1] ** 0.5)
    images = x.reshape(-1, 1, side, side)
    if how == "bright":
        images = images + 0.4
    elif how == "blurred":
        for _ in range(2 if side < 10 else 4):
            images = nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
    elif how == "rotated":
        angle = torch.tensor(40 * torch.pi / 180)
        turn = torch.tensor([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]])
        grid = nn.functional.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        images = nn.functional.grid_sample(images, grid, align_corners=False)
    return images.flatten(1)
