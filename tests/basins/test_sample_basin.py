"""Basins in sample space: exact oracles, an accuracy ladder, seeds, batches, what it costs, and every kind of input."""

import math
import re
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import reference
from netdyn._utils.distributed import Processes
from netdyn._utils.inputs import shown
from netdyn._utils.random import Contents
from netdyn.basins import sample_basin as searching
from netdyn.basins.crossing import Crossing
from netdyn.basins.input_noise import Noise
from netdyn.basins.sample_basin import Rays, _Ladder, measure_sample_basin
from netdyn.functional import sample_basin
from netdyn.probes.criteria import right_class
from netdyn.probes.evaluator import Evaluator
from netdyn.report.basin_findings import _classes_apart

CELL = math.log(1e4) / 128  # width in log sigma of the cells to which rays are bisected by default
SETTING_OUT = 9  # rows asked before a search with a single logit, to see what comes out and where it comes from


def generator(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


class First(nn.Module):
    """The single logit of each sample is its first number: nothing is rounded, however the samples are batched."""

    def forward(self, x):
        return x[:, 0]


#: What a watched model was asked. Here, and not in reach of the model, because a search puts back what its model
#: changed.
SEEN = []


def watched(model, look=len):
    """The model, and a list of what `look` says of every batch that passes it."""
    SEEN.clear()
    forward = model.forward

    def watching(inputs):
        SEEN.append(look(inputs))
        return forward(inputs)

    model.forward = watching
    return model, SEEN


def finite_cells_apart(a, b):
    """How many cells lie between the finite radii of two searches that must agree where one is 0."""
    assert torch.equal(a == 0, b == 0)
    both = a.isfinite() & b.isfinite() & (a > 0)
    return (a[both] / b[both]).log().abs().div(CELL).round()


def same_up_to_a_cell(a, b):
    """Equal radii, but for a few in a thousand that rounding moved by one cell."""
    apart = finite_cells_apart(a, b)
    return bool((apart <= 1).all()) and (a != b).double().mean() < 0.005


# A linear classifier is an exact oracle ------------------------------------------------------------------------------


FEATURES, SAMPLES, RAYS = 20, 2048, 4


def linear_classifier(kind="one logit"):
    """A linear network, its probe without wrong answers, and the probe's margins in units of the weights' norm."""
    weight, x = gaussian(FEATURES, seed=1), gaussian(SAMPLES, FEATURES, seed=2)
    target = (x @ weight > 0).long()
    margin = (x @ weight).abs() / weight.norm()
    network = nn.Linear(FEATURES, 1 if kind == "one logit" else 2, bias=False)
    rows = weight[None] if kind == "one logit" else torch.stack([-0.5 * weight, 0.5 * weight])
    network.weight = nn.Parameter(rows)
    return network, x, target, margin


def oracle(margin, sigma):
    """Accuracy of a linear classifier under noise of level sigma per component: mean of Phi(margin / sigma)."""
    return Normal(0.0, 1.0).cdf(margin / sigma).mean().item()


# n = 2048 samples x 4 rays, noise seed 0. Given the probe, rays are independent, and a share of about 0.75 has the
# standard error sqrt(0.75 * 0.25 / 8192) = 0.0048 or less; the bound is 4 of them.
BOUND = 0.02


@pytest.mark.parametrize("kind", ["one logit", "two logits"])
@pytest.mark.parametrize("accuracy", [None, 0.6, 0.75, 0.9])
def test_radius_is_where_the_linear_oracle_has_the_accuracy(kind, accuracy):
    network, x, target, margin = linear_classifier(kind)
    basin = sample_basin(network, x, target, rays=RAYS, accuracy=accuracy)
    assert basin.accuracy == (accuracy or 0.75)
    assert abs(oracle(margin, basin.radius) - basin.accuracy) < BOUND


def test_radius_would_not_fit_a_noise_level_of_the_whole_vector():
    network, x, target, margin = linear_classifier()
    basin = sample_basin(network, x, target, rays=RAYS)
    assert abs(oracle(margin, basin.radius / math.sqrt(FEATURES)) - 0.75) > 5 * BOUND


@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.5, 1.0, 2.0, 5.0])
def test_accuracy_at_equals_the_linear_oracle(sigma):
    network, x, target, margin = linear_classifier()
    basin = sample_basin(network, x, target, rays=RAYS)
    # At the levels beside the radius all rays were asked; elsewhere hundreds of samples, each once, whose answers are
    # averaged over some 30 of similar level: a standard error of 0.06, of which the bound is 3.
    bound = BOUND if 0.9 < sigma / basin.radius < 1.1 else 0.18
    assert abs(float(basin.accuracy_at(sigma)) - oracle(margin, sigma)) < bound


def test_accuracy_at_equals_the_linear_oracle_near_the_radius():
    network, x, target, margin = linear_classifier()
    basin = sample_basin(network, x, target, rays=RAYS)
    for sigma in (0.9 * basin.radius, basin.radius, 1.1 * basin.radius):
        assert abs(float(basin.accuracy_at(sigma)) - oracle(margin, sigma)) < BOUND


def test_accuracy_at_starts_clean_and_takes_any_shape():
    network, x, target, _ = linear_classifier()
    basin = sample_basin(network, x, target)
    values = basin.accuracy_at(torch.tensor([[0.0, 0.1], [1.0, 1e9]]))
    assert values.shape == (2, 2)
    assert values[0, 0] == basin.clean == 1
    assert (values.flatten().diff() <= 0).all()


def test_radius_counts_the_wrong_samples_that_noise_puts_right():
    # A tenth of the labels is wrong: those samples have T = 0, but under noise they are right with Phi(-margin /
    # sigma).
    network, x, target, margin = linear_classifier()
    wrong = torch.arange(SAMPLES) % 10 == 0
    basin = sample_basin(network, x, torch.where(wrong, 1 - target, target), rays=RAYS, per_ray=True)
    signed = torch.where(wrong, -margin, margin)
    assert abs(oracle(signed, basin.radius) - 0.75) < BOUND
    assert basin.clean == pytest.approx(1 - wrong.double().mean())
    assert (basin.radii[:, wrong] == 0).all()
    # Rays not lost up to the radius are fewer than those that are right there.
    lost = (basin.radii <= basin.radius).double().mean()
    assert lost > 0.25 + 0.01


