"""The examples, run as a reader runs them: from the command line, in a folder of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
EPOCHS = 3


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Both examples, at the same time; each in an empty folder."""
    commands = {
        "quickstart.py": ["--epochs", str(EPOCHS), "--logs", "somewhere"],
        "custom_loop.py": [],
    }
    started = {}
    for name, options in commands.items():
        folder = tmp_path_factory.mktemp(name.partition(".")[0])
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), *options],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        started[name] = process, folder
    yield started
    for process, _ in started.values():
        process.kill()
        process.communicate()


def finished(running: Any, name: str) -> tuple[str, str, Path]:
    process, folder = running[name]
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out, err, folder


@pytest.fixture(scope="module")
def quickstart(running: Any) -> tuple[str, str, Path]:
    return finished(running, "quickstart.py")


@pytest.fixture(scope="module")
def custom_loop(running: Any) -> tuple[str, str, Path]:
    return finished(running, "custom_loop.py")


@pytest.fixture(scope="module")
def events(quickstart: tuple[str, str, Path]) -> EventAccumulator:
    (file,) = quickstart[2].glob("somewhere/**/events.out.tfevents.*")
    found = EventAccumulator(str(file.parent), size_guidance={"scalars": 0})
    found.Reload()
    return found


def section(out: str, title: str) -> str:
    """What is printed under an underlined title, up to the next empty line."""
    found = re.search(rf"^{title}\n-+\n(.*?)\n\n", out, re.MULTILINE | re.DOTALL)
    assert found, out
    return found[1]


def test_the_quickstart_complains_of_nothing(quickstart):
    assert not [line for line in quickstart[1].splitlines() if re.search("warn|error|traceback", line, re.IGNORECASE)]


@pytest.mark.parametrize("title", ["Untrained", "Trained"])
def test_the_quickstart_prints_a_report_before_and_after(quickstart, title):
    report = section(quickstart[0], title)
    assert "probe: 1024 samples, 10 classes" in report
    assert re.findall(r"^hidden\.\d\.1 ", report, re.MULTILINE) == ["hidden.0.1 ", "hidden.1.1 ", "hidden.2.1 "]
    assert re.search(r"^sample basin: radius ", report, re.MULTILINE)
    assert re.search(r"^weight basin: radius ", report, re.MULTILINE)
    assert re.search(r"^- ", report, re.MULTILINE)


def radius(report: str, space: str) -> float:
    return float(re.search(rf"^{space} basin: radius (\S+)", report, re.MULTILINE)[1])


@pytest.mark.parametrize("space", ["sample", "weight"])
def test_the_quickstart_shows_basins_grow(quickstart, space):
    assert radius(section(quickstart[0], "Untrained"), space) == 0
    assert radius(section(quickstart[0], "Trained"), space) > 0.1


def test_the_quickstart_ends_with_the_line_to_run_and_the_page_to_open(quickstart):
    line, page = quickstart[0].split("\n\n")[-2:]
    assert line.strip() == "tensorboard --logdir somewhere"
    assert page.startswith("To begin with a few of them: http://localhost:6006/?")


def test_the_quickstart_writes_where_it_was_told_and_nowhere_else(quickstart):
    assert [path.name for path in quickstart[2].iterdir()] == ["somewhere"]


PROMISED = [*(f"modes/opt_fraction/hidden.{i}.1" for i in range(3)), "basin/sample/radius", "basin/weight/radius"]


@pytest.mark.parametrize("tag", PROMISED)
def test_the_quickstarts_log_shows_a_curve_from_the_untrained_to_the_trained_network(events, tag):
    curve = events.Scalars(tag)
    # 22 batches an epoch; x counts from 0.
    assert [point.step for point in curve] == [0] + [22 * epoch - 1 for epoch in range(1, EPOCHS + 1)]
    assert curve[-1].value > curve[0].value + 0.1


def test_the_quickstarts_log_holds_no_other_share_of_opt_units(events):
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("modes/opt_fraction/")} == set(PROMISED[:3])


def test_the_quickstarts_log_holds_histograms_and_its_own_curves(events):
    assert {"train_loss", "val_accuracy", "probe/val_accuracy"} <= set(events.Tags()["scalars"])
    assert {"modes/order_index/hidden.0.1", "basin/sample/radii"} <= set(events.Tags()["histograms"])


def test_the_quickstarts_report_and_log_agree(quickstart, events):
    report = section(quickstart[0], "Trained")
    accuracy = float(re.search(r"accuracy (\d\.\d+)", report)[1])
    # The report's probe is the first 1024 of 1400 digits, the log's another 1024 of them. With an accuracy p above 0.95
    # their difference has a standard deviation below (2·p(1 − p)/1024)^½ = 0.0096; the bound is three of them.
    logged = events.Scalars("probe/accuracy")[-1].value
    assert min(accuracy, logged) > 0.95
    assert abs(accuracy - logged) < 0.029


def test_the_custom_loop_complains_of_nothing(custom_loop):
    assert custom_loop[1] == ""


def test_the_custom_loop_prints_modes_and_basins_as_training_goes_on(custom_loop):
    header, *lines = custom_loop[0].splitlines()
    assert header.split() == ["epoch", "accuracy", "OPT[0]", "OPT[2]", "sample", "basin", "weight", "basin"]
    rows = [[float(cell) for cell in line.split()] for line in lines]
    assert [row[0] for row in rows] == [0, 5, 10, 15]
    untrained, trained = rows[0], rows[-1]
    assert untrained[1] < 0.3 < 0.9 < trained[1]
    assert untrained[-2:] == [0, 0]
    assert min(trained[2:]) > 0.3


def test_the_custom_loop_writes_no_file(custom_loop):
    assert list(custom_loop[2].iterdir()) == []
