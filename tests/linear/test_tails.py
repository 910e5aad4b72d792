"""Linear tails and shares against networks run without their activations, written anew for each network."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import networks
from netdyn.functional import functional_depth, linear_share, linear_substitution_map, linear_tail
from netdyn.linear import tails
from netdyn.linear.tails import squared_correlation
from netdyn.metrics import LinearTail
from networks import CLASSES, FEATURES, fill, images, samples

#: Sizes of the batches that a watched network was given.
SIZES = []


def truth(network, x):
    """Labels that the network itself gives to most samples."""
    with torch.no_grad():
        found = network.eval()(x).argmax(1)
    found[::9] = (found[::9] + 1) % CLASSES
    return found


class Plain(nn.Module):
    """Layers of an MLP with optional batch norms, and a switch: activations from `first` on are the identity."""

    def __init__(self, phi, norm=False, depth=3):
        super().__init__()
        widths = [FEATURES, *[8] * depth, CLASSES]
        self.fc = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.bn = nn.ModuleList(nn.BatchNorm1d(8) if norm else nn.Identity() for _ in range(depth))
        self.phi, self.first = phi, None

    def act(self, i, h):
        return h if self.first is not None and i >= self.first else self.phi(h)

    def forward(self, x):
        for i, bn in enumerate(self.bn):
            x = self.act(i, bn(self.fc[i](x)))
        return self.fc[-1](x)


class Skips(Plain):
    """Every second layer is added to what it came from, and the field itself is used beside its activation."""

    def forward(self, x):
        x = self.act(0, self.fc[0](x))
        h = self.fc[1](x)
        x = x + self.act(1, h) + 0.3 * h
        x = x + self.act(2, self.fc[2](x))
        return self.fc[-1](x)


class Images(Plain):
    """A residual CNN; with `pool`, a max-pooling before its last activation."""

    def __init__(self, pool):
        super().__init__(torch.relu)
        self.pool = nn.MaxPool2d(2) if pool else nn.AvgPool2d(2)
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.c = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(64, CLASSES)
        del self.fc, self.bn

    def forward(self, x):
        x = self.act(0, self.a(x))
        x = x + self.act(1, self.norm(self.b(x)))
        x = self.act(2, self.c(self.pool(x)))
        return self.head(x.flatten(1))


class Normed(Plain):
    """Layer norms: its tails are not affine."""

    def forward(self, x):
        for i, fc in enumerate(self.fc[:-1]):
            x = self.act(i, fc(x))
            x = torch.nn.functional.layer_norm(x, (8,))
        return self.fc[-1](x)


class Taught(Plain):
    """Two of its layers run without gradients, so that they have no map."""

    def forward(self, x):
        with torch.no_grad():
            shown = self.fc[-1](self.act(1, self.fc[1](self.act(0, self.fc[0](x)))))
        return self.fc[-1](self.act(2, self.fc[0](x))) + 0.5 * shown


NETWORKS = {
    "relu": (lambda: Plain(torch.relu), samples),
    "tanh": (lambda: Plain(torch.tanh), samples),
    "in place": (lambda: Plain(torch.relu_), samples),
    "batch norm": (lambda: Plain(torch.nn.functional.gelu, norm=True), samples),
    "deep": (lambda: Plain(torch.relu, norm=True, depth=20), samples),
    "skips": (lambda: Skips(torch.relu), samples),
    "residual CNN": (lambda: Images(pool=False), images),
    "max-pooling": (lambda: Images(pool=True), images),
    "without gradients": (lambda: Taught(torch.relu), samples),
}


def by_hand(network, x, target):
    """Accuracy and share of every tail, from runs without its activations."""
    network.eval()
    accuracies, shares = [], []
    with torch.no_grad():
        network.first = None
        true = network(x)
        layers = 20 if len(getattr(network, "bn", [])) == 20 else 3
        for first in range(layers):
            network.first = first
            linear = network(x)
            accuracies.append((linear.argmax(1) == target).double().mean().item())
            shares.append(correlation(true, linear))
        network.first = None
    return accuracies, shares


def correlation(a, b):
    """Squared correlation of two sets of logits, each double-centred, by numpy."""
    a, b = (v.double().numpy() for v in (a, b))
    a, b = (v - v.mean(axis=1, keepdims=True) - v.mean(axis=0) + v.mean() for v in (a, b))
    return max(0.0, (a * b).sum()) ** 2 / ((a**2).sum() * (b**2).sum())


@pytest.fixture(params=NETWORKS)
def case(request):
    factory, inputs = NETWORKS[request.param]
    network, x = fill(factory()).double(), inputs(150).double()
    return network, x, truth(network, x)


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"batch_size": 40}], ids=str)
def test_tails_and_shares_are_those_of_networks_run_without_activations(case, options):
    network, x, target = case
    accuracies, shares = by_hand(network, x, target)
    assert list(linear_tail(network, x, target, **options).values()) == accuracies
    np.testing.assert_allclose(list(linear_share(network, x, **options).values()), shares, rtol=1e-9, atol=1e-12)
    # The accuracies differ, so that the test can fail.
    assert len(set(accuracies)) > 1


def test_the_map_of_the_whole_field_would_be_wrong_where_it_is_used_beside_its_activation(monkeypatch):
    network, x = fill(Skips(torch.relu)).double(), samples(150).double()
    _, shares = by_hand(network, x, truth(network, x))
    substitute = tails.substitute

    def whole(*args, **options):
        found = substitute(*args, **options)
        found.through.update(found.pathways)
        return found

    monkeypatch.setattr(tails, "substitute", whole)
    assert np.abs(np.array(list(linear_share(network, x).values())) - shares).max() > 1e-3


def test_without_a_run_a_tail_with_max_pooling_would_be_another(monkeypatch):
    network, x = fill(Images(pool=True)).double(), images(150).double()
    _, shares = by_hand(network, x, truth(network, x))
    monkeypatch.setattr(tails, "layers_to_run", lambda survey, linear_map: set())
    found = list(linear_share(network, x).values())
    assert abs(found[0] - shares[0]) > 1e-3
    assert found[2] == pytest.approx(shares[2], rel=1e-9)


def test_tails_that_are_not_affine_are_run_when_asked():
    network, x = fill(Normed(torch.relu)).double(), samples(150).double()
    target = truth(network, x)
    assert max(linear_substitution_map(network, x).affine_defect.values()) > 0.1
    accuracies, shares = by_hand(network, x, target)
    assert list(linear_tail(network, x, target, exact=True).values()) == accuracies
    found = linear_share(network, x, exact=True)
    np.testing.assert_allclose(list(found.values()), shares, rtol=1e-9)
    assert list(linear_share(network, x).values()) != pytest.approx(shares, rel=1e-3)


def test_chosen_layers_have_the_tails_that_they_have_among_all():
    network, x = fill(Plain(torch.relu)), samples(150)
    target = truth(network, x)
    everything = linear_tail(network, x, target)
    assert linear_tail(network, x, target, layers=["fc.1"]) == {"fc.1": everything["fc.1"]}


def test_the_modules_of_a_linear_network_lose_nothing():
    network, x = networks.linear_network(), samples(150)
    target = truth(network, x)
    accuracy = float((network(x).argmax(1) == target).double().mean())
    assert linear_tail(network, x, target, layers=["0", "1"]) == {"0": accuracy, "1": accuracy}
    assert linear_share(network, x, layers=["0"])["0"] == pytest.approx(1, abs=1e-6)


def test_a_single_logit_is_judged_by_its_sign_also_before_a_sigmoid():
    network, x = networks.single_logit(), samples(200)
    with torch.no_grad():
        logit = network.last(torch.relu(network.first(x)))[:, 0]
        linear = network.last(network.first(x))[:, 0]
        target = (logit > 0).long()
    assert linear_tail(network, x, target) == {"first": float(((linear > 0).long() == target).double().mean())}
    expected = np.corrcoef(logit.double().numpy(), linear.double().numpy())[0, 1] ** 2
    assert linear_share(network, x)["first"] == pytest.approx(expected, rel=1e-5)


def test_a_constant_network_has_no_share():
    network = fill(nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES)))
    nn.init.zeros_(network[2].weight)
    assert math.isnan(linear_share(network, samples())["0"])


@pytest.mark.parametrize(
    ("accuracies", "accuracy", "depth"),
    [
        ([0.5, 0.7, 0.89, 0.9], 0.9, 2),
        ([0.9, 0.5, 0.9], 0.9, 2),
        ([0.9, 0.9], 0.9, 0),
        ([0.92, 0.88], 0.9, 0),
        ([0.5, 0.94, 0.936], 0.9, 1),
        ([0.92, 0.879], 0.9, 2),
        ([0.5, 0.6], 0.9, 2),
        ([math.nan, 0.9], 0.9, math.nan),
        ([], 0.9, math.nan),
    ],
)
def test_functional_depth_is_the_first_layer_from_which_nothing_is_lost(accuracies, accuracy, depth):
    named = {str(i): value for i, value in enumerate(accuracies)}
    assert functional_depth(named, accuracy) == pytest.approx(depth, nan_ok=True)
    assert math.isnan(functional_depth(named, accuracy, untrained=True))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("centre", [True, False])
def test_a_share_is_centred_over_two_classes_too(centre, classes):
    # A number that is added to all logits of a sample changes the share only if it is not taken away.
    true, added = samples(40, 2, (classes,)), samples(40, 3, (1,))
    share = squared_correlation(true, true + added, centre)
    assert share == (pytest.approx(1) if centre else pytest.approx(uncentred(true, true + added)))
    assert uncentred(true, true + added) < 0.9


def uncentred(a, b):
    """Squared correlation, each logit less its mean over samples alone."""
    a, b = ((v - v.mean(0)).double().numpy() for v in (a, b))
    return (a * b).sum() ** 2 / ((a**2).sum() * (b**2).sum())


@pytest.mark.parametrize("exact", [False, True])
def test_no_forward_pass_holds_more_samples_than_a_batch(exact):
    network, x = fill(Images(pool=True)), images(150)
    target = truth(network, x)
    network.register_forward_pre_hook(lambda module, args: SIZES.append(len(args[0])))
    SIZES.clear()
    linear_tail(network, x, target, exact=exact, batch_size=70)
    assert max(SIZES) == 70


def test_labels_are_checked():
    with pytest.raises(ValueError, match="`target`"):
        linear_tail(networks.bn_mlp(), samples(), torch.zeros(79, dtype=torch.int64))
    with pytest.raises(TypeError, match="`target` must hold whole class labels"):
        linear_tail(networks.bn_mlp(), samples(), torch.zeros(80))
    with pytest.raises(ValueError, match="got the label 4"):
        linear_tail(networks.bn_mlp(), samples(), torch.full((80,), 4))


# The metric


def test_the_metric_is_the_function_however_samples_come():
    network, x = fill(Plain(torch.relu, norm=True)), samples(150)
    target = truth(network, x)
    whole, parts, left, right = LinearTail(), LinearTail(), LinearTail(), LinearTail()
    whole.update(network, x, target)
    for part in (slice(0, 7), slice(7, 90), slice(90, 150)):
        parts.update(network, x[part], target[part])
    left.update(network, x[:60], target[:60])
    right.update(network, x[60:], target[60:])
    left.merge_state(right)
    expected = linear_tail(network, x, target)
    for metric in (whole, parts, left):
        assert metric.layers == tuple(expected)
        assert metric.compute().tolist() == pytest.approx(list(expected.values()))


def test_the_metric_without_data_is_empty_and_forgets():
    metric, network = LinearTail(layers=["fc.1"]), fill(Plain(torch.relu))
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert metric.compute().shape == (0,)
    metric.update(network, samples(), torch.arange(80) % CLASSES)
    assert metric.layers == ("fc.1",)
    metric.reset()
    assert metric.layers == ()


def test_the_metric_refuses_another_network_and_draws():
    metric = LinearTail()
    metric.update(fill(Plain(torch.relu)), samples(), torch.arange(80) % CLASSES)
    _, axes = metric.plot()
    assert axes.lines[0].get_ydata() == pytest.approx(metric.compute().tolist())
    with pytest.raises(ValueError, match="`model` must have the same layers in every update of one accumulation"):
        metric.update(fill(Plain(torch.relu, depth=2)), samples(), torch.arange(80) % CLASSES)