def test_interval_holds_the_oracles_radius():
    network, x, target, margin = linear_classifier()
    low, high = sample_basin(network, x, target, rays=RAYS).interval
    assert oracle(margin, high) < 0.75 < oracle(margin, low)


def test_radii_of_rays_are_the_oracles_within_a_cell():
    x = gaussian(400, 1, seed=5).abs() + 0.1
    basin = sample_basin(First(), x, torch.ones(400, dtype=torch.int64), rays=2, per_ray=True, accuracy=0.9)
    assert basin.radii.shape == (2, 400)
    for ray in range(2):
        (noise,) = Noise.at(First(), x, (True,), None, 0).draw(x, Contents.of(x).digests, torch.full((400,), ray))
        truth = torch.where(noise < 0, -x / noise, math.inf)[:, 0]
        found = basin.radii[ray]
        lost = found.isfinite()
        assert torch.equal(lost, truth < 10 * math.exp(-CELL))
        assert ((found[lost] / truth[lost]).log().abs() <= CELL / 2 * 1.01).all()


def test_rows_are_right_at_levels_of_their_own_on_the_first_ray_in_any_order():
    x = gaussian(50, 1, seed=5)
    (noise,) = Noise.at(First(), x, (True,), None, 0).draw(x, Contents.of(x).digests, torch.zeros(50).long())
    index = torch.randint(50, (300,), generator=generator(1))
    sigma = torch.rand(300, generator=generator(2), dtype=torch.float64) * 3
    evaluator = Evaluator(First(), x, torch.ones(50, dtype=torch.int64), right_class, 2)
    rays = Rays(evaluator, Noise.at(First(), x, (True,), None, 0))
    found = rays.rows_right(index, sigma)
    assert torch.equal(found, (x[index] + sigma[:, None].float() * noise[index])[:, 0] > 0)
    assert 0 < found.double().mean() < 1
    rays.rows_right(index[:20], sigma[:20])
    assert evaluator.passed == 320


def test_of_an_isolated_network_only_the_radius_is_measured_and_what_passed_is_counted():
    x, target = gaussian(300, 1, seed=5).abs() + 0.1, torch.ones(300, dtype=torch.int64)
    found = []
    for clean in (None, torch.ones(300, dtype=torch.bool)):
        evaluator = Evaluator(First(), x, target, right_class, 2)
        basin = measure_sample_basin(evaluator, 1e-3, 7.0, clean=clean)
        found.append((basin.radius, evaluator.passed))
        assert (basin.per_class, basin.radii, basin.high, basin.accuracy) == (None, None, 7.0, 0.75)
        assert evaluator.passed == pytest.approx(300 * basin.forwards)
    assert found[1] == (found[0][0], pytest.approx(found[0][1] - 300))


def test_the_noise_is_that_of_seed_0_if_none_is_named():
    x, target = gaussian(300, 1, seed=5).abs() + 0.1, torch.ones(300, dtype=torch.int64)
    radii = [sample_basin(First(), x, target, **seed).radius for seed in ({}, {"seed": 0}, {"seed": 1})]
    radii += [
        measure_sample_basin(Evaluator(First(), x, target, right_class, 2), 1e-3, 1e1, **seed).radius
        for seed in ({}, {"seed": 0})
    ]
    assert radii[0] == radii[1] == radii[3] == radii[4] != radii[2]


def test_what_counts_as_right_is_what_the_arguments_say():
    # Outputs move as far as the inputs do: the wider the tolerance, in standard deviations, the more noise it takes.
    x = gaussian(300, 1, seed=5)
    narrow, wide = (sample_basin(nn.Identity(), x, x, tolerance=tolerance).radius for tolerance in (0.1, 0.3))
    assert wide == pytest.approx(3 * narrow, rel=0.05)
    # Samples without a label are left out.
    x, target = gaussian(300, 1, seed=5).abs() + 0.1, torch.ones(300, dtype=torch.int64)
    some = target.clone()
    some[::2] = 7
    expected = sample_basin(First(), x[1::2], target[1::2])
    assert sample_basin(First(), x, some, ignore_index=7).radius == expected.radius


def rays_of(x, **evaluator):
    """The rays of the model First, whose samples are all of class 1."""
    ones = torch.ones(len(x), dtype=torch.int64)
    return Rays(Evaluator(First(), x, ones, right_class, 2, **evaluator), Noise.at(First(), x, (True,), None, 0))


def test_in_lockstep_every_ray_is_asked_and_those_not_wanted_at_the_highest_level():
    x = 2 + gaussian(8, 1, seed=5).abs()
    levels = torch.full((4, 8), math.nan, dtype=torch.float64)
    levels[0, 1], levels[1, 4] = -1.0, 1.0
    lockstep, plain = rays_of(x, processes=Processes(lockstep=True)), rays_of(x)
    found = lockstep.outcomes(levels)
    assert torch.equal(found, plain.outcomes(levels.nan_to_num(1.0)))
    assert lockstep.evaluator.passed == 32
    assert plain.right(levels).count_nonzero() <= 2


@pytest.mark.parametrize(("x", "ends"), [(1e-9, (0, 2)), (1e9, (-2, 0))])
def test_the_ladder_asks_within_the_noise_levels_where_the_crossing_lies_beyond_them(x, ends):
    ask, everyone, seen = rays_of(torch.full((600, 1), x)), torch.ones(600, dtype=torch.bool), []
    right = ask.right
    ask.right = lambda levels: seen.append(levels[~levels.isnan()]) or right(levels)
    ladder = _Ladder(ask, torch.ones(600, dtype=torch.int64), 1e-3, 1e1, 0)
    ladder.climb(everyone, Crossing(0.75, everyone.double(), torch.arange(600), 1e-3, 1e1))
    bottom, top = math.log(1e-3), math.log(1e1)
    wide, near = seen
    assert (len(wide), len(near)) == (128, 384)
    assert [wide.min(), wide.max()] == pytest.approx([bottom, top], abs=0.2)
    edge = bottom if x < 1 else top
    assert [near.min() - edge, near.max() - edge] == pytest.approx(ends, abs=0.05)


