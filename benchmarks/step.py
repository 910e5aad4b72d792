"""The cost of the callback in a training step in which it does not measure.

Lightning calls two of its hooks in such a step, `on_train_batch_start` and `on_train_batch_end`. Both are timed at
every step of a real run, with a clock around each call. Steps with an evaluation do not count. The table gives
microseconds per step, as median and quartiles over the steps. It is wall time even on one thread, because reading the
processor's clock takes too long.
"""

from __future__ import annotations

import time
from typing import Any

import pairs
from lightning_run import BATCH, prepare
from pairs import Options, Row, Target, row
from workload import data

from netdyn import DynamicsMonitor


class Timed(DynamicsMonitor):
    """The callback, with a clock around the two hooks of each step."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.microseconds: list[float] = []
        self.spent = 0

    def on_train_batch_start(self, *args: Any) -> None:
        """The callback's hook, timed."""
        begin = time.perf_counter_ns()
        super().on_train_batch_start(*args)
        self.spent = time.perf_counter_ns() - begin

    def on_train_batch_end(self, *args: Any) -> None:
        """The callback's hook, timed; a new report shows that an evaluation was made."""
        before, begin = self.report, time.perf_counter_ns()
        super().on_train_batch_end(*args)
        if self.report is before:
            self.microseconds.append((self.spent + time.perf_counter_ns() - begin) / 1000)


def measure(options: Options) -> list[Row]:
    """One row for each kind of schedule."""
    batches, epochs = options.pick(100, 4), options.pick(10, 2)
    images, labels = data(BATCH * batches)
    rows = []
    for said, given in (
        ("at its defaults", {}),
        ('with `schedule="log"`', {"schedule": "log", "measure": ["modes"]}),
        ("with `every_n_train_steps=200`", {"every_n_train_steps": 200, "measure": ["modes"]}),
    ):
        monitor = Timed(figures="never", **given)
        trainer, module, loader = prepare(images, labels, epochs, options.device, [monitor], None)
        trainer.fit(module, loader)
        rows.append(
            row(
                f"the callback {said}, in a step without an evaluation",
                "–",
                monitor.microseconds,
                Target(20, unit=" µs"),
                unit=" µs",
                threads=options.threads,
            )
        )
    return rows


if __name__ == "__main__":
    pairs.main(measure, __doc__)
