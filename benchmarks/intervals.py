"""How often the intervals of both basins hold the truth, on trained networks.

For each network, fresh probes are drawn from the data again and again; each is measured with a seed of its own. The
truth is the radius over 20,000 samples (sample basin), or the median over 400 rays of 1,024 samples (weight basin).
Prints one Markdown row per case: passes besides the one without noise, mean and standard deviation of the error of log
σ, mean half-width of the 95 % interval in log σ, and the share of intervals that hold the truth with its standard
error. The numbers in docs/basins.md are of 400 probes per case on MNIST, which take about ten minutes on one core.

    MNIST_DIR=... OMP_NUM_THREADS=1 python benchmarks/intervals.py 400
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from workload import PIXELS, data, generator

from netdyn.basins.result import BasinResult
from netdyn.basins.sample_basin import measure_sample_basin
from netdyn.basins.weight_basin import measure_weight_basin
from netdyn.probes.tasks import prepare

LOW, HIGH = 1e-3, 10.0


def mlp() -> nn.Sequential:
    """Fully connected."""
    return nn.Sequential(nn.Linear(PIXELS, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def batch_norm() -> nn.Sequential:
    """The same with batch normalisation."""
    layers = [(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in ((PIXELS, 128), (128, 64))]
    return nn.Sequential(*(module for layer in layers for module in layer), nn.Linear(64, 10))


def convolutional() -> nn.Sequential:
    """Two convolutions."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 8, 5, stride=2), nn.ReLU()),
        *(nn.Conv2d(8, 16, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
    )


def trained(build: Callable[[], nn.Module], x: Tensor, y: Tensor, steps: int = 600) -> nn.Module:
    """A network after some steps of Adam."""
    torch.manual_seed(0)
    network = build()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(steps):
        batch = torch.randint(len(x), (128,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
        optimiser.step()
    return network.eval().requires_grad_(False)


def true_sample_radius(network: nn.Module, x: Tensor, y: Tensor, accuracy: float) -> float:
    """Bisection of the accuracy of many samples, each with noise of its own."""
    low, high = math.log(LOW), math.log(HIGH)
    noise = torch.randn(x.shape, generator=generator(7))
    for _ in range(16):
        middle = (low + high) / 2
        right = (network(x + math.exp(middle) * noise).argmax(1) == y).double().mean()
        low, high = (middle, high) if right > accuracy else (low, middle)
    return math.exp((low + high) / 2)


def row(name: str, measure: Callable[[int], BasinResult], truth: float, probes: int) -> str:
    """One case, as a row of a table."""
    found = [measure(seed) for seed in range(probes)]
    error = torch.tensor([math.log(basin.radius / truth) for basin in found])
    half = torch.tensor([math.log(basin.interval[1] / basin.interval[0]) / 2 for basin in found])
    held = sum(basin.interval[0] <= truth <= basin.interval[1] for basin in found) / probes
    passes = sum(basin.forwards for basin in found) / probes - 1
    cells = (f"{passes:.1f}", f"{error.mean():+.3f}", f"{error.std():.3f}", f"{half.mean():.3f}")
    return " | ".join([f"| {name}", *cells, f"{held:.3f} ± {math.sqrt(held * (1 - held) / probes):.3f} |"])


def main(probes: int) -> None:
    """Print the table."""
    x, y = data()
    print("| case | passes | bias | sd | half-width | coverage |")
    print("|---|---|---|---|---|---|", flush=True)
    for build in (mlp, batch_norm, convolutional):
        network, draw = trained(build, x, y), generator(1)

        def probe(samples: int, copies: int = 1, network: nn.Module = network, draw: torch.Generator = draw):
            chosen = torch.randperm(len(x), generator=draw)[: samples // copies].repeat(copies)
            return prepare(network, x[chosen], y[chosen], None, None)

        many = torch.randperm(len(x), generator=draw)[:20_000]
        cases = [(1024, 1, 0.5), *([(128, 1, 0.5), (1024, 4, 0.5), (1024, 1, 0.75)] if build is mlp else [])]
        for samples, copies, accuracy in cases:
            truth = true_sample_radius(network, x[many], y[many], accuracy)
            name = f"{build.__name__}, samples, {samples}{' in fours' if copies > 1 else ''}, at {accuracy}"

            def in_samples(seed: int, n: int = samples, c: int = copies, a: float = accuracy) -> BasinResult:
                return measure_sample_basin(probe(n, c), LOW, HIGH, accuracy=a, seed=seed)

            print(row(name, in_samples, truth, probes), flush=True)
        truth = measure_weight_basin(probe(4096), LOW, HIGH, rays=400, samples=1024, seed=999).radius
        settings = [(1024, 16, 128), *([(64, 32, 128)] if build is mlp else [])]
        for samples, rays, own in settings:

            def in_weights(seed: int, n: int = samples, r: int = rays, s: int = own) -> BasinResult:
                return measure_weight_basin(probe(n), LOW, HIGH, rays=r, samples=s, seed=seed)

            name = f"{build.__name__}, weights, {samples} samples, {rays} rays of {min(own, samples)}"
            print(row(name, in_weights, truth, probes), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