def test_the_curve_counts_samples_by_their_weights():
    x, everyone = gaussian(2, 1), torch.ones(2, dtype=torch.bool)
    ask = rays_of(x)
    ask.evaluator.weight = torch.tensor([3.0, 1.0], dtype=torch.float64)
    ladder = _Ladder(ask, torch.ones(2, dtype=torch.int64), 1e-3, 1e1, 0)
    search = Crossing(0.75, everyone.double(), torch.arange(2), 1e-3, 1e1)
    search.right[0.0] = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert float(ladder.curve(everyone, search).at(1.0)) == pytest.approx(0.75)
    search.right.clear()
    ladder.levels[0], ladder.right[0] = 0.0, torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert float(ladder.curve(everyone, search).at(1.0)) == pytest.approx(0.25)


def test_searches_begin_where_the_ladder_shows_the_crossing_of_their_own_samples(monkeypatch):
    x = torch.cat([-0.01 - 0.01 * torch.rand(600, 1, generator=generator(0)), 1 + gaussian(600, 1, seed=1).abs()])
    guesses, search = [], searching._search

    def noting(ask, rays, searches):
        guesses.extend(each.guess for _, each in searches)
        search(ask, rays, searches)

    monkeypatch.setattr(searching, "_search", noting)
    basin = sample_basin(First(), x, (x[:, 0] > 0).long(), accuracy=0.85, per_class=True)
    found = [basin.radius, *basin.per_class.tolist()]
    assert found[2] > 30 * found[1]
    # Some hundred answers near the crossing; of a class alone, half as many.
    assert [math.log(guess / radius) for guess, radius in zip(guesses, found, strict=True)] == pytest.approx(
        [0, 0, 0], abs=0.7
    )


def test_radius_of_every_sample_is_its_own_oracles():
    # n = 256 rays a sample, noise seed 0: standard error of a share 0.027; for 32 samples at once the bound is 4.5 of
    # them.
    network, x, target, margin = linear_classifier()
    basin = sample_basin(network, x[:32], target[:32], rays=256, per_ray=True)
    own = Normal(0.0, 1.0).cdf(margin[:32] / basin.per_sample.float())
    assert basin.per_sample.shape == (32,)
    assert ((own - 0.75).abs() < 0.12).all()


@pytest.mark.parametrize(("rays", "given"), [(1, False), (7, False), (8, True)])
def test_every_sample_has_a_radius_from_eight_rays_on(rays, given):
    network, x, target, _ = linear_classifier()
    basin = sample_basin(network, x[:20], target[:20], rays=rays, per_ray=True)
    assert (basin.per_sample is not None) == given
    assert sample_basin(network, x[:20], target[:20], rays=rays).per_sample is None


def test_radius_falls_as_accuracy_rises():
    network, x, target, _ = linear_classifier()
    radii = [sample_basin(network, x, target, accuracy=a).radius for a in (0.6, 0.7, 0.8, 0.9, 0.95)]
    assert radii == sorted(radii, reverse=True)
    assert len(set(radii)) == 5


def test_radius_is_in_the_units_of_the_input():
    network, x, target, _ = linear_classifier()
    # Far from the accuracy that noise leaves at `high`, which a few samples tell.
    plain, scaled = (sample_basin(network, scale * x, target, rays=RAYS, accuracy=0.85) for scale in (1, 3))
    # n = 8192 rays of different noise: relative standard error of a radius about 0.02 each; the bound is 4 of them.
    assert scaled.radius / plain.radius == pytest.approx(3, rel=0.12)


# A ladder of noise levels --------------------------------------------------------------------------------------------


def trained(features, classes, spread):
    """An MLP trained on 512 samples of three clouds a class around centres of the given spread."""
    cloud = torch.arange(512) % (3 * classes)
    centres = spread * gaussian(3 * classes, features, seed=1)
    x, target = centres[cloud] + 0.5 * gaussian(512, features, seed=2), cloud % classes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes)
        )
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), target).backward()
        optimiser.step()
    return network, x, target


def ladder_of(probe):
    """41 noise levels and the accuracy at each: 16 repeats of 512 samples, standard error at most 0.006."""
    sigmas = torch.logspace(-3, 1, 41).tolist()
    return sigmas, reference.accuracy_ladder(*probe, sigmas, 16, generator(7))


@pytest.fixture(scope="module")
def clear():
    """A network that makes no mistake, and its ladder."""
    probe = trained(features=16, classes=10, spread=0.8)
    return probe, ladder_of(probe)


@pytest.fixture(scope="module")
def mixed():
    """A network whose classes overlap, and its ladder: it makes mistakes, which noise often puts right."""
    probe = trained(features=2, classes=5, spread=1.5)
    return probe, ladder_of(probe)


@pytest.mark.parametrize("accuracy", [None, 0.6, 0.75, 0.9])
def test_radius_equals_the_ladders(clear, accuracy):
    # n = 512 samples x 4 rays, noise seed 0: over seeds the radius has a relative standard error of 0.03, to which the
    # ladder adds 0.01. The bound is 4 of them.
    probe, ladder = clear
    basin = sample_basin(*probe, rays=4, accuracy=accuracy)
    assert basin.radius == pytest.approx(reference.ladder_radius(*ladder, accuracy or 0.5), rel=0.12)


def test_radius_equals_the_ladders_where_rays_come_back(mixed):
    # n = 512 samples x 8 rays, noise seed 0: over seeds a relative standard error of 0.04; the bound is 4 of them.
    probe, ladder = mixed
    basin, truth = sample_basin(*probe, rays=8, per_ray=True), reference.ladder_radius(*ladder, 0.5)
    assert basin.radius == pytest.approx(truth, rel=0.16)
    # The bound tells the radius from the noise at which half of the rays are lost for the first time.
    assert basin.radii.median() < 0.8 * truth


def test_relative_radius_equals_the_ladders(clear):
    probe, ladder = clear
    basin = sample_basin(*probe, rays=4, relative=True)
    # 512 samples: the floor has a standard error of 0.015, the ladder's last rung one of 0.004.
    assert basin.floor == pytest.approx(ladder[1][-1], abs=0.06)
    assert basin.accuracy == pytest.approx(basin.floor + 0.5 * (basin.clean - basin.floor))
    assert basin.radius == pytest.approx(reference.ladder_radius(*ladder, basin.accuracy), rel=0.12)


