"""One ray of weight noise: where its accuracy crosses the target, which levels are asked, and which samples."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import reference
from netdyn.basins import weight_basin as room
from netdyn.basins.crossing import logit
from netdyn.basins.curve import mean_curve
from netdyn.basins.interval import widened
from netdyn.basins.weight_basin import Ray, walk_rays
from netdyn.probes.criteria import right_class
from netdyn.probes.evaluator import Evaluator

COUNT = 200
BOTTOM, TOP = math.log(1e-3), math.log(1e1)


def outcomes(share, count=COUNT):
    return torch.arange(count) < round(share * count)


def ray(shares, target=0.5, weight=None, scale=1.0):
    """A ray that met these shares of right answers at log sigma."""
    made = Ray(target, weight, scale)
    for level, share in shares.items():
        made.add(level, outcomes(share))
    return made


def above_target(share, target=0.5):
    return logit(share, COUNT) - logit(target, COUNT)


# Where the accuracy of a ray crosses the target ----------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.3, 0.5, 0.75])
def test_the_crossing_is_on_the_line_through_the_logits_of_the_levels_around_it(target):
    # Asked in any order; the levels farther away do not matter.
    found = ray({0.4: 0.2, -2.0: 0.95, -0.1: 0.9, 1.5: 0.05}, target).crossing(4.0, BOTTOM, TOP)
    y = [logit(0.9, COUNT), logit(0.2, COUNT)]
    assert found == pytest.approx(reference.line_crossing((-0.1, 0.4), y, logit(target, COUNT)))


def test_the_nearer_a_level_is_to_the_target_the_nearer_is_the_crossing():
    """The crossing lies in the upper half of its cell where accuracy is nearer to the target there, and vice versa."""
    assert -0.5 < ray({-1.0: 0.55, 0.0: 0.1}).crossing(4.0, BOTTOM, TOP) + 0.5 < 0
    assert 0 < ray({-1.0: 0.9, 0.0: 0.45}).crossing(4.0, BOTTOM, TOP) + 0.5 < 0.5


def test_accuracy_that_rises_again_is_made_to_fall():
    rising = ray({0.0: 0.9, 0.2: 0.4, 0.4: 0.7, 0.6: 0.1})
    assert rising.around() == (0.0, 0.2)
    assert rising.crossing(4.0, BOTTOM, TOP) == ray({0.0: 0.9, 0.2: 0.4}).crossing(4.0, BOTTOM, TOP)


def test_beyond_the_levels_the_line_has_the_slope_of_the_other_rays():
    assert ray({0.2: 0.8}).crossing(2.0, BOTTOM, TOP) == pytest.approx(0.2 + above_target(0.8) / 2)
    assert ray({0.2: 0.8, 0.0: 0.9}).crossing(4.0, BOTTOM, TOP) == pytest.approx(0.2 + above_target(0.8) / 4)
    assert ray({0.2: 0.3, 0.5: 0.1}).crossing(2.0, BOTTOM, TOP) == pytest.approx(0.2 + above_target(0.3) / 2)


def test_at_the_ends_of_the_range_the_crossing_is_beyond_it_or_a_guess():
    assert math.isnan(Ray(0.5).crossing(4.0, BOTTOM, TOP))
    # Accuracy is above the target at the highest level, or would be there.
    assert ray({TOP: 0.55}).crossing(4.0, BOTTOM, TOP) == math.inf
    assert ray({TOP - 0.1: 0.9}).crossing(1.0, BOTTOM, TOP) == math.inf
    assert ray({TOP - 1.0: 0.55}).crossing(4.0, BOTTOM, TOP) < TOP
    # Below the lowest level no farther than three units.
    assert ray({BOTTOM: 0.45}).crossing(4.0, BOTTOM, TOP) == pytest.approx(BOTTOM + above_target(0.45) / 4)
    assert ray({BOTTOM: 0.01}).crossing(0.5, BOTTOM, TOP) == BOTTOM - 3


def test_a_level_that_has_the_target_is_the_crossing():
    exact = ray({0.0: 0.9, 0.3: 0.5})
    assert exact.around() == (0.0, 0.3)
    assert exact.crossing(4.0, BOTTOM, TOP) == pytest.approx(0.3)


def test_the_levels_around_the_crossing():
    assert Ray(0.5).around() == (None, None)
    assert ray({0.0: 0.9}).around() == (0.0, None)
    assert ray({0.0: 0.1}).around() == (None, 0.0)
    assert ray({-0.5: 0.9, 0.0: 0.8, 0.5: 0.3, 1.0: 0.1}).around() == (0.0, 0.5)


def test_weighted_samples_count_by_their_weight():
    weight = torch.where(torch.arange(COUNT) < 50, 3.0, 1 / 3).double()
    weighted = ray({0.0: 0.25}, weight=weight)
    assert weighted.share == {0.0: pytest.approx(0.75)}
    assert weighted.logits == {0.0: pytest.approx(above_target(0.75))}


def test_accuracy_is_scaled_to_that_of_all_samples_and_is_at_most_one():
    scaled = ray({0.0: 0.9, 1.0: 0.4}, scale=1.05)
    assert scaled.share == {0.0: pytest.approx(0.945), 1.0: pytest.approx(0.42)}
    assert scaled.logits[0.0] == pytest.approx(above_target(0.945))
    assert ray({0.0: 0.9}, scale=1.2).share == {0.0: 1.0}
    # Which samples were right is kept as it was.
    assert scaled.right[0.0].double().mean() == pytest.approx(0.9)


def test_outcomes_lie_straight_between_the_levels_around_the_crossing():
    made = ray({0.0: 0.75, 0.4: 0.25})
    right, wrong = outcomes(0.75).double(), outcomes(0.25).double()
    torch.testing.assert_close(made.outcomes(0.1), 0.75 * right + 0.25 * wrong)
    # A crossing that other rays' slope puts outside of the levels has the outcomes of the nearest.
    torch.testing.assert_close(made.outcomes(-1.0), right)
    torch.testing.assert_close(made.outcomes(1.0), wrong)
    torch.testing.assert_close(ray({0.0: 0.75}).outcomes(0.3), right)
    torch.testing.assert_close(ray({0.4: 0.25}).outcomes(0.3), wrong)


# The slope that all rays share ---------------------------------------------------------------------------------------


def logistic(middle, slope, levels):
    """Shares of right answers on a straight line of logits; far from 0 and 1 half an outcome matters little."""
    return {level: 1 / (1 + math.exp(slope * (level - middle))) for level in levels}


def test_the_slope_is_that_of_the_rays_lines():
    rays = [ray(logistic(m, 3.0, (m - 0.6, m - 0.2, m + 0.3, m + 0.7))) for m in (-0.5, 0.0, 0.4)]
    assert room._slope(rays) == pytest.approx(3.0, rel=0.03)
    # Levels far from the crossing show the ends of the curve, not its slope.
    assert room._slope([ray(logistic(0.0, 3.0, (-0.6, 0.3)) | {4.0: 0.4, -4.0: 0.9})]) == pytest.approx(3.0, rel=0.03)


def test_the_slope_is_fitted_to_all_levels_by_least_squares():
    made = ray({-0.8: 0.85, -0.1: 0.6, 0.2: 0.35, 0.9: 0.3})
    crossing = made.crossing(4.0, BOTTOM, TOP)
    x = [level - crossing for level in made.logits]
    expected = -sum(a * y for a, y in zip(x, made.logits.values(), strict=True)) / sum(a * a for a in x)
    assert room._slope([made]) == pytest.approx(expected)
    other = ray({-0.3: 0.9, 0.3: 0.2})
    assert room._slope([made, other]) != pytest.approx(expected)


def test_without_a_crossing_the_slope_is_a_guess():
    assert room._slope([]) == room._slope([ray({0.0: 0.9})]) == room._slope([ray({0.0: 0.1})]) == room.SLOPE


# Which levels are asked ----------------------------------------------------------------------------------------------


class Asked:
    """Answers of rays whose accuracy is a logistic curve with a middle of its own; notes what is asked."""

    def __init__(self, middles, slopes=None):
        self.middles, self.slopes, self.levels = middles, slopes or [4.0] * len(middles), [[] for _ in middles]

    def weight(self, number):
        return None

    def scale(self, number):
        return 1.0

    def __call__(self, number, level):
        self.levels[number].append(level)
        # Of an odd number of samples never just half are right.
        return outcomes(logistic(self.middles[number], self.slopes[number], [level])[level], 2001)


def test_the_first_ray_halves_the_range_and_all_end_with_levels_on_both_sides_of_the_crossing():
    ask = Asked([0.3, 0.5, 0.1, 0.3])
    rays = walk_rays(ask, 4, 0.5, 1e-3, 1e1)
    assert [len(levels) for levels in ask.levels] == [6, 3, 3, 3]
    middle = (BOTTOM + TOP) / 2
    assert ask.levels[0][:3] == pytest.approx([middle, (middle + TOP) / 2, ((middle + TOP) / 2 + TOP) / 2])
    # Another ray begins at the median of those before it.
    assert ask.levels[1][0] == pytest.approx(rays[0].crossing(4.0, BOTTOM, TOP), abs=0.02)
    assert ask.levels[3][0] == pytest.approx(0.3, abs=0.02)
    for made, truth in zip(rays, ask.middles, strict=True):
        assert None not in made.around()
        assert made.crossing(4.0, BOTTOM, TOP) == pytest.approx(truth, abs=0.02)


def test_the_second_level_lies_a_little_beyond_the_estimate_so_that_both_enclose_the_crossing():
    ask = Asked([0.0, 0.3, -0.3])
    walk_rays(ask, 3, 0.5, 1e-3, 1e1)
    # A ray that is still right at the median is asked above its estimate, and one that is wrong below it.
    assert ask.levels[1][1] == pytest.approx(0.3 + room.BEYOND, abs=0.03)
    assert ask.levels[2][1] == pytest.approx(-0.3 - room.BEYOND, abs=0.1)


@pytest.mark.parametrize("middle", [1.9, -2.5])
def test_a_ray_that_falls_slowly_is_asked_until_it_has_crossed_between_two_levels(middle):
    # The steep rays put the crossing of the last one too near: three levels do not reach it.
    ask = Asked([0.0, 0.0, 0.0, middle], [8.0, 8.0, 8.0, 1.0])
    last = walk_rays(ask, 4, 0.5, 1e-3, 1e1)[-1]
    assert [len(levels) for levels in ask.levels[:3]] == [6, 3, 3]
    assert 3 < len(ask.levels[3]) < 8
    below, above = last.around()
    assert below < middle < above
    assert last.crossing(4.0, BOTTOM, TOP) == pytest.approx(middle, abs=0.02)


def test_rays_that_are_never_lost_are_asked_up_to_the_top_and_no_level_twice():
    ask = Asked([50.0, 50.0])
    rays = walk_rays(ask, 2, 0.5, 1e-3, 1e1)
    for made, levels in zip(rays, ask.levels, strict=True):
        assert made.crossing(4.0, BOTTOM, TOP) == math.inf
        assert len(set(levels)) == len(levels)
        assert max(levels) == pytest.approx(TOP)


def test_rays_that_are_lost_below_the_range_are_asked_down_to_its_bottom():
    ask = Asked([-9.0, -9.0])
    rays = walk_rays(ask, 2, 0.5, 1e-3, 1e1)
    assert min(ask.levels[0]) == pytest.approx(BOTTOM)
    assert all(made.crossing(4.0, BOTTOM, TOP) < BOTTOM for made in rays)


# Which samples a ray asks --------------------------------------------------------------------------------------------


def probe(samples=300, classes=3):
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0))
    return Evaluator(nn.Linear(4, classes), x, torch.arange(samples) % classes, right_class, classes)


def test_a_ray_asks_different_samples_of_all_classes_in_proportion():
    evaluator = probe()
    for number in range(5):
        chosen = room._choice(evaluator, number, 30, seed=0)
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        counts = torch.bincount(evaluator.labels[chosen], minlength=3).tolist()
        assert sum(counts) == 30
        assert all(9 <= count <= 11 for count in counts)


def test_the_choice_is_another_one_for_each_ray_and_seed_and_goes_by_content():
    evaluator = probe()
    chosen = [tuple(room._choice(evaluator, ray, 30, seed).tolist()) for ray in range(3) for seed in range(3)]
    assert len(set(chosen)) == 9
    assert room._choice(evaluator, 1, 30, 0).tolist() == list(chosen[3])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    moved = Evaluator(evaluator.model, evaluator.inputs[order], evaluator.target[order], right_class, 3)
    assert sorted(order[room._choice(moved, 1, 30, 0)].tolist()) == list(chosen[3])


def test_every_sample_is_asked_equally_often():
    # 300 rays with 30 of 300 samples each: 30 ± 5.2 times each sample. The bound is 5 standard deviations.
    evaluator = probe()
    times = torch.zeros(300)
    for number in range(300):
        times[room._choice(evaluator, number, 30, seed=0)] += 1
    assert 30 - 26 < float(times.min()) <= float(times.max()) < 30 + 26


def test_of_as_many_samples_as_there_are_all_are_asked():
    assert room._choice(probe(), 3, 300, seed=0).tolist() == list(range(300))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_rays_scale_is_the_clean_accuracy_of_all_samples_over_that_of_its_own(weighted):
    evaluator, clean = probe(), torch.arange(300) % 7 != 0
    each = torch.rand(300, generator=torch.Generator().manual_seed(2), dtype=torch.float64) if weighted else None
    evaluator.weight = each
    own = room._choice(evaluator, 0, 30, seed=0)
    ask = room._Asker(evaluator, None, [own, torch.arange(300), torch.tensor([0, 7])], clean)
    w = torch.ones(300, dtype=torch.float64) if each is None else each
    shares = [float((clean * w)[part].sum() / w[part].sum()) for part in (torch.arange(300), own)]
    assert shares[0] != pytest.approx(shares[1])
    assert ask.scale(0) == pytest.approx(shares[0] / shares[1])
    assert ask.scale(1) == 1.0
    # Where none of a ray's samples is right there is nothing to scale.
    assert ask.scale(2) == 1.0


# What is left for a later evaluation ---------------------------------------------------------------------------------


def test_influences_are_deviations_over_the_slope_of_accuracy():
    rays = [ray({-0.1: 0.75, 0.1: 0.25}), ray({0.0: 0.9})]
    radii = torch.tensor([1.0, math.inf], dtype=torch.float64)
    choices = [torch.arange(COUNT), torch.arange(COUNT)]
    of = SimpleNamespace(samples=COUNT + 10, weight=None, contents=SimpleNamespace(clusters=torch.arange(COUNT + 10)))
    found = room._influences(rays, radii, choices, of, 0.5, "key")
    slope = above_target(0.75) / 0.1
    expected = (0.5 * (outcomes(0.75).double() + outcomes(0.25).double()) - 0.5) / (0.25 * slope)
    torch.testing.assert_close(found.influence[0, :COUNT], expected)
    # Samples that the ray did not ask, and a ray without a crossing, have none.
    assert found.influence[0, COUNT:].isnan().all()
    assert found.influence[1].isnan().all()
    assert found.radii.tolist() == [pytest.approx(0.0), pytest.approx(math.nan, nan_ok=True)]
    assert room._influences(rays, torch.tensor([0.0, math.inf]), choices, of, 0.5, "key") is None


def test_influences_of_weighted_samples_keep_the_weights_and_widen_the_interval_by_them():
    draw = torch.Generator().manual_seed(0)
    weight = torch.rand(COUNT, generator=draw, dtype=torch.float64) * 2
    clusters = torch.arange(COUNT) // 2
    of = SimpleNamespace(samples=COUNT, weight=weight / weight.mean(), contents=SimpleNamespace(clusters=clusters))
    rays, radii = [], torch.linspace(0.8, 1.2, 8, dtype=torch.float64)
    for _ in radii:
        made = Ray(0.5, of.weight)
        for level, share in ((-0.3, 0.7), (0.3, 0.3)):
            made.add(level, torch.rand(COUNT, generator=draw) < share)
        rays.append(made)
    found = room._influences(rays, radii, [torch.arange(COUNT)] * 8, of, 0.5, "key")
    assert (found.weight is of.weight, found.radii.dtype, found.influence.dtype) == (True, torch.float64, torch.float64)
    torch.testing.assert_close(found.radii, radii.log(), rtol=0, atol=1e-15)
    interval, level = room._interval(radii, found)
    low, high, expected = reference.median_interval(radii.tolist())
    error = reference.shared_error(found.influence, clusters, of.weight)
    assert error > 1e-3
    assert interval == pytest.approx(widened((low, high), 1.0, error, COUNT))
    assert level == expected
    assert room._interval(radii, None) == ((pytest.approx(low), pytest.approx(high)), expected)


# Classes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [False, True])
def test_classes_are_asked_at_levels_spread_over_the_whole_range(before):
    labels, clean = torch.arange(30) % 3, torch.arange(30) < 20
    labels[labels == 1] = 0
    # The last two rays ask no sample of class 2.
    everyone, some = torch.arange(30), (labels == 0).nonzero()[:, 0]
    choices = [everyone, everyone, some, some]
    rays, asked = [Ray(0.5) for _ in choices] if before else [], [[] for _ in choices]
    for each, chosen in zip(rays, choices, strict=False):
        each.add(0.1, chosen < 12)

    def ask(ray, level):
        asked[ray].append(level)
        return choices[ray] < 15

    ask.evaluator, ask.choices = SimpleNamespace(labels=labels, num_classes=3), choices
    curves = room._class_curves(ask, clean, rays, 1e-3, 1e1)
    number = 4 * (room.LADDER if before else room.LADDER_ALONE)
    levels = sorted(level for own in asked for level in own)
    assert levels == pytest.approx([BOTTOM + (j + 0.5) / number * (TOP - BOTTOM) for j in range(number)])
    assert curves[1] is None
    for k, known in ((0, range(4)), (2, range(2))):
        shares, sizes = [], []
        for i in known:
            own = choices[i][labels[choices[i]] == k]
            met = dict.fromkeys(asked[i], float((own < 15).double().mean()))
            shares.append(met | ({0.1: float((own < 12).double().mean())} if before else {}))
            sizes.append(float(len(own)))
        expected = mean_curve(float(clean[labels == k].double().mean()), shares, sizes, room._slope(rays), 0.0)
        assert curves[k].clean == expected.clean
        torch.testing.assert_close(curves[k].sigma, expected.sigma)
        torch.testing.assert_close(curves[k].share, expected.share)
