"""Metrics on two processes of their own, without Lightning: both compute what one process computes of all the data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("metric_processes.py")


def values(world: int, split: str, tmp_path: Path) -> list[dict[str, Any]]:
    """What each process prints; a process that waits for another for more than 15 seconds fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    meeting = tmp_path / f"meeting of {world}"
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(world), str(meeting), split],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    printed = []
    for process in running:
        out, err = process.communicate(timeout=90)
        assert process.returncode == 0, err[-3000:]
        printed.append(json.loads(out.splitlines()[-1]))
    return printed


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return values(1, "one", tmp_path_factory.mktemp("alone"))[0]


@pytest.mark.parametrize("split", ["even", "uneven", "all on one"])
def test_both_processes_compute_the_single_processs_values(split: str, alone: dict[str, Any], tmp_path: Path):
    first, second = values(2, split, tmp_path)
    assert first == second
    assert first.keys() == alone.keys()
    for name, value in alone.items():
        assert first[name] == value, name
