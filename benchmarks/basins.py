"""The cost of a sample basin's radius, and how close it comes to a ladder of noise levels.

Prints one Markdown row per network: the radius from one ray per sample with its interval, the radius from 48 rays, the
radius from a ladder of 41 noise levels with 48 draws each, and the forward passes of a search with one ray. Takes about
half a minute on one core.

    OMP_NUM_THREADS=1 python benchmarks/basins.py
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from itertools import pairwise

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from netdyn.functional import sample_basin

Probe = tuple[nn.Module, Tensor, Tensor]
DRAWS = 48


def train(network: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float) -> nn.Module:
    """Train with Adam in consecutive batches of 100."""
    optimiser = torch.optim.Adam(network.train().parameters(), lr=rate)
    for step in range(steps):
        batch = torch.arange(100 * step, 100 * step + 100) % len(x)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
        optimiser.step()
    return network.eval()


def mlp(*widths: int, norm: bool = False) -> nn.Sequential:
    """A fully connected network."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def on_digits(build: Callable[[], nn.Module], steps: int) -> Probe:
    """A network trained on 1,200 digits, and the other 597 digits as the probe."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    torch.manual_seed(0)
    return train(build(), x[:1200], y[:1200], steps, 0.01), x[1200:], y[1200:]


def overlapping() -> Probe:
    """Five classes of three overlapping clouds each in the plane."""
    cloud = torch.arange(3024) % 15
    centres = 1.5 * torch.randn(15, 2, generator=torch.Generator().manual_seed(1))
    x = centres[cloud] + 0.5 * torch.randn(3024, 2, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    return train(mlp(2, 64, 64, 5), x[:2000], cloud[:2000] % 5, 150, 0.02), x[2000:], cloud[2000:] % 5


def convolutional() -> nn.Module:
    """Two convolutions."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
    )


NETWORKS: dict[str, Callable[[], Probe]] = {
    "MLP, digits": lambda: on_digits(lambda: mlp(64, 64, 64, 10), 200),
    "CNN, digits": lambda: on_digits(convolutional, 150),
    "MLP, overlapping clouds": overlapping,
    "10-layer BN MLP after 30 steps, digits": lambda: on_digits(lambda: mlp(64, *[48] * 10, 10, norm=True), 30),
}


def ladder(network: nn.Module, x: Tensor, y: Tensor, accuracy: float = 0.5) -> float:
    """Where accuracy first falls below the given one on 41 noise levels, interpolated linearly in log σ."""
    draw, before, at = torch.Generator().manual_seed(7), 1.0, 0.0
    for sigma in torch.logspace(-3, 1, 41).tolist():
        right = 0.0
        with torch.no_grad():
            for _ in range(DRAWS):
                noisy = x + sigma * torch.randn(x.shape, generator=draw)
                right += float((network(noisy).argmax(1) == y).double().mean()) / DRAWS
        if right < accuracy:
            part = (before - accuracy) / (before - right)
            return math.exp((1 - part) * math.log(at) + part * math.log(sigma))
        before, at = right, sigma
    return math.inf


def main() -> None:
    """Print the table."""
    print("| network | samples | radius (interval) | 48 rays | ladder | passes |")
    print("|---|---|---|---|---|---|")
    for name, build in NETWORKS.items():
        network, x, y = build()
        one, many = (sample_basin(network, x, y, accuracy=0.5, rays=rays) for rays in (1, DRAWS))
        low, high = one.interval
        print(
            f"| {name} | {len(x)} | {one.radius:.3f} ({low:.3f} to {high:.3f}) | {many.radius:.3f} "
            f"| {ladder(network, x, y):.3f} | {one.forwards:.2f} |"
        )


if __name__ == "__main__":
    main()
