"""Changes of a radius between evaluations on the same rays: how they are paired, and that their intervals hold."""

import math

import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import nn

import reference
from netdyn.basins.change import Change, Influences, key_of, sample_change, sample_influences, weight_change
from netdyn.basins.sample_basin import measure_sample_basin
from netdyn.basins.weight_basin import measure_weight_basin
from netdyn.functional import sample_basin, weight_basin
from netdyn.probes.criteria import right_class
from netdyn.probes.evaluator import Evaluator

LOW, HIGH = 1e-3, 1e1


def generator(seed):
    return torch.Generator().manual_seed(seed)


def influences(radii, influence, key="0 1 5", clusters=None, weight=None):
    influence = torch.as_tensor(influence, dtype=torch.float64)
    clusters = torch.arange(influence.shape[1]) if clusters is None else clusters
    return Influences(key, torch.tensor(radii, dtype=torch.float64), influence, clusters, weight)


def ends(change):
    return (change.low + change.high) / 2, (change.high - change.low) / 2


def test_the_error_of_a_change_is_that_of_the_paired_differences():
    draw = generator(0)
    before, now = torch.randn(2, 1, 50, generator=draw).double()
    clusters = torch.arange(50) // 2
    found = sample_change(influences([0.3], now, clusters=clusters), influences([0.1], before, clusters=clusters))
    half = scipy.stats.t.ppf(0.975, 24) * reference.clustered_error((now - before)[0], clusters)
    assert found.change == pytest.approx(0.2)
    assert ends(found) == pytest.approx((0.2, half), rel=1e-3)


def test_where_all_outcomes_stay_the_change_is_certain():
    same = torch.randn(1, 40, generator=generator(0))
    assert sample_change(influences([0.25], same), influences([0.0], same)) == Change(0.25, 0.25, 0.25)


def test_a_change_of_weights_is_the_median_over_rays_with_its_interval():
    draw = generator(0)
    radii = torch.randn(16, generator=draw).double()
    moved = 0.3 + 0.1 * torch.randn(16, generator=draw).double()
    right = torch.randn(16, 60, generator=draw).double()
    found = weight_change(influences((radii + moved).tolist(), right), influences(radii.tolist(), right))
    low, high, _ = reference.median_interval(moved.tolist())
    # With the same outcomes the choice of samples adds nothing; radii that differ twentyfold do not matter.
    assert found == pytest.approx((float(moved.quantile(0.5)), low, high))


def test_what_the_choice_of_samples_adds_to_all_rays_alike_widens_the_interval():
    draw = generator(0)
    radii, before = torch.zeros(8), torch.zeros(8, 40)
    now = torch.randn(1, 40, generator=draw).expand(8, 40)
    found = weight_change(influences([0.1] * 8, now), influences(radii.tolist(), before))
    half = scipy.stats.t.ppf(0.975, 39) * reference.shared_error(now, range(40))
    assert ends(found) == pytest.approx((0.1, half), rel=1e-3)


def test_weights_of_the_samples_count_in_either_change():
    draw = generator(0)
    clusters, weight = torch.arange(40) // 2, 2 * torch.rand(40, generator=draw).double()
    weight /= weight.mean()
    options = {"clusters": clusters, "weight": weight}
    now, before = torch.randn(2, 1, 40, generator=draw).double()
    found = sample_change(influences([0.3], now, **options), influences([0.1], before, **options))
    half = scipy.stats.t.ppf(0.975, 19) * reference.clustered_error((now - before)[0], clusters, weight)
    assert ends(found) == pytest.approx((0.2, half), rel=1e-3)
    now = now.expand(8, 40)
    found = weight_change(influences([0.1] * 8, now, **options), influences([0.0] * 8, torch.zeros(8, 40), **options))
    half = scipy.stats.t.ppf(0.975, 39) * reference.shared_error(now, clusters, weight)
    assert ends(found) == pytest.approx((0.1, half), rel=1e-3)


def test_a_change_on_copies_of_one_sample_is_unknown():
    one = influences([0.3], torch.randn(1, 5, generator=generator(0)), clusters=torch.zeros(5, dtype=torch.int64))
    assert sample_change(one, one) is None


def test_rays_without_a_crossing_are_left_out():
    nan = math.nan
    before, now = (
        influences([0.0, 0.0, nan, 0.0], torch.zeros(4, 9)),
        influences([0.1, nan, 0.2, 0.3], torch.zeros(4, 9)),
    )
    assert weight_change(now, before).change == pytest.approx(0.2)
    assert weight_change(now, influences([nan] * 4, torch.zeros(4, 9))) is None


@pytest.mark.parametrize("compare", [sample_change, weight_change])
def test_evaluations_on_other_rays_or_samples_are_not_compared(compare):
    one = influences([0.0], torch.zeros(1, 9))
    assert compare(one, None) is compare(None, one) is None
    assert compare(one, influences([0.0], torch.zeros(1, 9), key="1 1 5")) is None


def test_a_radius_is_kept_in_double_precision():
    kept = sample_influences("0 1 5", 0.3, torch.zeros(9), torch.arange(9), None)
    assert kept.radii.tolist() == [math.log(0.3)]


def test_the_key_holds_seed_rays_and_contents():
    digests = torch.arange(6).reshape(3, 2)
    keys = {key_of(0, 1, digests), key_of(1, 1, digests), key_of(0, 2, digests), key_of(0, 1, digests[:2])}
    assert len(keys) == 4


