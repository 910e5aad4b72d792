"""Loggers are told apart by the names of their classes, so that no logger's package is imported."""

import re
import subprocess
import sys

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from netdyn.loggers.base import Destination
from netdyn.loggers.csv import CSV
from netdyn.loggers.find import KINDS, destination
from netdyn.loggers.tensorboard import LightningTensorBoard, TensorBoard


class Plain:
    """A logger with an experiment that only its owner may touch."""

    @property
    def experiment(self):
        raise AssertionError("the experiment of another logger was touched")

    def log_metrics(self, metrics, step=None):
        pass


def named(name, *bases):
    """A logger of another package: only its class's name is known."""
    return type(name, bases or (Plain,), {})()


class Derived(TensorBoardLogger):
    """A user's own logger."""


class DerivedWriter(SummaryWriter):
    """A user's own writer."""


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_class_is_known_by_its_name_and_so_is_one_derived_from_it(name, kind):
    twin = named(name)
    below = named("Mine", type(twin))
    for logger in (twin, below):
        found = destination(logger)
        assert type(found) is kind
        assert found.logger is logger


@pytest.mark.parametrize("kind", [TensorBoardLogger, Derived])
def test_lightnings_loggers_are_told_apart(kind, tmp_path):
    assert type(destination(kind(tmp_path))) is LightningTensorBoard
    assert type(destination(CSVLogger(tmp_path))) is CSV


@pytest.mark.parametrize("logger", [Plain(), named("MyTensorBoardLogger")], ids=["plain", "alike"])
def test_other_loggers_take_scalars_alone(logger):
    assert type(destination(logger)) is Destination


@pytest.mark.parametrize("kind", [SummaryWriter, DerivedWriter])
def test_a_writer_is_used_and_left_open(kind, tmp_path):
    with kind(str(tmp_path)) as writer:
        found = destination(writer)
        assert type(found) is TensorBoard
        found.close()
        assert found.writer is writer
        assert writer.file_writer is not None


@pytest.mark.parametrize("as_given", [str, lambda path: path], ids=["string", "path"])
def test_a_folder_gets_a_writer_that_is_closed_in_the_end(as_given, tmp_path):
    found = destination(as_given(tmp_path / "run"))
    found.scalars({"a": 1.0}, 0)
    found.close()
    assert type(found) is TensorBoard
    assert found.writer.file_writer is None
    assert next(path.name for path in (tmp_path / "run").iterdir()).startswith("events.out.tfevents")


@pytest.mark.parametrize("other", [None, 3, {"a": 1.0}, object()])
def test_what_is_no_logger_is_refused(other):
    text = (
        "`loggers` takes Lightning loggers, TensorBoard SummaryWriters, W&B runs and folders for event files, got "
        f"{type(other).__name__}."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        destination(other)


def test_looking_at_a_logger_imports_no_loggers_package():
    code = (
        "import sys\nfrom netdyn.loggers.find import destination\n"
        "class Log:\n    def log_metrics(self, metrics, step=None): pass\n"
        "destination(Log())\n"
        "packages = 'lightning', 'tensorboard', 'wandb', 'mlflow', 'comet_ml', 'litlogger', 'matplotlib'\n"
        "print([name for name in packages if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
