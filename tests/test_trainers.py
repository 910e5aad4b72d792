"""Lightning under its two names: either alone, or both in one process."""

import os
import subprocess
import sys
import textwrap

import lightning.pytorch
import pytest
import pytorch_lightning

from netdyn import trainers

#: Trains with the monitor as the only callback, which a trainer takes without a list only if it is one of its own.
TRAINING = """
import sys, warnings
warnings.simplefilter("ignore")
{before}
import torch
from torch.utils.data import DataLoader, TensorDataset
{imported}
from netdyn import DynamicsMonitor, trial_run

for package in [{packages}]:
    class Model(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 30), torch.nn.ReLU(), torch.nn.Linear(30, 2))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def loader():
        return DataLoader(TensorDataset(torch.rand(40, 4), torch.arange(40) % 2), 10, shuffle=True)

    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    monitor = DynamicsMonitor(measure=["modes"])
    trainer = package.Trainer(callbacks=monitor, max_epochs=2, accelerator="cpu", **quiet)
    trainer.fit(Model(), loader())
    trial = trial_run(Model(), loader(), max_steps=4, accelerator="cpu")
    print(package.__name__, monitor.monitor.evaluations, trial.identical, trial.evaluations)
print("lightning" in sys.modules and sys.modules["lightning"] is not None, "pytorch_lightning" in sys.modules)
"""
CASES = {
    "pytorch_lightning alone": (
        "sys.modules['lightning'] = None",
        "import pytorch_lightning",
        "pytorch_lightning",
        ["pytorch_lightning 3 True 3", "False True"],
    ),
    "both": (
        "",
        "import lightning.pytorch, pytorch_lightning",
        "lightning.pytorch, pytorch_lightning",
        ["lightning.pytorch 3 True 3", "pytorch_lightning 3 True 3", "True True"],
    ),
    "netdyn before both": (
        "from netdyn import DynamicsMonitor, trial_run",
        "import pytorch_lightning",
        "pytorch_lightning",
        ["pytorch_lightning 3 True 3", "True True"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_training_is_watched_and_tried(case):
    before, imported, packages, printed = CASES[case]
    code = textwrap.dedent(TRAINING).format(before=before, imported=imported, packages=packages)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line in printed] == printed


def test_a_module_is_known_by_its_own_package():
    for package in (lightning.pytorch, pytorch_lightning):
        assert trainers.package_of(package.LightningModule()) is package
    assert trainers.package_of(object()) is None


def test_what_is_imported_already_comes_first(monkeypatch):
    assert trainers.packages() == [lightning.pytorch, pytorch_lightning]
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    assert trainers.packages() == [pytorch_lightning]
    assert trainers.callback_class() is pytorch_lightning.Callback


def test_a_callback_of_both_is_one_for_each():
    made = trainers.callback_class()
    assert issubclass(made, lightning.pytorch.Callback)
    assert issubclass(made, pytorch_lightning.Callback)


def test_a_package_that_is_imported_later_is_one_of_the_bases_from_then_on():
    Early = type("Early", (lightning.pytorch.Callback,), {"on_fit_start": lambda self, trainer, module: "ours"})
    Mine = type("Mine", (Early,), {})
    made = Mine()
    for _ in range(2):
        trainers.derive_from_all(Early)
    assert isinstance(made, pytorch_lightning.Callback)
    assert isinstance(made, lightning.pytorch.Callback)
    assert Mine().on_fit_start(None, None) == "ours"
    assert len(Early.__bases__) == 2


def test_without_any_the_error_names_them(monkeypatch):
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.delitem(sys.modules, name)
    for name in ("lightning", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="neither `lightning` nor `pytorch_lightning` is there"):
        trainers.packages()
