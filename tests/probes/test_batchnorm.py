"""Batch statistics in place of running ones: against normalisation by hand and training flags; nothing is left."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdyn.functional import batchnorm_gap
from netdyn.probes.batchnorm import shuffled_batches
from networks import bn_mlp, fill, images, labels, residual_cnn, samples

CLASSES = 4


def accuracy(outputs, target):
    return float((outputs.argmax(1) == target).double().mean())


def clusters(number=400, classes=CLASSES, seed=0):
    """Noisy samples around the axes, class after class."""
    target = torch.arange(classes).repeat_interleave(number // classes)
    noise = torch.randn(number, 6, generator=torch.Generator().manual_seed(seed))
    return F.one_hot(target, 6) * 3.0 + noise, target


class Normed(nn.Module):
    """Batch normalisation, then a fixed read-out of the first four numbers."""

    def __init__(self, **options):
        super().__init__()
        self.bn = nn.BatchNorm1d(6, affine=False, **options)

    def forward(self, x):
        return self.bn(x)[:, :CLASSES]


def spoilt(shift=8.0, **options):
    """Running statistics that favour class 0, whatever the input."""
    network = Normed(**options)
    network.bn.running_mean[0] -= shift
    return network


def by_hand(network, x):
    """The same with the batch's mean and biased variance."""
    mean, variance = x.mean(dim=0), x.var(dim=0, unbiased=False)
    return ((x - mean) / (variance + network.bn.eps).sqrt())[:, :CLASSES]


def by_flags(network, x, indices):
    """Outputs of a copy whose batch normalisations alone are in train mode, batch by batch."""
    twin = copy.deepcopy(network).eval()
    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = True
    indices = list(indices)
    with torch.no_grad():
        return torch.cat([twin(x[index]) for index in indices]), torch.cat(indices)


# The number ----------------------------------------------------------------------------------------------------------


def test_equals_normalisation_by_hand():
    x, target = clusters()
    network = spoilt()
    expected = accuracy(by_hand(network, x), target) - accuracy(network.eval()(x), target)
    assert expected > 0.5
    assert batchnorm_gap(network, x, target) == pytest.approx(expected, abs=1e-12)


def test_good_running_statistics_leave_no_gap():
    x, target = clusters()
    network = Normed(momentum=None)
    network(x)
    network.bn.running_var *= (len(x) - 1) / len(x)  # torch keeps the unbiased variance
    assert batchnorm_gap(network, x, target) == 0


def test_a_network_that_needs_its_running_statistics_has_a_negative_gap():
    # A single class: centring the batch removes what distinguishes the class.
    x, target = clusters()
    network = Normed()
    one = target == 2
    assert accuracy(network.eval()(x[one]), target[one]) > 0.9
    assert batchnorm_gap(network, x[one], target[one]) < -0.4


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("batch_size", [None, 16, 30])
@pytest.mark.parametrize(
    ("network", "inputs"), [(fill(bn_mlp(), seed=2), samples), (residual_cnn(), images)], ids=["mlp", "cnn"]
)
def test_equals_training_flags(network, inputs, batch_size, seed):
    x = inputs(83)
    # The labels are the predictions for all samples in one batch, so that running statistics and small batches err.
    target = by_flags(network, x, [torch.arange(83)])[0].argmax(1)
    outputs, order = by_flags(network, x, shuffled_batches(83, batch_size, seed))
    expected = accuracy(outputs, target[order]) - accuracy(network.eval()(x), target)
    assert expected > 0.1
    assert batchnorm_gap(network, x, target, batch_size=batch_size, seed=seed) == pytest.approx(expected, abs=1e-12)


def test_dropout_stays_off():
    x, target = clusters()
    network = nn.Sequential(spoilt(), nn.Dropout(0.9)).train()
    assert batchnorm_gap(network, x, target) == batchnorm_gap(spoilt(), x, target)


# Batches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [50, 128])
def test_a_class_ordered_probe_is_shuffled(batch_size):
    # n = 400, seed 0: batches of 50 shuffled samples estimate a mean of spread 1.7 to ±0.24, against centres 3 apart.
    x, target = clusters()
    whole = batchnorm_gap(spoilt(), x, target)
    outputs, order = by_flags(spoilt(), x, torch.arange(400).split(batch_size))
    in_order = accuracy(outputs, target[order]) - accuracy(spoilt().eval()(x), target)
    assert in_order < whole - 0.2
    assert batchnorm_gap(spoilt(), x, target, batch_size=batch_size) == pytest.approx(whole, abs=0.05)


@pytest.mark.parametrize("samples_", [1, 2, 7, 63, 64, 65, 127, 129, 1000])
@pytest.mark.parametrize("batch_size", [None, 2, 64, 5000])
def test_batches_hold_every_sample_once_and_none_is_small(samples_, batch_size):
    batches = list(shuffled_batches(samples_, batch_size, seed=3))
    assert sorted(torch.cat(batches).tolist()) == list(range(samples_))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(batch_size or samples_, samples_)
    # One batch more would have to be smaller.
    assert batch_size is None or samples_ < batch_size * (len(sizes) + 1)


