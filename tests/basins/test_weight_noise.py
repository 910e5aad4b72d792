"""Noise on weights: what is moved, how far, in which units, and by which seed."""

import math
import re

import pytest
import torch
from torch import nn

from netdyn.basins.weight_noise import WeightNoise, realised_noise, weight_tensors
from netdyn.functional import weight_basin
from shaken import Everything, mlp, spreads, states, uneven


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def probe(samples=90):
    return gaussian(samples, 6, seed=3), torch.arange(samples) % 3


def noise_on(network, layers=None, normalization="layer", seed=0):
    return WeightNoise.on(network, layers, normalization, seed)


def moves(network, rays=1, sigma=1.0, **options):
    """What each ray adds to each tensor in units of sigma: {name: [rays, *shape]}, as the running network has it."""
    noise, before, seen = noise_on(network, **options), states(network), []
    hook = network.register_forward_pre_hook(lambda module, args: seen.append(states(module)))
    inputs = probe(2)[0] if isinstance(network, nn.Sequential) else IDS
    for ray in range(rays):
        noise.network(noise.draw(ray), sigma)(inputs)
    hook.remove()
    assert all(torch.equal(value, before[name]) for name, value in states(network).items())
    return {name: torch.stack([(state[name] - value) / sigma for state in seen]) for name, value in before.items()}


def added(network, ray=0, **options):
    """What a ray adds to ``weight`` at sigma = 1."""
    noise = noise_on(network, **options)
    return noise.moved(noise.draw(ray), 1.0)["weight"] - network.weight.detach()


# What is moved, and how far ------------------------------------------------------------------------------------------


IDS = torch.arange(60).reshape(12, 5) % 12


def everything():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Everything().eval()


def test_floating_parameters_of_two_or_more_dimensions_are_moved_and_nothing_else():
    moved = {name for name, noise in moves(everything()).items() if noise.any()}
    assert moved == {"embed.weight", "conv.weight", "frozen"} == set(weight_tensors(everything(), None))


def test_tied_weights_move_together_and_once():
    network, seen = everything(), []
    network.register_forward_pre_hook(lambda module, args: seen.append((module.embed.weight, module.head.weight)))
    noise = noise_on(network)
    noise.network(noise.draw(0), 1.0)(IDS)
    assert all(torch.equal(embed, head) for embed, head in seen)
    # n = 20 rays of 96 numbers: the relative standard error is 0.02; moved twice, noise would be sqrt(2) as strong.
    moved = moves(network, rays=20)["embed.weight"]
    assert moved.std().item() == pytest.approx(network.embed.weight.std(correction=0).item(), rel=0.1)
    basin = weight_basin(network, IDS, network(IDS).argmax(dim=1), layers="each", rays=2)
    assert set(basin.per_layer) == {"embed.weight", "conv.weight", "frozen"}


# n = 20 rays of 48 to 256 numbers each: the relative standard error of a deviation is 0.023 or less.
CLOSE = 0.1


def test_noise_is_in_units_of_each_tensors_own_deviation():
    network = uneven()
    moved, spread = moves(network, rays=20), spreads(network)
    for name, noise in moved.items():
        assert noise.std().item() == pytest.approx(spread[name], rel=CLOSE)
        assert abs(noise.mean().item()) < 0.15 * spread[name]


@pytest.mark.parametrize("layers", [None, ["fc1.weight", "fc2.weight"]])
def test_global_noise_is_in_units_of_the_deviation_of_all_moved_entries_together(layers):
    network = uneven()
    moved = moves(network, rays=20, normalization="global", layers=layers)
    chosen = [value for name, value in states(network).items() if layers is None or name in layers]
    pooled = torch.cat([value.flatten() for value in chosen]).std(correction=0).item()
    for name, noise in moved.items():
        if layers is None or name in layers:
            assert noise.std().item() == pytest.approx(pooled, rel=CLOSE)
        else:
            assert not noise.any()


def test_the_scale_of_a_complex_weight_is_that_of_the_spreads_about_the_mean_of_either_part():
    """Variances of 1 and 4: their mean is 2.5, however far apart both parts are."""
    network = nn.Module()
    network.weight = nn.Parameter(torch.complex(torch.tensor([[1.0, 3.0]]), torch.tensor([[98.0, 102.0]])))
    assert float(noise_on(network).scales["weight"]) == pytest.approx(math.sqrt(2.5))


