"""The network of most benchmarks, 784-256-256-10, and data of MNIST's shape.

If the environment variable `MNIST_DIR` names a folder with MNIST's four files (as they are published, compressed or
not), the data are MNIST. Otherwise they are generated: ten classes of three overlapping clouds each in 50 dimensions,
spread over 784 pixels. The cost of an evaluation is realistic only on a network that has learnt something: a network
that is wrong without noise has a basin of radius 0, which needs no search.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

SAMPLES, PIXELS, CLASSES = 60_000, 784, 10
PROBE = 1024
_HIDDEN, _CLOUDS = 50, 3


def generator(seed: int) -> torch.Generator:
    """A private generator."""
    return torch.Generator().manual_seed(seed)


def mlp() -> nn.Sequential:
    """The untrained network, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Linear(PIXELS, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, CLASSES))
        )


def data(samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Images float32 ``[samples, 784]`` and labels int64 ``[samples]``."""
    folder = os.environ.get("MNIST_DIR")
    return made(samples) if not folder else mnist(Path(folder), samples)


def source() -> str:
    """The name of the data that :func:`data` returns, for a table."""
    return "MNIST" if os.environ.get("MNIST_DIR") else "generated data of MNIST's shape"


def made(samples: int) -> tuple[Tensor, Tensor]:
    """Clouds in a low-dimensional space, spread over the pixels."""
    cloud = torch.randint(CLASSES * _CLOUDS, (samples,), generator=generator(1))
    centres = 0.8 * torch.randn(CLASSES * _CLOUDS, _HIDDEN, generator=generator(2))
    hidden = centres[cloud] + torch.randn(samples, _HIDDEN, generator=generator(3))
    spread = torch.randn(_HIDDEN, PIXELS, generator=generator(4)) / _HIDDEN**0.5
    pixels = hidden @ spread + 0.3 * torch.randn(samples, PIXELS, generator=generator(5))
    return (pixels - pixels.mean()) / pixels.std(), cloud % CLASSES


def mnist(folder: Path, samples: int) -> tuple[Tensor, Tensor]:
    """The training set, from two files of the published format: a header of 16 or 8 bytes, then one byte per value."""
    images = _bytes(folder, "train-images-idx3-ubyte")[16:].reshape(-1, PIXELS)[:samples].float() / 255
    labels = _bytes(folder, "train-labels-idx1-ubyte")[8:][:samples].long()
    return (images - images.mean()) / images.std(), labels


def _bytes(folder: Path, name: str) -> Tensor:
    packed = folder / f"{name}.gz"
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


class Batches(Dataset[Any]):
    """Two tensors from which a whole batch is cut at once, so that loading costs almost nothing.

    With a slow loader the callback's share of a run would look smaller than it is.
    """

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.targets[index]

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(index)
        return self.images[chosen], self.targets[chosen]


def joined(batch: Any) -> Any:
    """Data that were cut at once are already a batch."""
    return batch if isinstance(batch, tuple) else default_collate(batch)


def trained(steps: int = 400, device: str = "cpu") -> tuple[nn.Sequential, Tensor, Tensor]:
    """The network after some steps of Adam with batches of 128, in eval mode, and a probe of 1,024 of its samples."""
    images, labels = data(128 * steps if steps * 128 < SAMPLES else SAMPLES)
    network = mlp()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(steps):
        batch = torch.arange(128 * step, 128 * step + 128) % len(images)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimiser.step()
    return network.eval().to(device), images[:PROBE].to(device), labels[:PROBE].to(device)
