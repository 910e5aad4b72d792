"""Which data a run measures, and what it says of them: mappings, several loaders, data that nothing can be made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from integration.scenarios.base import Classifier, dataset, loader, points
from netdyn import DynamicsMonitor, DynamicsWarning, diagnose

MODES: dict[str, Any] = {"measure": ["modes"], "probe_size": 32, "report": False}


class Named(Dataset[Any]):
    """Samples with names."""

    def __init__(self, input: str = "image", target: str = "label", start: int = 0) -> None:
        self.names, self.start = (input, target), start
        self.x, self.y = points(96)

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        return dict(zip(self.names, (self.x[self.start + index], self.y[self.start + index]), strict=True))


class NamedStream(IterableDataset[Any]):
    """The same as a stream."""

    def __init__(self, *names: str) -> None:
        self.data = Named(*names)

    def __iter__(self) -> Any:
        return iter([self.data[i] for i in range(48)])


class Any_(Classifier):
    """Learns from the first tensor of floats and the first of whole numbers, wherever they are in the batch."""

    def loss(self, batch: Any) -> Tensor:
        found: list[Tensor] = []
        todo = [batch]
        while todo:
            item = todo.pop(0)
            if isinstance(item, Tensor):
                found.append(item)
            else:
                todo = [*(item.values() if isinstance(item, dict) else item), *todo]
        x, y = (next(t for t in found if t.is_floating_point() == floats) for floats in (True, False))
        return nn.functional.cross_entropy(self(x), y)


class Several(Any_):
    """With any number of validation loaders."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))


@pytest.fixture
def start(info: list[str]) -> Callable[[], list[str]]:
    """The first lines of the monitors of a test."""
    return lambda: [line for line in info if line.startswith("netdyn measures")]


def fit(monitor: DynamicsMonitor, module: L.LightningModule, train: Any, val: Any = None, **options: Any) -> list[str]:
    """Train for two epochs; the warnings of netdyn."""
    usual: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        L.Trainer(**usual | quiet | options, callbacks=[monitor]).fit(module, train, val)
    return [str(each.message) for each in caught if each.category is DynamicsWarning or "netdyn" in str(each.message)]