def test_two_numbers_are_moved_by_their_population_deviation():
    # n = 300 rays of 2 numbers: the deviation has a relative standard error of 0.03; the sample deviation is sqrt(2).
    network = nn.Linear(1, 2, bias=False)
    network.weight = nn.Parameter(torch.tensor([[-1.0], [1.0]]))
    drawn = torch.stack([added(network, ray) for ray in range(300)])
    assert drawn.std().item() == pytest.approx(1, rel=0.12)


def test_of_one_tensor_both_normalizations_are_the_same():
    network = nn.Linear(6, 3)
    layer, together = (added(network, normalization=name) for name in ("layer", "global"))
    torch.testing.assert_close(layer, together)


def test_common_deviation_is_exact_far_from_0():
    network = uneven()
    with torch.no_grad():
        network.fc1.weight += 1e3
    pooled = torch.cat([value.flatten().double() for value in network.parameters()]).std(correction=0).item()
    assert float(noise_on(network, normalization="global").scales["fc1.weight"]) == pytest.approx(pooled, rel=1e-9)


# Seeds and names -----------------------------------------------------------------------------------------------------


def test_directions_are_functions_of_seed_ray_and_name():
    network = mlp()
    first, again = noise_on(network, seed=3).draw(5), noise_on(network, seed=3).draw(5)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for other in (noise_on(network, seed=4).draw(5), noise_on(network, seed=3).draw(6)):
        assert not any(torch.equal(first[name], other[name]) for name in first)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    noise_on(mlp()).draw(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_on_one_tensor_alone_is_the_same():
    noise = noise_on(mlp())
    alone = noise.only("fc2.weight").draw(3)
    assert list(alone) == ["fc2.weight"]
    assert torch.equal(alone["fc2.weight"], noise.draw(3)["fc2.weight"])


def test_noise_of_a_tensor_depends_on_its_name_and_not_on_its_company():
    small, large = mlp(), mlp()
    large.add_module("more", nn.Linear(3, 3))
    before, after = (moves(network) for network in (small, large))
    for name, noise in before.items():
        assert torch.equal(noise, after[name])


def test_tensors_of_one_shape_get_different_noise():
    network = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    moved = moves(network)
    ratio = moved["0.weight"] / moved["1.weight"]
    assert ratio.std() > 0.1


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (["fc1.weight"], {"fc1.weight"}),
        (["fc*"], {"fc1.weight", "fc2.weight"}),
        (["head.*", "fc[2-9].weight"], {"head.weight", "fc2.weight"}),
        (["*", "fc1.weight"], {"fc1.weight", "fc2.weight", "head.weight"}),
    ],
)
def test_globs_of_names_choose_what_is_moved(layers, chosen):
    moved = moves(mlp(), layers=layers)
    assert {name for name, noise in moved.items() if noise.any()} == chosen


@pytest.mark.parametrize(
    ("network", "layers", "error", "text"),
    [
        (
            nn.BatchNorm1d(3),
            None,
            ValueError,
            "The model has no floating parameter with two or more dimensions, so that none can be disturbed.",
        ),
        (
            mlp(),
            "fc1.weight",
            TypeError,
            "`layers` must be a list of parameter names or globs, or 'each', got 'fc1.weight'.",
        ),
        (mlp(), [], ValueError, "`layers` must name at least one weight, got []. Leave it None to disturb all."),
        (
            mlp(),
            ["fc1.weigth"],
            ValueError,
            "`layers` names 'fc1.weigth', which matches no weight. The nearest are 'fc1.weight', 'fc2.weight'",
        ),
    ],
    ids=["no weight", "text", "none", "misspelt"],
)
def test_names_that_choose_no_weight_are_refused(network, layers, error, text):
    with pytest.raises(error) as caught:
        weight_tensors(network, layers)
    assert str(caught.value).startswith(text)


def test_both_parts_of_a_complex_weight_are_moved_alike_and_apart():
    network = nn.Module()
    network.weight = nn.Parameter(torch.complex(gaussian(30, 40), 3 * gaussian(30, 40, seed=1)))
    scale = math.sqrt((gaussian(30, 40).var(correction=0) + 9 * gaussian(30, 40, seed=1).var(correction=0)) / 2)
    direction = added(network)
    assert direction.shape == (30, 40)
    # n = 1,200 numbers, seed 0: the relative standard error of a deviation is 0.02, that of a correlation 0.03.
    for part in (direction.real, direction.imag):
        assert part.std().item() == pytest.approx(scale, rel=0.08)
    assert torch.corrcoef(torch.view_as_real(direction).flatten(0, 1).t())[0, 1].abs() < 0.12


