"""The monitor measures when ModelCheckpoint saves, on the training curves' x-axis, and goes on where a run was left."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from integration.scenarios.base import CLASSES, FEATURES, Classifier, dataset, loader
from integration.scenarios.training import TwoOptimizers
from integration.untouched import OURS, ListLogger
from netdyn import DynamicsMonitor
from netdyn.engine.config import MEASURES

# These warnings are about resuming within an epoch, and about ModelCheckpoint under manual optimisation.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Monitor(DynamicsMonitor):
    """Writes down at which global step, and at which x, it measures."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"strict": True, "probe_size": 48, "weight_rays": 1, "weight_samples": 24} | options)
        self.steps: list[int] = []
        self.axis: list[int] = []

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        self.steps.append(trainer.global_step)
        self.axis.append(step)
        super()._measure(trainer, pl_module, step)


class Saves(ModelCheckpoint):
    """Writes down at which global step it saves."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"save_top_k": -1, "filename": "{step}", "enable_version_counter": False} | options)
        self.steps: list[int] = []

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        self.steps.append(trainer.global_step)
        super()._save_checkpoint(trainer, filepath)


class Steady(Classifier):
    """Draws no random numbers, so that a resumed run is the run that was never interrupted."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, CLASSES)))


class Stream(IterableDataset[Any]):
    """The samples in a fixed order, without indices."""

    def __iter__(self) -> Iterator[Any]:
        return iter(list(dataset()))


class Run:
    """One training with a monitor and a ModelCheckpoint of the same cadence."""

    def __init__(
        self,
        folder: Path,
        *,
        cadence: dict[str, Any],
        module: Callable[[], L.LightningModule] = Steady,
        trainer: dict[str, Any] | None = None,
        saves: dict[str, Any] | None = None,
        monitor: dict[str, Any] | None = None,
        others: tuple[Callback, ...] = (),
        train: Any = None,
        samples: int = 72,
        **fit: Any,
    ) -> None:
        L.seed_everything(7, verbose=False)
        self.module, self.logger = module(), ListLogger()
        self.monitor = Monitor(
            **{"on_fit_ends": False, "measure": ["modes"], "report": False} | cadence | (monitor or {})
        )
        self.saves = Saves(dirpath=folder, **cadence, **(saves or {}))
        self.trainer = L.Trainer(
            **{
                "max_epochs": 4,
                "accelerator": "cpu",
                "devices": 1,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 1,
                "log_every_n_steps": 1,
                "default_root_dir": str(folder),
            }
            | (trainer or {}),
            logger=self.logger,
            callbacks=[self.monitor, *others, self.saves],
        )
        train = loader(dataset(samples), shuffle=False) if train is None else train
        self.trainer.fit(self.module, train, loader(dataset(32, seed=1), shuffle=False), **fit)

    def curve(self) -> list[tuple[int | None, str, float]]:
        """The monitor's curves, but for the clock's."""
        return [
            line
            for line in self.logger.lines
            if line[1].removeprefix("mine/").startswith(OURS) and not line[1].endswith(("seconds", "overhead"))
        ]

    def axis(self, name: str) -> set[int | None]:
        """The steps at which a curve has points."""
        return {step for step, key, _ in self.logger.lines if key == name}


EPOCHS, SECOND = {"every_n_epochs": 1}, {"every_n_epochs": 2}
STEPS, THIRD, FOURTH = {"every_n_train_steps": 1}, {"every_n_train_steps": 3}, {"every_n_train_steps": 4}
CADENCES = pytest.mark.parametrize("cadence", [EPOCHS, SECOND, STEPS, THIRD], ids=repr)


def same_steps(run: Run) -> None:
    assert run.monitor.steps == run.saves.steps
    assert run.monitor.steps == sorted(set(run.monitor.steps))
    assert run.monitor.steps
    assert run.monitor.monitor.skipped == 0
    assert set(run.monitor.axis) == run.axis("probe/accuracy")
    assert set(run.monitor.axis) <= run.axis("train_loss_step")


@CADENCES
def test_plain(tmp_path, cadence):
    same_steps(Run(tmp_path, cadence=cadence))


