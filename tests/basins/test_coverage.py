"""Coverage against a slow twin, on ties, absent classes and trees, and the memory that it takes."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from netdyn._utils.random import Contents
from netdyn.basins import coverage as room
from netdyn.basins.input_noise import Noise
from netdyn.functional import coverage
from netdyn.probes.criteria import right_class
from netdyn.probes.evaluator import Evaluator


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow(network, points, target, val_points, val_target, same, seed=0):
    """One validation sample after the other: shares, and distances in double precision."""
    drawn = Noise.at(network, points, (True,), None, seed).draw(
        points, Contents.of(points).digests, torch.zeros(len(points), dtype=torch.int64)
    )[0]
    right, distances = [], []
    for v, label in zip(val_points.double(), val_target, strict=True):
        near = [
            (float((v - p).square().mean().sqrt()), i)
            for i, p in enumerate(points.double())
            if (target[i] == label) == same
        ]
        if near:
            d, i = min(near)
            right.append(float(network(points[i : i + 1] + d * drawn[i : i + 1]).argmax() == target[i]))
            distances.append(d)
    return sum(right) / len(right), float(torch.tensor(distances, dtype=torch.float64).quantile(0.5))


def slow_apart(x, v):
    """Of all pairs of a validation and a training sample, how often the former is farther from the nearest one."""
    among = [min(float((x[i] - x[j]).norm()) for j in range(len(x)) if j != i) for i in range(len(x))]
    held_out = [min(float((a - b).norm()) for b in x) for a in v]
    return sum((h > a) + 0.5 * (h == a) for h in held_out for a in among) / (len(among) * len(held_out))


def network(features=5, classes=3):
    """A linear network, whose answers noise changes now and then."""
    linear = nn.Linear(features, classes)
    with torch.no_grad():
        linear.weight.copy_(gaussian(classes, features, seed=9))
        linear.bias.zero_()
    return linear


def probe(samples=60, features=5, seed=0):
    """Samples, and their classes by the network but for every seventh."""
    x = gaussian(samples, features, seed=seed)
    right = network(features)(x).argmax(dim=1)
    return x, torch.where(torch.arange(samples) % 7 == 0, (right + 1) % 3, right)


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("block", [1, 50, 4_000_000])
def test_coverage_equals_the_slow_one(seed, block, monkeypatch):
    monkeypatch.setattr(room, "BLOCK", block)
    (x, y), (v, w) = probe(), probe(70, seed=1)
    found = coverage(network(), x, y, v, w, seed=seed)
    own, distance = slow(network(), x, y, v, w, True, seed)
    other, _ = slow(network(), x, y, v, w, False, seed)
    assert found == pytest.approx((own, other, distance, slow_apart(x, v)), rel=1e-6)
    assert 0.2 < found.own < 0.95
    assert 0.2 < found.other < 0.95
    assert found.own != found.other


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_and_order_change_nothing(batch_size):
    (x, y), (v, w) = probe(), probe(70, seed=1)
    expected = coverage(network(), x, y, v, w)
    rows, others = (torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in (60, 70))
    found = coverage(network(), x[rows], y[rows], v[others], w[others], batch_size=batch_size)
    assert found == pytest.approx(expected, rel=1e-6)


def test_far_from_the_origin_nothing_cancels():
    (x, y), (v, w) = probe(), probe(70, seed=1)
    x, v = 1e3 + 0.01 * x, 1e3 + 0.01 * v
    found = coverage(network(), x, y, v, w)
    expected = [slow(network(), x, y, v, w, same) for same in (True, False)]
    assert found == pytest.approx((expected[0][0], expected[1][0], expected[0][1], slow_apart(x, v)), rel=1e-6)


def test_samples_of_an_absent_class_are_left_out_of_their_own_share():
    (x, y), (v, w) = probe(), probe(70, seed=1)
    x, y = x[y != 2], y[y != 2]
    found, without = coverage(network(), x, y, v, w), coverage(network(), x, y, v[w != 2], w[w != 2])
    assert (found.own, found.distance) == (without.own, without.distance)
    # To a sample of an absent class every training sample is one of another class.
    assert found.other == pytest.approx(slow(network(), x, y, v, w, False)[0])


def test_coverage_of_nothing_is_nan():
    x, none = gaussian(4, 5), torch.zeros(4).long()
    apart = coverage(network(), x, none, gaussian(3, 5, seed=1), none[:3] + 1)
    assert math.isnan(apart.own)
    assert math.isnan(apart.distance)
    assert 0 <= apart.other <= 1
    together = coverage(network(), x, none, gaussian(3, 5, seed=1), none[:3])
    assert math.isnan(together.other)
    assert 0 <= together.own <= 1


def test_data_of_the_same_kind_are_not_apart_and_moved_or_narrow_ones_are():
    x, y = probe(400)
    apart = {
        name: coverage(network(), x, y, change(gaussian(400, 5, seed=7)), y).apart
        for name, change in {"same": lambda v: v, "moved": lambda v: v + 2, "narrow": lambda v: 0.2 * v}.items()
    }
    # The standard error is √((n + m + 1)/(12·n·m)) = 0.02.
    assert abs(apart["same"] - 0.5) < 0.06
    assert apart["moved"] > 0.7
    assert apart["narrow"] < 0.3


def test_copies_are_as_near_in_both():
    x, y = probe(40)
    doubled, labels = x.repeat(2, 1), y.repeat(2)
    # Every sample has a copy at distance 0 on either side.
    assert coverage(network(), doubled, labels, x, y).apart == 0.5
    # Without copies among the training samples theirs are farther.
    assert coverage(network(), x, y, x, y).apart == 0
    assert math.isnan(coverage(network(), x[:1], y[:1], x, y).apart)


def test_a_copy_of_a_training_sample_is_covered_unless_it_is_wrong():
    x, y = probe()
    found = coverage(network(), x, y, x, y)
    assert found.distance == 0
    assert found.own == pytest.approx((network()(x).argmax(dim=1) == y).double().mean())
    assert found.own < 1


def test_distances_count_every_floating_component_of_a_tree():
    (x, y), (v, w) = probe(features=6), probe(70, features=6, seed=1)

    class OfTree(nn.Module):
        def forward(self, tree):
            return network(6)(torch.cat([tree["a"], tree["b"][0].flatten(1)], dim=1))

    def tree(t):
        return {"a": t[:, :2], "ids": torch.arange(len(t)), "b": [t[:, 2:].reshape(len(t), 2, 2)]}

    found = coverage(OfTree(), tree(x), y, tree(v), w)
    assert found.distance == coverage(network(6), x, y, v, w).distance
    assert 0.2 < found.own < 0.95


@pytest.mark.parametrize("batch_size", [None, 7])
def test_passes_are_counted(batch_size):
    (x, y), (v, w) = probe(), probe(70, seed=1)
    evaluator = Evaluator(network(), x, y, right_class, 3, batch_size)
    nearest = room.neighbours(x, y, evaluator.contents, v, w, Contents.of(v))
    room.measure_coverage(evaluator, nearest, 0)
    assert evaluator.passed == 2 * 70


def test_of_many_samples_a_fixed_choice_is_asked():
    (x, y), (v, w) = probe(), probe(2000, seed=1)
    asked = []

    class Counting(nn.Module):
        def forward(self, inputs):
            asked.append(len(inputs))
            return network()(inputs)

    found = coverage(Counting(), x, y, v, w)
    # Both shares, and a few samples before, to see what comes out.
    assert 2 * 512 <= sum(asked) < 2 * 512 + 20
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(3))
    assert coverage(network(), x, y, v[order], w[order]) == pytest.approx(found)
    assert coverage(network(), x, y, v[:512], w[:512]).distance != found.distance


def test_a_network_that_has_learned_covers_its_own_class_alone():
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        linear.bias.zero_()
    x, v = gaussian(100, 2, seed=3), gaussian(100, 2, seed=4)
    found = coverage(linear, x, (x[:, 0] < 0).long(), v, (v[:, 0] < 0).long())
    # The nearest of 50 samples of a class is much nearer than the boundary; one of the other class is less so.
    assert found.own > 0.9
    assert found.other < found.own - 0.05


@pytest.mark.parametrize("random", [True, False])
def test_a_memorising_network_covers_both_classes_alike_and_a_learning_one_does_not(random):
    """400 digits learnt by heart, with random labels or their own; 500 validation digits: standard errors of 0.02."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x / 16, dtype=torch.float32)[order[:900]], torch.tensor(y)[order[:900]]
    if random:
        y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:400]), y[:400]).backward()
        optimizer.step()
    assert float((net(x[:400]).argmax(1) == y[:400]).double().mean()) == 1
    found = coverage(net, x[:400], y[:400], x[400:], y[400:])
    if random:
        # Of random labels nine tenths are others: the nearest of those is nearer than the nearest of its own.
        assert found.own > 0.2
        assert -0.2 < found.own - found.other < 0.05
    else:
        assert found.own - found.other > 0.15


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"target": torch.zeros(59).long()}, "`target` must have one "),
        (
            {"val_target": torch.zeros(69).long()},
            "`val_target` must have one label for each of the 70 samples, got 69.",
        ),
        (
            {"val_inputs": torch.zeros(0, 5), "val_target": torch.zeros(0).long()},
            "`val_target` must have at least one entry, got none.",
        ),
        ({"val_inputs": torch.zeros(70, 4)}, "`inputs` and `val_inputs` must have the same units"),
        ({"val_inputs": torch.zeros(70, 5).long()}, "`val_inputs` holds no floating tensor"),
        ({"val_target": torch.zeros(70)}, "`val_target` must hold whole class labels"),
        ({"seed": -1}, "`seed` must be at least 0, got -1."),
    ],
)
def test_what_does_not_fit_is_refused(change, text):
    (x, y), (v, w) = probe(), probe(70, seed=1)
    arguments = {"inputs": x, "target": y, "val_inputs": v, "val_target": w} | change
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(text)}"):
        coverage(network(), **arguments)


# The largest memory of this process alone: what getrusage says begins with that of the process that started it.
MEASURE = r"""
import re, sys, torch
from netdyn.functional import coverage
from netdyn.basins import coverage as room
room.BLOCK, room.SAMPLES = int(sys.argv[1]), 10_000
x, v = (torch.randn(10_000, 64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
y = torch.zeros(10_000, dtype=torch.int64)
network = torch.nn.Linear(64, 1)
coverage(network, x[:10], y[:10], v[:10], y[:10])
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
before = peak()
coverage(network, x, y, v, y)
print(peak() - before)
"""


def peak(block):
    """Kilobytes that ten thousand samples against ten thousand of the same class take, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(block)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_ten_thousand_against_ten_thousand_take_little_memory():
    # A block's distances are 16 MB, of which there are a few at a time; all 10^8 distances are 400 MB.
    assert peak(4_000_000) < 250_000
    assert peak(10**9) > 380_000