# Weights that each process holds a part of ---------------------------------------------------------------------------


class FSDPModule(nn.Sequential):
    """Stands for a sharded module: it runs with the weights that it holds, and notes what is asked of it."""

    def __init__(self):
        super().__init__(*mlp())
        self.asked, self.fails = [], False
        for weight in self.parameters():
            weight.to_local = lambda: None  # what a shard is told by

    def reshard(self):
        self.asked.append("reshard")

    def forward(self, x):
        self.asked.append("forward")
        if self.fails:
            raise RuntimeError("stop")
        return super().forward(x)


@pytest.mark.parametrize("fails", [False, True])
def test_noise_is_written_to_shards_for_a_forward_pass_and_taken_back(fails):
    network, plain, x = FSDPModule(), nn.Sequential(*mlp()), probe(5)[0]
    noise, before = noise_on(network), states(network)
    direction = noise.draw(0)
    moved = noise_on(plain).network(noise_on(plain).draw(0), 0.7)(x)
    network.fails = fails
    with torch.no_grad():
        call = noise.network(direction, 0.7)
        if fails:
            with pytest.raises(RuntimeError, match="stop"):
                call(x)
        else:
            assert torch.equal(call(x), moved)
            assert not torch.equal(moved, plain(x))
    assert network.asked == ["reshard", "forward", "reshard"]
    assert all(torch.equal(value, before[name]) for name, value in states(network).items())
    assert noise.sharded
    assert not noise_on(plain).sharded
    assert realised_noise(noise, 0.7) == {}


def test_constant_weights_are_named_and_the_others_moved():
    network = mlp()
    with torch.no_grad():
        network.fc2.weight.fill_(0.5)
    text = (
        "The weights ['fc2.weight'] are constant: noise in units of their standard deviation, 0, does not move them. "
        "Leave them out with `layers=`, or use normalization='global'."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$") as caught:
        weight_basin(network, probe()[0], network(probe()[0]).argmax(dim=1), rays=2)
    assert len([warning for warning in caught if "constant" in str(warning.message)]) == 1
    assert {name for name, noise in moves(network).items() if noise.any()} == {"fc1.weight", "head.weight"}


def test_global_noise_moves_constant_weights_too():
    network = mlp()
    with torch.no_grad():
        network.fc2.weight.fill_(0.5)
    moved = moves(network, normalization="global")
    assert moved["fc2.weight"].any()
    assert noise_on(network, normalization="global").unmoved == []


def test_noise_that_low_precision_rounds_is_reported():
    # Weights 100 and 101 in bfloat16 lie on steps of 0.5; their spread is 0.5, and noise of 0.02 of it is lost.
    network = nn.Linear(64, 2, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        network.weight.copy_(100 + (torch.arange(128).reshape(2, 64) % 2))
    noise = noise_on(network)
    assert realised_noise(noise, 0.02)["weight"] == 0
    # At twice the step's spread rounding adds its own: sqrt(1 + (step / sqrt(12) / noise)^2) = 1.01.
    assert realised_noise(noise, 2.0)["weight"] == pytest.approx(1.01, abs=0.1)


def test_noise_on_a_constant_weight_has_no_share():
    network = mlp()
    with torch.no_grad():
        network.fc2.weight.fill_(0.5)
    found = realised_noise(noise_on(network), 0.5)
    assert math.isnan(found["fc2.weight"])
    assert found["fc1.weight"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_weights_are_moved_in_float32_or_better_and_rounded_once(dtype):
    network = mlp().to(dtype)
    noise = noise_on(network)
    direction = noise.draw(0)
    for name, moved in noise.moved(direction, 0.3).items():
        assert moved.dtype == dtype
        weight = network.get_parameter(name).detach().double()
        added = 0.3 * noise.scales[name].double() * direction[name].double()
        exact = weight + added
        once = torch.finfo(dtype).eps / 2 * exact.abs()
        in_float32 = torch.finfo(torch.float32).eps * (weight.abs() + added.abs())
        assert ((moved.double() - exact).abs() <= once + in_float32).all()


def test_noise_is_the_same_whatever_the_default_dtype():
    noise = WeightNoise.on(nn.Linear(5, 3), None, "layer", 0)
    expected = noise.draw(2)["weight"]
    torch.set_default_dtype(torch.float64)
    try:
        found = noise.draw(2)["weight"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
