"""The time of one evaluation, by depth and by size of the probe.

Prints Markdown tables. Each row has the median over several repeats for one depth or number of samples, with the
smallest and the largest value. The last row has the exponent p of seconds ∝ depth^p, fitted by least squares to the
logarithms of the medians (not for the CNNs, whose later layers are smaller). Everything runs on one thread and is
measured in processor seconds, on which other load on the machine has little influence. Takes about five minutes on one
core.

    OMP_NUM_THREADS=1 python benchmarks/depth.py [--repeats 5] [--samples 1024] [--width 64]
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

import netdyn
from netdyn import diagnose

CLASSES = 10
DEPTHS = (10, 20, 50, 100)
SAMPLES = (256, 512, 1024, 2048, 4096)
STAGES = ((1, 1, 1, 0), (3, 2, 1, 0), (3, 4, 8, 1), (3, 4, 23, 3))
"""Bottleneck blocks per stage: in total 3, 6, 16 and, as in ResNet-101, 33."""
KINDS = {"modes": ["modes"], "everything": None}


class Bottleneck(nn.Module):
    """Three convolutions and a skip connection."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.round: nn.Module = nn.Identity()
        if stride != 1 or channels != 4 * width:
            self.round = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride=stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Images of 4 · width channels."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        return self.relu(out + self.round(x))


def mlp(depth: int, width: int) -> nn.Sequential:
    """A fully connected network with `depth` layers of activations."""
    sizes = [width] * (depth + 1)
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, CLASSES))


def resnet(stages: Sequence[int], width: int = 2) -> nn.Sequential:
    """Bottleneck blocks on images of 3 × 16 × 16."""
    layers: list[nn.Module] = [nn.Conv2d(3, 4 * width, 3, padding=1, bias=False), nn.BatchNorm2d(4 * width), nn.ReLU()]
    channels = 4 * width
    for stage, blocks in enumerate(stages):
        for block in range(blocks):
            layers.append(Bottleneck(channels, width * 2**stage, 2 if block == 0 and stage else 1))
            channels = 4 * width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


@torch.no_grad()
def settled(network: nn.Sequential, inputs: Tensor) -> Tensor:
    """Give an untrained network usable statistics, and return labels for which it is right on every sample.

    A network that is wrong without noise has a basin of radius 0, which needs no search.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    network.train()(inputs)
    outputs = network.eval()(inputs)
    # Centred logits, so that no class wins everywhere.
    network[-1].bias -= outputs.mean(dim=0)
    return network(inputs).argmax(dim=1)


def seconds(network: nn.Sequential, inputs: Tensor, measure: list[str] | None, repeats: int) -> list[float]:
    """Processor seconds of `repeats` evaluations, after one that does not count."""
    target = settled(network, inputs)
    options = {} if measure is None else {"measure": measure}
    taken = []
    for _ in range(1 + repeats):
        gc.collect()
        start = time.process_time()
        report = diagnose(network, inputs, target, progress=False, **options)
        taken.append(time.process_time() - start)
        assert report.accuracy == 1
    return taken[1:]


def exponent(sizes: Sequence[float], medians: Sequence[float]) -> float:
    """Least-squares slope of log seconds against log size.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 12)
    2.0
    """
    x, y = [math.log(size) for size in sizes], [math.log(median) for median in medians]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def table(
    title: str,
    sizes: Sequence[int],
    run: Callable[[int, list[str] | None], list[float]],
    unit: str,
    fit: bool = True,
) -> None:
    """Measure and print one table; `run(i, measure)` gives the seconds at the i-th size."""
    print(f"\n**{title}**\n")
    print(f"| {unit} | " + " | ".join(f"{kind}, s (smallest to largest)" for kind in KINDS) + " |")
    print("|---:|" + "---:|" * len(KINDS))
    medians: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for i, size in enumerate(sizes):
        cells = []
        for kind, measure in KINDS.items():
            taken = run(i, measure)
            medians[kind].append(statistics.median(taken))
            cells.append(f"{medians[kind][-1]:.3f} ({min(taken):.3f} to {max(taken):.3f})")
        print(f"| {size} | " + " | ".join(cells) + " |", flush=True)
    if fit:
        print("| exponent | " + " | ".join(f"{exponent(sizes, values):.2f}" for values in medians.values()) + " |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed evaluations of each kind (default: 5)")
    parser.add_argument("--samples", type=int, default=1024, help="samples in the probe of the MLPs (default: 1024)")
    parser.add_argument("--width", type=int, default=64, help="units per layer of the MLPs (default: 64)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    print(
        f"netdyn {netdyn.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"one thread, processor seconds, median of {options.repeats}"
    )
    inputs = torch.randn(max(*SAMPLES, options.samples), options.width, generator=draw)
    table(
        f"MLP with batch normalisation, {options.width} units per layer, {options.samples} samples",
        DEPTHS,
        lambda i, measure: seconds(mlp(DEPTHS[i], options.width), inputs[: options.samples], measure, options.repeats),
        "layers",
    )
    table(
        f"The same with {DEPTHS[1]} layers",
        SAMPLES,
        lambda i, measure: seconds(mlp(DEPTHS[1], options.width), inputs[: SAMPLES[i]], measure, options.repeats),
        "samples",
    )
    images = torch.randn(128, 3, 16, 16, generator=draw)
    table(
        "CNN of bottleneck blocks as in ResNet-101, 16 × 16 pixels, 128 samples",
        [1 + 3 * sum(stages) for stages in STAGES],
        lambda i, measure: seconds(resnet(STAGES[i]), images, measure, options.repeats),
        "layers",
        fit=False,
    )


if __name__ == "__main__":
    sys.exit(main())
