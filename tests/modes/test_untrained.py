"""An untrained network shows as many order-preserving units as chance allows, for any network and any probe."""

import copy
import itertools
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from netdyn import NeuronModes, diagnose
from netdyn.functional import class_tuning, linear_substitution_map, local_fields, rank_distribution
from netdyn.modes.shares import mode_shares

#: Shares over many layers.
pytestmark = pytest.mark.slow

ALPHA = 0.05
FLIPS = 512


def mlp(classes):
    return nn.Sequential(
        nn.Linear(100, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.Tanh(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def bn_mlp(classes):
    hidden = [[nn.Linear(n, 128), nn.BatchNorm1d(128), nn.ReLU()] for n in (100, 128, 128)]
    return nn.Sequential(*(module for block in hidden for module in block), nn.Linear(128, classes))


def conv_net(classes):
    return nn.Sequential(
        nn.Unflatten(1, (1, 10, 10)),
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 10, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(250, classes),
    )


NETWORKS = {"MLP": mlp, "batch-norm MLP": bn_mlp, "conv net": conv_net}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def untrained(make, classes, samples):
    """A network as torch initialises it, and clouds around one centre per class."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make(classes)
    draw = torch.Generator().manual_seed(1)
    target = torch.arange(samples) % classes
    x = torch.randn(classes, 100, generator=draw)[target] + torch.randn(samples, 100, generator=draw)
    if make is bn_mlp:
        network.train()(x)  # The running statistics of one batch, so that the layers are not off centre.
    return network.eval(), x, target


def flipped(pathway):
    """The centred pathway under 512 random sign flips of its rows, side by side: [K, 512 x units]."""
    centred = pathway.double() - pathway.double().mean(dim=0)
    draw = torch.Generator().manual_seed(3)
    signs = torch.randint(2, (FLIPS, len(pathway), 1), generator=draw) * 2 - 1
    return (signs * centred).transpose(0, 1).reshape(len(pathway), -1)


def opt_fractions(make, classes, samples, centre):
    """OPT share of each layer, averaged over the flips of its pathway."""
    network, x, target = untrained(make, classes, samples)
    fields, pathways = local_fields(network, x), linear_substitution_map(network, x)
    for name, field in fields.items():
        tuning = class_tuning(field, target, classes).repeat(1, FLIPS)
        constant = torch.zeros(tuning.shape[1], dtype=torch.bool)
        shares = mode_shares(tuning, flipped(pathways[name]), constant, alpha=ALPHA, centre=centre)
        assert shares.rule == "sign-flip"
        yield shares.opt_fraction


# n = 512 sign flips of the rows, seed 3, on 128 to 600 units per layer: all units share a flip, and over flips the mean
# share has a standard error of 0.0011 or less. The bound of 0.01 is 9 of them: five classes have few different flips.


@pytest.mark.parametrize("samples", [100, 600])
@pytest.mark.parametrize("classes", [5, 6, 10])
@every_network
def test_sign_flips_of_the_centred_map_find_alpha_in_every_layer_of_an_untrained_network(make, classes, samples):
    for share in opt_fractions(make, classes, samples, centre=False):
        assert abs(share - ALPHA) <= 0.01


@pytest.mark.parametrize("samples", [100, 600])
@pytest.mark.parametrize(("classes", "bound"), [(5, 0.02), (6, 0.02), (10, 0.01)])
@every_network
def test_flipped_maps_that_are_centred_again_find_alpha_too(make, classes, bound, samples):
    # Centring makes the signs depend on one another: the flips of five or six rows are then no longer fair coins for
    # each unit. A layer of similar units may lie further off.
    for share in opt_fractions(make, classes, samples, centre=True):
        assert abs(share - ALPHA) <= bound


@every_network
def test_the_bound_refuses_a_network_that_has_learnt(make):
    network, x, target = untrained(make, 5, 600)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.003)
    network.train()
    for _ in range(10):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), target).backward()
        optimiser.step()
    shares = [layer.opt_fraction for layer in diagnose(network, x, target, measure=["modes"]).layers]
    assert max(shares) > ALPHA + 0.1


# A row that all logits have in common --------------------------------------------------------------------------------


def rounded(network):
    """All numbers multiples of 1/8: sums of their products are exact."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_((8 * parameter).round() / 8)
    return network


def with_common_row(network):
    """The network with one and the same row added to the weights of every logit, and one number to every bias."""
    shifted = copy.deepcopy(network)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        last = shifted[-1]
        last.weight += torch.randint(-16, 17, last.weight.shape[1:], generator=draw).to(last.weight) / 8
        last.bias += 2.5
    return shifted


def layer_numbers(report):
    return [repr(layer) for layer in report.to_dict()["layers"]]


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("make", [mlp, conv_net])
def test_a_row_common_to_all_logits_changes_no_bit_of_the_modes(make, classes):
    network, x, target = untrained(make, classes, 200)
    # Without Tanh: nothing but sums, products and maxima.
    network = rounded(nn.Sequential(*(nn.ReLU() if isinstance(module, nn.Tanh) else module for module in network)))
    x = (4 * x).round() / 4
    shifted = with_common_row(network)
    assert not torch.equal(shifted(x), network(x))
    before, after = (diagnose(one, x, target, measure=["modes"]) for one in (network, shifted))
    numbers = [[{**layer, "affine_defect": 0} for layer in one.to_dict()["layers"]] for one in (before, after)]
    assert repr(numbers[0]) == repr(numbers[1])
    for name, field in local_fields(network, x).items():
        densities = [
            rank_distribution(field, target, linear_substitution_map(one, x)[name], classes)
            for one in (network, shifted)
        ]
        assert torch.equal(*densities)
        metrics = [NeuronModes(classes), NeuronModes(classes)]
        for metric, one in zip(metrics, (network, shifted), strict=True):
            metric.update(field, target, linear_substitution_map(one, x)[name])
        assert repr(metrics[0].compute()) == repr(metrics[1].compute())


@every_network
def test_a_row_common_to_all_logits_changes_no_mode_but_for_rounding(make):
    network, x, target = untrained(make, 5, 200)
    network, x = network.double(), x.double()
    before, after = (diagnose(one, x, target, measure=["modes"]) for one in (network, with_common_row(network)))
    for one, other in zip(before.layers, after.layers, strict=True):
        assert (one.opt_fraction, one.npt_fraction) == (other.opt_fraction, other.npt_fraction)
        assert one.rpd_gradient == pytest.approx(other.rpd_gradient, abs=1e-9)
        torch.testing.assert_close(one.order_index, other.order_index, rtol=0, atol=1e-9)
        torch.testing.assert_close(one.alignment, other.alignment, rtol=0, atol=1e-9)


def test_without_centring_the_common_row_would_decide():
    network, x, target = untrained(mlp, 5, 200)
    tuning = class_tuning(local_fields(network, x)["4"], target, 5)
    constant = torch.zeros(tuning.shape[1], dtype=torch.bool)
    shares = [
        mode_shares(tuning, linear_substitution_map(one, x)["4"], constant, centre=False).opt_fraction
        for one in (network, with_common_row(network))
    ]
    assert shares[0] != shares[1]


# Reports of untrained networks


def digits():
    images, target = load_digits(return_X_y=True)
    return torch.tensor(images[:1000] / 16, dtype=torch.float32), torch.tensor(target[:1000])


def deep(depth, norm):
    def make():
        widths = [64, *[100] * depth]
        hidden = [
            nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b) if norm else nn.Identity(), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        ]
        return nn.Sequential(*hidden, nn.Linear(100, 10))

    return make


@pytest.mark.parametrize("make", [deep(2, False), deep(6, True), deep(12, True)], ids=["2", "6 BN", "12 BN"])
def test_an_untrained_network_reads_as_untrained(make):
    """1,000 digits, seeds 0 to 7: gradients lie about 0 (range ±5.4); no depth, no phase, nothing acts linearly."""
    means = []
    for seed in range(8):
        torch.manual_seed(seed)
        network = make()
        report = diagnose(network, *digits(), measure=["modes", "linear"])
        means.append(report.phase.mean)
        assert math.isnan(report.functional_depth)
        assert not [said for said in report.findings() if "linear" in said or "hase" in said]
    spread = torch.tensor(means).std()
    # Four standard errors of the mean over seeds.
    assert abs(torch.tensor(means).mean()) < 4 * spread / 8**0.5
    assert spread < 0.1 * 5.4


def test_a_trained_network_is_told_from_an_untrained_one():
    torch.manual_seed(0)
    network, (x, target) = deep(2, True)(), digits()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), target).backward()
        optimizer.step()
    report = diagnose(network, x, target, measure=["modes", "linear"])
    assert report.phase.mean > 0.2 * 5.4
    assert not math.isnan(report.functional_depth)
