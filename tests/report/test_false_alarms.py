"""How often sentences about networks are false, where the truth is known: the rates that docs/findings.md quotes."""

import functools
import itertools

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from netdyn.probes.batchnorm import measure_gap
from netdyn.probes.criteria import right_class
from netdyn.probes.evaluator import Evaluator
from netdyn.probes.guessing import guessing, is_guessed
from netdyn.report.findings import BATCHNORM_GAP


@functools.cache
def digits():
    """1,797 handwritten digits with pixels in [0, 1], shuffled."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x / 16, dtype=torch.float32)[order], torch.tensor(y)[order]


def untrained(seed, classes):
    """A network of 1 to 4 hidden layers, every other one with batch normalisation."""
    torch.manual_seed(seed)
    widths = [64] + [64] * (1 + seed % 4)
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] * (seed % 2)), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, classes)).eval()


def alarms(classes):
    """Share of 400 untrained networks, seeds 0 to 399, that are not called untrained on 1,000 digits modulo K."""
    x, y = digits()
    x, y = x[:1000], y[:1000] % classes
    guess = guessing(torch.bincount(y).tolist())
    with torch.no_grad():
        right = [float((untrained(seed, classes)(x).argmax(1) == y).double().mean()) for seed in range(400)]
    return sum(not is_guessed(accuracy, guess, classes, 1000) for accuracy in right) / 400


@pytest.mark.parametrize(("classes", "most"), [(10, 0.02), (5, 0.02), (3, 0.06), (2, 0.14)])
def test_untrained_networks_are_called_untrained(classes, most):
    """Rates of 0.0025, 0, 0.02 and 0.07, with standard errors of 0.0025 to 0.013.

    The answers of an untrained network are not random: with fewer than five classes some suit them by luck.
    """
    assert alarms(classes) <= most


@pytest.mark.parametrize(("samples", "most"), [(1000, 0.0), (250, 0.02)])
def test_exact_running_statistics_are_not_said_to_lag(samples, most):
    """200 probes of a trained network whose statistics are exact, seeds 0 to 199: standard error 0.01 at 0.02."""
    x, y = digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64, momentum=None), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net[1].reset_running_stats()
    with torch.no_grad():
        net(x)
        net.eval()
        gaps = []
        for seed in range(200):
            rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:samples]
            gaps.append(measure_gap(Evaluator(net, x[rows], y[rows], right_class, 10), None, seed))
    rate = sum(gap > BATCHNORM_GAP for gap in gaps) / 200
    assert rate <= most
