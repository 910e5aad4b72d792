"""A whole Lightning run with the callback, against the same run without it.

The network 784-256-256-10 trains on 60,000 samples of MNIST's shape: batches of 128, five epochs, Adam. All runs use
the TensorBoard logger and the same seed. Batches are cut from tensors in memory, so loading them costs almost nothing.
`Trainer.fit` is timed from beginning to end. At its defaults the callback makes six evaluations, one of the untrained
network and one at the end of each of the five epochs, draws its figures at the start and at the end, and writes the
report with them. With `figures="never"` it draws none.

With `max_overhead=0.05` the callback leaves out evaluations that would bring it over 5 % of the training time. The
first evaluation is always made.

Drawing is what the callback spends on figures, for TensorBoard and for the report, at its defaults in the first run of
the process, which does not count otherwise, so that it includes matplotlib's import.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pairs
from lightning_run import BATCH, prepare
from pairs import Clock, Options, Row, Target, order, ratios, row
from parts import SPENT, watched
from workload import data, source

from netdyn import DynamicsMonitor, Monitor

LIMIT = 0.05


def measure(options: Options) -> list[Row]:
    """A row for each way to use the callback, and one for drawing."""
    samples, epochs = options.pick(60_000, 1280), options.pick(5, 1)
    images, labels = data(samples)
    clock, turns = Clock(options), options.pick(5 if options.threads == 1 else 3, 1)
    given: dict[str, Any] = {"probe_size": 64} if options.quick else {}
    kinds = {
        "defaults": lambda: [DynamicsMonitor(**given)],
        "without": lambda: [],
        "never": lambda: [DynamicsMonitor(figures="never", **given)],
        "limited": lambda: [DynamicsMonitor(max_overhead=LIMIT, **given)],
    }
    for name in ("_draw", "_write_report"):
        watched("drawing", Monitor, name)
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    drawing = 0.0
    for turn in range(-1, turns):
        for name in list(kinds) if turn < 0 else order(list(kinds), turn):
            with tempfile.TemporaryDirectory() as folder:
                long = turn >= 0 or name == "defaults"
                trainer, module, loader = prepare(
                    images, labels, epochs if long else 1, options.device, kinds[name](), Path(folder)
                )
                seconds = clock.seconds(partial(trainer.fit, module, loader))
            if turn >= 0:
                taken[name].append(seconds)
            drawing = drawing or SPENT["drawing"]
    what = f"{epochs} epochs, {samples:,} samples, batches of {BATCH}, {source()}"
    said = {
        "never": (f'a run with the callback and `figures="never"`: {what}', 1.1 if options.threads == 1 else 1.12),
        "defaults": ("a run with the callback at its defaults: the same", 1.25),
        "limited": (f"a run with `max_overhead={LIMIT}`: the same", 1.06),
    }
    rows = [
        row(text, "the run without it", ratios(taken[name], taken["without"]), Target(most), threads=options.threads)
        for name, (text, most) in said.items()
    ]
    if options.threads == 1:
        rows.append(row("all drawing of a run", "–", [drawing], Target(1.2, unit=" s"), unit=" s", threads=1))
    return rows


if __name__ == "__main__":
    pairs.main(measure, __doc__)