@CADENCES
def test_without_validation(tmp_path, cadence):
    same_steps(Run(tmp_path, cadence=cadence, trainer={"limit_val_batches": 0}))


@CADENCES
@pytest.mark.parametrize("accumulated", [2, 3])
def test_accumulation(tmp_path, cadence, accumulated):
    same_steps(Run(tmp_path, cadence=cadence, trainer={"accumulate_grad_batches": accumulated}))


@pytest.mark.parametrize(
    ("cadence", "steps", "axis"),
    [
        (EPOCHS, [10, 20, 30, 40], [4, 9, 14, 19]),
        (SECOND, [20, 40], [9, 19]),
        (THIRD, [6, 12, 18, 24, 30, 36], [2, 5, 8, 11, 14, 17]),
        (FOURTH, [4, 8, 12, 16, 20, 24, 28, 32, 36, 40], [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]),
    ],
    ids=repr,
)
def test_two_manual_optimizers(tmp_path, cadence, steps, axis):
    """Two steps a batch: the training curves, and with them the monitor's, count batches."""
    run = Run(tmp_path, cadence=cadence, module=TwoOptimizers)
    same_steps(run)
    assert run.monitor.steps == steps
    assert run.monitor.axis == axis


@pytest.mark.parametrize("interval", [0.5, 2, 3])
def test_steps_with_validation_within_the_epoch(tmp_path, interval):
    same_steps(Run(tmp_path, cadence=THIRD, trainer={"val_check_interval": interval}))


