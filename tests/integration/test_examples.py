"""The examples, run as a reader runs them: from the command line, in a folder of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from netdyn.tags import FIGURES

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
EPOCHS = 3
#: The schedule "log", up to the last step of both trainings.
LOG = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200)


def log_up_to(last: int) -> list[int]:
    """The steps of the schedule "log" before the last one."""
    return [step for step in LOG if step < last]


def read(folder: Path) -> EventAccumulator:
    """The only event file in a folder."""
    (file,) = folder.rglob("events.out.tfevents.*")
    found = EventAccumulator(str(file.parent), size_guidance=dict.fromkeys(["scalars", "histograms", "images"], 0))
    found.Reload()
    return found


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
    return read(quickstart[2] / "somewhere")


@pytest.fixture(scope="module")
def loop_events(custom_loop: tuple[str, str, Path]) -> EventAccumulator:
    return read(custom_loop[2] / "runs" / "custom_loop")


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
    # 44 batches an epoch; x counts them from 0, and the untrained network stands at 0 too.
    last = 44 * EPOCHS
    steps = [0, *(step - 1 for step in log_up_to(last)), last - 1]
    if tag.startswith("basin/"):
        # An untrained network has no basin, and its radius of 0 is not sent.
        steps = [step for step in steps if step > 0]
    assert [point.step for point in curve] == steps
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


def test_the_custom_loop_prints_the_trained_networks_report(custom_loop):
    report = custom_loop[0]
    assert "probe: 1000 samples, 10 classes" in report
    assert re.findall(r"^(\d) ", report, re.MULTILINE) == ["0", "2"]
    assert min(radius(report, space) for space in ("sample", "weight")) > 0.1


def test_the_custom_loop_writes_one_event_file_and_a_report(custom_loop):
    files = [path.relative_to(custom_loop[2]) for path in custom_loop[2].rglob("*") if path.is_file()]
    assert [path.parent.as_posix() for path in files] == ["runs/custom_loop"] * 2
    events, page = sorted(path.name for path in files)
    assert events.startswith("events.out.tfevents")
    assert page == "netdyn_report.html"


#: 15 epochs of 16 batches; a loop without Lightning counts the steps done.
LOOP = [0, *log_up_to(240), 240]


def test_the_custom_loops_curves_have_a_point_wherever_it_measured(loop_events):
    steps = {tag: [point.step for point in loop_events.Scalars(tag)] for tag in loop_events.Tags()["scalars"]}
    # A network that knows nothing has no functional depth, and an untrained one no basin.
    depth = steps.pop("linear/functional_depth")
    assert depth == LOOP[len(LOOP) - len(depth) :]
    basins = [f"basin/{space}/{end}" for space in ("sample", "weight") for end in ("radius", "low", "high")]
    assert [steps.pop(tag) for tag in basins] == [LOOP[1:]] * 6
    assert steps == dict.fromkeys(steps, LOOP)
    layers = {f"modes/opt_fraction/{layer}" for layer in (0, 2)}
    others = {"probe/val_accuracy", "coverage/own", "netdyn/overhead"}
    assert layers | others <= set(steps)


def test_the_custom_loops_curves_show_the_network_learn(loop_events):
    def ends(tag: str) -> tuple[float, float]:
        points = loop_events.Scalars(tag)
        return points[0].value, points[-1].value

    for tag in ("probe/accuracy", "probe/val_accuracy"):
        untrained, trained = ends(tag)
        assert untrained < 0.3 < 0.9 < trained
    for tag in ("basin/sample/radius", "basin/weight/radius"):
        # The untrained network has no basin.
        assert loop_events.Scalars(tag)[0].step == LOOP[1]
        assert ends(tag)[1] > 0.1
    for layer in (0, 2):
        untrained, trained = ends(f"modes/opt_fraction/{layer}")
        assert trained > max(untrained, 0.3)


def test_the_custom_loops_report_and_curves_agree(custom_loop, loop_events):
    for space in ("sample", "weight"):
        logged = loop_events.Scalars(f"basin/{space}/radius")[-1].value
        assert radius(custom_loop[0], space) == pytest.approx(logged, rel=0.01)


def test_the_custom_loop_writes_histograms_at_the_same_steps(loop_events):
    steps = {tag: [point.step for point in loop_events.Histograms(tag)] for tag in loop_events.Tags()["histograms"]}
    layers = {f"modes/{name}/{layer}" for name in ("order_index", "alignment") for layer in (0, 2)}
    assert {tag: steps[tag] for tag in layers} == dict.fromkeys(layers, LOOP)
    # A basin has a histogram wherever it has a radius; the samples' may have one before, of the few that are right.
    for space in ("sample", "weight"):
        wide = [point.step for point in loop_events.Scalars(f"basin/{space}/radius") if point.value > 0]
        shown = steps.pop(f"basin/{space}/radii")
        assert 3 <= len(wide) <= len(shown) <= len(LOOP)
        assert shown[-len(wide) :] == wide
        assert set(shown) <= set(LOOP)
    assert set(steps) == layers


def test_the_custom_loop_draws_figures_of_both_ends(loop_events):
    steps = {tag: [point.step for point in loop_events.Images(tag)] for tag in loop_events.Tags()["images"]}
    # A heat map needs more than one step, and an untrained network has no figures of what is learnt.
    late = {"modes/map", "modes/gradient_map", "linear/map", "linear/tail", "basin/curves", "wpa/subnetwork"}
    # The overview comes ever more rarely.
    rarely = [step for number, step in enumerate(LOOP, start=1) if number & (number - 1) == 0 or step == LOOP[-1]]
    assert steps.pop("0_netdyn/overview") == rarely
    assert steps == {
        tag.name: [LOOP[-1]] if tag.name in late else [LOOP[0], LOOP[-1]]
        for tag in FIGURES
        if "overview" not in tag.name
    }
