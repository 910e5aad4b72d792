"""A hundred layers: the same answers, the same number of passes, work in proportion to depth, memory of one layer.

Nothing is timed. A dispatch mode counts every operation that torch carries out, with the numbers it puts out, and the
bytes of all tensors that are alive.
"""

import itertools
import math
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import networks
import reference
from families import CLASSES, FEATURES, ResNet, oracle
from netdyn import diagnose
from netdyn.basins.crossing import MOST
from netdyn.basins.ladder import NEAR as NEAR_QUESTIONS
from netdyn.basins.ladder import WIDE as WIDE_QUESTIONS
from netdyn.basins.weight_basin import FIRST, LEVELS
from netdyn.functional import linear_substitution_map, local_fields

pytestmark = pytest.mark.slow

WIDTH = 16
IMAGE = (2, 8, 8)


def mlp(depth, width=WIDTH, activation=nn.ReLU):
    """`depth` matrices, with an activation between every two; gains keep the scale of the fields of ReLUs."""
    layers = [nn.Linear(FEATURES, width)]
    for _ in range(depth - 2):
        layers += [activation(), nn.Linear(width, width)]
    network = networks.fill(nn.Sequential(*layers, activation(), nn.Linear(width, CLASSES)))
    with torch.no_grad():
        for weight in networks.weights_of(network)[1:]:
            weight *= 2**0.5
    return network.eval()


def resnet(blocks=(3, 4, 23, 3)):
    """The blocks of a ResNet-101 on images of 8 × 8 pixels, with as few channels as they go with."""
    return networks.fill(ResNet(blocks, width=1, excite=False)).eval()


def probe(samples, *shape):
    return networks.samples(samples, shape=shape or (FEATURES,)), torch.arange(samples) % CLASSES


class Meter(TorchDispatchMode):
    """Counts operations, the numbers they put out, and the bytes alive at a time.

    Attributes:
        operations: Number of operations.
        work: Numbers that they put out, all together.
        peak: Most bytes alive at a time, beyond those that were alive before.
    """

    def __init__(self, *known):
        super().__init__()
        self.operations = self.work = self.alive = self.peak = 0
        self.seen = {}
        for tensor in known:
            self.seen[id(tensor.untyped_storage())] = tensor.untyped_storage()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.work += tensor.numel()
                self.born(tensor.untyped_storage())
        return result

    def born(self, storage):
        key, size = id(storage), storage.nbytes()
        if key not in self.seen:
            self.seen[key] = weakref.ref(storage, lambda _: self.dead(key, size))
            self.alive += size
            self.peak = max(self.peak, self.alive)

    def dead(self, key, size):
        del self.seen[key]
        self.alive -= size


def metered(network, inputs, target, measure=("modes",), **options):
    """What an evaluation costs, that of the modes if nothing else is asked for."""
    meter = Meter(inputs, target, *network.state_dict().values())
    with meter:
        report = diagnose(network, inputs, target, measure=measure, **options)
    assert report.layers
    return meter


class Turnstile(TorchDispatchMode):
    """Counts the batches that enter a network, by what its first layer is asked to do.

    A counter of the network's own would be put back with all that it writes.
    """

    def __init__(self):
        super().__init__()
        self.batches = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        entering = {"addmm": 1, "convolution": 0}.get(name)
        if entering is not None and args[entering].shape[1:] in ((FEATURES,), IMAGE):
            self.batches.append(len(args[entering]))
        return func(*args, **(kwargs or {}))


def passes(network, inputs, target, **options):
    """Passes of an evaluation, and the samples in them."""
    with Turnstile() as turnstile:
        diagnose(network, inputs, target, **options)
    return len(turnstile.batches), sum(turnstile.batches)


# The meter


def test_the_meter_knows_what_is_alive():
    meter = Meter()
    with meter:
        kept = torch.zeros(1000)
        for _ in range(5):
            kept + 1.0
        view = kept[:10].mul_(2)
    assert (meter.operations, meter.peak, meter.alive) == (8, 8000, 4000)
    assert meter.work == 1000 * 6 + 20
    del kept, view
    assert meter.alive == 0


