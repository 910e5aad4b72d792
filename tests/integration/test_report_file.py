"""The page at the end of a run: where it is written, when not, and that it never ends a training."""

import logging
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from integration.scenarios.base import Classifier, loader, points
from made_reports import Reader
from netdyn import DynamicsMonitor, Monitor
from netdyn._utils.distributed import Processes

CHEAP = {"measure": ["modes", "linear"], "figures": "never"}
PAGE = "netdyn_report.html"


class Folder:
    """A logger that has nothing but a folder."""

    def __init__(self, log_dir):
        self.log_dir = log_dir

    def log_metrics(self, metrics, step):
        """Kept nowhere."""


def network():
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5))


def measured(loggers=(), **options):
    """A monitor that has measured twice and was closed."""
    watch = Monitor(points(), points(seed=1), loggers=loggers, **CHEAP | options)
    for step, net in enumerate([network(), network()]):
        watch.measure(net, step)
    watch.close()
    return watch


def fitted(folder, *, logger=False, trainer=(), **options):
    watch = DynamicsMonitor(**CHEAP | options)
    fit = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=logger,
        default_root_dir=folder,
        callbacks=[watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **dict(trainer),
    )
    fit.fit(Classifier(), loader(), loader(shuffle=False))
    return watch.monitor


def test_the_page_is_beside_the_logs_with_the_run_and_how_it_was_measured(tmp_path):
    watch = measured([Folder(None), Folder(str(tmp_path / "logs")), Folder(str(tmp_path / "other"))])
    assert watch.report_path == tmp_path / "logs" / PAGE
    assert [path.name for path in tmp_path.rglob("*.html")] == [PAGE]
    reader = Reader(watch.report_path.read_text(encoding="utf-8"))
    text = " ".join(reader.texts)
    assert watch.report.verdict.level in reader.texts
    for part in ("The run", "OPT over the run", "64 samples", "optimiser steps", "seconds", "seed"):
        assert part in text
    assert "figure" not in reader.tags


def test_figures_of_the_run_are_on_it(tmp_path):
    watch = measured(Folder(tmp_path), measure=["modes", "linear"], figures="ends")
    text = " ".join(Reader(watch.report_path.read_text(encoding="utf-8")).texts)
    for tag in ("modes/rpd", "modes/map", "linear/tail"):
        assert f"{tag}: " in text


def test_there_is_no_page_without_a_place_for_it_or_if_it_is_not_wanted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert measured().report_path is None
    assert measured(Folder(tmp_path), report=False).report_path is None
    never = Monitor(points(), loggers=Folder(tmp_path), **CHEAP)
    never.close()
    assert never.report_path is None
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_process_writes(tmp_path):
    watch = Monitor(points(), loggers=Folder(tmp_path), **CHEAP)
    watch.measure(network(), 0)
    watch.processes = Processes(rank=1)
    watch.close()
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_is_part_of_the_name(tmp_path):
    assert measured(Folder(tmp_path), prefix="teacher/a b").report_path == tmp_path / "netdyn_report_teacher_a_b.html"


@pytest.mark.parametrize("where", ["a file", "elsewhere"])
def test_a_folder_that_cannot_be_written_brings_one_warning_and_ends_nothing(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("", encoding="utf-8")
    folder = {"a file": str(tmp_path / "taken"), "elsewhere": "s3://bucket/logs"}[where]
    with pytest.warns(UserWarning, match=r"^netdyn could not write the report netdyn_report\.html: ") as caught:
        watch = measured(Folder(folder))
    assert len(caught) == 1
    assert "`report.to_html(path)` writes it elsewhere" in str(caught[0].message)
    assert watch.report_path is None
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(OSError, match=r"taken|s3"):
        measured(Folder(folder), strict=True)


def test_a_page_that_cannot_be_drawn_ends_nothing(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr("netdyn.monitor.write_page", broken)
    with pytest.warns(UserWarning, match=r"could not write the report netdyn_report\.html: RuntimeError: no ink\."):
        assert measured(Folder(tmp_path)).report_path is None


def test_a_trainer_without_a_logger_writes_into_its_root_folder(tmp_path):
    watch = fitted(tmp_path)
    assert watch.report_path == tmp_path / PAGE
    assert "at the end of every epoch" in " ".join(Reader(watch.report_path.read_text(encoding="utf-8")).texts)


def test_a_trainer_with_a_logger_writes_beside_its_table(tmp_path):
    watch = fitted(tmp_path, logger=CSVLogger(tmp_path, name="run"))
    assert watch.report_path == tmp_path / "run" / "version_0" / PAGE
    assert (watch.report_path.parent / "metrics.csv").exists()


def test_a_trial_of_the_code_writes_nothing(tmp_path):
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    assert fitted(tmp_path, trainer={"fast_dev_run": True}).report_path is None
    assert list(tmp_path.rglob("*.html")) == []


def test_writing_moves_no_generator(tmp_path):
    watch = Monitor(points(), loggers=Folder(tmp_path), measure=["modes"])
    watch.measure(network(), 0)
    before = torch.random.get_rng_state()
    watch.close()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert Path(watch.report_path).exists()
