"""Handwritten digits as tensors: MNIST from a folder of IDX files, or the small digits that ship with scikit-learn."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor


@dataclass(frozen=True)
class Data:
    """Images ``[samples, pixels]`` between 0 and 1, and their digits ``[samples]``."""

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def pixels(self) -> int:
        """Pixels per image."""
        return self.x.shape[1]

    def first(self, samples: int) -> Data:
        """The first training images, and all test images."""
        return Data(self.name, self.x[:samples], self.y[:samples], self.test_x, self.test_y)

    def chosen(self, samples: int, seed: int) -> Data:
        """A random choice of training images, and all test images."""
        kept = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))[:samples].to(self.x.device)
        return Data(self.name, self.x[kept], self.y[kept], self.test_x, self.test_y)


def load(folder: str | None, device: str) -> Data:
    """MNIST from `folder`; without a folder, scikit-learn's digits, 8 × 8 pixels, the last 500 of them for testing."""
    if folder is None:
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        x, y = torch.tensor(images / 16, dtype=torch.float32)[order].to(device), torch.tensor(labels)[order].to(device)
        return Data("scikit-learn's digits", x[:-500], y[:-500], x[-500:], y[-500:])
    x, test_x = (_images(Path(folder), part).to(device) for part in ("train", "t10k"))
    y, test_y = (_labels(Path(folder), part).to(device) for part in ("train", "t10k"))
    return Data("MNIST", x, y, test_x, test_y)


def _images(folder: Path, part: str) -> Tensor:
    read = _idx(folder, f"{part}-images", 3)
    return torch.from_numpy(read.reshape(len(read), -1).astype(np.float32)) / 255


def _labels(folder: Path, part: str) -> Tensor:
    return torch.from_numpy(_idx(folder, f"{part}-labels", 1).astype(np.int64))


def _idx(folder: Path, stem: str, dimensions: int) -> np.ndarray:
    """An array of bytes in the IDX format, compressed or not.

    The format: two zero bytes, one byte for the type of the entries (8: bytes), one byte for the number of dimensions;
    then the dimensions as big-endian integers of four bytes; then the entries, the last dimension fastest.
    """
    names = [f"{stem}{sign}idx{dimensions}-ubyte{ending}" for sign in "-." for ending in ("", ".gz")]
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is None:
        raise SystemExit(f"--mnist must name a folder of MNIST's IDX files, none of {', '.join(names)} is in {folder}.")
    content = (gzip.decompress if found.suffix == ".gz" else bytes)(found.read_bytes())
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise SystemExit(f"--mnist must name a folder of MNIST's IDX files, {found} begins with {content[:4]!r}.")
    start = 4 + 4 * dimensions
    return np.frombuffer(content, np.uint8, offset=start).reshape(tuple(np.frombuffer(content[4:start], ">i4")))