@pytest.mark.parametrize("accuracy", [None, 0.6])
def test_relative_is_the_same_search_at_another_accuracy(clear, accuracy):
    probe, _ = clear
    relative = sample_basin(*probe, relative=True, accuracy=accuracy)
    absolute = sample_basin(*probe, accuracy=relative.accuracy)
    assert relative.radius == absolute.radius
    assert relative.interval == absolute.interval


def test_accuracy_at_follows_the_ladder(mixed):
    probe, (sigmas, accuracies) = mixed
    basin = sample_basin(*probe, rays=8)
    found = basin.accuracy_at(torch.tensor(sigmas))
    apart, sigmas = (found - torch.tensor(accuracies)).abs(), torch.tensor(sigmas)
    # n = 512 samples x 8 rays beside the radius: 0.03 is 3 standard errors of both measurements together. Elsewhere
    # some 30 answers are averaged, standard error 0.09 at most, and fewer at both ends.
    assert apart[(sigmas / basin.radius).log().abs() < 0.12].max() < 0.03
    assert apart.max() < 0.27
    assert (found.diff() <= 1e-12).all()


def test_finer_cells_refine_the_rays_and_leave_the_radius(clear):
    coarse, fine = sample_basin(*clear[0], per_ray=True), sample_basin(*clear[0], per_ray=True, rel_tol=0.01)
    # The finer search visits all noise levels of the coarser one, so that it ends inside the same cell.
    assert (finite_cells_apart(fine.radii, coarse.radii) <= 1).all()
    assert len(fine.radii.unique()) > len(coarse.radii.unique())
    assert (fine.radius, fine.interval) == (coarse.radius, coarse.interval)
    assert fine.forwards == pytest.approx(coarse.forwards + 2 * coarse.clean)


def test_rays_are_bisected_on_request_alone(clear):
    plain, bisected = sample_basin(*clear[0], rays=2), sample_basin(*clear[0], rays=2, per_ray=True)
    assert plain.radii is None
    assert numbers(bisected)[:-1] == numbers(plain)[:-1]
    assert bisected.forwards == pytest.approx(plain.forwards + 2 * 7 * plain.clean)


# Seeds, order and batches --------------------------------------------------------------------------------------------


def numbers(basin):
    """All numbers of a basin; the rays' own are the last."""
    lists = [None if each is None else each.tolist() for each in (basin.per_class, basin.class_intervals, basin.radii)]
    return basin.radius, basin.interval, basin.floor, basin.censored, basin.noise_classes.tolist(), *map(repr, lists)


def test_same_seed_gives_the_same_numbers_and_another_seed_others(clear):
    first, again, other = (sample_basin(*clear[0], seed=seed, per_class=True, per_ray=True) for seed in (3, 3, 4))
    assert numbers(first) == numbers(again)
    assert first.radii.tolist() != other.radii.tolist()
    assert first.radius != other.radius


def test_global_generators_neither_matter_nor_move(clear):
    torch.manual_seed(1)
    first, state = sample_basin(*clear[0]), torch.get_rng_state()
    assert torch.equal(state, torch.manual_seed(1).get_state())
    torch.manual_seed(2)
    assert numbers(sample_basin(*clear[0])) == numbers(first)


def test_rays_are_the_same_whether_few_or_many(clear):
    three, two = (sample_basin(*clear[0], rays=rays, per_ray=True).radii for rays in (3, 2))
    assert torch.equal(three[:2], two)
    assert not torch.equal(*two)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 150, 1000])
def test_another_batch_size_gives_exactly_the_same_noise_and_numbers(batch_size):
    x, target = gaussian(150, 3, seed=6), torch.arange(150) % 2
    network, seen = watched(First(), lambda batch: batch.clone())

    def search(batch_size):
        seen.clear()
        basin = sample_basin(network, x, target, rays=2, per_ray=True, per_class=True, batch_size=batch_size)
        return numbers(basin), set(map(tuple, torch.cat(seen).tolist())), max(map(len, seen))

    found, rows, largest = search(batch_size)
    assert (found, rows) == search(None)[:2]
    assert largest <= max(batch_size, 3)


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 100, 511])
def test_another_batch_size_moves_a_network_by_what_is_rounded(clear, batch_size):
    options = {"rays": 2, "per_ray": True, "per_class": True}
    expected, basin = sample_basin(*clear[0], **options), sample_basin(*clear[0], **options, batch_size=batch_size)
    assert same_up_to_a_cell(basin.radii, expected.radii)
    assert basin.radius == pytest.approx(expected.radius, rel=0.01)
    torch.testing.assert_close(basin.per_class, expected.per_class, rtol=0.05, atol=0)


def test_permuted_samples_have_permuted_radii(clear):
    network, x, target = clear[0]
    order = torch.randperm(512, generator=generator(8))
    expected = sample_basin(network, x, target, rays=8, per_ray=True, per_class=True)
    basin = sample_basin(network, x[order], target[order], rays=8, per_ray=True, per_class=True)
    assert same_up_to_a_cell(basin.radii, expected.radii[:, order])
    assert basin.floor == expected.floor
    assert basin.radius == pytest.approx(expected.radius, rel=0.01)
    torch.testing.assert_close(basin.per_class, expected.per_class, rtol=0.05, atol=0)


def test_permuting_changes_not_a_bit_where_nothing_is_rounded():
    x, target = gaussian(150, 3, seed=6), torch.arange(150) % 2
    order = torch.randperm(150, generator=generator(8))
    options = {"per_ray": True, "per_class": True, "relative": True}
    expected = sample_basin(First(), x, target, **options)
    basin = sample_basin(First(), x[order], target[order], **options)
    assert torch.equal(basin.radii, expected.radii[:, order])
    assert basin.radius == expected.radius
    assert torch.equal(basin.per_class, expected.per_class)


