"""Figures of a run: which steps have which, read back from the event file; heat maps go on in a resumed run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from integration.scenarios.base import Classifier, dataset, loader
from integration.untouched import Recorder, differences, generators, module_state
from netdyn import DynamicsMonitor, Report
from netdyn import monitor as monitoring
from netdyn.report.history import History
from netdyn.tags import FIGURES

QUICK: dict[str, Any] = {"probe_size": 48, "weight_rays": 2, "weight_samples": 24, "strict": True}
#: Three epochs of three batches.
FIRST, SECOND, LAST = 0, 2, 8
#: The figures of one evaluation, and those that need two.
ONCE = {"modes/rpd", "linear/tail", "basin/curves", "wpa/characteristic_maps", "wpa/subnetwork"}
MAPS = {"modes/map", "modes/gradient_map", "linear/map"}
#: Those of a network that has learnt.
LEARNT = ("linear/tail", "basin/curves", "wpa/subnetwork")
#: Drawn at evaluations 1, 2, 4, …
OVERVIEW = "0_netdyn/overview"


def fit(folder: Path, monitor: DynamicsMonitor | None, *others: Callback, **options: Any) -> L.Trainer:
    L.seed_everything(7, verbose=False)
    logger = options.pop("logger", None) or TensorBoardLogger(folder, name="", version="")
    usual = {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    fitting = {"ckpt_path": options.pop("ckpt_path", None)}
    trainer = L.Trainer(**usual | quiet | options, logger=logger, callbacks=[*([monitor] if monitor else []), *others])
    trainer.fit(Classifier(), loader(dataset(48)), loader(dataset(32, seed=1), shuffle=False), **fitting)
    return trainer


def images(folder: Path) -> dict[str, list[int]]:
    """Tag → the steps at which there are images."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}


def steps_of(folder: Path) -> list[int]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in events.Scalars("probe/accuracy")]


def test_figures_are_drawn_at_both_ends(tmp_path):
    fit(tmp_path, DynamicsMonitor(**QUICK))
    assert steps_of(tmp_path) == [FIRST, SECOND, 5, LAST]
    drawn = images(tmp_path)
    assert drawn.pop(OVERVIEW) == [FIRST, SECOND, LAST]
    # An untrained network has no figures of what is learnt, and a heat map needs more than one step.
    assert drawn == {tag: [FIRST, LAST] for tag in ONCE} | {tag: [LAST] for tag in (*MAPS, *LEARNT)}


@pytest.mark.slow
def test_figures_are_drawn_always(tmp_path):
    fit(tmp_path, DynamicsMonitor(**QUICK, figures="always"))
    every = [FIRST, SECOND, 5, LAST]
    drawn = images(tmp_path)
    assert [drawn.pop(tag) for tag in LEARNT] == [every[2:]] * len(LEARNT)  # the network is untrained until then
    once = {*ONCE, OVERVIEW} - {*LEARNT}
    assert drawn == dict.fromkeys(once, every) | dict.fromkeys(MAPS, every[1:])


def test_figures_are_drawn_never(tmp_path):
    monitor = DynamicsMonitor(**QUICK, figures="never")
    fit(tmp_path, monitor)
    assert steps_of(tmp_path) == [FIRST, SECOND, 5, LAST]
    assert images(tmp_path) == {}
    # What nothing else shows is not even looked for.
    assert monitor.report.characteristic_maps is None
    assert [layer.distribution for layer in monitor.report.layers] == [None, None]


def test_all_figures_are_in_the_table_of_tags(tmp_path):
    fit(tmp_path, DynamicsMonitor(**QUICK))
    assert set(images(tmp_path)) <= {tag.name for tag in FIGURES}


