"""Training is left bit for bit unchanged: every scenario leaves one record, with the monitor and without."""

from __future__ import annotations

import pytest

from integration.scenarios import data, modules, precision, training
from integration.untouched import assert_untouched

SCENARIOS = {
    f"{part.__name__.rpartition('.')[2]}-{name}": build
    for part in (data, modules, precision, training)
    for name, build in part.SCENARIOS.items()
}


@pytest.mark.parametrize("build", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_training_is_untouched(build, tmp_path):
    assert_untouched(build, tmp_path)
