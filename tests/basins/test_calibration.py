"""Intervals hold the truth as often as they say: simulated probes with known answers, and a network whose rays return.

A probe is drawn from a population whose accuracy is known at every noise level; bisection, the looks near the radius
and the interval are netdyn's own, only the network's answers come out of a table: right or wrong on every ray, at every
edge of the grid.
"""

import itertools
import math

import pytest
import scipy.stats
import torch
from netdyn.basins.search import UNKNOWN, Search
from torch import nn

from netdyn.basins.curve import LOST_CLEAN, Grid
from netdyn.basins.interval import median_interval
from netdyn.basins.reentry import Rungs, correct
from netdyn.functional import weight_basin

GRID = Grid.over(1e-3, 1e1, 0.05)
EDGES = GRID.edges().float()
# 1000 probes a case: the standard error of a coverage of 0.955 is 0.0066, so that 0.93 and 0.98 are 3.8 of them away.
PROBES, SAMPLES = 1000, 200


def generator(seed):
    return torch.Generator().manual_seed(seed)


def cells_of(right, clean, start=None):
    """Cells [rays, samples] from answers [rays, samples, edges] and [samples], by the search itself."""
    rays, samples, _ = right.shape
    answers = right.reshape(rays * samples, -1)
    search = Search(GRID, torch.full((rays * samples,), UNKNOWN) if start is None else start.reshape(-1))
    while len(under_way := search.open()):
        search.answer(under_way, answers[under_way, search.question(under_way)])
    return search.low.reshape(rays, samples).masked_fill(~clean, LOST_CLEAN)


def measured(right, clean, accuracy, start=None):
    """What netdyn says of one probe, and how many rays it looked at again."""
    cells, looks = cells_of(right, clean, start), []

    def look(edges):
        looks.append(int((edges >= 0).sum()))
        return right.gather(2, edges.clamp(min=0)[..., None])[..., 0] & (edges >= 0)

    bisected = torch.full_like(cells, start is None, dtype=torch.bool)
    return correct(Rungs(cells, GRID, look, bisected), accuracy), sum(looks) / cells.numel()


def true_radius(accuracy_at, accuracy):
    """Where a population's accuracy, given at the edges, crosses: straight in log sigma between them."""
    j = next(j for j, value in enumerate(accuracy_at) if value <= accuracy)
    part = (accuracy_at[j - 1] - accuracy) / (accuracy_at[j - 1] - accuracy_at[j])
    return math.exp(math.log(EDGES[j - 1]) + float(part) * math.log(EDGES[j] / EDGES[j - 1]))


def coverage(draw_probe, truth, accuracy):
    """Share of probes whose interval holds the truth, and the mean of log(radius / truth)."""
    held, error = 0, []
    for _ in range(PROBES):
        found, _ = measured(*draw_probe(), accuracy)
        held += found.interval[0] <= truth <= found.interval[1]
        error.append(math.log(found.radius / truth))
    return held / PROBES, sum(error) / PROBES


# Known answers -------------------------------------------------------------------------------------------------------


def linear(rays, draw):
    """Margins m ~ |N(0, 1)| in units of |w|; a tenth of the labels is wrong. Right where m + sigma z > 0."""
    margin = torch.randn(SAMPLES, generator=draw).abs()
    margin = torch.where(torch.rand(SAMPLES, generator=draw) < 0.1, -margin, margin)
    z = torch.randn(rays, SAMPLES, 1, generator=draw)
    return margin[:, None] + EDGES * z > 0, margin > 0


def linear_truth(sigma):
    """0.9 E Phi(m / sigma) + 0.1 E Phi(-m / sigma), with E Phi(m / sigma) = 1/2 + atan(1 / sigma) / pi."""
    return 0.5 + 0.8 * math.atan(1 / sigma) / math.pi


def ball(rays, draw, dims=3):
    """The class is the unit ball; samples lie uniformly within 0.9 of its centre. Right where |x + sigma e| < 1."""
    x = torch.randn(SAMPLES, dims, generator=draw)
    x = 0.9 * torch.rand(SAMPLES, 1, generator=draw) ** (1 / dims) * x / x.norm(dim=1, keepdim=True)
    noise = torch.randn(rays, SAMPLES, dims, generator=draw)
    along, across = (x * noise).sum(dim=2)[..., None], noise.square().sum(dim=2)[..., None]
    return x.square().sum(dim=1)[:, None] + 2 * EDGES * along + EDGES**2 * across < 1, torch.ones(SAMPLES).bool()