# What it costs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [False, True])
def test_default_search_sends_each_sample_three_and_a_half_times_through_the_network(relative):
    network, seen = watched(linear_classifier()[0])
    _, x, target, _ = linear_classifier()
    basin = sample_basin(network, x[:1024], target[:1024], relative=relative)
    # Once clean, a sixteenth or all at the top, half a pass on the ladder, and two levels; sometimes one or two more.
    least = 1 + (1 if relative else 1 / 16) + 1 / 2 + 2
    assert basin.forwards in (least, least + 1, least + 2)
    # Some samples are asked before, to see what comes out.
    assert basin.forwards == pytest.approx((sum(seen) - SETTING_OUT) / 1024, abs=1e-9)


def test_samples_wrong_without_noise_have_radius_0_and_take_no_part_in_the_bisection():
    network, x, target, _ = linear_classifier()
    wrong = torch.arange(1024) % 4 == 0
    probe = network, x[:1024], torch.where(wrong, 1 - target[:1024], target[:1024])
    basin = sample_basin(*probe, accuracy=0.7, per_ray=True)
    assert (basin.radii[:, wrong] == 0).all()
    assert (basin.radii[:, ~wrong] > 0).all()
    # Seven steps for three quarters.
    assert basin.forwards == pytest.approx(sample_basin(*probe, accuracy=0.7).forwards + 7 * 3 / 4)


def test_network_without_a_right_answer_costs_no_search():
    network, x, target, _ = linear_classifier()
    basin = sample_basin(network, x, 1 - target, per_class=True)
    assert (basin.radius, basin.interval, basin.clean) == (0, (0, 0), 0)
    assert basin.per_class.tolist() == [0, 0]
    assert basin.class_intervals.tolist() == [[0, 0], [0, 0]]
    assert sample_basin(network, x, 1 - target).forwards == 1 + 1 / 16


# Classes and the floor -----------------------------------------------------------------------------------------------


class Hill(nn.Module):
    """Class 1 where a number is near to 0, class 0 far from there, which is where noise ends."""

    def forward(self, x):
        return torch.stack([torch.zeros(len(x)), 5 - x[:, 0] ** 2], dim=1)


def hill(zeros, ones):
    """Samples of class 0 far out and of class 1 near to 0."""
    x = torch.cat([10 + gaussian(zeros, seed=1).abs(), 0.3 * gaussian(ones, seed=2)])[:, None]
    return Hill(), x, (torch.arange(zeros + ones) >= zeros).long()


def test_class_that_noise_is_taken_for_has_an_infinite_radius():
    basin = sample_basin(*hill(100, 100), high=1e4, per_class=True)
    assert basin.per_class[0] == math.inf
    assert 0.5 < basin.per_class[1] < 10
    assert basin.noise_classes[0] > 0.95
    assert basin.noise_classes.sum() == pytest.approx(1)


def test_a_probability_below_one_half_is_the_other_class():
    # Right without noise; under the largest noise as often above one half as below.
    x = torch.linspace(-1, 1, 400)[:, None]
    basin = sample_basin(nn.Sequential(nn.Flatten(0), nn.Sigmoid()), x, (x[:, 0] > 0).long(), high=1e3, accuracy=0.75)
    assert basin.noise_classes.tolist() == pytest.approx([0.5, 0.5], abs=0.3)


def test_radius_of_an_absent_class_is_nan():
    network, x, target, _ = linear_classifier()
    wide = nn.Linear(FEATURES, 3, bias=False)
    wide.weight = nn.Parameter(torch.cat([torch.zeros(2, FEATURES), network.weight.detach()]))
    basin = sample_basin(wide, x, 2 * target, accuracy=0.75, per_class=True)
    assert basin.per_class.isnan().tolist() == [False, True, False]
    assert basin.class_intervals.isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert basin.class_curves[1] is None


def test_radius_of_a_class_is_that_of_a_probe_of_its_own():
    # Each class of the hill has a radius of its own, and the rays are the same in both searches.
    network, x, target = hill(100, 300)
    both = sample_basin(network, x, target, accuracy=0.9, per_class=True)
    alone = sample_basin(network, x[target == 1], target[target == 1], accuracy=0.9)
    # Only the two levels, between which accuracy is interpolated, begin at other guesses.
    assert float(both.per_class[1]) == pytest.approx(alone.radius, rel=0.1)
    assert both.class_intervals[1].tolist() == pytest.approx(alone.interval, rel=0.2)
    assert both.class_intervals[1, 0] < both.per_class[1] < both.class_intervals[1, 1]


def test_accuracy_near_to_what_noise_leaves_is_warned_of():
    # All 64 samples are asked; noise of 1e6 is taken for class 0, to which 48 of them belong.
    text = (
        "`accuracy` is 0.79, but noise alone leaves an accuracy of 0.75: so near to it the radius means little. "
        "Use accuracy=0.88, or relative=True."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$") as caught:
        basin = sample_basin(*hill(48, 16), high=1e6, accuracy=0.79)
    assert len(caught) == 1
    assert basin.floor == 0.75


@pytest.mark.parametrize("zeros", [32, 48, 58, 60, 63])
def test_accuracy_that_the_warning_names_is_usable(zeros):
    probe = hill(zeros, 64 - zeros)
    with pytest.warns(UserWarning, match="the radius (means little|lies beyond)") as caught:
        sample_basin(*probe, high=1e6, accuracy=zeros / 64 - 0.01)
    for named in re.findall(r"accuracy=([\d.]*\d)", str(caught[0].message)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sample_basin(*probe, high=1e6, accuracy=float(named))
    assert "relative=True" in str(caught[0].message)


def test_floor_is_chance_at_least():
    basin = sample_basin(*hill(1, 63), high=1e6, accuracy=0.6)
    assert basin.floor == 0.5


@pytest.mark.parametrize("options", [{"accuracy": 0.9}, {"accuracy": 0.5, "relative": True}])
def test_accuracy_far_from_the_floor_is_not_warned_of(options, recwarn):
    sample_basin(*hill(48, 16), high=1e6, **options)
    assert not recwarn.list


def test_a_relative_accuracy_is_not_warned_of_near_the_floor(recwarn):
    basin = sample_basin(*hill(48, 16), high=1e6, accuracy=0.05, relative=True)
    assert 0.75 < basin.accuracy < 0.8
    assert not recwarn.list


def test_relative_radius_is_0_where_the_network_does_not_beat_noise():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    basin = sample_basin(Constant(), gaussian(100, 2), torch.arange(100) % 2, relative=True)
    assert (basin.radius, basin.interval) == (0, (0, 0))
    assert (basin.clean, basin.floor) == (0.5, 0.5)


def test_network_that_noise_does_not_touch_is_censored():
    class Deaf(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, 1.0, 0.0]]).expand(len(x), 3)

    with pytest.warns(UserWarning, match="`high` = 10, leaves an accuracy of 1.00"):
        basin = sample_basin(Deaf(), gaussian(50, 2), torch.ones(50, dtype=torch.int64), per_ray=True)
    assert basin.censored == 1
    assert basin.radii.isinf().all()
    assert (basin.radius, basin.interval) == (math.inf, (math.inf, math.inf))
    assert basin.noise_classes.tolist() == [0, 1, 0]


