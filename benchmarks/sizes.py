"""The cost of one evaluation for networks of common sizes: samples passed through the network, and seconds.

Prints two Markdown tables. The first one counts, for each measure, how many samples pass forward through the network
and how many pass backward, in units of the probe. The second one gives the processor seconds of one evaluation at its
defaults, of one forward pass over the probe, and of one training step on a batch of 128. Takes about three minutes on
one core.

    OMP_NUM_THREADS=1 python benchmarks/sizes.py [--repeats 3] [--samples 1024]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from netdyn import diagnose
from netdyn.engine.config import MEASURES

CLASSES = 10
BATCH = 128


def mlp(*widths: int, norm: bool = False) -> nn.Sequential:
    """A fully connected network of images."""
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))


def cnn(*channels: int) -> nn.Sequential:
    """Convolutions with batch normalisation, each halving the image."""
    layers: list[nn.Module] = []
    for a, b in pairwise(channels):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], CLASSES))


class Transformer(nn.Module):
    """Patches of an image as a sequence, through encoder layers."""

    def __init__(self, width: int, layers: int, patch: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the mean over patches."""
        return self.head(self.encoder(self.embed(images).flatten(2).mT).mean(dim=1))


@dataclass(frozen=True)
class Size:
    """A network and the shape of its inputs."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


SIZES = {
    "MLP 784-256-256-10": Size(lambda: mlp(784, 256, 256), (1, 28, 28)),
    "MLP 784-2048-10": Size(lambda: mlp(784, 2048), (1, 28, 28)),
    "MLP 784-512×10-10, batch norm": Size(lambda: mlp(784, *[512] * 10, norm=True), (1, 28, 28)),
    "CNN 3-16-32-64, 32 × 32 pixels": Size(lambda: cnn(3, 16, 32, 64), (3, 32, 32)),
    "transformer, 64 wide, 2 layers, 64 steps": Size(lambda: Transformer(64, 2), (3, 32, 32)),
}


PASSED = {"forward": 0, "backward": 0}
"""Samples so far. They are a global because an evaluation restores everything that it can reach from the network."""


def count(_: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> None:
    """A forward hook."""
    PASSED["forward"] += len(arguments[0])
    if outputs.requires_grad:
        outputs.register_hook(count_back)


def count_back(gradient: Tensor) -> None:
    """One class's gradient, or those of all classes at once."""
    PASSED["backward"] += gradient.numel() // CLASSES


def learnt(size: Size, samples: int) -> tuple[nn.Module, Tensor, Tensor, float]:
    """A network, a probe on which it is always right, the labels, and the seconds of one training step."""
    torch.manual_seed(0)
    network = size.build()
    x = torch.randn(samples, *size.shape, generator=torch.Generator().manual_seed(1))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    optimiser = torch.optim.SGD(network.parameters(), lr=0.0)
    batch, taken = x[:BATCH], []
    for _ in range(7):
        start = time.process_time()
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(batch), torch.zeros(len(batch), dtype=torch.long)).backward()
        optimiser.step()
        taken.append(time.process_time() - start)
    with torch.no_grad():
        network.train()(x)
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        # Centred logits, so that no class wins everywhere. A network that is wrong has no basin to search.
        last.bias -= network.eval()(x).mean(dim=0)
        return network.eval(), x, network(x).argmax(dim=1), statistics.median(taken)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median processor seconds, after one run that does not count."""
    taken = []
    for _ in range(1 + repeats):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def counted(size: Size, samples: int, measure: str) -> str:
    """Samples forward and backward for one measure, in units of the probe."""
    network, x, y, _ = learnt(size, samples)
    network.register_forward_hook(count)
    PASSED.update(forward=0, backward=0)
    diagnose(network, x, y, measure=[measure], progress=False)
    forward, backward = (PASSED[way] / samples for way in ("forward", "backward"))
    return f"{forward:.1f}" + (f" + {backward:.1f}" if backward else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="evaluations that are timed (default: 3)")
    parser.add_argument("--samples", type=int, default=1024, help="samples in the probe (default: 1024)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| forward + backward | " + " | ".join(f"`{measure}`" for measure in MEASURES) + " |")
    print("|---|" + "---:|" * len(MEASURES))
    for name, size in SIZES.items():
        cells = " | ".join(counted(size, options.samples, measure) for measure in MEASURES)
        print(f"| {name} | {cells} |", flush=True)
    print(
        f"\n| seconds | training step, batch of {BATCH} | forward pass, {options.samples} | evaluation "
        "| in training steps | in forward passes |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name, size in SIZES.items():
        network, x, y, step = learnt(size, options.samples)
        with torch.no_grad():
            forward = seconds(lambda network=network, x=x: network(x), 5)
        whole = seconds(lambda network=network, x=x, y=y: diagnose(network, x, y, progress=False), options.repeats)
        print(
            f"| {name} | {step:.4f} | {forward:.4f} | {whole:.2f} | {whole / step:.0f} | {whole / forward:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
