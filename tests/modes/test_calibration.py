"""Untrained networks of eight kinds: what tests of order find there is found by chance."""

import itertools
import math
import warnings
from collections import defaultdict
from statistics import NormalDist
from typing import NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from netdyn import DynamicsWarning, LayerReport, diagnose

INPUTS = 64


def mlp(classes):
    return nn.Sequential(
        nn.Linear(INPUTS, 40),
        nn.ReLU(),
        nn.Linear(40, 24),
        nn.Tanh(),
        nn.Linear(24, 40),
        nn.ReLU(),
        nn.Linear(40, classes),
    )


def deep(classes):
    hidden = [nn.Sequential(nn.Linear(n, 24), nn.ReLU()) for n in (INPUTS, *[24] * 5)]
    return nn.Sequential(*hidden, nn.Linear(24, classes))


def batch_norm(classes):
    hidden = [nn.Sequential(nn.Linear(n, 32), nn.BatchNorm1d(32), nn.ReLU()) for n in (INPUTS, 32, 32)]
    return nn.Sequential(*hidden, nn.Linear(32, classes))


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def residual(classes):
    return nn.Sequential(nn.Linear(INPUTS, 24), *(Residual(24) for _ in range(3)), nn.Linear(24, classes))


def convolutions():
    image, first, second = nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
    return nn.Sequential(image, first, nn.ReLU(), second, nn.ReLU())


def flat_cnn(classes):
    return nn.Sequential(convolutions(), nn.Flatten(), nn.Linear(32, classes))


def pooled_cnn(classes):
    return nn.Sequential(convolutions(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


class Transformer(nn.Module):
    """Attention over eight tokens of eight numbers, and the mean over tokens."""

    def __init__(self, classes):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.embed, self.encoder = nn.Linear(8, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x.unflatten(1, (8, 8)))).mean(1))


class Mixer(nn.Module):
    """Layers over tokens and over features in turn, and a gate."""

    def __init__(self, classes):
        super().__init__()
        self.tokens, self.features = nn.Linear(8, 8), nn.Linear(8, 16)
        self.gate, self.head = nn.Linear(16, 16), nn.Linear(128, classes)

    def forward(self, x):
        x = torch.sigmoid(self.tokens(x.unflatten(1, (8, 8)).mT)).mT
        x = nn.functional.silu(self.features(x))
        return self.head((x + torch.tanh(self.gate(x))).flatten(1))


KINDS = {
    "MLP": mlp,
    "deep": deep,
    "batch norm": batch_norm,
    "residual": residual,
    "CNN": flat_cnn,
    "pooled CNN": pooled_cnn,
    "transformer": Transformer,
    "mixer": Mixer,
}
PROBES = ("balanced", "90/10", "duplicates")


def probe(kind, classes, draw):
    """300 samples in clouds around one centre per class."""
    samples = 300
    target = torch.arange(samples) % classes
    if kind == "90/10":
        # Every class keeps a sample.
        target = torch.cat([torch.arange(classes), torch.arange(30) % classes, torch.zeros(samples, dtype=torch.int64)])
        target = target[:samples]
    x = torch.randn(classes, INPUTS, generator=draw)[target] + 2 * torch.randn(samples, INPUTS, generator=draw)
    if kind == "duplicates":
        chosen = torch.randint(samples // 4, (samples,), generator=draw)
        x, target = x[chosen], target[chosen]
    return x, target


class Found(NamedTuple):
    """The numbers of one layer."""

    network: int
    layer: LayerReport


def untrained(class_numbers, repeats):
    """Layers of fresh networks on fresh probes; seeds count from 0."""
    found, seed = [], 0
    for make, classes, kind in itertools.product(KINDS.values(), class_numbers, PROBES):
        for _ in range(repeats):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                network = make(classes).eval()
            x, y = probe(kind, classes, torch.Generator().manual_seed(seed))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DynamicsWarning)  # duplicates lack classes
                layers = diagnose(network, x, y, measure=["modes"]).layers
            found += [Found(seed, layer) for layer in layers]
            seed += 1
    return found


def mean(found, number):
    """Mean over layers, and its standard error, in which a network is one cluster."""
    values = [float(number(one.layer)) for one in found]
    whole = sum(values) / len(values)
    clusters = defaultdict(float)
    for one, value in zip(found, values, strict=True):
        clusters[one.network] += value - whole
    return whole, math.sqrt(sum(total**2 for total in clusters.values())) / len(values)


@pytest.mark.slow
def test_the_layers_test_finds_no_order_in_untrained_networks():
    # 720 networks (8 kinds, 5, 10 and 100 classes, 3 probes, 10 seeds) with 2,160 layers. Bounds of 3 standard errors,
    # which count a network as one cluster.
    found = [one for one in untrained((5, 10, 100), 10) if not math.isnan(one.layer.order_z)]
    assert len(found) >= 2000
    for level in (0.05, 0.01):
        critical = NormalDist().inv_cdf(1 - level)
        share, error = mean(found, lambda layer, critical=critical: layer.order_z > critical)
        assert abs(share - level) <= 3 * error, (level, share, error)
    # The band is exceeded in at most 5 % of layers: fewer, since shares of few units are often equal.
    share, error = mean(found, lambda layer: layer.opt_fraction > layer.opt_chance)
    assert share <= 0.05 + 3 * error, (share, error)
    # Per unit the same level holds on average, whatever the classes' sizes.
    share, error = mean(found, lambda layer: layer.opt_fraction)
    assert abs(share - 0.05) <= max(3 * error, 0.01), (share, error)


@pytest.mark.slow
def test_few_classes_give_few_false_order_preserving_units():
    # 240 networks (8 kinds, 2 and 3 classes, 3 probes, 5 seeds) with 720 layers.
    found = [one for one in untrained((2, 3), 5) if one.layer.rule == "false-discovery"]
    assert len(found) >= 700
    share, error = mean(found, lambda layer: layer.opt_fraction)
    assert share + 3 * error <= 0.05, (share, error)
    # Indices lie on both sides of 0 alike.
    share, error = mean(found, lambda layer: layer.positive_fraction)
    assert abs(share - 0.5) <= 3 * error, (share, error)


def digits(classes):
    images, target = load_digits(n_class=classes, return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32)[:600], torch.tensor(target)[:600]


@pytest.mark.parametrize(("classes", "critical"), [(5, 2.33), (10, 3.3)])
def test_two_steps_of_training_are_seen_in_a_layer(classes, critical):
    # Networks of digits, seeds 0 to 4: z of ten classes exceeds 3.3 by chance in 1 of 2,000 layers; that of five, which
    # ends at 4, exceeds 2.33 in at most 1 of 100. No layer does before training, one does after two steps.
    x, y = digits(classes)
    for seed in range(5):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))
        largest = []
        for _ in range(2):
            largest.append(max(layer.order_z for layer in diagnose(network, x, y, measure=["modes"]).layers))
            optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
            for _ in range(2):
                optimiser.zero_grad()
                nn.functional.cross_entropy(network(x), y).backward()
                optimiser.step()
        assert largest[0] < critical < largest[1], largest
