"""What basins cost beside the network's forward passes: counts of noise made, memory held, and numbers written.

Times are no test: they change with the machine. What is counted here is what the time beside the forward passes goes
into, once per component of the probe or of the weights.
"""

import pytest
import torch
from netdyn.basins.supply import Supply
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from netdyn._utils.trees import Scratch
from netdyn.basins import supply as supplies
from netdyn.basins import weight_noise
from netdyn.basins.curve import Grid
from netdyn.basins.input_noise import disturb
from netdyn.basins.sample_basin import begin_sample_basin
from netdyn.basins.weight_basin import begin_weight_basin
from netdyn.isolation.isolated import isolated
from netdyn.probes.tasks import prepare

SAMPLES, FEATURES, CLASSES = 1024, 196, 10
GRID = Grid.over(1e-3, 1e1, 0.05)


class Written(TorchDispatchMode):
    """Counts the numbers that operations outside of the network write, in tensors of some size or more."""

    def __init__(self, network, least):
        super().__init__()
        self.least, self.inside, self.count, self.operations = least, 0, 0, []
        network.register_forward_pre_hook(lambda *_: self._inside(1))
        network.register_forward_hook(lambda *_: self._inside(-1), always_call=True)

    def _inside(self, step):
        self.inside += step

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        new = isinstance(result, torch.Tensor) and not function.is_view and "empty" not in str(function)
        if not self.inside and new and result.numel() >= self.least:
            self.count += result.numel()
            self.operations.append(str(function))
        return result


@pytest.fixture
def trained():
    """A multilayer perceptron that tells ten noisy centres apart."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(SAMPLES) % CLASSES
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    x = centres[target] + torch.randn(SAMPLES, FEATURES, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES)
        )
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), target).backward()
        optimiser.step()
    return network.eval(), x, target


def searched(network, x, target, search, **options):
    """A search's result, and the numbers written outside of the network in tensors as large as the probe."""
    least = min(x.numel(), FEATURES * 64)
    with isolated(network), Written(network, least) as written:
        evaluator = prepare(network, x, target, None, options.pop("batch_size", None))
        evaluator.prints  # noqa: B018
        written.count, written.operations = 0, []
        result = search(evaluator, GRID, **options)()
    return result, written, evaluator


# Sample basins --------------------------------------------------------------------------------------------------------


@pytest.fixture
def supply(monkeypatch):
    """The supplies that searches make."""
    made = []

    class Noted(Supply):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr("netdyn.basins.sample_basin.Supply", Noted)
    return made


@pytest.mark.parametrize("batch_size", [None, 300])
@pytest.mark.parametrize("rays", [1, 4])
def test_noise_of_each_ray_is_made_once(trained, supply, rays, batch_size):
    basin, _, evaluator = searched(*trained, begin_sample_basin, rays=rays, batch_size=batch_size, quiet=True)
    (own,) = supply
    # Samples that are wrong without noise have no rays, and only their first one is asked at the top.
    assert round(basin.clean * SAMPLES) * rays <= own.made <= SAMPLES * rays
    assert own.held == own.bytes == 4 * SAMPLES * FEATURES * rays <= supplies.HELD
    assert evaluator.supply is None


def test_noise_beyond_the_bound_is_made_anew_and_the_same(trained, supply, monkeypatch):
    kept, _, _ = searched(*trained, begin_sample_basin, quiet=True)
    monkeypatch.setattr(supplies, "HELD", 4 * SAMPLES * FEATURES - 1)
    fresh, _, _ = searched(*trained, begin_sample_basin, quiet=True)
    assert torch.equal(kept.radii, fresh.radii)
    assert (kept.radius, kept.interval, kept.forwards) == (fresh.radius, fresh.interval, fresh.forwards)
    assert (supply[0].held > 0, supply[1].held) == (True, 0)
    assert supply[0].made <= SAMPLES < supply[1].made


def test_default_search_takes_at_most_nine_forward_passes_and_writes_twice_the_probe_for_each(trained):
    network, x, target = trained
    basin, written, _ = searched(network, x, target, begin_sample_basin, quiet=True)
    assert basin.forwards <= 9
    # For each pass sigma times noise, and the sample added to it. Besides: the copy for the clean pass, the samples
    # that are right, their noise with the copy that is kept of it, and as much as both for the looks next to the
    # radius.
    assert written.count <= (2 * basin.forwards + 6) * x.numel(), written.operations


