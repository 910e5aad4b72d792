"""The corrected radius against a slow twin that asks the network at every edge, and against definitions."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from netdyn.basins.search import UNKNOWN, Search

import reference
from netdyn.basins.curve import LOST_CLEAN, Grid, survival
from netdyn.basins.reentry import MOST, Rungs, correct, interpolated, seen, stride_of

exactly = settings(max_examples=60, deadline=None, derandomize=True, database=None)

GRID = Grid(1e-3, 1e1, 4)
WIDE = Grid.over(1e-3, 1e1, 0.05)
CELL = math.log(1e4) / WIDE.cells


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Rays:
    """Rays with answers of their own [rays, samples, edges]; counts what is asked of them."""

    def __init__(self, answers, grid, clean=None, start=None):
        self.answers, self.grid, self.looks, self.passes = answers, grid, 0, 0
        rays, samples, _ = answers.shape
        flat = answers.reshape(rays * samples, -1)
        search = Search(grid, torch.full((rays * samples,), UNKNOWN) if start is None else start.reshape(-1))
        self.visited = torch.zeros(rays * samples, grid.cells + 1, dtype=torch.bool)
        while len(under_way := search.open()):
            edges = search.question(under_way)
            self.visited[under_way, edges] = True
            search.answer(under_way, flat[under_way, edges])
        self.cells = search.low.reshape(rays, samples)
        if clean is not None:
            self.cells = self.cells.masked_fill(~clean, LOST_CLEAN)
        self.bisected = torch.full_like(self.cells, start is None, dtype=torch.bool)

    def look(self, edges):
        self.looks += int((edges >= 0).sum())
        self.passes += 1
        # Of a warm start only the two edges of the cell are remembered.
        visited = self.visited.reshape(*edges.shape, -1).gather(2, edges.clamp(min=0)[..., None])[..., 0]
        assert not (visited & (edges >= 0) & (self.cells != LOST_CLEAN) & self.bisected).any()
        return self.answers.gather(2, edges.clamp(min=0)[..., None])[..., 0]

    def rungs(self):
        return Rungs(self.cells, self.grid, self.look, self.bisected)

    def correct(self, accuracy, groups=()):
        return correct(self.rungs(), accuracy, groups)

    def accuracy_at(self, sigma, group=slice(None)):
        at = self.answers[:, group].double().mean(dim=(0, 1))
        return np.interp(math.log(sigma), self.grid.edges().log(), at)

    def truth(self, accuracy, group=slice(None)):
        """Where the accuracy at the edges crosses, straight in log sigma between them."""
        at = self.answers[:, group].double().mean(dim=(0, 1)).tolist()
        return reference.ladder_radius(self.grid.edges().tolist(), [1.0, *at[1:]], accuracy)


def lost_for_good(radii, grid):
    """Rays that are right below a radius of their own, and wrong from there on."""
    return Rays(radii[..., None] > grid.edges(), grid)


def returning(samples, rays=1, centre=-0.75, seed=0, share=0.3, grid=WIDE):
    """Rays lost about exp(centre); a share of them comes back somewhere farther out, for a while or for good."""
    draw = generator(seed)
    edges = grid.edges()
    lost = (centre + 0.7 * torch.randn(rays, samples, 1, generator=draw, dtype=torch.float64)).exp()
    back = lost * (0.2 + torch.rand(rays, samples, 1, generator=draw)).exp()
    gone = back * (0.2 + 1.5 * torch.rand(rays, samples, 1, generator=draw)).exp()
    comes = torch.rand(rays, samples, 1, generator=draw) < share
    return Rays((edges < lost) | (comes & (edges > back) & (edges < gone)), grid)


# What the search has seen


@pytest.mark.parametrize("levels", [1, 2, 4, 6])
def test_edges_seen_are_those_that_bisection_visits(levels):
    grid = Grid(1e-3, 1e1, levels)
    numbers = torch.arange(grid.cells)
    rays = Rays((numbers[:, None] >= torch.arange(grid.cells + 1))[None], grid)
    assert torch.equal(rays.cells[0], numbers)
    assert torch.equal(seen(numbers[:, None], torch.arange(grid.cells + 1), levels), rays.visited)


def test_a_ray_lost_without_noise_has_been_seen_nowhere():
    assert not seen(torch.full((17,), LOST_CLEAN), torch.arange(17), 4).any()


@pytest.mark.parametrize(("grid", "stride"), [(WIDE, 8), (Grid(1e-3, 1e1, 9), 32), (Grid(0.5, 2, 1), 1), (GRID, 1)])
def test_stride_is_the_largest_power_of_two_within_three_fifths_in_log_sigma(grid, stride):
    assert stride_of(grid) == stride


@exactly
@given(st.dictionaries(st.integers(0, 40), st.floats(-1, 1), min_size=1, max_size=6))
def test_interpolation_equals_numpys(knots):
    at = torch.linspace(-5, 45, 101, dtype=torch.float64)
    expected = np.interp(at, sorted(knots), [knots[edge] for edge in sorted(knots)])
    np.testing.assert_allclose(interpolated(at, knots), expected, atol=1e-12)


# Radius


@pytest.mark.parametrize("accuracy", [0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("rays", [1, 4])
def test_radius_of_rays_lost_for_good_is_the_ladders_and_costs_less_than_a_look(accuracy, rays):
    radii = torch.randn(rays, 800, generator=generator(rays), dtype=torch.float64).exp()
    found = lost_for_good(radii, WIDE)
    basin = found.correct(accuracy)
    assert basin.radius == pytest.approx(found.truth(accuracy), rel=1e-6)
    assert abs(basin.reentry) < 1e-9
    assert found.looks < rays * 800
    assert found.passes == 1


# The accuracy is that of the same rays: what is left is its way between edges asked, eight cells apart, where rays come
# back and go again within a factor of 4. Where it hardly falls a radius says little, so that accuracy is compared.
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("accuracy", [0.4, 0.5, 0.75])
def test_accuracy_at_the_radius_is_the_one_asked_for(share, accuracy):
    found = returning(20_000, share=share)
    assert found.accuracy_at(found.correct(accuracy).radius) == pytest.approx(accuracy, abs=0.012)


@pytest.mark.parametrize("accuracy", [0.5, 0.75])
def test_radius_of_rays_that_come_back_is_the_ladders(accuracy):
    found = returning(20_000, share=0.5)
    assert found.correct(accuracy).radius == pytest.approx(found.truth(accuracy), rel=0.03)


def test_without_correction_it_would_not_be():
    found = returning(20_000, share=0.6)
    assert abs(math.log(survival(found.cells, WIDE).crossing(0.75) / found.truth(0.75))) > 0.1


def test_reentry_is_the_share_of_rays_right_again_at_the_uncorrected_radius():
    found = returning(20_000)
    raw = survival(found.cells, WIDE).crossing(0.5)
    edge = round(WIDE.position(raw))
    right = found.answers[..., edge].double().mean() - (found.cells >= edge).double().mean()
    assert found.correct(0.5).reentry == pytest.approx(float(right), abs=0.01)


@pytest.mark.parametrize("centres", [(0.0, 0.0, 0.0), (-3.0, 0.0, 1.0), (-4.0, -2.0, 1.5)])
def test_accuracy_of_a_class_at_its_own_radius_is_the_one_asked_for(centres):
    parts = [returning(6000, centre=centre, seed=seed, share=0.5) for seed, centre in enumerate(centres)]
    found = Rays(torch.cat([part.answers for part in parts], dim=1), WIDE)
    member = torch.arange(3).repeat_interleave(6000)
    groups = [member == k for k in range(3)]
    basin = found.correct(0.6, groups)
    for group, radius in zip(groups, basin.groups.tolist(), strict=True):
        assert found.accuracy_at(radius, group) == pytest.approx(0.6, abs=0.012)
    # Between classes far apart accuracy hardly falls.
    assert found.accuracy_at(basin.radius) == pytest.approx(0.6, abs=0.012)


def test_classes_are_asked_together_and_only_where_nobody_was():
    found = returning(3000)
    member = torch.arange(3000) % 10
    groups = [member == k for k in range(10)]
    found.correct(0.5)
    alone = found.looks
    found.looks = found.passes = 0
    found.correct(0.5, groups)
    assert found.passes <= 6
    # Most classes have their radius where all samples have it.
    assert found.looks < alone + 3000


def test_all_samples_as_a_group_have_the_radius_and_none_have_nan():
    found = returning(400, rays=3)
    basin = found.correct(0.5, [torch.ones(400, dtype=torch.bool), torch.zeros(400, dtype=torch.bool)])
    assert basin.groups[0] == basin.radius
    assert basin.groups[1].isnan()


def test_search_for_the_crossing_ends_on_a_plateau():
    # Four in ten come back for good: accuracy never falls below 0.4, nor the curve of those not lost above 0.
    edges = WIDE.edges()
    lost = (0.3 * torch.randn(1, 1000, 1, generator=generator(0)) - 4).exp()
    back = (torch.arange(1000) % 10 < 4)[None, :, None] & (edges > 3 * lost)
    found = Rays((edges < lost) | back, WIDE)
    assert found.correct(0.3).radius > 0
    assert found.passes <= MOST
    assert found.correct(0.5).radius == pytest.approx(found.truth(0.5), rel=0.02)


@pytest.mark.parametrize("accuracy", [0.01, 0.5, 0.75, 0.99])
@pytest.mark.parametrize(("cell", "radius"), [(LOST_CLEAN, 0.0), (GRID.cells - 1, math.inf)])
@pytest.mark.parametrize("rays", [1, 8])
def test_all_lost_without_noise_is_radius_0_and_all_censored_is_inf(accuracy, cell, radius, rays):
    cells = torch.full((rays, 20), cell)
    rungs = Rungs(cells, GRID, pytest.fail, torch.ones_like(cells, dtype=torch.bool))
    basin = correct(rungs, accuracy, [torch.arange(20) < 5])
    assert basin.radius == radius
    assert basin.interval == (radius, radius)
    assert basin.reentry == 0
    assert basin.groups.tolist() == [radius]


@pytest.mark.parametrize(("lost", "zero"), [(51, True), (50, True), (49, False)])
def test_radius_is_0_from_exactly_the_share_lost_without_noise_on(lost, zero):
    clean = torch.arange(100) >= lost
    found = Rays(torch.arange(17).expand(1, 100, 17) <= 7, GRID, clean)
    found.answers = found.answers & clean[:, None]
    assert (found.correct(0.5).radius == 0) == zero


@pytest.mark.parametrize(("censored", "infinite"), [(51, True), (49, False)])
def test_radius_is_inf_above_the_share_censored(censored, infinite):
    stays = (torch.arange(100) < censored)[None, :, None]
    found = Rays((torch.arange(17).expand(1, 100, 17) <= 7) | stays, GRID)
    basin = found.correct(0.5)
    assert math.isinf(basin.radius) == infinite
    assert basin.interval[1] == math.inf
    assert basin.interval[0] <= GRID.edges()[8] * (1 + 1e-9)


def test_a_single_sample_has_no_finite_interval():
    found = lost_for_good(torch.tensor([[0.1], [0.3], [0.9]], dtype=torch.float64), WIDE)
    basin = found.correct(0.5)
    assert 0 < basin.radius < math.inf
    assert basin.interval == (0, math.inf)


# Interval


@pytest.mark.parametrize("rays", [1, 8])
def test_interval_is_students_over_samples(rays):
    draw = generator(4)
    centre = 0.7 * torch.randn(300, generator=draw, dtype=torch.float64)
    radii = (centre + 0.5 * torch.randn(rays, 300, generator=draw, dtype=torch.float64)).exp()
    found = lost_for_good(radii, WIDE)
    basin = found.correct(0.6)
    wrong = (radii <= basin.radius).double().mean(dim=0).numpy()
    margin = scipy.stats.t.ppf(0.975, 299) * wrong.std(ddof=1) / math.sqrt(300)
    curve = survival(found.cells, WIDE)
    # Which rays of the radius's own cell are lost is not known: 1 % of the margin.
    assert basin.interval[0] == pytest.approx(curve.crossing(0.6 + margin), rel=0.01)
    assert basin.interval[1] == pytest.approx(curve.crossing(0.6 - margin), rel=0.01)


@exactly
@given(st.integers(0, 2**32), st.floats(0.05, 0.95), st.integers(1, 3), st.integers(2, 30))
def test_interval_contains_the_radius_whatever_comes_back(seed, accuracy, rays, samples):
    answers = torch.rand(rays, samples, GRID.cells + 1, generator=generator(seed)) < 0.7
    basin = Rays(answers, GRID).correct(accuracy)
    assert basin.interval[0] <= basin.radius <= basin.interval[1]


# Warm start


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("moved", [0, 3])
def test_radius_from_a_warm_start_is_that_of_a_cold_one(share, moved):
    cold = returning(20_000, share=share)
    start = (cold.cells + moved).clamp(0, WIDE.cells - 1)
    warm = Rays(cold.answers, WIDE, start=start)
    if share == 0:
        assert torch.equal(warm.cells, cold.cells)
    # Rays that come back may end elsewhere, but the accuracy is measured at the same edges.
    a, b = cold.correct(0.5), warm.correct(0.5)
    assert a.radius == pytest.approx(b.radius, rel=0.01 if share else 1e-6)
    assert a.interval == pytest.approx(b.interval, rel=0.03)


@exactly
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_warm_start_ends_in_the_one_cell_in_which_a_ray_is_lost_for_good(seed, levels):
    draw = generator(seed)
    grid = Grid(1e-3, 1e1, levels)
    truth = torch.randint(grid.cells, (1, 40), generator=draw)
    start = torch.randint(-2, grid.cells, (1, 40), generator=draw)
    assume(bool((start != LOST_CLEAN).any()))
    found = Rays(truth[..., None] >= torch.arange(grid.cells + 1), grid, start=start.masked_fill(start < 0, UNKNOWN))
    assert torch.equal(found.cells, truth)


@pytest.mark.parametrize(("moved", "most"), [(0, 2), (1, 3), (-1, 2), (2, 5), (-2, 4), (4, 7)])
def test_warm_start_costs_few_questions_where_little_has_changed(moved, most):
    truth = torch.arange(10, 110)
    search = Search(WIDE, truth - moved)
    while len(under_way := search.open()):
        search.answer(under_way, search.question(under_way) <= truth[under_way])
    assert torch.equal(search.low, truth)
    assert int(search.asked.max()) <= most


@exactly
@given(st.integers(0, 2**32))
def test_a_search_ends_between_right_and_wrong_whatever_the_answers(seed):
    draw = generator(seed)
    answers = torch.rand(50, GRID.cells + 1, generator=draw) < 0.5
    answers[:, 0], answers[:, -1] = True, False
    search = Search(GRID, torch.randint(-2, GRID.cells, (50,), generator=draw).clamp(min=UNKNOWN))
    while len(under_way := search.open()):
        search.answer(under_way, answers[under_way, search.question(under_way)])
    assert answers.gather(1, search.low[:, None]).all()
    assert not answers.gather(1, search.low[:, None] + 1).any()