# Outputs and targets -------------------------------------------------------------------------------------------------


class Holed(nn.Module):
    """Right as long as the number stays within 1 of 0; beyond, an output that is not finite."""

    def __init__(self, beyond):
        super().__init__()
        self.beyond = beyond

    def forward(self, x):
        right = torch.tensor([[0.0, 1.0]]).expand(len(x), 2)
        return torch.where(x.abs() > 1, torch.tensor([[0.0, self.beyond]]), right)


@pytest.mark.parametrize("beyond", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_are_wrong(beyond):
    x = 1e-4 * torch.arange(500.0)[:, None]
    basin = sample_basin(Holed(beyond), x, torch.ones(500, dtype=torch.int64))
    # |sigma z| > 1 with z normal: a quarter of the noise lies beyond 1 / 1.15. n = 500 samples: a share of 0.75 has
    # the standard error 0.019, which is 4 % of the radius; the bound is 4 of them.
    assert basin.radius == pytest.approx(1 / 1.15, rel=0.16)
    assert basin.censored < 0.25


def end_with(network, function):
    class Ended(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return function(self.network(x))

    return Ended()


@pytest.mark.parametrize("end", [torch.sigmoid, nn.Sigmoid(), torch.Tensor.sigmoid, nn.functional.sigmoid])
def test_single_probability_is_judged_by_its_half(end):
    network, x, target, _ = linear_classifier()
    logit = sample_basin(network, x, target, per_ray=True)
    probability = sample_basin(end_with(network, end), x, target, per_ray=True)
    assert torch.equal(probability.radii, logit.radii)
    assert probability.radius == logit.radius


def test_single_logits_without_a_second_dimension_are_taken():
    network, x, target, _ = linear_classifier()
    flat = sample_basin(end_with(network, lambda out: out[:, 0]), x, target)
    assert numbers(flat) == numbers(sample_basin(network, x, target))


@pytest.mark.parametrize("end", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1), torch.sigmoid, torch.tanh])
def test_what_keeps_the_largest_output_changes_no_radius(end):
    network, x, target, _ = linear_classifier("two logits")
    network.weight.data /= 100
    plain, ended = (sample_basin(each, x, target, per_ray=True) for each in (network, end_with(network, end)))
    assert (finite_cells_apart(plain.radii, ended.radii) <= 1).all()
    assert ended.radius == pytest.approx(plain.radius, rel=0.01)


def test_criterion_of_ones_own_defines_the_basin():
    network, x, target, margin = linear_classifier()
    lenient = sample_basin(network, x, target, criterion=lambda out, target: out[:, 0] * (2 * target - 1) > -1)
    # Right until the margin is -1 in units of the logit.
    wider = margin + 1 / network.weight.norm().item()
    assert abs(oracle(wider, lenient.radius) - 0.75) < 2 * BOUND
    assert lenient.radius > sample_basin(network, x, target).radius


def within_half(out, target):
    return (out[:, 0] - target).abs() < 0.5


def test_criterion_with_float_targets_makes_a_basin_of_a_regression():
    network, x, _, _ = linear_classifier()
    truth = (x @ network.weight[0]).detach()
    close = sample_basin(network, x, truth, rays=RAYS, per_class=True, criterion=within_half)
    # The error is sigma |w| z: half of it lies within 0.5 where sigma = 0.5 / (0.6745 |w|). n = 8192 rays, standard
    # error of the share 0.0055, which is 1.3 % of the radius: the bound is 4 of them.
    assert close.radius == pytest.approx(0.5 / (0.6745 * network.weight.norm().item()), rel=0.055)
    assert close.accuracy == 0.5
    assert close.per_class is None
    assert close.noise_classes is None


def test_criterion_may_read_any_output_and_any_target():
    torch.manual_seed(0)
    network = end_with(nn.Linear(3, 4), lambda out: {"pairs": out.reshape(len(out), 2, 2)})
    x, target = gaussian(60, 3), torch.arange(120).reshape(60, 2) % 2
    right = network(x)["pairs"].argmax(dim=2) == target
    basin = sample_basin(
        network,
        x,
        target,
        accuracy=0.9,  # far from what noise alone leaves, about 0.75
        criterion=lambda out, target: (out["pairs"].argmax(dim=2) == target).any(dim=1),
    )
    assert basin.clean == pytest.approx(right.any(dim=1).double().mean())
    assert basin.per_class is None


@pytest.mark.parametrize("columns", [None, 1, 3])
@pytest.mark.parametrize("lowest", [-3, 0, 500])
def test_criterion_may_take_whole_numbers_that_are_no_classes(lowest, columns):
    network = end_with(First(), lambda out: out if columns is None else out[:, None].expand(-1, columns))
    target = torch.arange(60) + lowest
    basin = sample_basin(
        network,
        target[:, None].float(),
        target,
        accuracy=0.6,
        criterion=lambda out, target: (out.reshape(len(target), -1)[:, 0] - target).abs() < 0.5,
    )
    assert basin.clean == 1
    assert 0.2 < basin.radius < 1.5
    assert basin.per_class is None


# Inputs --------------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Reads a tree of inputs: floating numbers moved by whole numbers that choose a column."""

    def __init__(self, pick):
        super().__init__()
        self.pick, self.ids = pick, set()

    def forward(self, inputs):
        numbers, ids = self.pick(inputs)
        return numbers.gather(1, ids[:, None])[:, 0]


