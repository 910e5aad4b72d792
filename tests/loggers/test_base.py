"""A logger that takes scalars alone gets scalars alone."""

import pytest
import torch

from netdyn.loggers.base import Destination
from netdyn.tags import SCALARS


class Plain:
    """A logger with an experiment that only its owner may touch."""

    def __init__(self):
        self.calls = []

    @property
    def experiment(self):
        raise AssertionError("the experiment of another logger was touched")

    def log_metrics(self, metrics, step=None):
        self.calls.append((metrics, step))


def test_scalars_are_sent_as_lightning_sends_them_and_all_else_is_left_out():
    logger = Plain()
    receiver = Destination(logger)
    receiver.about(SCALARS, "mine/")
    receiver.arrange(("modes",), "mine/")
    receiver.scalars({"a/b": 1.0, "c": 2.0}, 7)
    receiver.histograms({"a/h": torch.ones(3)}, 7)
    receiver.figures({"a/f": None}, 7)
    receiver.text("a/t", ["healthy"], 7)
    receiver.close()
    assert logger.calls == [({"a/b": 1.0, "c": 2.0}, 7)]
    assert (receiver.name, receiver.shows_figures, receiver.page) == ("Plain", False, "")


def test_a_logger_gets_a_dict_of_its_own():
    logger, values = Plain(), {"a": 1.0}
    Destination(logger).scalars(values, 1)
    logger.calls[0][0]["more"] = 2.0
    assert values == {"a": 1.0}


def test_an_error_of_the_logger_is_the_callers():
    class Full(Plain):
        def log_metrics(self, metrics, step=None):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Destination(Full()).scalars({"a": 1.0}, 1)