def measured(monitor: DynamicsMonitor, module: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether the last report is of these samples."""
    expected = diagnose(module.net, x, y, measure=["modes"])  # type: ignore[arg-type]
    report = monitor.report
    return report is not None and [layer.opt_fraction for layer in report.layers] == [
        layer.opt_fraction for layer in expected.layers
    ]


# What is taken -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Named, NamedStream], ids=["read", "collected"])
@pytest.mark.parametrize("names", [("image", "label"), ("x", "y"), ("inputs", "targets"), ("data", "target")])
def test_mappings_are_measured_by_their_usual_keys(start, kind, names):
    monitor, module = DynamicsMonitor(**MODES | {"probe_size": 48}), Any_()
    assert fit(monitor, module, DataLoader(kind(*names), 16)) == []
    assert measured(monitor, module, *(t[:48] for t in points(96)))
    (line,) = start()
    assert f"on 48 samples (input {names[0]!r}, target {names[1]!r}), at the end of every epoch" in line


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda first, second: {"a": first, "b": second}, " (the first loader)"),
        (lambda first, second: [first, second], " (the first loader)"),
        (lambda first, second: {"a": [first, second], "b": {"c": second}}, " (the first loader)"),
        (lambda first, second: {"a": first}, ""),
        (lambda first, second: [[first]], ""),
    ],
    ids=["by name", "list", "nested", "one by name", "one in lists"],
)
@pytest.mark.parametrize("streams", [False, True], ids=["read", "collected"])
def test_of_several_training_loaders_the_first_is_measured(start, make, where, streams):
    x, y = points(96)
    monitor, module = DynamicsMonitor(**MODES | {"probe_size": 48}), Any_()

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(zip(x[:48], y[:48], strict=True))

    first = DataLoader(Stream() if streams else TensorDataset(x[:48], y[:48]), 16)
    assert fit(monitor, module, make(first, loader(dataset(48, seed=3)))) == []
    assert measured(monitor, module, x[:48], y[:48])
    (line,) = start()
    assert f"on 48 samples{where}, at" in line


def test_of_several_validation_loaders_the_first_is_the_held_out_probe(start):
    monitor, module = DynamicsMonitor(**MODES), Several()
    vals = [DataLoader(Named(start=48), 16), loader(dataset(16, seed=4), shuffle=False)]
    assert fit(monitor, module, loader(), vals) == []
    x, y = (t[48:] for t in points(96))
    accuracy = float((module.net.eval()(x).argmax(1) == y).float().mean())
    assert monitor.report is not None
    # 32 of the 48, with the classes in proportion.
    assert monitor.report.val_accuracy == pytest.approx(accuracy, abs=0.2)
    (line,) = start()
    assert "and 32 held-out ones (the first loader, input 'image', target 'label'), at" in line


def test_where_basins_alone_are_measured_the_first_line_says_so(start):
    fit(DynamicsMonitor(measure=["sample_basin"], figures="never", probe_size=32), Classifier(), loader())
    fit(DynamicsMonitor(measure=["batchnorm"], figures="never", probe_size=32), Classifier(), loader())
    first, second = start()
    assert first.startswith("netdyn measures the sample basin on 32 samples, at")
    assert second.startswith("netdyn measures the accuracy on 32 samples, at")
    assert " 0 layers" not in first + second


# Nothing to measure --------------------------------------------------------------------------------------------------


class Boxes(Dataset[Any]):
    """What detectors learn from: the targets are no tensors."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(6), {"boxes": torch.zeros(index % 3, 4)}


def as_lists(samples: Any) -> Any:
    return tuple(zip(*samples, strict=True))


class BoxStream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([Boxes()[i] for i in range(48)])


class Detector(Classifier):
    """Learns something from its images."""

    def loss(self, batch: Any) -> Tensor:
        self.seen = len(batch[0])
        return self(torch.stack(list(batch[0]))).square().mean()


class Clock(L.Callback):
    """Notes the optimiser steps at which netdyn has warned."""

    def __init__(self, monitor: DynamicsMonitor) -> None:
        self.monitor, self.kinds = monitor, []

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.kinds.append(len(self.monitor.monitor._said))


@pytest.mark.parametrize("kind", [Boxes, BoxStream], ids=["read", "collected"])
@pytest.mark.parametrize("options", [{}, {"on_fit_ends": False}, {"every_n_train_steps": 2}], ids=str)
def test_data_that_cannot_be_measured_are_told_once_before_the_first_step(kind, options):
    monitor = DynamicsMonitor(**MODES | options)
    clock = Clock(monitor)
    usual: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = L.Trainer(**usual, enable_progress_bar=False, enable_model_summary=False, callbacks=[monitor, clock])
        trainer.fit(Detector(), DataLoader(kind(), 16, collate_fn=as_lists))
    texts = [str(warning.message) for warning in caught if "netdyn" in str(warning.message)]
    assert len(texts) == 1
    assert "A batch must be a pair (input, target)" in texts[0]
    assert "Pass `unpack=`" in texts[0]
    assert clock.kinds == [1] * 6
    assert monitor.report is None
    assert not [key for key in trainer.callback_metrics if key.startswith("netdyn/")]


# A callback that is used again ---------------------------------------------------------------------------------------


class Opaque(Classifier):
    """Its outputs are no logits; memory is short."""

    def forward(self, x: Tensor) -> Any:
        return {"boxes": self.net(x).sum(1)[:, None, None].expand(-1, 3, 3)}

    def loss(self, batch: Any) -> Tensor:
        return self(batch[0])["boxes"].square().mean()


def logged(folder: Any) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def test_a_callback_that_is_used_again_begins_anew(tmp_path):
    monitor = DynamicsMonitor(probe_size=32, weight_rays=2)
    fit(monitor, Classifier(), loader(), logger=TensorBoardLogger(tmp_path, "first", ""))
    assert monitor.report is not None
    assert len(monitor.monitor.history.steps) == 3
    messages = fit(monitor, Opaque(), loader(), logger=TensorBoardLogger(tmp_path, "second", ""))
    again = fit(monitor, Opaque(), loader(), logger=TensorBoardLogger(tmp_path, "third", ""))
    # Each run says what is wrong with it, and shows nothing of another.
    assert len(messages) == 1
    assert "training continues" in messages[0]
    assert again == messages
    assert monitor.report is None
    assert monitor.monitor.history.steps == []
    assert logged(tmp_path / "first").Tags()["images"]
    for name in ("second", "third"):
        tags = logged(tmp_path / name).Tags()
        assert tags["images"] == []
        assert {tag for tag in tags["scalars"] if "/" in tag} == {"netdyn/seconds", "netdyn/overhead", "netdyn/skipped"}


def test_a_callback_that_has_met_a_checkpoint_of_another_run_continues_that_one(tmp_path):
    first = DynamicsMonitor(**MODES)
    module = Classifier()
    usual: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    vals = loader(dataset(16), shuffle=False)
    trainer = L.Trainer(max_epochs=2, callbacks=[first], logger=False, enable_checkpointing=False, **usual)
    trainer.fit(module, loader(), vals)
    trainer.save_checkpoint(tmp_path / "at.ckpt")
    second = DynamicsMonitor(**MODES)
    fit(second, Opaque(), loader(dataset(16)))
    resumed = L.Trainer(max_epochs=3, callbacks=[second], logger=False, enable_checkpointing=False, **usual)
    resumed.fit(module, loader(), vals, ckpt_path=tmp_path / "at.ckpt")
    assert second.monitor.history.steps == [0, 3, 7, 11]
    assert second.monitor.skipped == 0


class Fragile(Classifier):
    """Cannot be measured from the second epoch on, for a reason whose words change."""

    def forward(self, x: Tensor) -> Any:
        if not self.training and self.current_epoch >= 1:
            raise RuntimeError("lost " + "the layers " + ", ".join("abcdefgh"[: torch.randint(1, 8, ()).item()]))
        return self.net(x)


def test_figures_of_the_end_stand_at_the_step_that_they_belong_to(tmp_path):
    monitor = DynamicsMonitor(measure=["modes", "sample_basin", "maps"], probe_size=32)
    messages = fit(monitor, Fragile(), loader(), max_epochs=5, logger=TensorBoardLogger(tmp_path, "", ""))
    assert len(messages) == 1  # of four failures, and of a fifth where figures are drawn
    assert "lost the layers" in messages[0]
    events = logged(tmp_path)
    steps = {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}
    assert steps["modes/rpd"] == [0, 3]
    assert {step for seen in steps.values() for step in seen} == {0, 3}