NUMBERS, IDS = gaussian(200, 4, seed=9), torch.arange(200) % 4
TREES = {
    "dict": ({"x": NUMBERS, "ids": IDS}, lambda tree: (tree["x"], tree["ids"])),
    "list": ([NUMBERS, IDS], tuple),
    "tuple": ((IDS, NUMBERS), lambda tree: tree[::-1]),
    "nested": ({"a": [NUMBERS], "b": (IDS, "name", None)}, lambda tree: (tree["a"][0], tree["b"][0])),
}


@pytest.mark.parametrize(("tree", "pick"), TREES.values(), ids=TREES)
def test_noise_falls_on_floating_leaves_of_a_tree_alone(tree, pick):
    target = (NUMBERS.gather(1, IDS[:, None])[:, 0] > 0).long()
    network, seen = watched(Reader(pick), lambda inputs: [leaf.clone() for leaf in pick(inputs)])
    basin = sample_basin(network, tree, target, batch_size=200)
    assert 0 < basin.radius < 10
    # The whole probe passes without noise and at two levels at least.
    whole = [numbers for numbers, ids in seen if torch.equal(ids, IDS)]
    assert [torch.equal(numbers, NUMBERS) for numbers in whole].count(True) == 1
    assert sum(bool((numbers != NUMBERS).all()) for numbers in whole) >= 2
    assert all(bool(((ids >= 0) & (ids < 4)).all()) for _, ids in seen)


def test_a_leaf_that_is_not_cut_with_the_samples_gets_no_noise_in_any_batch():
    # The scale has as many entries as a batch has samples.
    class Scaled(nn.Module):
        def forward(self, inputs):
            return inputs["x"][:, 0] * inputs["scale"].mean()

    tree, target = {"x": NUMBERS, "scale": torch.ones(20)}, (NUMBERS[:, 0] > 0).long()
    whole, cut = (sample_basin(Scaled(), tree, target, batch_size=size, per_ray=True) for size in (None, 20))
    assert torch.equal(whole.radii, cut.radii)


def test_noise_falls_on_the_module_that_is_named():
    target = (NUMBERS[:, 0] > 0).long()
    named = end_with(nn.Identity(), lambda x: x[:, 0])
    assert sample_basin(named, NUMBERS, target, noise_at=["network"]).noise_at == ("network",)


