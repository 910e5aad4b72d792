"""Intervals hold the truth as often as they say: probes drawn from populations whose radius is known.

Every probe goes through the real measurement. Its network is small, so that a thousand of them take seconds.
"""

import itertools
import math

import numpy as np
import pytest
import scipy.interpolate
import scipy.optimize
import scipy.stats
import torch
from torch import nn

from netdyn.basins.sample_basin import measure_sample_basin
from netdyn.basins.weight_basin import measure_weight_basin
from netdyn.probes.criteria import right_class
from netdyn.probes.evaluator import Evaluator

pytestmark = pytest.mark.slow

# 1000 probes a case: the standard error of a coverage of 0.955 is 0.0066, so that 0.93 and 0.98 are 3.8 of them away.
PROBES, SAMPLES = 1000, 200
LOW, HIGH = 1e-3, 1e1


def generator(seed):
    return torch.Generator().manual_seed(seed)


def counted(results, truth):
    """Share of the intervals that hold the truth, and the mean of log(radius / truth) where that is finite."""
    held = sum(found.interval[0] <= truth <= found.interval[1] for found in results) / len(results)
    errors = [math.log(found.radius / truth) for found in results if 0 < found.radius < math.inf]
    return held, sum(errors) / len(errors)


def crossing(accuracy_at, accuracy):
    """The noise level at which a population's accuracy crosses."""
    return math.exp(scipy.optimize.brentq(lambda x: accuracy_at(math.exp(x)) - accuracy, math.log(LOW), math.log(HIGH)))


def sample_basins(model, draw_probe, accuracy, rays=1, classes=2, **options):
    found = []
    with torch.inference_mode():
        for _ in range(PROBES):
            inputs, target = draw_probe()
            probe = Evaluator(model, inputs, target, right_class, classes)
            found.append(measure_sample_basin(probe, LOW, HIGH, accuracy=accuracy, rays=rays, quiet=True, **options))
    return found


# Known answers -------------------------------------------------------------------------------------------------------


class First(nn.Module):
    """The single logit is the sample's first number."""

    def forward(self, x):
        return x[:, 0]


def linear(draw, samples=SAMPLES):
    """Margins m ~ |N(0, 1)|, of which a tenth is negative: right where m + sigma z > 0."""
    margin = torch.randn(samples, 1, generator=draw).abs()
    wrong = torch.rand(samples, 1, generator=draw) < 0.1
    return torch.where(wrong, -margin, margin), torch.ones(samples, dtype=torch.int64)


def linear_truth(sigma):
    """0.9 E Phi(m / sigma) + 0.1 E Phi(-m / sigma), with E Phi(m / sigma) = 1/2 + atan(1 / sigma) / pi."""
    return 0.5 + 0.8 * math.atan(1 / sigma) / math.pi


class Ball(nn.Module):
    """The single logit is positive inside of the unit ball."""

    def forward(self, x):
        return 1 - x.square().sum(dim=1)


def ball(draw, samples=SAMPLES):
    """Uniformly within 0.9 of the ball's centre, in three dimensions."""
    x = torch.randn(samples, 3, generator=draw)
    x = 0.9 * torch.rand(samples, 1, generator=draw) ** (1 / 3) * x / x.norm(dim=1, keepdim=True)
    return x, torch.ones(samples, dtype=torch.int64)


def ball_truth(sigma):
    """Mean over the radius of P(|x + sigma e|^2 < 1), a non-central chi-squared distribution."""
    r = 0.9 * ((torch.arange(400) + 0.5) / 400) ** (1 / 3)
    return float(scipy.stats.ncx2.cdf(1 / sigma**2, 3, (r**2 / sigma**2).numpy()).mean())


CASES = {"linear": (First(), linear, linear_truth), "ball": (Ball(), ball, ball_truth)}


@pytest.mark.parametrize("rays", [1, 8])
@pytest.mark.parametrize(("case", "accuracy"), [("linear", 0.75), ("ball", 0.5), ("ball", 0.9)])
def test_interval_covers_a_known_radius(case, accuracy, rays):
    model, probe, truth = CASES[case]
    draw = generator(rays)
    held, bias = counted(sample_basins(model, lambda: probe(draw), accuracy, rays=rays), crossing(truth, accuracy))
    assert 0.93 < held < 0.98
    assert abs(bias) < 0.05


def test_interval_covers_where_every_sample_comes_four_times():
    draw = generator(0)

    def probe():
        x, target = linear(draw, 256)
        return x.repeat(4, 1), target.repeat(4)

    held, bias = counted(sample_basins(First(), probe, 0.75), crossing(linear_truth, 0.75))
    assert 0.93 < held < 0.98
    assert abs(bias) < 0.05


def test_interval_covers_where_the_accuracy_lies_just_below_the_clean_one():
    draw = generator(0)
    held, _bias = counted(sample_basins(First(), lambda: linear(draw, 1000), 0.89), crossing(linear_truth, 0.89))
    assert 0.93 < held < 0.98


# A network early in training -----------------------------------------------------------------------------------------

FEATURES, CLASSES = 8, 5
CENTRES = 1.2 * torch.randn(4 * CLASSES, FEATURES, generator=generator(1))


def clouds(draw, samples):
    cloud = torch.randint(4 * CLASSES, (samples,), generator=draw)
    return CENTRES[cloud] + 0.4 * torch.randn(samples, FEATURES, generator=draw), cloud % CLASSES


