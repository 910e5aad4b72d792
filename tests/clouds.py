"""Small networks that tell clouds of points apart, and their probes."""

from itertools import pairwise

import torch
from torch import nn

CLASSES, FEATURES, SAMPLES = 5, 8, 200


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def probe(samples=SAMPLES, classes=CLASSES, seed=1):
    """Clouds around one centre per class; all numbers are multiples of 1/4."""
    target = torch.arange(samples) % classes
    x = 1.5 * gaussian(classes, FEATURES, seed=seed)[target] + 0.5 * gaussian(samples, FEATURES, seed=seed + 1)
    return (4 * x).round() / 4, target


def network(classes=CLASSES, width=40, bias=True, seed=0, depth=2):
    """Fully connected, untrained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = [FEATURES, *[width] * depth]
        hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b, bias), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(width, classes))


def trained(net, x, target, steps=60):
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), target).backward()
        optimiser.step()
    return net