class Rounded(nn.Module):
    """Whole numbers are made floating without an embedding."""

    def __init__(self):
        super().__init__()
        self.unused, self.out = nn.Embedding(10, 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.out(x.float())


def test_whole_number_inputs_without_an_embedding_are_refused():
    text = (
        "`inputs` (int64 [10, 2]) holds no floating tensor that noise could disturb, and no embedding has run. Pass "
        "floating numbers, as the model computes them from these (`inputs.float()`); or name modules whose output it "
        "is to disturb, for instance noise_at=['out']."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        sample_basin(Rounded(), torch.arange(20).reshape(10, 2) % 10, torch.arange(10) % 2)


@pytest.mark.parametrize("inputs", [torch.zeros(0, 3), {"x": torch.zeros(0, 3)}])
def test_no_samples_are_refused(inputs):
    with pytest.raises(ValueError, match=r"^`inputs` must hold at least one sample, got none\.$"):
        sample_basin(First(), inputs, torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("inputs", [[], {}, "text", [1.0, 2.0], None])
def test_inputs_without_tensors_are_refused_with_their_type(inputs):
    with pytest.raises(TypeError, match=f"with samples first, got {re.escape(shown(inputs))}"):
        sample_basin(First(), inputs, torch.zeros(2, dtype=torch.int64))


def test_targets_that_are_no_tensor_are_refused_with_their_type():
    with pytest.raises(TypeError, match=r"^`target` must be a tensor with one entry per sample, got list\. Convert"):
        sample_basin(First(), torch.zeros(2, 1), [0, 1])


def test_inputs_with_nan_are_warned_of_and_count_as_wrong():
    network, x, target, _ = linear_classifier()
    holed = x.clone()
    holed[:256, 3] = math.nan
    text = "`inputs` holds NaN or inf. Samples whose outputs are not finite count as wrong"
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}"):
        basin = sample_basin(network, holed, target, per_ray=True)
    assert (basin.radii[:, :256] == 0).all()
    assert basin.clean == pytest.approx(1 - 256 / SAMPLES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_network_in_another_dtype_has_the_same_radius(dtype):
    network, x, target, margin = linear_classifier()
    basin = sample_basin(network.to(dtype), x.to(dtype), target, rays=RAYS)
    # Noise is drawn alike, but bfloat16 rounds what it is added to, and the few samples on the boundary with it.
    assert abs(oracle(margin, basin.radius) - 0.75) < 1.5 * BOUND
    assert basin.accuracy_at(1.0).dtype == torch.float64


@pytest.mark.parametrize("shape", [(30, 2), (30,), (30, 2, 4, 4)])
def test_inputs_of_any_number_of_dimensions_are_walked(shape):
    network = end_with(nn.Identity(), lambda x: x.reshape(len(x), -1)[:, 0])
    x = gaussian(*shape, seed=11)
    basin = sample_basin(network, x, (x.reshape(30, -1)[:, 0] > 0).long(), per_ray=True)
    assert basin.radii.shape == (1, 30)
    assert basin.clean == 1


def test_one_sample_is_enough():
    basin = sample_basin(First(), torch.ones(1, 1), torch.ones(1, dtype=torch.int64), rays=16, seed=2, per_ray=True)
    assert basin.interval == (0, math.inf)
    assert basin.per_sample.shape == (1,)


def test_network_is_measured_in_eval_mode_and_left_as_it_was():
    network, x, target, _ = linear_classifier()
    dropped = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(FEATURES), network).train()
    before = {name: value.clone() for name, value in dropped.state_dict().items()}
    once, again = sample_basin(dropped, x, target), sample_basin(dropped, x, target)
    assert numbers(once) == numbers(again)
    assert all(module.training for module in dropped.modules())
    assert all(torch.equal(value, before[name]) for name, value in dropped.state_dict().items())
    assert once.clean > 0.95


def test_a_probability_without_its_last_dimension_is_still_one():
    class Squeezed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(2, 1)
            self.fc.weight = torch.nn.Parameter(torch.tensor([[1.0, -1.0]]))
            self.fc.bias = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.sigmoid(self.fc(x)).squeeze(1)

    network = Squeezed()
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    target = (network(x) > 0.5).long()
    assert sample_basin(network, x, target).clean == 1


# Noise levels that do not hold the radius ----------------------------------------------------------------------------


def test_noise_levels_that_end_before_the_radius_are_warned_of():
    network, x, target, _ = linear_classifier()
    text = (
        "The largest noise level, `high` = 0.01, leaves an accuracy of 1.00, and `accuracy` is 0.75: the radius lies "
        "beyond it. Set a larger `high` if noise of that level is small beside the inputs, else use relative=True."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$") as caught:
        basin = sample_basin(network, x, target, high=0.01)
    assert len(caught) == 1
    assert basin.radius == math.inf


def test_noise_levels_that_begin_beyond_the_radius_are_warned_of():
    network, x, target, _ = linear_classifier()
    text = "The radius lies below the smallest noise level, `low` = 2. Set a smaller `low`."
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$") as caught:
        basin = sample_basin(network, x, target, low=2.0, accuracy=0.75)
    assert len(caught) == 1
    assert 0 < basin.radius < 2


def test_curves_of_classes_are_those_of_their_own_samples():
    network, x, target = hill(100, 100)
    basin = sample_basin(network, x, target, high=1e4, per_class=True)
    assert len(basin.class_curves) == 2
    for sigma in (0.5, 2.0, 10.0, 1000.0):
        noise = Normal(x[:, 0], sigma)
        near = noise.cdf(torch.tensor(5**0.5)) - noise.cdf(torch.tensor(-(5**0.5)))
        truth = [float((1 - near)[target == 0].mean()), float(near[target == 1].mean())]
        # Some 15 answers are averaged: a standard error of 0.13 at most.
        assert [float(curve.at(sigma)) for curve in basin.class_curves] == pytest.approx(truth, abs=0.3)
    near_one = Normal(x[target == 1, 0], float(basin.per_class[1]))
    share = (near_one.cdf(torch.tensor(5**0.5)) - near_one.cdf(torch.tensor(-(5**0.5)))).mean()
    # n = 100 samples: a share of 0.75 has the standard error 0.043.
    assert float(share) == pytest.approx(0.75, abs=0.13)


def test_several_rays_share_forward_passes():
    network, seen = watched(linear_classifier()[0])
    _, x, target, _ = linear_classifier()
    wrong = torch.arange(100) % 2 == 0
    flipped = torch.where(wrong, 1 - target[:100], target[:100])
    sample_basin(network, x[:100], flipped, rays=4, per_ray=True, batch_size=100)
    # Half of the samples have nothing to search: the rows of two rays go through in one pass, 14 of 100 instead of 28
    # of 50.
    assert seen.count(100) >= 14
    assert seen.count(50) < 7


def test_the_accuracy_left_at_the_highest_level_is_that_of_all_samples():
    """A quarter of 640 samples lies at the boundary; the 64 of the floor show how many are left only roughly."""
    x = torch.full((640, 1), 100.0)
    x[torch.randperm(640, generator=generator(0))[:160]] = 1e-4
    target = torch.ones(640).long()
    with pytest.warns(UserWarning, match="leaves an accuracy of") as caught:
        basin = sample_basin(First(), x, target, accuracy=0.6, high=0.5)
    told = float(re.search(r"leaves an accuracy of (\S+),", str(caught[0].message)).group(1))
    # Half of those at the boundary; a standard error is 0.013.
    assert told == pytest.approx(0.875, abs=0.03)
    assert told != pytest.approx(basin.censored, abs=0.005)


# Narrow and wide classes ----------------------------------------------------------------------------------------------


def named_classes(scale, probes, size=20):
    """Classes called narrow or wide on probes of 10 classes, by the findings and by their radii alone.

    The logit of its own class is |N(0, 1)| + 0.2 above the others in each sample, times the class's scale.
    """
    draw, target = generator(0), torch.arange(10 * size) % 10
    by_test, by_radius = [], []
    for seed in range(probes):
        margin = (torch.randn(len(target), generator=draw).abs() + 0.2) * torch.tensor(scale)[target]
        evaluator = Evaluator(nn.Identity(), nn.functional.one_hot(target) * margin[:, None], target, right_class, 10)
        with torch.inference_mode():
            found = measure_sample_basin(evaluator, 1e-3, 1e1, per_class=True, seed=seed, quiet=True)
        told = [text.split("interval): ")[1] for text in _classes_apart(found)]
        by_test.append([int(k) for text in told for k in re.findall(r"(\d+) \(", text)])
        ratio = found.per_class / found.radius
        by_radius.append(bool(((ratio < 0.5) | (ratio > 2)).any()))
    return by_test, by_radius


@pytest.mark.parametrize("probes", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_classes_that_are_alike_are_never_called_narrow_or_wide(probes):
    """Of 20 samples per class; their radii alone would name classes on 35 of the 200 probes."""
    by_test, by_radius = named_classes([1.0] * 10, probes)
    assert not any(by_test)
    assert sum(by_radius) > 0.05 * probes


def test_a_class_that_is_really_narrow_is_found():
    """10 probes of 100 samples per class; the first class's margins are a tenth of the others'."""
    by_test, _ = named_classes([0.1, *[1.0] * 9], 10, size=100)
    assert by_test == [[0]] * 10


@pytest.mark.parametrize(("sigma", "bound"), [(9.9, 0.06), (0.3, 0.04)])
def test_the_curve_is_the_accuracy_under_noise_up_to_the_highest_level(sigma, bound):
    """n = 30 seeds of 600 samples; the mean's standard error is 0.01. The curve ended at 0.2, with the last answers."""
    found = []
    for seed in range(30):
        x = gaussian(600, 4, seed=seed)
        basin = sample_basin(First(), x, (x[:, 0] > 0).long(), accuracy=0.87, seed=seed)
        found.append(float(basin.accuracy_at(sigma)))
    truth = 1 - math.atan(sigma) / math.pi  # of two normal numbers, x and x + σ·ε, having the same sign
    assert sum(found) / len(found) == pytest.approx(truth, abs=bound)