@pytest.fixture(scope="module")
def early():
    """A deep network with batch normalisation after twenty steps, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        widths = [FEATURES] + [24] * 10
        layers = [(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        network = nn.Sequential(*(module for layer in layers for module in layer), nn.Linear(24, CLASSES))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    draw = generator(2)
    for _ in range(20):
        x, target = clouds(draw, 100)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), target).backward()
        optimiser.step()
    return network.eval()


@pytest.fixture(scope="module")
def early_accuracy(early):
    """Its accuracy at 33 noise levels, from 40,000 samples: standard errors of 0.0025 or less."""
    levels = torch.logspace(-3, 1, 33)
    x, target = clouds(generator(3), 40_000)
    noise = torch.randn(x.shape, generator=generator(4))
    with torch.inference_mode():
        shares = [(early(x + sigma * noise).argmax(dim=1) == target).double().mean().item() for sigma in levels]
    return lambda sigma: float(scipy.interpolate.pchip_interpolate(levels.log().numpy(), shares, math.log(sigma)))


def test_a_share_of_the_networks_rays_comes_back(early):
    levels = torch.logspace(-3, 1, 65)
    x, target = clouds(generator(5), 500)
    noise = torch.randn(x.shape, generator=generator(6))
    with torch.inference_mode():
        right = torch.stack([early(x + sigma * noise).argmax(dim=1) == target for sigma in levels])
    rises = (right[1:] & ~right[:-1]).any(dim=0)
    # n = 500: standard error 0.02.
    assert rises[right[0]].double().mean() > 0.1


@pytest.mark.parametrize(("accuracy", "rays"), [(0.5, 1), (0.5, 8), (0.6, 1)])
def test_interval_covers_where_rays_come_back(early, early_accuracy, accuracy, rays):
    draw = generator(rays)
    found = sample_basins(early, lambda: clouds(draw, SAMPLES), accuracy, rays=rays, classes=CLASSES)
    held, bias = counted(found, crossing(early_accuracy, accuracy))
    assert 0.93 < held < 0.98
    assert abs(bias) < 0.05


# Weights -------------------------------------------------------------------------------------------------------------


def weight_basins(model, draw_probe, **options):
    found = []
    with torch.inference_mode():
        for seed in range(PROBES):
            probe = Evaluator(model, *draw_probe(), right_class, 2)
            found.append(measure_weight_basin(probe, LOW, HIGH, seed=seed, **options))
    return found


def plane(width=8):
    """The sign of w x, w of ones and minus ones; normal samples, all right."""
    network = nn.Linear(width, 1, bias=False)
    network.weight = nn.Parameter((-1.0) ** torch.arange(width)[None])
    return network


def plane_truth(width=8, accuracy=0.75):
    """Accuracy is 1 less the angle between w and w + sigma e over pi; the median over 4 million rays of its crossing.

    tan angle = sigma e_across / (|w| + sigma e_along), e_across chi-distributed, e_along normal.
    """
    draw = np.random.default_rng(0)
    across, along = np.sqrt(draw.chisquare(width - 1, 4_000_000)), draw.standard_normal(4_000_000)
    slope = math.tan(math.pi * (1 - accuracy))
    apart = across - along * slope
    return float(np.median(np.where(apart > 0, math.sqrt(width) * slope / apart, np.inf)))


@pytest.mark.parametrize(
    ("samples", "options"), [(64, {"rays": 32}), (512, {})], ids=["64 samples on 32 rays", "the defaults"]
)
def test_interval_of_a_weight_basin_covers(samples, options):
    network, draw = plane(), generator(0)

    def probe():
        x = torch.randn(samples, 8, generator=draw)
        return x, (x @ network.weight[0] > 0).long()

    held, bias = counted(weight_basins(network, probe, **options), plane_truth())
    assert 0.93 < held < 0.98
    assert abs(bias) < 0.05


def test_interval_of_a_weight_basin_covers_where_accuracy_is_hardly_above_the_target():
    # A tenth of the labels is wrong, so that 1 less the angle over pi is (0.87 - 0.1) / 0.8 where accuracy is 0.87. Of
    # a ray's own 128 samples 0.83 to 0.95 are right without noise. Of 1000 samples more than 0.87 are, but for 1 probe
    # in 1000, whose radius is 0.
    network, draw = plane(), generator(0)

    def probe():
        x = torch.randn(1000, 8, generator=draw)
        wrong = torch.rand(1000, generator=draw) < 0.1
        return x, ((x @ network.weight[0] > 0) ^ wrong).long()

    held, bias = counted(weight_basins(network, probe, accuracy=0.87), plane_truth(accuracy=0.77 / 0.8))
    assert 0.93 < held < 0.98
    assert abs(bias) < 0.1


class Step(nn.Module):
    """Right as long as its second weight stays within 1 of where it is; the first gives them a spread of 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[-1.0, 1.0]]))

    def forward(self, x):
        return torch.where((self.weight[0, 1] - 1).abs() < 1, 1.0, -1.0).expand(len(x))


def test_interval_over_weight_rays_covers_the_radius_of_a_step():
    # A ray is lost at 1 / |e|, e normal: the median is 1 / 0.6745. Accuracy jumps from 1 to 0 on every ray.
    probe = torch.zeros(2, 1), torch.ones(2, dtype=torch.int64)
    held, _bias = counted(weight_basins(Step(), lambda: probe, rays=8), 1 / 0.67449)
    assert 0.93 < held < 0.98
