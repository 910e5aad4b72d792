"""What the tests of whole runs share: seeds, and two processes."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from lightning_utilities.core import rank_zero

from integration.pair import Pair


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test finds the generators in the same state: its networks are the same in whatever order tests run."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two processes for all tests of a run; those who need them are in one file, so that one worker runs them."""
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def info() -> Iterator[list[str]]:
    """What Lightning's rank-zero logger says."""
    handler = Lines()
    rank_zero.log.addHandler(handler)
    level = rank_zero.log.level
    rank_zero.log.setLevel(logging.INFO)
    yield handler.lines
    rank_zero.log.setLevel(level)
    rank_zero.log.removeHandler(handler)
