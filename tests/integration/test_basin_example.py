"""The example that chooses a checkpoint by its basin, run as a reader runs it."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "checkpoint_by_basin.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint_by_basin")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--epochs", "12", "--folder", "kept"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return done, folder


@pytest.mark.slow
def test_it_keeps_a_checkpoint_of_each_epoch(run):
    files = sorted(path.relative_to(run[1]).as_posix() for path in run[1].rglob("*") if path.is_file())
    assert files == sorted(f"kept/epoch={epoch}.ckpt" for epoch in range(12))


@pytest.mark.slow
def test_it_compares_their_accuracies_under_noise(run):
    near, of = map(int, re.search(r"^(\d+) of (\d+) checkpoints lie within 0.01", run[0].stdout, re.MULTILINE).groups())
    assert 1 <= near < of == 12
    rows = {
        name: [float(cell) for cell in cells.replace(" to ", " ").split()]
        for name, cells in re.findall(r"^(widest basin|best validation accuracy) +(.+)$", run[0].stdout, re.MULTILINE)
    }
    assert set(rows) == {"widest basin", "best validation accuracy"}
    assert rows["widest basin"][1] >= rows["best validation accuracy"][1]
    for epoch, _, fresh, low, high, *accuracies in rows.values():
        assert epoch < 12
        assert 0.1 < low < fresh < high < 0.6
        # Without noise nine in ten are right; each step of noise takes more than its standard error of 0.01.
        assert accuracies[0] > 0.9
        assert all(b < a - 0.01 for a, b in itertools.pairwise(accuracies))


@pytest.mark.slow
def test_it_complains_of_nothing(run):
    assert not [line for line in run[0].stderr.splitlines() if re.search("warn|error", line, re.IGNORECASE)]