@pytest.mark.parametrize("cadence", [EPOCHS, SECOND], ids=repr)
@pytest.mark.parametrize(("interval", "samples"), [(0.5, 64), (0.5, 72), (3, 72)])
def test_epochs_with_validation_within_the_epoch(tmp_path, cadence, interval, samples):
    run = Run(tmp_path, cadence=cadence, trainer={"val_check_interval": interval}, samples=samples)
    length, every = -(-samples // 16), cadence["every_n_epochs"]
    assert run.monitor.steps == [length * (epoch + 1) for epoch in range(4) if (epoch + 1) % every == 0]
    if samples == 64:  # the last validation is at the epoch's end: ModelCheckpoint saves there too, and before
        assert set(run.monitor.steps) < set(run.saves.steps)
    assert set(run.monitor.axis) == run.axis("probe/accuracy") <= run.axis("train_loss_step")


@pytest.mark.parametrize("cadence", [EPOCHS, SECOND], ids=repr)
def test_epochs_with_validation_every_other_epoch(tmp_path, cadence):
    run = Run(
        tmp_path,
        cadence=cadence,
        trainer={"check_val_every_n_epoch": 2},
        saves={"save_on_train_epoch_end": True},  # otherwise it saves where validation ends
    )
    same_steps(run)


@CADENCES
def test_max_steps_within_the_epoch(tmp_path, cadence):
    run = Run(tmp_path, cadence=cadence, trainer={"max_steps": 12, "max_epochs": -1})
    same_steps(run)


@CADENCES
def test_fit_twice(tmp_path, cadence):
    run = Run(tmp_path, cadence=cadence, trainer={"max_epochs": 2})
    run.trainer.fit_loop.max_epochs = 4
    run.trainer.fit(run.module, loader(dataset(72), shuffle=False), loader(dataset(32, seed=1), shuffle=False))
    same_steps(run)


def test_both_ends_are_measured_once(tmp_path):
    run = Run(tmp_path, cadence=EPOCHS, monitor={"on_fit_ends": True})
    assert run.monitor.steps == [0, 5, 10, 15, 20]
    run = Run(tmp_path, cadence=THIRD, monitor={"on_fit_ends": True})
    assert run.monitor.steps == [0, 3, 6, 9, 12, 15, 18, 20]
    assert run.monitor.axis == [0, 2, 5, 8, 11, 14, 17, 19]


@pytest.mark.parametrize(
    ("schedule", "steps"), [("log", [1, 2, 3, 5, 10, 20]), ([1, 5], [1, 5]), ([4, 17, 400], [4, 17])], ids=repr
)
def test_schedules(tmp_path, schedule, steps):
    run = Run(tmp_path, cadence={}, monitor={"schedule": schedule})
    assert run.monitor.steps == steps
    assert run.monitor.axis == [step - 1 for step in steps]
    assert set(run.monitor.axis) <= run.axis("train_loss_step")


@pytest.mark.parametrize("accumulated", [2, 3])
def test_schedule_under_accumulation(tmp_path, accumulated):
    run = Run(tmp_path, cadence={}, monitor={"schedule": "log"}, trainer={"accumulate_grad_batches": accumulated})
    assert run.monitor.steps == [step for step in (1, 2, 3, 5, 10) if step <= run.trainer.global_step]


def test_sanity_check_and_fast_dev_run(tmp_path):
    run = Run(tmp_path, cadence=STEPS, trainer={"fast_dev_run": 3}, monitor={"on_fit_ends": True})
    assert run.monitor.steps == [3]
    run = Run(tmp_path, cadence=EPOCHS, trainer={"num_sanity_val_steps": 2, "max_epochs": 1})
    assert run.monitor.steps == [5]


def test_stream(tmp_path):
    """The probe is full after three batches: until then there is nothing to measure on."""
    run = Run(tmp_path, cadence=EPOCHS, train=DataLoader(Stream(), 16), monitor={"on_fit_ends": True})
    assert run.axis("probe/accuracy") == {2, 3, 7, 11, 15} <= run.axis("train_loss_step")
    assert run.saves.steps == [4, 8, 12, 16]


# --- resuming -------------------------------------------------------------------------------------------


def weights_only_modes() -> list[dict[str, Any]]:
    """What can be said to ``fit`` about loading weights only; older versions have no word for it."""
    known = "weights_only" in inspect.signature(L.Trainer.fit).parameters
    return [{"weights_only": mode} for mode in (None, True, False)] if known else [{}]


#: From a checkpoint that was written within an epoch, Lightning before 2.5 goes on with a batch too many, or with other
#: losses than the run that was never interrupted, with netdyn or without.
GOES_ON = tuple(map(int, L.__version__.split(".")[:2])) >= (2, 5)
LOADING = pytest.mark.parametrize("loading", weights_only_modes(), ids=repr)


class At(Callback):
    """Saves checkpoints after given batches, counted over the whole run: also where accumulation is not done."""

    def __init__(self, folder: Path, batches: tuple[int, ...]) -> None:
        self.folder, self.batches = folder, batches

    def path(self, batch: int) -> Path:
        return self.folder / f"after {batch} batches.ckpt"

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = trainer.fit_loop.total_batch_idx + 1
        if done in self.batches:
            trainer.save_checkpoint(self.path(done))


def from_the_middle(folder: Path, batch: int, loading: dict[str, Any], **options: Any) -> None:
    """A run that goes on after some batch does what the uninterrupted one does from there on, and nothing twice."""
    at = At(folder, (batch,))
    whole = Run(folder / "whole", others=(at,), **options)
    second = Run(folder / "second", ckpt_path=at.path(batch), **loading, **options)
    left = torch.load(at.path(batch), weights_only=True)["global_step"]
    after = [(step, x) for step, x in zip(whole.monitor.steps, whole.monitor.axis, strict=True) if step > left]
    if GOES_ON:
        assert list(zip(second.monitor.steps, second.monitor.axis, strict=True)) == after
    # ModelCheckpoint forgets that it has saved the step at which the run goes on, and may save it once more.
    assert [step for step in second.saves.steps if step != left] == second.monitor.steps
    assert set(second.monitor.axis) <= second.axis("train_loss_step")


@pytest.mark.slow
@pytest.mark.parametrize("cadence", [EPOCHS, STEPS, THIRD], ids=repr)
@pytest.mark.parametrize(
    ("accumulated", "batch"),
    [(1, 7), (1, 10), (2, 6), (2, 7), (3, 7), (3, 8)],
    ids=lambda value: str(value),
)
def test_resumed_within_an_epoch(tmp_path, cadence, accumulated, batch):
    """Epochs of 5 batches; gradients wait after batches 6 (of 2) and 7 (of 3); batch 10 is an epoch's last."""
    from_the_middle(
        tmp_path, batch, {}, cadence=cadence, trainer={"accumulate_grad_batches": accumulated, "max_epochs": 3}
    )


@LOADING
def test_resumed_within_accumulation(tmp_path, loading):
    from_the_middle(tmp_path, 9, loading, cadence=STEPS, trainer={"accumulate_grad_batches": 3, "max_epochs": 3})


@LOADING
def test_resumed_within_an_epoch_with_two_manual_optimizers(tmp_path, loading):
    from_the_middle(tmp_path, 7, loading, cadence=FOURTH, module=TwoOptimizers, trainer={"max_epochs": 3})


def same_curve(folder: Path, loading: dict[str, Any], **options: Any) -> tuple[Run, Run]:
    """A run left at an epoch's end and gone on with draws the curves of the uninterrupted one."""
    trainer = options.pop("trainer", {})
    # With figures the radii of the classes are found: at every evaluation, and not at both ends of each run.
    options["monitor"] = {"measure": MEASURES, "figures": "always"} | options.get("monitor", {})
    whole = Run(folder / "whole", trainer=trainer, **options)
    first = Run(folder / "first", trainer=trainer | {"max_epochs": 2}, **options)
    first.trainer.save_checkpoint(folder / "end.ckpt")
    # Written within the hook of the epoch's end, or, where ModelCheckpoint last saved in the middle, after the fit.
    path = first.saves.best_model_path if options["cadence"] == EPOCHS else folder / "end.ckpt"
    second = Run(folder / "second", trainer=trainer, ckpt_path=path, **loading, **options)
    assert first.curve()
    assert second.curve()
    assert first.curve() + second.curve() == whole.curve()
    assert first.monitor.steps + second.monitor.steps == whole.monitor.steps
    assert set(second.monitor.axis) <= second.axis("train_loss_step")
    return first, second


@LOADING
@pytest.mark.slow
def test_resumed_at_the_end_of_an_epoch(tmp_path, loading):
    same_curve(tmp_path, loading, cadence=EPOCHS, monitor={"on_fit_ends": True})


@pytest.mark.parametrize(
    "trainer",
    [
        {"accumulate_grad_batches": 2},
        {"accumulate_grad_batches": 3},
        pytest.param(
            {"val_check_interval": 0.5},
            marks=pytest.mark.skipif(not GOES_ON, reason="Lightning before 2.5 goes on with other losses by itself"),
        ),
    ],
    ids=repr,
)
def test_resumed_at_the_end_of_an_epoch_by(tmp_path, trainer):
    same_curve(tmp_path, {}, cadence=EPOCHS, trainer=trainer, samples=64, monitor={"prefix": "mine"})


@pytest.mark.slow
@pytest.mark.parametrize("cadence", [THIRD, {"every_n_train_steps": 5}], ids=repr)
def test_resumed_at_the_end_of_an_epoch_by_steps(tmp_path, cadence):
    first, second = same_curve(tmp_path, {}, cadence=cadence)
    assert first.monitor.steps + second.monitor.steps == first.saves.steps + second.saves.steps


def test_resumed_on_a_stream(tmp_path):
    same_curve(tmp_path, {}, cadence=EPOCHS, train=DataLoader(Stream(), 16))


def test_resumed_with_two_manual_optimizers(tmp_path):
    options: dict[str, Any] = {"cadence": FOURTH, "module": TwoOptimizers}
    first = Run(tmp_path / "first", trainer={"max_epochs": 2}, **options)
    second = Run(tmp_path / "second", ckpt_path=first.saves.best_model_path, **options)
    assert first.monitor.steps == first.saves.steps == [4, 8, 12, 16, 20]
    assert second.monitor.steps == second.saves.steps == [24, 28, 32, 36, 40]


def test_resumed_run_measures_neither_start_nor_end_again(tmp_path):
    options: dict[str, Any] = {"cadence": EPOCHS, "monitor": {"on_fit_ends": True}, "trainer": {"max_epochs": 2}}
    first = Run(tmp_path / "first", **options)
    again = Run(tmp_path / "again", ckpt_path=first.saves.best_model_path, **options)
    assert first.monitor.steps == [0, 5, 10]
    assert again.monitor.steps == []
