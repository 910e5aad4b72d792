"""Against other ways to the same numbers: a ladder of 41 noise levels, and foolbox's Gaussian noise attack."""

import itertools
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import reference
from netdyn.basins.input_noise import Noise
from netdyn.basins.sample_basin import Rays
from netdyn.functional import sample_basin
from netdyn.isolation.isolated import isolated
from netdyn.probes.tasks import prepare


def generator(seed):
    return torch.Generator().manual_seed(seed)


def made(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def train(network, x, target, steps, rate=0.01):
    """Batches of 100 in turn; left in training mode's hands until the end."""
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    for step in range(steps):
        batch = torch.arange(100 * step, 100 * step + 100) % len(x)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x[batch]), target[batch]).backward()
        optimiser.step()
    return network


def mlp(*widths, norm=False):
    layers = []
    for a, b in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def digits():
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    return x[:1200], y[:1200], x[1200:1600], y[1200:1600]


def on_digits(steps=200):
    x, y, held_out, target = digits()
    return train(made(lambda: mlp(64, 64, 64, 10)), x, y, steps), held_out, target


def overlapping():
    """Five classes of three overlapping clouds each in the plane: mistakes that noise often puts right."""
    cloud = torch.arange(2400) % 15
    centres = 1.5 * torch.randn(15, 2, generator=generator(1))
    x = centres[cloud] + 0.5 * torch.randn(2400, 2, generator=generator(2))
    network = train(made(lambda: mlp(2, 64, 64, 5)), x[:2000], cloud[:2000] % 5, 150, rate=0.02)
    return network, x[2000:], cloud[2000:] % 5


def early():
    """Ten layers with batch normalisation after a few steps."""
    x, y, held_out, target = digits()
    return train(made(lambda: mlp(64, *[48] * 10, 10, norm=True)), x, y, 30), held_out, target


def convolutional():
    x, y, held_out, target = digits()
    network = made(
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
    )
    return train(network, x, y, 150), held_out, target


# n = 400 samples on 48 rays, and as many draws for each rung: standard errors of an accuracy of 0.0025, which is 0.7 %
# of the radius for each, 1 % for both together; 3 % is three of them.
RAYS = 48
NETWORKS = {"MLP": on_digits, "overlapping MLP": overlapping, "early deep MLP": early, "CNN": convolutional}


@pytest.mark.slow
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_radius_is_within_three_per_cent_of_a_ladder_of_41_levels(build):
    network, x, target = build()
    network.eval()
    basin = sample_basin(network, x, target, rays=RAYS, accuracy=0.5)
    sigmas = torch.logspace(-3, 1, 41).tolist()
    near = [sigma for sigma in sigmas if basin.radius / 2 < sigma < 2 * basin.radius]
    ladder = [1.0 if sigma < near[0] else 0.0 for sigma in sigmas]
    first = sigmas.index(near[0])
    ladder[first : first + len(near)] = reference.accuracy_ladder(network, x, target, near, RAYS, generator(7))
    assert ladder[first] > 0.5 > ladder[first + len(near) - 1]
    assert basin.radius == pytest.approx(reference.ladder_radius(sigmas, ladder, 0.5), rel=0.03)


@pytest.mark.parametrize("build", [on_digits, convolutional], ids=["MLP", "CNN"])
def test_a_sample_basin_costs_three_passes_beside_the_clean_one(build):
    network, x, target = build()
    x = x.repeat(3, 1)[:1024] + 1e-4 * torch.arange(1024)[:, None]
    found = [sample_basin(network, x, target.repeat(3)[:1024], seed=seed).forwards for seed in range(10)]
    # A sixteenth at the top, half a pass on the ladder and two levels; sometimes a third one.
    assert min(found) == 1 + 1 / 16 + 1 / 2 + 2
    assert sum(found) / 10 <= 1 + 3.3


# foolbox's import of scipy.
@pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")
@pytest.mark.parametrize("sigma", [0.2, 0.4, 0.8])
def test_accuracy_under_noise_is_foolboxs(sigma):
    """foolbox 3.3.4, L2AdditiveGaussianNoiseAttack: noise of the exact length sigma sqrt(d), never clipped."""
    import eagerpy as ep
    import foolbox

    network, x, target = on_digits()
    network.eval()
    model = foolbox.PyTorchModel(network, bounds=(-1e6, 1e6))
    attack = foolbox.attacks.L2AdditiveGaussianNoiseAttack()
    right = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(20):
            lost = attack(model, ep.astensor(x), ep.astensor(target), epsilons=sigma * math.sqrt(64))[2]
            right.append(~lost.raw)
    theirs = torch.stack(right).double()
    with isolated(network) as (network,):
        evaluator = prepare(network, x, target, None, None)
        noise = Noise.at(network, x, evaluator.by_sample, None, seed=0)
        levels = torch.full((20, len(x)), math.log(sigma), dtype=torch.float64)
        ours = Rays(evaluator, noise).right(levels).double()
    # The samples are the same: noise alone makes the difference, with the spread of each sample's own answers.
    error = math.sqrt(sum(float(shares.var(dim=0).sum()) for shares in (theirs, ours)) / 20) / len(x)
    assert abs(float(ours.mean() - theirs.mean())) < 3 * error