def test_the_meter_sees_what_a_graph_keeps():
    x = torch.ones(1000, requires_grad=True)
    meter = Meter(x)
    with meter:
        y = x.exp().exp().exp()
        assert meter.alive == 12_000
        torch.autograd.grad(y.sum(), x)
        del y
    assert meter.alive == 0


# A hundred layers


def check_shares(report):
    """In some layer of a hundred no unit's field may move any more; in the others each moving unit is OPT or NPT."""
    dead = [layer for layer in report.layers if layer.constant_fraction == 1]
    assert len(dead) <= 5
    for layer in report.layers:
        if layer not in dead:
            assert layer.opt_fraction + layer.npt_fraction == pytest.approx(1)
            assert math.isfinite(layer.transfer_order)


def test_a_hundred_layers_are_evaluated_from_end_to_end():
    network = mlp(100)
    report = diagnose(network, *probe(128))
    assert [layer.name for layer in report.layers] == [str(2 * i) for i in range(99)]
    assert max(layer.affine_defect for layer in report.layers) < 1e-3
    check_shares(report)
    assert math.isfinite(report.weight_basin.radius)
    assert len(report.scalars()) > 5 * 99


def test_the_map_of_a_hundred_layers_is_the_product_of_their_matrices():
    network = mlp(100).double()
    inputs, _ = probe(16)
    found = linear_substitution_map(network, inputs.double())
    expected = reference.mlp_map(networks.weights_of(network))
    for pathway, true in zip(found.values(), expected, strict=True):
        true = torch.from_numpy(true)
        assert float((pathway - true).abs().max()) < 1e-11 * float(true.abs().max())


def test_a_resnet_101_is_evaluated_from_end_to_end():
    network, (inputs, target) = resnet(), probe(32, *IMAGE)
    report = diagnose(network, inputs, target)
    names = ["bn1"] + [
        f"stages.{i}.{j}.{name}"
        for i, blocks in enumerate((3, 4, 23, 3))
        for j in range(blocks)
        for name in ("bn1", "bn2", "relu")
    ]
    assert len(names) == 100
    assert [layer.name for layer in report.layers] == names == list(local_fields(network, inputs))
    check_shares(report)
    assert math.isfinite(report.weight_basin.radius)


def test_the_map_of_a_resnet_101_is_the_jacobian_of_the_network_without_activations():
    network, (inputs, _) = resnet().double(), probe(6, *IMAGE)
    found = linear_substitution_map(network, inputs.double())
    expected = oracle(network.explicit, inputs.double(), samples=6).maps()
    assert list(found) == list(expected)
    for name, pathway in expected.items():
        assert float((found[name] - pathway).abs().max()) < 1e-11 * float(pathway.abs().max())


# Cost


@pytest.mark.parametrize("batch_size", [None, 32])
def test_depth_costs_no_passes(batch_size):
    counts = [passes(mlp(depth), *probe(96), measure=["modes"], batch_size=batch_size) for depth in (4, 20, 100)]
    assert counts[0] == counts[1] == counts[2]
    # A few samples to find the layers and the classes, up to 64 for the map, the probe, and once more to check rows.
    assert counts[0][1] <= 2 * 96 + 64 + 32
    deep = passes(resnet(), *probe(96, *IMAGE), measure=["modes"], batch_size=batch_size)
    assert deep == counts[0]


@pytest.mark.filterwarnings("ignore:The radius lies below:UserWarning")
def test_basins_cost_no_more_passes_in_a_deeper_network():
    inputs, _ = probe(96)
    for depth in (4, 100):
        network = mlp(depth)
        with torch.no_grad():
            clean = network(inputs)
        # Every network is right without noise, and no longer so when it moves by half the spread of its outputs.
        limit = clean.std(dim=0).norm() / 2
        report = diagnose(
            network,
            inputs,
            clean,
            measure=["sample_basin", "weight_basin"],
            criterion=lambda outputs, target, limit=limit: (outputs - target).norm(dim=1) < limit,
        )
        # The highest level and the ladder, then levels about the crossing; on the weights some levels on each ray.
        ladder = 1 + math.ceil((WIDE_QUESTIONS + NEAR_QUESTIONS) / len(inputs))
        for basin, least, most in (
            (report.sample_basin, ladder, ladder + MOST),
            (report.weight_basin, 16, 16 * LEVELS + FIRST),
        ):
            assert 0 < basin.radius < 10
            assert least < basin.forwards <= most