def test_a_sample_is_copied_again_only_where_others_leave_the_search(trained):
    network, x, target = trained
    _, written, _ = searched(network, x, target, begin_sample_basin, quiet=True)
    # All brackets of a search from the start close at once.
    assert written.operations.count("aten.clone.default") == 0
    assert written.operations.count("aten.index_select.default") <= 8


# Weight basins --------------------------------------------------------------------------------------------------------


def test_each_ray_in_weight_space_is_drawn_once_and_the_first_for_the_report(trained, monkeypatch):
    drawn = []
    draw = weight_noise.WeightNoise.draw
    monkeypatch.setattr(weight_noise.WeightNoise, "draw", lambda self, ray: drawn.append(ray) or draw(self, ray))
    basin, _, _ = searched(*trained, begin_weight_basin)
    assert drawn == [*range(8), 0]
    # Once clean, then for each ray the top and at most as many steps as the grid has levels.
    assert basin.forwards <= 1 + 8 * (1 + GRID.levels)


def test_weight_rays_copy_the_probe_once(trained):
    network, x, target = trained
    basin, written, _ = searched(network, x, target, begin_weight_basin)
    copied = [operation for operation in written.operations if operation == "aten.copy_.default"]
    weights = sum(p.numel() for p in network.parameters() if p.ndim == 2 and p.numel() >= written.least)
    assert len(copied) <= 1
    # sigma times noise and the weights added to it, each pass; drawing and scaling for each ray, and a few at the ends.
    assert written.count <= x.numel() + (2 * basin.forwards + 2 * 9 + 10) * weights, written.operations


# Memory used again ----------------------------------------------------------------------------------------------------


def test_the_next_batch_lies_where_the_last_one_lay():
    scratch, x = Scratch(), torch.randn(6, 4)
    first = disturb(x, torch.ones(6, 4), torch.ones(6), scratch)
    second = disturb(x[:3], torch.ones(3, 4), torch.ones(3), scratch)
    assert first.data_ptr() == second.data_ptr() != x.data_ptr()
    assert torch.equal(second, x[:3] + 1)


def copies(write, passes=4):
    """Whether each pass of a network that writes over its input finds the input as it was."""
    scratch, x = Scratch(), torch.randn(5, 3)
    found = []
    for _ in range(passes):
        room = scratch.filled(x)
        found.append(torch.equal(room, x))
        write(room)
    return found


def overwrite(room):
    room.numpy()[:] = 7


@pytest.mark.parametrize(
    "write",
    [
        lambda room: None,
        lambda room: room.zero_(),
        lambda room: room[1:].mul_(2),
        lambda room: room.data.zero_(),
        overwrite,
    ],
    ids=["nothing", "in place", "part", "data", "numpy"],
)
def test_a_network_that_writes_over_its_input_finds_it_again(write):
    assert all(copies(write))


def test_memory_holds_what_is_asked_for_also_where_it_stood_elsewhere():
    scratch = Scratch()
    for seed in range(20):
        # Freed at once: the next tensor may lie at the same address.
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(scratch.filled(x), x)
        x.mul_(2)
        assert torch.equal(scratch.filled(x), x)
        assert torch.equal(scratch.filled(x[:2]), x[:2])
        assert torch.equal(scratch.filled(x.double()), x.double())
        del x


def test_inputs_of_inference_mode_are_copied():
    with torch.inference_mode():
        x = torch.randn(5, 3)
    scratch = Scratch()
    for _ in range(3):
        assert torch.equal(scratch.filled(x).zero_(), torch.zeros(5, 3))
    assert torch.equal(scratch.filled(x), x)


class Gradient(nn.Module):
    """Moves its input along a gradient: asks for one on the very tensor that it is given."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        with torch.enable_grad():
            x.requires_grad_()
            (slope,) = torch.autograd.grad(self.network(x).logsumexp(dim=1).sum(), x)
        return self.network(x - 0.1 * slope)


def test_a_network_may_ask_for_gradients_on_its_input(trained):
    network, x, target = trained
    for search in (begin_sample_basin, begin_weight_basin):
        result, _, _ = searched(Gradient(network), x, target, search)
        assert result.radius > 0
