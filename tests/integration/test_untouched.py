"""Training is left bit for bit unchanged: every scenario leaves one record, with the monitor and without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import callbacks

from integration.scenarios import data, modules, precision, training
from integration.untouched import assert_untouched, differences, run
from netdyn import diagnose

#: Some scenarios draw random numbers in their forward, and networks that learn for a few steps have basins at the edge.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The model is random in eval mode:UserWarning"),
    pytest.mark.filterwarnings("ignore:(Not all of the network can be read|The network mixes):UserWarning"),
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
COMPILED = {"modules-compiled_inductor", "modules-compiled_in_place_inductor"}
#: All together take minutes: one in four is among the fast tests, and the others are slow ones.
FAST = set(list(SCENARIOS)[::4]) - COMPILED


@pytest.mark.parametrize(
    "build",
    [pytest.param(build, id=name, marks=[pytest.mark.slow] * (name not in FAST)) for name, build in SCENARIOS.items()],
)
def test_training_is_untouched(build, tmp_path):
    assert_untouched(build, tmp_path)


@pytest.mark.skipif(
    not hasattr(callbacks, "EMAWeightAveraging"), reason="this release of Lightning lacks what two scenarios are about"
)
def test_the_readme_names_the_number_of_scenarios():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"{len(SCENARIOS)} training scenarios" in readme


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("build", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_training_on_a_gpu_is_untouched(build, tmp_path):
    # The control: some kernels add in no fixed order. What differs without the monitor is not held against it.
    first, second = (run(build, False, tmp_path / name, "cuda") for name in ("first", "second"))
    unsteady = set(map(_path, differences(first, second)))
    found = [place for place in differences(first, run(build, True, tmp_path, "cuda")) if _path(place) not in unsteady]
    if unsteady and not found:
        pytest.skip(f"two runs without the monitor differ in {len(unsteady)} places")
    assert not found, "training was changed:\n" + "\n".join(found[:12])


def _path(place: str) -> str:
    return place.partition(":")[0]


class _Dropping(torch.nn.Module):
    """Two recurrent layers with dropout between them, which cuDNN draws from a state of its own."""

    def __init__(self, cell: type[torch.nn.Module]) -> None:
        super().__init__()
        self.cell, self.head = cell(4, 8, num_layers=2, dropout=0.5, batch_first=True), torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.cell(x)[0][:, -1]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("cell", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
@pytest.mark.parametrize("draws", [False, True], ids=["quiet", "draws"])
def test_dropout_between_recurrent_layers_goes_on_as_without_a_measurement(cell, draws):
    def outputs(measured: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        network, x = _Dropping(cell).cuda().train(), torch.randn(20, 6, 4).cuda()
        if draws:
            network.head.register_forward_hook(lambda module, args, output: output + torch.rand_like(output) / 100)
        found = [network(x).detach().cpu()]
        if measured:
            diagnose(network, x, torch.arange(20, device="cuda") % 5, progress=False)
        return [*found, network(x).detach().cpu(), torch.rand(3, device="cuda").cpu()]

    control = [outputs(False), outputs(False)]
    assert all(map(torch.equal, *control)), "the control differs: not deterministic without a measurement"
    assert all(map(torch.equal, control[0], outputs(True)))
