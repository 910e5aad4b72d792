"""A trial says whether training is the same with a monitor and without, and what an evaluation costs."""

import copy
import itertools

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from integration.scenarios.base import CLASSES, Classifier, dataset, loader
from integration.untouched import digest, generators, module_state
from netdyn import DynamicsMonitor, callback, trial_run

SMALL = {"probe_size": 40, "weight_rays": 2, "weight_samples": 24, "figures": "never", "strict": True}
pytestmark = [
    pytest.mark.filterwarnings("ignore:The (radius lies|largest noise|network mixes|model is random):UserWarning"),
    pytest.mark.filterwarnings("ignore:`accuracy` is .*, but noise alone leaves:UserWarning"),
]


def tried(module, data=None, monitor=None, **options):
    watch = monitor or DynamicsMonitor(every_n_train_steps=3, **SMALL)
    return trial_run(module, data or loader(), monitor=watch, max_steps=6, accelerator="cpu", **options)


def test_a_training_that_is_the_same_is_said_to_be():
    trial = tried(Classifier())
    assert (trial.identical, trial.differs_from) == (True, None)
    assert (trial.steps, trial.evaluations) == (6, 3)
    assert trial.step_seconds > 0
    assert trial.evaluation_seconds > 0
    assert trial.steps_per_evaluation == trial.evaluation_seconds / trial.step_seconds
    first, second = str(trial).splitlines()
    assert first == "Training is bit for bit the same with the monitor and without (6 steps, 3 evaluations)."
    assert second.startswith("An evaluation takes ")
    assert second.endswith(" of these training steps.")


def test_nothing_of_the_users_is_trained_or_drawn():
    module, data = Classifier(), loader(generator=torch.Generator().manual_seed(1))
    before = module_state(module), generators(), digest(data.generator), copy.copy(vars(data))
    monitor = DynamicsMonitor(every_n_train_steps=3, **SMALL)
    tried(module, data, monitor)
    assert (module_state(module), generators(), digest(data.generator)) == before[:3]
    assert vars(data).keys() == before[3].keys()
    assert monitor.report is None


class Meddling(DynamicsMonitor):
    """Draws a random number at its second evaluation."""

    def _measure(self, trainer, pl_module, step):
        super()._measure(trainer, pl_module, step)
        if self.monitor.evaluations == 2:
            torch.rand(1)


class Late(DynamicsMonitor):
    """Moves a weight when training has ended."""

    def on_train_end(self, trainer, pl_module):
        super().on_train_end(trainer, pl_module)
        next(pl_module.parameters()).data.add_(1)


@pytest.mark.parametrize(("kind", "batch"), [(Meddling, 3), (Late, 7)])
def test_a_monitor_that_changes_training_is_found_out(kind, batch):
    trial = tried(Classifier(), monitor=kind(every_n_train_steps=3, **SMALL))
    assert (trial.identical, trial.differs_from) == (False, batch)
    assert f"differs from training without from batch {batch} on" in str(trial)


NUMBERS = itertools.count()


class Unrepeatable(Classifier):
    """Another loss at each call, whatever is copied."""

    def loss(self, batch):
        return super().loss(batch) * (1 + 0.001 * next(NUMBERS))


def test_a_training_that_cannot_be_repeated_is_not_held_against_the_monitor():
    trial = tried(Unrepeatable())
    assert trial.identical is None
    assert trial.differs_from == 1
    assert "nothing can be said" in str(trial)


class Counting(Dataset):
    """Counts what is read, and holds an iterator that cannot be copied."""

    def __init__(self, source=None):
        self.x, self.y = dataset().tensors
        self.read, self.source = 0, source

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.read += 1
        return self.x[index] + 0.001 * self.read, self.y[index]


def test_each_training_begins_with_the_data_as_they_are():
    data = Counting()
    monitor = DynamicsMonitor(every_n_train_steps=3, probe=dataset()[:], **SMALL)
    assert tried(Classifier(), DataLoader(data, 16), monitor).identical
    assert data.read == 0


def test_what_is_shared_is_named():
    data, monitor = Counting(iter(lambda: 1, 2)), DynamicsMonitor(probe=dataset()[:], **SMALL)
    data.source = (n for n in range(3))
    trial = tried(Classifier(), DataLoader(data, 16), monitor)
    assert trial.shared == {"dataset.source": "generator"}
    assert "dataset.source (generator)" in str(trial)


def test_arguments_of_the_trainer_are_passed_on():
    trial = tried(Classifier(), accumulate_grad_batches=2, callbacks=[callback.Callback()])
    assert (trial.identical, trial.steps) == (True, 6)
    assert trial_run(Classifier(), loader(), max_steps=4, accelerator="cpu").evaluations == 3


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"module": torch.nn.Linear(2, CLASSES)}, TypeError, "`module` must be a LightningModule, got Linear"),
        ({"monitor": 3}, TypeError, "`monitor` must be a DynamicsMonitor, got int"),
        ({"max_steps": 1}, ValueError, "`max_steps` must be at least 2, got 1"),
    ],
)
def test_wrong_arguments_are_named(options, error, text):
    with pytest.raises(error, match=text):
        trial_run(**{"module": Classifier(), "train_dataloaders": loader()} | options)


def test_a_trial_writes_no_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trial_run(Classifier(), loader(), max_steps=2)
    assert list(tmp_path.iterdir()) == []
