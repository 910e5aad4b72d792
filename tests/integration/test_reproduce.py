"""The scripts that reproduce the papers: each from its command line, and the rooms that they share."""

import gzip
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "reproduce"
SHARED = ("data", "training", "claims", "l_map", "page", "all")


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the modules by its name, as a script beside it would import it."""
    monkeypatch.syspath_prepend(FOLDER)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in SHARED:
        sys.modules.pop(name, None)


def scripts() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in SHARED)


def run(script: str, folder: Path, *options: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "MNIST_DIR"}
    ended = subprocess.run(
        [
            sys.executable,
            str(FOLDER / f"{script}.py"),
            "--out",
            str(folder),
            "--progress",
            str(folder / "kept"),
            *options,
        ],
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": "error"},
        capture_output=True,
        encoding="utf-8",
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", scripts())
def test_a_script_prints_its_verdicts_and_writes_figure_and_numbers(script, tmp_path):
    said = run(script, tmp_path, "--quick")
    told = json.loads((tmp_path / f"{script}.json").read_text(encoding="utf-8"))
    assert told["script"] == script
    assert told["seeds"] == 1
    assert told["data"] == "scikit-learn's digits"
    assert "scikit-learn's digits stand in" in said
    for claim in told["claims"]:
        assert f"{claim['name']} ({claim['source']}): {claim['verdict'].upper()}" in said
        assert claim["parts"]
        assert all(len(part["measured"]) == len(part["holds"]) == 1 for part in claim["parts"])
        for part in claim["parts"] + claim["readings"]:
            # A reading may be of something else than the seeds: of several networks, or of all seeds together.
            assert len(part["measured"]) == len(part["holds"]) >= 1
            assert part["statement"] in said
    assert (tmp_path / f"{script}.png").read_bytes()[:4] == b"\x89PNG"
    lines = (tmp_path / f"{script}.csv").read_text(encoding="utf-8").splitlines()
    assert "seed" in lines[0].split(",")
    assert len(lines) > 2
    # What a stopped script had finished is not trained again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.pt")}
    assert before
    run(script, tmp_path, "--quick")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.pt")} == before
    assert (tmp_path / f"{script}.csv").read_text(encoding="utf-8").splitlines() == lines


def test_every_script_is_in_the_command_for_all_and_on_the_page(room):
    assert sorted(room("all").SCRIPTS) == sorted(room("page").ORDER) == scripts()


def test_the_page_holds_what_the_scripts_wrote(room):
    page = room("page")
    text = page.PAGE.read_text(encoding="utf-8")
    before = json.loads(page.BEFORE.read_text(encoding="utf-8"))
    assert page.written(text, page.results(), before) == text
    assert {match[3] for match in page.MARK.finditer(text)} == {None, "cuts", "l_map", "drift", *page.ORDER}


def part(statement: str, verdict: str, place: list[str] | None = None) -> dict[str, Any]:
    return {"statement": statement, "text": f"{len(statement)}.0", "verdict": verdict, "place": place}


def test_old_and_new_verdicts_stand_side_by_side(room):
    page = room("page")
    claim: dict[str, Any] = {"name": "n", "source": "P1", "says": "s.", "setting": "t", "note": "", "verdict": "holds"}
    parts, readings = [part("a", "holds"), part("bb", "holds")], [part("ccc", "does not hold", ["cuts", "row", "0.5"])]
    old = {"shallow": {"claims": [claim | {"parts": parts, "readings": readings}]}}
    before = page.kept(old)
    told = {"script": "shallow", "command": "c", "data": "MNIST", "seeds": 3, "minutes": 2.0}
    parts = [part("a", "holds"), part("bb", "holds in part"), part("dddd", "holds", ["cuts", "row", "0.7"])]
    found = {"shallow": told | {"claims": [claim | {"parts": parts, "readings": readings, "verdict": "holds in part"}]}}
    marks = [f"<!-- {mark} -->\n<!-- end -->\n" for mark in ("verdicts", "changes", "table cuts", "results shallow")]
    text = page.written("".join(marks), found, before)
    assert "| [n](#shallow) | P1 | s. | holds | **holds in part** |" in text
    assert "| n | bb | 2.0, holds | 2.0, holds in part |" in text.partition("changes")[2].partition("end")[0]
    assert "| n | **the claim** | holds | holds in part |" in text
    assert text.count("| n |") == 2  # nothing else has changed
    assert "| [n](#shallow) | row | 4.0, holds | 3.0, does not hold |" in text  # columns in the order of the claim
    assert "| dddd | – | 4.0, holds |" in text
    assert page.written(text, found, before) == text


def test_the_results_on_the_page_are_of_mnist_and_at_least_three_seeds(room):
    for told in room("page").results().values():
        assert told["data"] == "MNIST"
        assert told["seeds"] >= 3
        assert "--quick" not in told["command"]
        for claim in told["claims"]:
            held = [part["holds"] for part in claim["parts"]]
            assert all(len(seeds) == told["seeds"] for seeds in held)
            assert claim["verdict"] == room("claims").verdict(held)


# Data


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def write(folder: Path, packed: bool, sign: str) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (7, 3, 5), np.uint8), draw.integers(0, 10, 7, np.uint8)
    for part in ("train", "t10k"):
        for kind, content in (("images", images), ("labels", labels)):
            path = folder / f"{part}-{kind}{sign}idx{content.ndim}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(content)) if packed else idx(content))
    return images, labels


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("sign", ["-", "."])
def test_idx_files_are_read(room, tmp_path, packed, sign):
    images, labels = write(tmp_path, packed, sign)
    data = room("data").load(str(tmp_path), "cpu")
    assert data.name == "MNIST"
    assert torch.equal(data.x, torch.from_numpy(images.reshape(7, 15).astype(np.float32)) / 255)
    assert torch.equal(data.test_x, data.x)
    assert data.y.tolist() == data.test_y.tolist() == labels.tolist()
    assert torch.equal(data.first(3).x, data.x[:3])
    assert data.pixels == 15


def test_a_folder_without_mnist_is_named(room, tmp_path):
    with pytest.raises(
        SystemExit, match=r"^--mnist must name a folder of MNIST's IDX files, none of train-images-idx3"
    ):
        room("data").load(str(tmp_path), "cpu")


def test_another_file_of_that_name_is_named(room, tmp_path):
    write(tmp_path, False, "-")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"GIF89a  ")
    with pytest.raises(SystemExit, match=r"begins with b'GIF8'"):
        room("data").load(str(tmp_path), "cpu")


# Training


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))


def trained(room: Any, folder: Path, stop: int | None = None) -> tuple[list[dict[str, float]], nn.Module]:
    """Twelve steps with Adam, measured at four of them; `stop`: the measurement at this step is interrupted."""
    training, data = room("training"), room("data").load(None, "cpu").first(100)
    net = network()

    def measure(step: int) -> dict[str, float]:
        if step == stop:
            raise KeyboardInterrupt
        return {"accuracy": training.accuracy(net, data.x, data.y), "weight": net[0].weight.sum().item()}

    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    kept = {"batch": 30, "seed": 5, "progress": folder, "setting": "some thing"}
    return training.train(net, data, optimiser, measure, [0, 1, 7, 12], **kept), net


def test_a_training_that_was_stopped_ends_as_one_that_was_not(room, tmp_path, monkeypatch):
    monkeypatch.setattr(room("training"), "SAVE_EVERY", 0.0)
    rows, net = trained(room, tmp_path / "whole")
    assert [row["step"] for row in rows] == [0, 1, 7, 12]
    for stop in (1, 12, 7):
        with pytest.raises(KeyboardInterrupt):
            trained(room, tmp_path / f"until {stop}", stop)
        again, same = trained(room, tmp_path / f"until {stop}")
        assert again == rows
        assert all(
            torch.equal(a, b) for a, b in zip(net.state_dict().values(), same.state_dict().values(), strict=True)
        )


def test_the_modules_in_training_mode_are_those_that_were(room, tmp_path):
    _, net = trained(room, tmp_path)
    assert net.training


def test_steps_of_epochs(room):
    assert room("training").in_epochs([0, 0.001, 1, 1, 3], samples=1050, batch=100) == [0, 1, 11, 33]


# Verdicts


def test_mean_and_spread_of_the_seeds(room):
    part = room("claims").Part("less than 3", [1.0, 2.0, 3.0], [True, True, False], "{:.2f}")
    assert str(part) == "2.00 ± 1.00"
    assert part.verdict == "holds in part"
    assert str(room("claims").Part("negative", [-1.0], [True])) == "−1.000"


def test_one_part_that_fails_for_one_seed_is_in_the_verdict(room):
    claims = room("claims")
    good, bad = claims.Part("a", [1, 1], [True, True]), claims.Part("b", [1, 1], [False, False])
    mixed = claims.Part("c", [1, 1], [True, False])
    for parts, verdict in [([good], "holds"), ([good, bad], "holds in part"), ([bad], "does not hold")]:
        assert claims.Claim("n", "P1", "s", "t", parts, readings=[bad]).verdict == verdict
    assert claims.Claim("n", "P1", "s", "t", [good, mixed]).verdict == "holds in part"