def test_batches_depend_on_the_seed_alone():
    def order(seed):
        return torch.cat(list(shuffled_batches(100, 10, seed))).tolist()

    torch.manual_seed(5)
    first = order(0)
    torch.manual_seed(6)
    assert order(0) == first
    assert order(1) != first
    assert order(0) != sorted(first)


# Kinds of normalisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [nn.Linear(6, CLASSES), nn.Sequential(nn.LayerNorm(6), nn.Linear(6, CLASSES))],
    ids=["none", "layer norm"],
)
def test_without_batch_normalisation_the_gap_is_nan(network):
    assert math.isnan(batchnorm_gap(fill(network), *clusters()))


def test_instance_and_group_normalisation_are_left_alone():
    network = nn.Sequential(
        nn.InstanceNorm2d(2, track_running_stats=True), nn.GroupNorm(2, 2), nn.Flatten(), nn.Linear(128, CLASSES)
    )
    assert math.isnan(batchnorm_gap(fill(network), images(40), labels(40)))


def test_normalisation_without_running_statistics_adds_nothing():
    x, target = clusters()
    for batch_size in (None, 20):
        assert batchnorm_gap(Normed(track_running_stats=False), x, target, batch_size=batch_size) == 0


def test_normalisation_without_running_statistics_beside_one_with_them():
    x, target = clusters()
    mixed = nn.Sequential(nn.BatchNorm1d(6, affine=False, track_running_stats=False), spoilt())
    alone = spoilt()
    normed = nn.functional.batch_norm(x, None, None, training=True)
    assert batchnorm_gap(mixed, x, target) == batchnorm_gap(alone, normed, target) > 0.5


class Functional(nn.Module):
    """Batch normalisation without a module."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([-8.0, 0, 0, 0, 0, 0]))
        self.register_buffer("variance", torch.ones(6))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.variance, eps=1e-5)[:, :CLASSES]


class Frozen(nn.BatchNorm1d):
    """Keeps out of train mode, as in fine-tuning."""

    def train(self, mode=True):
        return super().train(False)


@pytest.mark.parametrize("kind", ["functional", "sync", "frozen", "subclass"])
def test_normalisations_of_any_kind_are_found(kind):
    x, target = clusters()
    network = spoilt()
    if kind == "functional":
        network = Functional()
    elif kind == "sync":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        assert isinstance(network.bn, nn.SyncBatchNorm)
    elif kind == "subclass":
        network.bn.__class__ = Frozen
    else:
        network.bn.eval()
    assert batchnorm_gap(network, x, target) == batchnorm_gap(spoilt(), x, target)


def test_a_single_logit_is_judged_by_its_sign():
    class Sign(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(1, affine=False)

        def forward(self, x):
            return self.bn(x)[:, 0]

    x, target = torch.tensor([[10.0], [11.0], [12.0], [13.0]]), torch.tensor([0, 0, 1, 1])
    assert batchnorm_gap(Sign(), x, target) == 0.5


def test_a_criterion_of_the_users_own_is_used():
    x, target = clusters()

    def larger_than_two(outputs, target):
        return outputs[:, 0] > 2

    network = spoilt()
    expected = (by_hand(network, x)[:, 0] > 2).double().mean() - (network.eval()(x)[:, 0] > 2).double().mean()
    assert batchnorm_gap(network, x, target, criterion=larger_than_two) == pytest.approx(float(expected), abs=1e-12)


# Nothing left behind -------------------------------------------------------------------------------------------------


def everything(network):
    return {name: value.clone() for name, value in network.state_dict().items()}, [
        (module.training, set(module.__dict__)) for module in network.modules()
    ]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("mode", [True, False])
def test_nothing_is_updated(momentum, mode):
    network = bn_mlp().train(mode)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = momentum
    before, flags = everything(network)
    state = torch.get_rng_state()
    batchnorm_gap(network, samples(), labels(), batch_size=16)
    after, flags_after = everything(network)
    assert flags_after == flags
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_left_when_the_network_raises():
    class Tired(nn.Module):
        runs = 0

        def forward(self, x):
            Tired.runs += 1
            if Tired.runs == 2:
                raise ArithmeticError("tired")
            return x

    network = nn.Sequential(spoilt(), Tired()).train()
    before, flags = everything(network)
    with pytest.raises(RuntimeError, match="ArithmeticError: tired"):
        batchnorm_gap(network, *clusters())
    after, flags_after = everything(network)
    assert flags_after == flags
    assert all(torch.equal(after[name], before[name]) for name in before)
    # The function mode is gone too: what is normalised now uses its own statistics.
    x, _ = clusters()
    assert torch.equal(network.eval()[0](x), spoilt().eval()(x))


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batch_size": 1}, ValueError, "`batch_size` must be at least 2, got 1."),
        ({"batch_size": 2.0}, TypeError, "`batch_size` must be a whole number, got 2.0 of type float."),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1."),
        ({"criterion": "top5"}, TypeError, "`criterion` must be a function, got 'top5' of type str."),
    ],
)
def test_wrong_arguments_are_refused(options, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        batchnorm_gap(spoilt(), *clusters(), **options)


def test_a_single_sample_has_no_statistics():
    text = "`inputs` must hold at least two samples, since a single one has no variance, got 1."
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        batchnorm_gap(spoilt(), torch.zeros(1, 6), torch.tensor([0]))
