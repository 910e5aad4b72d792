"""Which loggers have a SummaryWriter, the exact calls that it gets, and the event file read back."""

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from netdyn.tensorboard import add_histograms, writers


class Writer:
    """Keeps the calls it gets."""

    def __init__(self):
        self.calls = []

    def add_histogram(self, tag, values, global_step=None, **options):
        self.calls.append((tag, type(values).__name__, values.tolist(), global_step, options))


class Plain:
    """A logger with an experiment that nobody but its owner may touch."""

    @property
    def experiment(self):
        raise AssertionError("the experiment of another logger was touched")


def named(name, *bases, writer=None):
    return type(name, bases, {"experiment": writer or Writer()})()


class Derived(TensorBoardLogger):
    """A user's own logger."""


def test_other_loggers_have_no_writer_and_are_left_alone():
    assert writers([Plain(), named("MyTensorBoardLogger")]) == []


def test_no_logger_no_writer():
    assert writers([]) == []


def test_a_tensorboard_logger_is_told_by_its_classs_name():
    twin = named("TensorBoardLogger")
    assert writers([Plain(), twin]) == [(twin.experiment, "")]


def test_a_class_derived_from_a_tensorboard_logger_is_one():
    below = named("Mine", type("TensorBoardLogger", (), {}))
    assert writers([below]) == [(below.experiment, "")]


@pytest.mark.parametrize("kind", [TensorBoardLogger, Derived])
def test_lightnings_loggers_are_told_apart(kind, tmp_path):
    ours, other = kind(tmp_path), CSVLogger(tmp_path)
    assert writers([other, ours]) == [(ours.experiment, "")]


@pytest.mark.parametrize(("prefix", "before"), [("", ""), ("mine", "mine-"), ("a-b", "a-b-")])
def test_a_writer_comes_with_what_its_logger_puts_before_a_tag(prefix, before, tmp_path):
    ((_, found),) = writers([TensorBoardLogger(tmp_path, prefix=prefix)])
    assert found == before


def test_every_writer_gets_every_histogram_at_the_step():
    first, second = Writer(), Writer()
    loggers = [named("TensorBoardLogger", writer=first), Plain(), named("TensorBoardLogger", writer=second)]
    add_histograms(loggers, {"a/b": torch.tensor([1.0, 2.0]), "c/d": torch.tensor([3.0])}, 7)
    assert first.calls == [("a/b", "ndarray", [1.0, 2.0], 7, {}), ("c/d", "ndarray", [3.0], 7, {})]
    assert second.calls == first.calls


def test_nothing_to_show_nothing_written():
    writer = Writer()
    add_histograms([named("TensorBoardLogger", writer=writer)], {}, 7)
    assert writer.calls == []


def read_back(folder):
    events = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    events.Reload()
    return {tag: events.Histograms(tag) for tag in events.Tags()["histograms"]}


def test_histograms_are_read_back_from_the_event_file(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    values = torch.linspace(-1, 1, 201)
    for step in (0, 3, 10):
        add_histograms([logger], {"modes/order_index/net.0": values * (step + 1)}, step)
    logger.finalize("success")
    histograms = read_back(tmp_path / "run" / "version_0")["modes/order_index/net.0"]
    assert [event.step for event in histograms] == [0, 3, 10]
    assert [event.histogram_value.num for event in histograms] == [201] * 3
    assert [event.histogram_value.max for event in histograms] == [1, 4, 11]
    assert [event.histogram_value.min for event in histograms] == [-1, -4, -11]
    assert [event.histogram_value.sum for event in histograms] == pytest.approx([0] * 3, abs=1e-4)


@pytest.mark.parametrize("values", [[0.25], [0.0] * 50, [-1.0] * 9 + [1.0], [1e-40, 2.0], [-38.0, 38.0]])
def test_values_of_the_kinds_we_send_can_be_written(tmp_path, values):
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    add_histograms([logger], {"a/b": torch.tensor(values)}, 1)
    logger.finalize("success")
    (event,) = read_back(tmp_path / "run" / "version_0")["a/b"]
    assert event.histogram_value.num == len(values)


def test_the_prefix_of_a_logger_stands_before_histograms_too(tmp_path):
    """Lightning puts it before scalars, with a hyphen; one run's tags belong together."""
    logger = TensorBoardLogger(tmp_path, name="run", version=0, prefix="mine")
    add_histograms([logger], {"a/b": torch.ones(3)}, 1)
    logger.log_metrics({"a/c": 1.0}, 1)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run" / "version_0"))
    events.Reload()
    assert (events.Tags()["histograms"], events.Tags()["scalars"]) == (["mine-a/b"], ["mine-a/c"])
