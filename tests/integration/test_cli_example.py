"""The example of a command line: run for an epoch, and its configuration there and back."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from netdyn import DynamicsMonitor

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
GIVEN = {"every_n_epochs": 2, "weight_rays": 32, "layers": ["hidden.*"]}


def cli(folder: Path, config: Path, *options: str) -> str:
    """What the example prints when it is run in a folder."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "cli.py"), "fit", "--config", str(config), *options],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole configuration, as the example prints it, one argument overridden on the line."""
    path = tmp_path_factory.mktemp("printed") / "all.yaml"
    line = ("--trainer.callbacks.weight_rays", "8", "--print_config")
    path.write_text(cli(path.parent, EXAMPLES / "cli.yaml", *line), encoding="utf-8")
    return path


def monitor(config: Path) -> dict:
    (callback,) = yaml.safe_load(config.read_text(encoding="utf-8"))["trainer"]["callbacks"]
    assert callback["class_path"] == "netdyn.DynamicsMonitor"
    return callback["init_args"]


def test_the_file_names_only_what_it_changes():
    assert monitor(EXAMPLES / "cli.yaml") == GIVEN


def test_the_printed_configuration_holds_every_argument(printed):
    defaults = {name: p.default for name, p in inspect.signature(DynamicsMonitor).parameters.items()}
    assert monitor(printed) == defaults | {"measure": list(defaults["measure"])} | GIVEN | {"weight_rays": 8}


def test_the_printed_configuration_prints_itself(printed, tmp_path):
    assert cli(tmp_path, printed, "--print_config") == printed.read_text(encoding="utf-8")


def test_an_epoch_from_the_printed_configuration_is_logged(printed, tmp_path):
    cli(tmp_path, printed, "--trainer.max_epochs", "1")
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    events = EventAccumulator(str(tmp_path / "logs" / "cli" / "version_0"))
    events.Reload()
    # The untrained network, and after 22 batches, counted from 0, the trained one.
    assert [point.step for point in events.Scalars("probe/accuracy")] == [0, 21]
    layers = {tag.rpartition("/")[2] for tag in events.Tags()["scalars"] if tag.startswith("modes/opt_fraction/")}
    assert layers == {"hidden.0.1", "hidden.1.1", "hidden.2.1"}