def test_the_last_point_may_be_an_epochs_end_or_not(tmp_path):
    # The last figures stand where their report was made; maps and curves of classes are of the network at the end.
    fit(tmp_path / "a", DynamicsMonitor(**QUICK, every_n_train_steps=4, on_fit_ends=False))
    assert steps_of(tmp_path / "a") == [3, 7]
    assert images(tmp_path / "a") == {
        **{tag: [7] for tag in MAPS},
        **{tag: [3, 7] for tag in {*ONCE, OVERVIEW}},
        "linear/tail": [7],
        "basin/curves": [7, LAST],
        "wpa/characteristic_maps": [3, LAST],
        "wpa/subnetwork": [LAST],
    }


def test_a_single_evaluation_is_drawn_once(tmp_path):
    fit(tmp_path, DynamicsMonitor(**QUICK, every_n_epochs=3, on_fit_ends=False))
    assert steps_of(tmp_path) == [LAST]
    assert images(tmp_path) == {tag: [LAST] for tag in {*ONCE, OVERVIEW}}


def test_a_prefix_stands_before_figures_too(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="", prefix="mine")
    fit(tmp_path, DynamicsMonitor(**QUICK, prefix="second"), logger=logger)
    assert set(images(tmp_path)) == {f"mine-second/{tag}" for tag in {*ONCE, *MAPS, OVERVIEW}}


def test_an_image_is_as_large_as_its_figure(tmp_path):
    fit(tmp_path, DynamicsMonitor(**QUICK))
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    image = events.Images("modes/rpd")[0]
    assert image.width > 300
    assert image.height > 200
    assert image.encoded_image_string.startswith(b"\x89PNG")


