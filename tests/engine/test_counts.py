"""What an evaluation in a run costs, in counts that do not depend on the machine."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import netdyn
from netdyn import Monitor, diagnose
from netdyn._utils import random

SAMPLES = 1024


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images).float() / 16, torch.tensor(labels)


def trained(digits, norm):
    torch.manual_seed(0)
    layers = [nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU()]
    if norm:
        layers = [layers[0], nn.BatchNorm1d(96), layers[1], layers[2], nn.BatchNorm1d(96), layers[3]]
    network = nn.Sequential(*layers, nn.Linear(96, 10))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(digits[0]), digits[1]).backward()
        optimiser.step()
    return network.eval()


@pytest.mark.parametrize(("norm", "most"), [(False, 12), (True, 14)])
def test_an_evaluation_in_a_run_takes_few_passes_over_the_probe(digits, norm, most):
    network, (x, y) = trained(digits, norm), digits
    monitor = Monitor((x[:SAMPLES], y[:SAMPLES]), (x[SAMPLES:], y[SAMPLES:]))
    passed = []
    network.register_forward_pre_hook(lambda _, inputs: PASSED.append(len(inputs[0])))
    for step in range(3):
        PASSED.clear()
        report = monitor.measure(network, step)
        passed.append(sum(PASSED) / SAMPLES)
    assert report.sample_basin.radius > 0
    assert report.weight_basin.radius > 0
    assert report.coverage is not None
    assert (report.batchnorm_gap == report.batchnorm_gap) == norm
    # The first evaluation also measures what its figures show: the classes' basins, and maps.
    assert passed[0] <= most + 8
    assert max(passed[1:]) <= most, passed


#: Rows of each forward pass. A global, because an evaluation restores all that it can reach from the network.
PASSED = []


class Crossings(TorchFunctionMode):
    """Number of entries of every tensor that goes from the device to the host or back.

    ``Tensor.numpy`` does not count: it exists on the CPU alone, and takes ``Tensor.cpu`` elsewhere.
    """

    CROSS = (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.pin_memory)

    def __init__(self):
        super().__init__()
        self.entries = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        moves = func is torch.Tensor.to and (
            "device" in kwargs or any(isinstance(given, str | torch.device) for given in args[1:])
        )
        if func in self.CROSS or moves:
            self.entries.append(args[0].numel())
        elif func in (torch.tensor, torch.as_tensor, torch.from_numpy):
            self.entries.append(torch.as_tensor(args[0]).numel())
        return func(*args, **kwargs)


@pytest.mark.parametrize("norm", [False, True])
def test_nothing_as_large_as_the_probe_or_the_weights_goes_to_the_host_and_back(digits, norm, monkeypatch):
    # On a CPU, NumPy makes the noise; on any other device torch does, where the network is.
    monkeypatch.setattr(random, "pairs_by_numpy", random.pairs_by_torch)
    network, (x, y) = trained(digits, norm), digits
    monitor = Monitor((x[:SAMPLES], y[:SAMPLES]), (x[SAMPLES:], y[SAMPLES:]), figures="never")
    monitor.measure(network, 0)
    again = copy.deepcopy(network)
    with Crossings() as crossings:
        monitor.measure(again, 1)
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert len(crossings.entries) > 50
    # Logits [samples, classes] are the largest: the linear tails are judged on the host.
    assert max(crossings.entries) <= 10 * SAMPLES
    assert min(weights, x[:SAMPLES].numel()) > 10 * SAMPLES


#: The folder of the package.
OURS = f"{Path(netdyn.__file__).parent}/"


class Kernels(TorchDispatchMode):
    """Operators that compute something on behalf of the modes, on the network's device and on the host.

    What a layer's numbers are made from stays on the device; the few numbers per unit that are left go to the host.
    """

    HOST = ("order", "permutation", "shares")

    def __init__(self):
        super().__init__()
        self.device = self.host = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(OURS):
            frame = frame.f_back
        place = Path("" if frame is None else frame.f_code.co_filename)
        if not func.is_view and (place.parent.name == "modes" or place.parts[-2:] == ("engine", "modes.py")):
            on_host = place.parent.name == "modes" and place.stem in self.HOST
            self.host += on_host
            self.device += not on_host
        return func(*args, **(kwargs or {}))


def kernels(layers, width=32, classes=10):
    torch.manual_seed(0)
    hidden = [module for _ in range(layers) for module in (nn.Linear(width, width), nn.ReLU())]
    network = nn.Sequential(*hidden, nn.Linear(width, classes))
    with Kernels() as counted:
        diagnose(network, torch.randn(512, width), torch.arange(512) % classes, measure=["modes"], progress=False)
    return counted


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="older releases call more operators for the same",
)
def test_the_modes_of_a_layer_take_few_kernels():
    # The time of a small layer is that of its kernels, about 4 µs each, not that of its numbers.
    few, many = kernels(5), kernels(15)
    assert 50 < (many.device - few.device) / 10 <= 150
    assert 50 < (many.host - few.host) / 10 <= 110
