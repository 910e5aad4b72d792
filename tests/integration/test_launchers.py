"""Lightning's own ways to start processes: a training is the same whichever it is, and an error ends the program.

Each run here starts its processes itself, since just that is tested. What is measured on two processes, and what
happens when one of them fails, test_processes.py tests on a pair that stays.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from integration import processes

pytestmark = pytest.mark.slow

SCRIPT = Path(processes.__file__)


def launch(folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the script to its end. A process group gives up waiting in the end, so that this needs no limit."""
    folder.mkdir(parents=True)
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def train(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """The records of both processes."""
    done = launch(folder, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return processes.records(folder)


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "ddp_fork", processes.FSDP2])
def test_training_is_untouched_and_every_process_has_the_single_processs_numbers(strategy: str, tmp_path: Path):
    without = train(tmp_path / "without", strategy=strategy, monitored=False)
    with_monitor = train(tmp_path / "with", strategy=strategy, monitored=True, monitor={"strict": True})
    processes.assert_as_one(without, with_monitor)


def test_an_error_on_one_process_ends_all_where_asked_for(tmp_path: Path):
    done = launch(tmp_path / "run", strategy="ddp", monitored=True, fails_on=1, monitor={"strict": True})
    assert done.returncode != 0
    assert "out of paper" in done.stderr


def test_a_measure_that_fails_on_one_process_ends_all_at_once_where_asked_for(tmp_path: Path):
    # No process waits for the other: a process group would complain in the end.
    options = {"fails_on": 1, "fails_in": "maps", "monitor": {"strict": True}}
    done = launch(tmp_path / "run", strategy="ddp", monitored=True, **options)
    assert done.returncode != 0
    assert "out of paper" in done.stderr
    assert "imeout" not in done.stderr


def test_hugging_faces_trainer_is_left_alone_where_torchrun_starts_it(tmp_path: Path):
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    from integration import trainings_of_huggingface as trainings

    tests = str(Path(__file__).parents[1])
    paths = [tests, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", trainings.__name__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    without, watched = (
        [torch.load(tmp_path / f"{name}_{rank}.pt", weights_only=False) for rank in range(2)]
        for name in ("without", "with")
    )
    trainings.assert_as_one(without, watched)
