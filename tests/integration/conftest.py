"""What the tests of whole runs share: two processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.pair import Pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two processes for all tests of a run; those who need them are in one file, so that one worker has them."""
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()
