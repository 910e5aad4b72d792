"""Training is left bit for bit unchanged: every scenario leaves one record, with the monitor and without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from integration.scenarios import data, modules, precision, training
from integration.untouched import assert_untouched

#: Some scenarios draw random numbers in their forward, and networks that learn for a few steps have basins at the edge.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The model is random in eval mode:UserWarning"),
    pytest.mark.filterwarnings("ignore:The network mixes the samples of a batch:UserWarning"),
    pytest.mark.filterwarnings("ignore:The radius lies below the smallest noise level:UserWarning"),
    pytest.mark.filterwarnings("ignore:The largest noise level, `high`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`accuracy` is .*, but noise alone leaves:UserWarning"),
]

SCENARIOS = {
    f"{part.__name__.rpartition('.')[2]}-{name}": build
    for part in (data, modules, precision, training)
    for name, build in part.SCENARIOS.items()
}

#: Code for the CPU is generated and compiled.
SLOW = {"modules-compiled_inductor", "modules-compiled_in_place_inductor"}


@pytest.mark.parametrize(
    "build",
    [pytest.param(build, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, build in SCENARIOS.items()],
)
def test_training_is_untouched(build, tmp_path):
    assert_untouched(build, tmp_path)


def test_the_readme_names_the_number_of_scenarios():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"{len(SCENARIOS)} training scenarios" in readme


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("build", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_training_on_a_gpu_is_untouched(build, tmp_path):
    assert_untouched(build, tmp_path, accelerator="cuda")