def ball_truth(sigma, dims=3):
    """Mean over the radius of P(|x + sigma e|^2 < 1), a non-central chi-squared distribution."""
    r = 0.9 * ((torch.arange(200) + 0.5) / 200) ** (1 / dims)
    return float(scipy.stats.ncx2.cdf(1 / sigma**2, dims, (r**2 / sigma**2).numpy()).mean())


@pytest.mark.slow
@pytest.mark.parametrize("rays", [1, 8])
@pytest.mark.parametrize(
    ("probe", "truth", "accuracy"), [(linear, linear_truth, 0.75), (ball, ball_truth, 0.5), (ball, ball_truth, 0.9)]
)
def test_interval_covers_a_known_radius(probe, truth, accuracy, rays):
    radius = true_radius([1.0] + [truth(float(sigma)) for sigma in EDGES[1:]], accuracy)
    draw = generator(rays)
    found, bias = coverage(lambda: probe(rays, draw), radius, accuracy)
    assert 0.93 < found < 0.98
    assert abs(bias) < 0.03


# A network early in training -----------------------------------------------------------------------------------------


def deep_network(steps, depth=10, width=24, features=8, classes=5):
    """A deep network with batch normalisation after a few steps, and 2000 samples that it has not seen."""
    cloud = torch.arange(4000) % (4 * classes)
    centres = 1.2 * torch.randn(4 * classes, features, generator=generator(1))
    x = centres[cloud] + 0.4 * torch.randn(4000, features, generator=generator(2))
    target = cloud % classes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        widths = [features] + [width] * depth
        layers = [(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        network = nn.Sequential(*(module for layer in layers for module in layer), nn.Linear(width, classes))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(steps):
        batch = torch.arange(100) + 100 * (step % 20)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x[batch]), target[batch]).backward()
        optimiser.step()
    return network.eval(), x[2000:], target[2000:]


RAYS = 16


@pytest.fixture(scope="module")
def population():
    """Answers of the network for 2000 samples on 16 rays, at all edges: [16, 2000, edges], and without noise."""
    network, x, target = deep_network(20)
    right = torch.empty(RAYS, len(x), len(EDGES), dtype=torch.bool)
    noise = torch.randn(RAYS, *x.shape, generator=generator(3))
    with torch.no_grad():
        for edge, sigma in enumerate(EDGES):
            right[..., edge] = network((x + sigma * noise).flatten(0, 1)).argmax(dim=1).reshape(RAYS, -1) == target
        clean = network(x).argmax(dim=1) == target
    right[..., 0] = clean
    return right, clean


def test_a_quarter_of_the_networks_rays_come_back(population):
    right, clean = population
    rises = (right[..., 1:] & ~right[..., :-1]).any(dim=2)
    assert 0.2 < rises[:, clean].double().mean() < 0.5
    assert clean.double().mean() > 0.6


def drawn_from(population, rays, draw):
    """A probe of samples drawn with replacement, each on some of its rays: its truth is the population's."""
    right, clean = population
    index = torch.randint(len(clean), (SAMPLES,), generator=draw)
    ray = torch.randint(RAYS, (rays, SAMPLES), generator=draw)
    return right[ray, index], clean[index]


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", [0.5, 0.6])
@pytest.mark.parametrize("rays", [1, 8])
def test_interval_covers_where_rays_come_back(population, rays, accuracy):
    truth = true_radius(population[0].double().mean(dim=(0, 1)).tolist(), accuracy)
    draw = generator(rays)
    found, bias = coverage(lambda: drawn_from(population, rays, draw), truth, accuracy)
    assert 0.93 < found < 0.98
    assert abs(bias) < 0.03


# Weights -------------------------------------------------------------------------------------------------------------


class Step(nn.Module):
    """Right as long as its second weight stays within 1 of where it is; the first gives them a spread of 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[-1.0, 1.0]]))

    def forward(self, x):
        return torch.where((self.weight[0, 1] - 1).abs() < 1, 1.0, -1.0).expand(len(x))


@pytest.mark.slow
def test_interval_over_weight_rays_covers_the_radius_of_a_step():
    # A ray is lost at 1 / |e|, e normal: the median is 1 / 0.6745. 1000 networks of 8 rays, seed 0, standard error
    # 0.0069: the rays of one long search, which are independent, eight by eight.
    x, target = torch.zeros(2, 1), torch.ones(2, dtype=torch.int64)
    radii = weight_basin(Step(), x, target, rays=8000).radii.reshape(1000, 8)
    intervals = [median_interval(own) for own in radii]
    held = sum(low <= 1 / 0.67449 <= high for low, high, _ in intervals)
    assert 0.93 < held / 1000 < 0.98
