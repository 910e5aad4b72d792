"""Networks that run the same weights again, against autograd on the network with its activations written out."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from netdyn.functional import linear_substitution_map, linear_tail, local_fields
from networks import CLASSES, FEATURES, fill, labels, samples

# torch warns of this in every evaluation without gradients.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")

WIDTH, STEPS, STEP = 9, 4, 0.3
#: Few samples, so that a map is the mean over all of them.
PROBE = 12


class Dynamics(nn.Module):
    """The right-hand side of an ordinary differential equation."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 7), nn.Linear(7, WIDTH)

    def forward(self, time, h):
        return self.outer(torch.tanh(self.inner(h) + time))


def euler(function, h):
    for step in range(STEPS):
        h = h + STEP * function(step * STEP, h)
    return h


def midpoint(function, h):
    for step in range(STEPS):
        time = step * STEP
        h = h + STEP * function(time + STEP / 2, h + STEP / 2 * function(time, h))
    return h


class Solved(nn.Module):
    """An ODE network: the same layers run at every step of a solver."""

    def __init__(self, solver=euler):
        super().__init__()
        self.solver = solver
        self.first, self.dynamics, self.head = nn.Linear(FEATURES, WIDTH), Dynamics(), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.solver(self.dynamics, torch.relu(self.first(x))))


class Shared(nn.Module):
    """One block, with one activation module, runs three times, and a weight serves twice."""

    def __init__(self):
        super().__init__()
        self.first, self.block, self.head = (
            nn.Linear(FEATURES, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, CLASSES),
        )
        self.phi = nn.GELU()

    def forward(self, x):
        h = self.phi(self.first(x))
        for _ in range(3):
            h = self.phi(self.block(h)) + 0.5 * h
        return self.head(torch.relu(h @ self.block.weight))


class Saved(nn.Module):
    """Blocks under activation checkpointing, which runs them again in a backward pass."""

    def __init__(self, reentrant=False):
        super().__init__()
        self.reentrant = reentrant
        self.first, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU()) for _ in range(2))

    def forward(self, x):
        h = torch.relu(self.first(x))
        for block in self.blocks:
            h = h + checkpoint(block, h, use_reentrant=self.reentrant)
        return self.head(h)


class Unrolled:
    """A network with each activation numbered, so that any of them can be replaced, and fields shifted."""

    def __init__(self, network):
        self.network = network

    def __call__(self, x, shifts=(), linear_from=None, straight=False):
        """Logits and fields; activation ``i`` is the identity if ``i`` is at least ``linear_from``."""
        fields = []

        def phi(function, h):
            number = len(fields)
            h = h + shifts[number] if number < len(shifts) and shifts[number] is not None else h
            fields.append(h)
            if linear_from is not None and number >= linear_from:
                return h
            return h + (function(h) - h).detach() if straight else function(h)

        return self.run(x, phi), fields

    def run(self, x, phi):
        net, linear = self.network, nn.functional.linear
        if isinstance(net, Solved):

            def dynamics(time, h):
                inner = linear(h, net.dynamics.inner.weight, net.dynamics.inner.bias) + time
                return linear(phi(torch.tanh, inner), net.dynamics.outer.weight, net.dynamics.outer.bias)

            return net.head(net.solver(dynamics, phi(torch.relu, net.first(x))))
        if isinstance(net, Shared):
            h = phi(nn.functional.gelu, net.first(x))
            for _ in range(3):
                h = phi(nn.functional.gelu, net.block(h)) + 0.5 * h
            return net.head(phi(torch.relu, h @ net.block.weight))
        h = phi(torch.relu, net.first(x))
        for block in net.blocks:
            h = h + phi(nn.functional.silu, block[0](h))
        return net.head(h)


NETWORKS = {
    "Euler": lambda: Solved(euler),
    "midpoint": lambda: Solved(midpoint),
    "shared": Shared,
    "checkpointed": Saved,
    "checkpointed, reentrant": lambda: Saved(reentrant=True),
}
NAMES = {
    "Euler": ["first", *(["dynamics"] + [f"dynamics:{i}" for i in range(1, STEPS)])],
    "midpoint": ["first", *(["dynamics"] + [f"dynamics:{i}" for i in range(1, 2 * STEPS)])],
    "shared": ["first", "block", "block:1", "block:2", "model"],
    "checkpointed": ["first", "blocks.0.0", "blocks.1.0"],
    "checkpointed, reentrant": ["first", "blocks.0.0", "blocks.1.0"],
}


@pytest.fixture(params=NETWORKS)
def case(request):
    network = fill(NETWORKS[request.param]()).eval()
    return network, Unrolled(network), NAMES[request.param], samples(PROBE)


def test_fields_are_those_of_every_run(case):
    network, unrolled, names, x = case
    found, (logits, expected) = local_fields(network, x), unrolled(x)
    torch.testing.assert_close(network(x), logits)
    assert list(found) == names
    for field, own in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(field, own.detach())


def test_maps_are_the_mean_jacobians_of_the_straight_network(case):
    network, unrolled, names, x = case
    shifts = [torch.zeros_like(own).requires_grad_() for own in unrolled(x)[1]]
    logits, _ = unrolled(x, shifts, straight=True)
    rows = [torch.autograd.grad(logits[:, k].sum(), shifts, retain_graph=True) for k in range(CLASSES)]
    found = linear_substitution_map(network, x)
    assert list(found) == names
    for i, name in enumerate(names):
        expected = torch.stack([row[i].mean(dim=0) for row in rows])
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
        assert expected.abs().max() > 0


@pytest.mark.parametrize("exact", [False, True])
def test_tails_are_those_of_the_network_without_its_last_activations(case, exact):
    network, unrolled, names, _ = case
    x = samples(200)
    with torch.no_grad():
        expected = [
            float((unrolled(x, linear_from=i)[0].argmax(1) == labels(200)).double().mean()) for i in range(len(names))
        ]
    assert linear_tail(network, x, labels(200), exact=exact) == pytest.approx(dict(zip(names, expected, strict=True)))


def test_every_step_of_a_solver_adds_its_own_factor():
    network = fill(Solved()).eval()
    found = linear_substitution_map(network, samples(PROBE))
    inner, outer = network.dynamics.inner.weight.detach(), network.dynamics.outer.weight.detach()
    expected = STEP * network.head.weight.detach() @ outer
    for step in reversed(range(1, STEPS)):
        torch.testing.assert_close(found[f"dynamics:{step}"], expected, rtol=1e-4, atol=1e-5)
        # Through the step after it, and around that.
        expected = expected + expected @ inner @ (STEP * outer)
