"""The benchmarks: the arithmetic of their table, and that each of them starts. No time decides anything here."""

import doctest
import importlib
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import evaluation
import numpy as np
import pairs
import peers
import pytest
import run
import torch
import workload
from pairs import Options, Row, Target

from netdyn import diagnose
from netdyn.basins.weight_noise import WeightNoise

HERE = Path(run.__file__).parent
#: Those that need no peer and take a few seconds at their tiny sizes.
ALONE = ("evaluation", "ranking", "scaling", "step", "training")


def started(name, *arguments):
    return subprocess.run(
        [sys.executable, HERE / f"{name}.py", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


# The arithmetic


@pytest.mark.parametrize("module", [pairs, run], ids=lambda module: module.__name__)
def test_the_examples_in_the_docstrings(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("n", [2, 5, 8])
def test_quartiles_are_numpys(n):
    values = np.random.default_rng(n).normal(size=n)
    assert pairs.quartiles(values.tolist()) == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))


def test_a_row_is_the_median_of_the_ratios_not_the_ratio_of_the_medians():
    made = pairs.row("a", "b", pairs.ratios([1, 10, 3], [1, 5, 1]), Target(2.5))
    assert (made.n, made.median, made.low, made.high, made.met) == (3, 2, 1.5, 2.5, True)


def test_turns_alternate_and_the_first_round_does_not_count():
    calls = []
    clock = pairs.Clock(Options())
    works = {name: lambda name=name: calls.append(name) for name in "abc"}
    taken = pairs.alternate(works, 3, clock, warm=1)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 3, "b": 3, "c": 3}


def test_each_time_goes_to_the_work_that_took_it(monkeypatch):
    now = [0.0]
    clock = pairs.Clock(Options())
    clock.read = lambda: now[0]

    def work(seconds):
        now[0] += seconds

    taken = pairs.alternate({"a": lambda: work(1.0), "b": lambda: work(10.0)}, 4, clock)
    assert taken == {"a": [1.0] * 4, "b": [10.0] * 4}


@pytest.mark.parametrize(
    ("target", "below", "above", "text"),
    [
        (Target(1.15), True, False, "≤ 1.15×"),
        (Target(1.15, at_most=False, unit="× faster"), False, True, "≥ 1.15× faster"),
        (Target(1.15, said="cheaper"), True, False, "cheaper"),
    ],
)
def test_a_target_is_met_on_one_side(target, below, above, text):
    assert (target.met(1.14), target.met(1.16), target.met(math.nan)) == (below, above, False)
    assert str(target) == text


def test_the_table_shows_what_is_known():
    rows = [
        pairs.row("fast", "slow", [2.0], Target(1.5), threads=2, note="Said once."),
        Row("gone", "peer", note="It could not be installed."),
        pairs.row("bare", "–", [1234.0], unit=" µs", note="Said once."),
    ]
    assert pairs.table(rows).splitlines() == [
        "| what | against | threads | n | median (quartiles) | target | met? |",
        "|---|---|:---:|---:|---:|---:|:---:|",
        "| fast (1) | slow | 2 | 1 | 2.00 (2.00 to 2.00)× | ≤ 1.5× | **no** |",
        "| gone (2) | peer | – | – | – | – | – |",
        "| bare (1) | – | – | 1 | 1234 (1234 to 1234) µs | – | – |",
        "",
        "(1) Said once.",
        "",
        "(2) It could not be installed.",
    ]


# The programs


@pytest.mark.parametrize("name", run.NAMES)
def test_each_names_its_arguments(name, capsys):
    module = importlib.import_module(name)
    with pytest.raises(SystemExit, match="0"):
        pairs.main(module.measure, module.__doc__, ["--help"])
    said = capsys.readouterr().out
    assert module.__doc__.splitlines()[0] in said
    assert "--device" in said


def test_the_one_that_runs_them_names_its_arguments():
    assert ", ".join(run.NAMES) in " ".join(started("run", "--help").split())


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.slow
def test_each_runs_at_tiny_sizes(name, tmp_path):
    found = tmp_path / "rows.json"
    started(name, "--quick", "--json", str(found))
    rows = [Row(**each) for each in json.loads(found.read_text())]
    assert rows
    assert all(math.isfinite(row.median) and row.low <= row.median <= row.high for row in rows)


def test_a_benchmark_that_fails_is_a_row_with_the_error():
    (row,) = run.run("pairs_missing", 1, "cpu", quick=True)
    assert math.isnan(row.median)
    assert row.note.startswith("pairs_missing failed: ")


def test_a_peer_that_cannot_be_installed_is_a_row_with_the_error(monkeypatch):
    def fail(*command):
        raise peers.PeerError("no such package")

    monkeypatch.setattr(peers, "_run", fail)
    monkeypatch.setattr(peers, "HOME", Path("nowhere"))
    (row,) = peers.inside("delve", "this", "that")
    assert (row.what, row.against, row.note) == ("this", "that", "delve could not be installed: no such package")


def test_the_page_is_made_of_the_table_and_the_docstrings():
    made = run.page([pairs.row("a", "b", [1.0])], run.NAMES, "somewhere")
    assert "| a | b | – | 1 | 1.00 (1.00 to 1.00)× | – | – |" in made
    for name in run.NAMES:
        assert f"`benchmarks/{name}.py`" in made
    assert made.count("\n### ") == len(run.NAMES)


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_read_from_its_files(packed, tmp_path, monkeypatch):
    import gzip

    pixels = np.arange(3 * 784, dtype=np.int64) % 256
    files = {
        "train-images-idx3-ubyte": bytes(16) + pixels.astype(np.uint8).tobytes(),
        "train-labels-idx1-ubyte": bytes(8) + bytes([3, 1, 4]),
    }
    for name, content in files.items():
        (tmp_path / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    monkeypatch.setenv("MNIST_DIR", str(tmp_path))
    images, labels = workload.data(2)
    assert (list(images.shape), labels.tolist()) == ([2, 784], [3, 1])
    expected = pixels[: 2 * 784].reshape(2, 784) / 255
    np.testing.assert_allclose(images, (expected - expected.mean()) / expected.std(ddof=1), rtol=0, atol=1e-5)


# On a GPU


@pytest.fixture
def on_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    network, x, _ = workload.trained(50, "cuda")
    yield network, x[:256]
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_on_a_gpu_a_pass_under_noise_on_the_weights_waits_for_nothing(on_gpu):
    """The body of an evaluation's longest part: disturb the weights, run the probe."""
    network, x = on_gpu
    noise = WeightNoise.on(network, None, "layer", seed=0)
    direction = noise.draw(0)
    with torch.no_grad():
        noise.network(direction, 0.1)(x)
        torch.cuda.set_sync_debug_mode("error")
        for sigma in (0.1, 0.2, 0.4):
            noise.network(direction, sigma)(x)


@pytest.mark.gpu
def test_on_a_gpu_an_evaluation_waits_no_oftener_for_a_larger_layer(on_gpu):
    """A search has to read its answers, a report its numbers; nothing is read unit by unit."""
    _, x = on_gpu
    waits = []
    torch.manual_seed(0)
    for width in (64, 512):
        network = torch.nn.Sequential(torch.nn.Linear(784, width), torch.nn.ReLU(), torch.nn.Linear(width, 10)).cuda()
        # Untrained and right nowhere: no search, whose length would depend on the network.
        y = (network(x).argmax(1) + 1) % 10
        waits.append(evaluation.synchronisations(partial(diagnose, network, x, y, progress=False)))
    assert 0 < waits[1] <= waits[0]