def test_state_is_plain_and_gives_the_influences_again():
    x = torch.randn(60, 3, generator=generator(0))
    net = nn.Linear(3, 3, bias=False)
    net.weight = nn.Parameter(torch.eye(3))
    target = x.argmax(1)
    for basin, compare in ((sample_basin, sample_change), (weight_basin, weight_change)):
        found = basin(net, x, target).influences
        state = found.state()
        assert {type(value) for value in state.values()} == {str, torch.Tensor, type(None)}
        assert compare(Influences(**state), found) == (0, 0, 0)


def test_a_radius_of_0_leaves_nothing_to_compare_with():
    x = torch.randn(60, 3, generator=generator(0))
    assert sample_basin(nn.Identity(), x, (x.argmax(1) + 1) % 3).influences is None
    net = nn.Linear(3, 3, bias=False)
    assert weight_basin(net, x, (net(x).argmax(1) + 1) % 3).influences is None


# How often the intervals hold -----------------------------------------------------------------------------------------


class Tilted(nn.Module):
    """The single logit is the first number of a sample, plus a part of the second, less a threshold."""

    def __init__(self, part, threshold):
        super().__init__()
        self.part, self.threshold = part, threshold

    def forward(self, x):
        return x[:, 0] + self.part * x[:, 1] - self.threshold


def samples(draw, count):
    """Margins |N(0, 1)|, of which a tenth is negative, and a second number of no meaning."""
    x = torch.randn(count, 2, generator=draw)
    x[:, 0] = torch.where(torch.rand(count, generator=draw) < 0.1, -x[:, 0].abs(), x[:, 0].abs())
    return x, torch.ones(count, dtype=torch.int64)


def true_radius(network, accuracy):
    """From 2 million samples: right with probability Phi(logit / (sigma sqrt(1 + part^2))); error 0.001."""
    logit = network(samples(generator(99), 2_000_000)[0]).double()

    def apart(log_sigma):
        return float(torch.special.ndtr(logit / (math.exp(log_sigma) * math.hypot(1, network.part))).mean()) - accuracy

    return math.exp(scipy.optimize.brentq(apart, -4, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "rays"), [(1000, 1), (200, 1), (200, 4)])
def test_interval_of_a_change_covers_it_and_is_far_narrower_than_the_radii_are_uncertain(count, rays):
    """500 probes, seeds 0 to 499: the standard error of a coverage of 0.955 is 0.009."""
    networks = Tilted(0.1, 0.02), Tilted(0.2, 0.05)
    truth = math.log(true_radius(networks[1], 0.75) / true_radius(networks[0], 0.75))
    draw, held, halves = generator(0), 0, []
    for seed in range(500):
        x, target = samples(draw, count)
        probes = [Evaluator(network, x, target, right_class, 2) for network in networks]
        options = {"accuracy": 0.75, "rays": rays, "seed": seed, "quiet": True}
        with torch.inference_mode():
            first, second = (measure_sample_basin(probe, LOW, HIGH, **options) for probe in probes)
        found = sample_change(second.influences, first.influences)
        held += found.low <= truth <= found.high
        limits = first.interval + second.interval
        if min(limits) > 0 and max(limits) < math.inf:
            alone = [math.log(basin.interval[1] / basin.interval[0]) / 2 for basin in (first, second)]
            halves.append(((found.high - found.low) / 2, math.hypot(*alone)))
    assert 0.93 < held / 500 < 0.98
    paired, unpaired = torch.tensor(halves).median(dim=0).values.tolist()
    assert paired < 0.6 * unpaired


def crossings(weight, labels, rays, accuracy):
    """On each ray the first sigma where the angle between weight + sigma s e and the labels' direction is too large."""
    e = torch.randn(rays, len(weight), generator=generator(5), dtype=torch.float64) * weight.std(correction=0)
    low, high = torch.full((rays,), math.log(LOW)).double(), torch.full((rays,), math.log(HIGH)).double()
    for _ in range(400):
        middle = (low + high) / 2
        moved = weight + middle.exp()[:, None] * e
        cosine = moved @ labels / moved.norm(dim=1) / labels.norm()
        right = 1 - cosine.clamp(-1, 1).arccos() / math.pi > accuracy
        low, high = torch.where(right, middle, low), torch.where(right, high, middle)
    return low.masked_fill(low > math.log(HIGH) - 1e-6, math.inf)


@pytest.mark.slow
@pytest.mark.parametrize("count", [512, 128])
def test_interval_of_a_change_of_weights_covers_it(count):
    """400 probes, seeds 0 to 399: the standard error of a coverage of 0.955 is 0.010."""
    labels = (-1.0) ** torch.arange(8, dtype=torch.float64)
    weights = labels, labels * torch.linspace(0.6, 1.4, 8, dtype=torch.float64)
    radii = [crossings(weight, labels, 400_000, 0.75) for weight in weights]
    ratio = radii[1] - radii[0]
    truth = float(ratio[ratio.isfinite()].median())
    draw, held = generator(0), 0
    for seed in range(400):
        x = torch.randn(count, 8, generator=draw)
        target = (x.double() @ labels > 0).long()
        found = []
        for weight in weights:
            net = nn.Linear(8, 1, bias=False)
            net.weight = nn.Parameter(weight.float()[None])
            with torch.inference_mode():
                found.append(measure_weight_basin(Evaluator(net, x, target, right_class, 2), LOW, HIGH, seed=seed))
        change = weight_change(found[1].influences, found[0].influences)
        held += change.low <= truth <= change.high
    assert 0.93 < held / 400 < 0.98