@pytest.mark.parametrize("what", ["operations", "work"])
def test_work_grows_in_proportion_to_depth(what):
    layers = (10, 20, 50, 100)
    # In float32, or where units die, fields of deep layers coincide for some samples; such ties make ranks cost more.
    deep = [mlp(1 + fields, activation=nn.LeakyReLU).double() for fields in layers]
    inputs, target = probe(96)
    spent = [getattr(metered(network, inputs.double(), target), what) for network in deep]
    # The layers 50 to 100 cost 5 times what the layers 10 to 20 do.
    assert (spent[3] - spent[2]) / 50 == pytest.approx((spent[1] - spent[0]) / 10, rel=0.02)
    for (shallow, deep), (less, more) in zip(itertools.pairwise(layers), itertools.pairwise(spent), strict=True):
        assert math.log(more / less) / math.log(deep / shallow) <= 1.1


def test_work_grows_in_proportion_to_samples_once_the_map_has_its_own():
    spent = [metered(mlp(10), *probe(samples)).work for samples in (128, 256, 512, 1024)]
    # The map takes 64 samples in each; sorting a column is one operation whose output is as long as the column.
    assert (spent[3] - spent[2]) / 512 == pytest.approx((spent[1] - spent[0]) / 128, rel=0.1)
    few, many = (metered(mlp(10), *probe(samples)).operations for samples in (128, 1024))
    # Rows are checked in batches of 256: two passes for 128 samples, and four for 1,024.
    assert 0.95 * few <= many <= 1.2 * few


# Memory

SAMPLES, WIDE = 2048, 64
FIELD = SAMPLES * WIDE * 4
"""Bytes of one layer's local fields."""
GRAPH = 64 * WIDE * 4 * 12
"""Of a layer's graph on the 64 samples of the map: a dozen tensors as large as its fields there, at most."""
LOGITS = SAMPLES * CLASSES * 4


@pytest.mark.parametrize("measure", [["modes"], ["linear"], ["modes", "linear"]], ids=" ".join)
def test_with_the_probe_in_one_batch_one_layer_is_alive_at_a_time(measure):
    shallow, deep = (metered(mlp(depth, WIDE), *probe(SAMPLES), measure).peak for depth in (20, 100))
    # The fields of 80 more layers are 80 FIELD. What may stay of a layer is its graph, and for a linear tail what the
    # layer adds to the logits; together that is half a field.
    assert deep - shallow < 80 * (GRAPH + ("linear" in measure) * 2 * LOGITS) < 80 * 0.54 * FIELD
    # Ranks are computed in float64 and int64, a dozen such columns at a time.
    assert shallow < 40 * FIELD


def test_with_the_probe_in_batches_the_measured_units_of_every_layer_are_kept_and_no_more():
    kept = 16
    options = {"max_units": kept, "batch_size": SAMPLES // 8}
    spent = [metered(mlp(depth, WIDE), *probe(SAMPLES), **options).peak for depth in (20, 100)]
    # Of 80 more layers [samples, max_units] is kept, and as much again of what the activations put out; all fields
    # would be 4 times as much.
    measured = 80 * SAMPLES * kept * 4
    assert 0.9 * measured < spent[1] - spent[0] < 2.2 * measured + 80 * GRAPH < 80 * FIELD


def test_local_fields_are_what_is_asked_for_and_no_more():
    """To hold all fields is what `local_fields` is for: its memory shows that the bounds above are not empty."""
    spent = []
    for depth in (20, 100):
        network, (inputs, _) = mlp(depth, WIDE), probe(SAMPLES)
        with Meter(inputs, *network.state_dict().values()) as meter:
            fields = local_fields(network, inputs)
        assert len(fields) == depth - 1
        spent.append(meter.peak)
    assert spent[1] - spent[0] == pytest.approx(80 * FIELD, rel=0.05)