class ScalarsOnly(Logger):
    """A logger that takes scalars alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.table = CSVLogger(folder)

    name, version = "scalars", 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.table.log_metrics(metrics, step)
        self.table.save()

    def log_hyperparams(self, params: Any) -> None:
        pass


def test_other_loggers_get_no_figures_and_nothing_is_drawn(tmp_path, monkeypatch):
    def drawn(*args: Any) -> None:
        raise AssertionError("something was drawn")

    monkeypatch.setattr(History, "figures", drawn)
    monkeypatch.setattr(History, "overview", drawn)
    monkeypatch.setattr(Report, "figures", drawn)
    fit(tmp_path, DynamicsMonitor(**QUICK, figures="always", report=False), logger=ScalarsOnly(tmp_path))
    assert list(tmp_path.rglob("metrics.csv"))
    assert not list(tmp_path.rglob("*.png"))


def test_loggers_and_the_page_share_what_was_drawn(tmp_path, monkeypatch):
    drawn: list[str] = []

    def noted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def note(*args: Any) -> Any:
            drawn.append(name)
            return work(*args)

        return note

    for kind, name in ((Report, "figures"), (History, "figures"), (History, "overview")):
        monkeypatch.setattr(kind, name, noted(f"{kind.__name__}.{name}", getattr(kind, name)))
    loggers = [TensorBoardLogger(tmp_path, "board", ""), CSVLogger(tmp_path, "table", "")]
    monitor = DynamicsMonitor(**QUICK)
    fit(tmp_path, monitor, logger=loggers, max_epochs=4)
    # At both ends; the overview at the second and the fourth of five evaluations too.
    assert Counter(drawn) == {"Report.figures": 2, "History.figures": 2, "History.overview": 4}
    assert monitor.monitor.report_path.read_text().count("<figure>") == len({*ONCE, *MAPS, OVERVIEW})
    assert set(images(tmp_path / "board")) == {*ONCE, *MAPS, OVERVIEW}


def test_a_table_of_csv_gets_its_figures_as_files(tmp_path):
    fit(tmp_path, DynamicsMonitor(**QUICK), logger=CSVLogger(tmp_path, "run", 0))
    found = {str(file.relative_to(tmp_path / "run" / "version_0" / "netdyn")) for file in tmp_path.rglob("*.png")}
    assert f"modes/rpd/step_{FIRST:08d}.png" in found
    assert f"modes/rpd/step_{LAST:08d}.png" in found


@pytest.mark.parametrize("figures", ["ends", "always"])
def test_without_matplotlib_one_line_says_so_and_all_else_comes(figures, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(monitoring, "available", lambda: False)
    monitor = DynamicsMonitor(**QUICK, figures=figures)
    monitor.monitor.inform = said.append
    fit(tmp_path, monitor)
    need = "netdyn: figures need matplotlib, which the extra `plot` installs."
    assert [text for text in said if "figures" in text] == [need]
    assert steps_of(tmp_path) == [FIRST, SECOND, 5, LAST]
    assert images(tmp_path) == {}


def test_a_figure_that_cannot_be_drawn_costs_a_warning_and_not_the_training(tmp_path, monkeypatch):
    def torn(*args: Any) -> None:
        raise OSError("no more ink")

    monkeypatch.setattr(Report, "figures", torn)
    with pytest.warns(UserWarning, match="no more ink") as caught:
        trainer = fit(tmp_path, DynamicsMonitor(**QUICK | {"strict": False}, figures="always"))
    said = [str(one.message) for one in caught if "no more ink" in str(one.message)]
    assert len(said) == 2
    assert "TensorBoard refused the figures: OSError: no more ink" in said[0]
    assert "netdyn's report has no figures: OSError: no more ink." in said[1]
    assert "<svg" not in next(tmp_path.rglob("netdyn_report.html")).read_text(encoding="utf-8").partition("The run")[0]
    assert trainer.global_step == 9
    assert steps_of(tmp_path) == [FIRST, SECOND, 5, LAST]
    with pytest.raises(OSError, match="no more ink"):
        fit(tmp_path / "strict", DynamicsMonitor(**QUICK))


def record(folder: Path, monitor: DynamicsMonitor | None) -> dict[str, Any]:
    recorder = Recorder()
    trainer = fit(folder, monitor, recorder)
    return {"steps": recorder.steps, "module": module_state(trainer.lightning_module), "generators": generators()}


@pytest.mark.slow
def test_training_is_the_same_with_figures_drawn_all_the_time(tmp_path):
    without = record(tmp_path / "without", None)
    again = record(tmp_path / "with", DynamicsMonitor(**QUICK, figures="always", every_n_train_steps=1))
    assert images(tmp_path / "with")["modes/rpd"] == [0, *range(9)]
    assert differences(without, again) == []


def heat_map(monitor: DynamicsMonitor) -> list[Any]:
    history = monitor.state_dict()["history"]
    return list(zip(history["steps"], history["rows"], strict=True))


@pytest.mark.slow
def test_heat_maps_go_on_in_a_resumed_run(tmp_path):
    whole = DynamicsMonitor(**QUICK)
    fit(tmp_path / "whole", whole)
    first = DynamicsMonitor(**QUICK)
    # A run of three epochs that is cut after two: it ends there, as the whole one's second epoch does.
    trainer = fit(tmp_path / "first", first, max_epochs=2)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    (state,) = torch.load(path, weights_only=True)["callbacks"].values()
    assert state["history"]["steps"] == [FIRST, SECOND, 5]
    resumed = DynamicsMonitor(**QUICK)
    fit(tmp_path / "resumed", resumed, ckpt_path=str(path))
    assert [step for step, _ in heat_map(resumed)] == [FIRST, SECOND, 5, LAST]
    assert heat_map(resumed)[:3] == heat_map(first) == heat_map(whole)[:3]
    assert steps_of(tmp_path / "resumed") == [LAST]
    # The resumed run's only evaluation is not its first one: the figures are those of its end.
    assert images(tmp_path / "resumed") == {tag: [LAST] for tag in {*ONCE, *MAPS, OVERVIEW}}


@pytest.mark.slow
def test_a_second_fit_begins_its_heat_maps_anew(tmp_path):
    monitor = DynamicsMonitor(**QUICK)
    for name in "ab":
        fit(tmp_path / name, monitor)
        assert [step for step, _ in heat_map(monitor)] == [FIRST, SECOND, 5, LAST]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [True, False])
def test_a_layout_can_be_had_or_left(layout, tmp_path):
    fit(tmp_path, DynamicsMonitor(**QUICK, layout=layout), max_epochs=1)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert ("custom_scalars__config__" in events.Tags()["tensors"]) == layout
