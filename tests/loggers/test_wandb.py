"""Runs written by the real package, offline, and read back from the file that it keeps."""

import json
import struct

import matplotlib.figure
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

from netdyn.loggers.find import destination
from netdyn.loggers.wandb import LightningWandb, Wandb

wandb = pytest.importorskip("wandb")
#: The package starts a service of its own.
pytestmark = pytest.mark.slow


def rows(folder):
    """The rows of history in an offline run's file: a log of records in blocks of 32 KiB, as LevelDB's."""
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # ends the service, which has then written everything
    (file,) = folder.glob("wandb/offline-run*/*.wandb")
    data, at, joined, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        joined += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record, joined = Record.FromString(joined), b""
            if record.HasField("history"):
                items = record.history.item
                found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found


def figure():
    drawn = matplotlib.figure.Figure(figsize=(1, 1))
    drawn.subplots().plot([0, 1])
    return drawn


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    yield tmp_path
    wandb.finish()


def test_a_run_of_ones_own_keeps_its_steps_and_holds_every_number(offline):
    run = wandb.init(project="p", dir=offline)
    there = destination(run)
    assert type(there) is Wandb
    for step in range(6):
        if step in (1, 3):
            there.scalars({"modes/a": float(step)}, step)
            there.histograms({"modes/h": torch.arange(4.0)}, step)
            there.figures({"basin/f": figure()}, step)
        run.log({"loss": 10.0 + step})
    there.scalars({"modes/a": 6.0}, 6)
    there.scalars({"modes/a": 7.0}, 7)  # nothing of the user's in between
    run.finish()
    found = rows(offline)
    assert [(row["loss"], row["_step"]) for row in found if "loss" in row] == [(10.0 + step, step) for step in range(6)]
    assert [(row["netdyn/step"], row["modes/a"]) for row in found if "modes/a" in row] == [
        (1, 1),
        (3, 3),
        (6, 6),
        (7, 7),
    ]
    assert [row["netdyn/step"] for row in found if row.get("modes/h/_type") == "histogram"] == [1, 3]
    assert [row["netdyn/step"] for row in found if row.get("basin/f/_type") == "image-file"] == [1, 3]


def test_steps_of_the_users_own_are_not_dropped(offline):
    run = wandb.init(project="p", dir=offline)
    there = destination(run)
    for step in (0, 10, 20):
        there.scalars({"modes/a": float(step)}, step)
        there.figures({"basin/f": figure()}, step)
        run.log({"loss": float(step)}, step=step)
    run.finish()
    found = rows(offline)
    assert [(row["loss"], row["_step"]) for row in found if "loss" in row] == [(0, 0), (10, 10), (20, 20)]
    assert [row["modes/a"] for row in found if "modes/a" in row] == [0, 10, 20]


def test_lightnings_logger_gets_numbers_and_figures_on_its_own_axis(offline):
    logger = WandbLogger(project="p", save_dir=offline, prefix="mine")
    there = destination(logger)
    assert type(there) is LightningWandb
    assert there.shows_figures
    there.scalars({"modes/a": 1.0}, 5)
    there.histograms({"modes/h": torch.arange(4.0)}, 5)
    there.figures({"basin/f": figure()}, 5)
    there.text("0_netdyn/verdict", ["healthy: all is well.", "Layer <script>."], 5)
    wandb.finish()
    found = rows(offline)
    assert [row["mine-modes/a"] for row in found if "mine-modes/a" in row] == [1.0]
    kinds = {tag: value for row in found for tag, value in row.items() if tag.endswith("/_type")}
    assert kinds == {
        "mine-modes/h/_type": "histogram",
        "mine-basin/f/_type": "image-file",
        "mine-0_netdyn/verdict/_type": "html-file",
    }
    (page,) = offline.rglob("*.html")
    assert page.read_text().endswith("<b>healthy: all is well.</b><ul><li>Layer &lt;script&gt;.</li></ul>")
    assert {row["trainer/global_step"] for row in found} == {5}


def test_reports_of_ones_own_are_rows_of_their_own(offline):
    run = wandb.init(project="p", dir=offline)
    for step in (3, 8):
        there = destination(run)
        there.scalars({"modes/a": float(step)}, step)
        there.text("0_netdyn/verdict", ["healthy"], step)
        there.close()
    run.log({"loss": 1.0})
    run.finish()
    found = rows(offline)
    assert [(row["netdyn/step"], row["modes/a"]) for row in found if "modes/a" in row] == [(3, 3), (8, 8)]
    assert [row["_step"] for row in found if "loss" in row] == [2]
