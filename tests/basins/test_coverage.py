"""Coverage against a slow twin, on ties, absent classes and trees, and the memory that it takes."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from netdyn.basins import coverage as room
from netdyn.functional import coverage, sample_basin


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow(radii, points, target, val_points, val_target):
    """One validation sample after the other, in double precision."""
    shares, distances = [], []
    for v, label in zip(val_points.double(), val_target, strict=True):
        own = [(float((v - p).square().mean().sqrt()), i) for i, p in enumerate(points.double()) if target[i] == label]
        if own:
            d, nearest = min(own)
            shares.append((radii[:, nearest].double() > d).double().mean().item())
            distances.append(d)
    return sum(shares) / len(shares), float(torch.tensor(distances, dtype=torch.float64).quantile(0.5))


def probe(samples=60, features=5, classes=3, seed=0):
    return gaussian(samples, features, seed=seed), torch.arange(samples) % classes


@pytest.mark.parametrize("rays", [1, 4])
@pytest.mark.parametrize("block", [1, 50, 4_000_000])
def test_coverage_equals_the_slow_one(rays, block, monkeypatch):
    monkeypatch.setattr(room, "BLOCK", block)
    (x, y), (v, w) = probe(), probe(70, seed=1)
    radii = gaussian(rays, 60, seed=2).abs() * 1.5
    found = coverage(radii, x, y, v, w)
    assert (found.share, found.distance) == pytest.approx(slow(radii, x, y, v, w), rel=1e-6)
    assert 0.2 < found.share < 0.8


def test_far_from_the_origin_nothing_cancels():
    (x, y), (v, w) = probe(), probe(70, seed=1)
    radii = gaussian(2, 60, seed=2).abs()
    found = coverage(radii, 1e3 + 0.01 * x, y, 1e3 + 0.01 * v, w)
    expected = slow(radii, 1e3 + 0.01 * x, y, 1e3 + 0.01 * v, w)
    assert (found.share, found.distance) == pytest.approx(expected, rel=1e-6)


def test_samples_of_an_absent_class_are_left_out():
    (x, y), (v, w) = probe(), probe(70, seed=1)
    present = y != 2
    radii = gaussian(1, 60, seed=2).abs()
    found = coverage(radii[:, present], x[present], y[present], v, w)
    kept = w != 2
    assert found[:2] == coverage(radii[:, present], x[present], y[present], v[kept], w[kept])[:2]
    assert torch.equal(found.nearest < 0, ~kept)


def test_coverage_of_nothing_is_nan():
    found = coverage(
        torch.ones(1, 2), torch.zeros(2, 1), torch.zeros(2).long(), torch.zeros(3, 1), torch.ones(3).long()
    )
    assert math.isnan(found.share)
    assert math.isnan(found.distance)


@pytest.mark.parametrize(("radius", "share"), [(0.0, 0.0), (1e-9, 1.0), (math.inf, 1.0)])
def test_a_copy_of_a_training_sample_is_covered_unless_it_is_wrong(radius, share):
    x, y = probe()
    assert coverage(torch.full((1, 60), radius), x, y, x, y).share == share


def test_distances_count_every_floating_component_of_a_tree():
    (x, y), (v, w) = probe(features=6), probe(70, features=6, seed=1)
    radii = gaussian(2, 60, seed=2).abs()

    def tree(t):
        return {"a": t[:, :2], "ids": torch.arange(len(t)), "b": [t[:, 2:].reshape(len(t), 2, 2)]}

    assert coverage(radii, tree(x), y, tree(v), w)[:2] == coverage(radii, x, y, v, w)[:2]


def test_coverage_takes_a_basin():
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        network.bias.zero_()
    x = gaussian(100, 2, seed=3)
    y = (x[:, 0] < 0).long()
    basin = sample_basin(network, x, y)
    v = gaussian(100, 2, seed=4)
    w = (v[:, 0] < 0).long()
    assert coverage(basin, x, y, v, w)[:2] == coverage(basin.radii, x, y, v, w)[:2]
    # The nearest of 50 samples is much nearer than the boundary.
    assert coverage(basin, x, y, v, w).share > 0.8


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"basin": torch.ones(1, 59)}, "`basin` must be of the 60 samples in `inputs`, got 59."),
        ({"target": torch.zeros(59).long()}, "`target` must have one label for each of the 60 samples, got 59."),
        ({"val_inputs": torch.zeros(70, 4)}, "`inputs` and `val_inputs` must have the same units"),
        ({"inputs": torch.zeros(60, 5).long()}, "`inputs` holds no floating tensor"),
    ],
)
def test_what_does_not_fit_is_refused(change, text):
    (x, y), (v, w) = probe(), probe(70, seed=1)
    arguments = {"basin": torch.ones(1, 60), "inputs": x, "target": y, "val_inputs": v, "val_target": w} | change
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(text)}"):
        coverage(**arguments)


# The largest memory of this process alone: what getrusage says begins with that of the process that started it.
MEASURE = r"""
import re, sys, torch
from netdyn.functional import coverage
from netdyn.basins import coverage as room
room.BLOCK = int(sys.argv[1])
x, v = (torch.randn(10_000, 64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
y = torch.zeros(10_000, dtype=torch.int64)
coverage(torch.ones(1, 10), x[:10], y[:10], v[:10], y[:10])
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
before = peak()
coverage(torch.ones(1, 10_000), x, y, v, y)
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
