"""A whole Lightning run with the callback, against the same run without it.

The network 784-256-256-10 trains on 60,000 samples of MNIST's shape: batches of 128, five epochs, Adam. Both runs use
the TensorBoard logger and the same seed. Batches are cut from tensors in memory, so loading them costs almost nothing.
`Trainer.fit` is timed from beginning to end. At its defaults the callback makes six evaluations, one of the untrained
network and one at the end of each of the five epochs, and draws its figures at the start and at the end.

With `max_overhead=0.05` the callback leaves out evaluations that would bring it over 5 % of the training time. The
first evaluation is always made, so a run may take 5 % and one evaluation more. The cost of one evaluation is measured
after each run without the callback, with `diagnose` on the trained network and 1,024 of its samples.
"""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pairs
from lightning_run import BATCH, prepare
from pairs import Clock, Options, Row, Target, order, ratios, row
from workload import PROBE, data, source

from netdyn import DynamicsMonitor, diagnose

LIMIT = 0.05


def measure(options: Options) -> list[Row]:
    """Two rows."""
    samples, epochs = options.pick(60_000, 1280), options.pick(5, 1)
    images, labels = data(samples)
    clock, turns = Clock(options), options.pick(3 if options.threads == 1 else 2, 1)
    given: dict[str, Any] = {"probe_size": 64, "figures": "never"} if options.quick else {}
    kinds = {
        "without": lambda: [],
        "defaults": lambda: [DynamicsMonitor(**given)],
        "limited": lambda: [DynamicsMonitor(max_overhead=LIMIT, **given)],
    }
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    evaluation = []
    for turn in range(-1, turns):
        for name in order(list(kinds), turn):
            with tempfile.TemporaryDirectory() as folder:
                trainer, module, loader = prepare(
                    images, labels, epochs if turn >= 0 else 1, options.device, kinds[name](), Path(folder)
                )
                seconds = clock.seconds(partial(trainer.fit, module, loader))
            if turn >= 0:
                taken[name].append(seconds)
                if name == "without":
                    probe = module.to(options.device), *(part[:PROBE].to(options.device) for part in (images, labels))
                    evaluation.append(clock.seconds(partial(diagnose, *probe, progress=False)) / seconds)
    one = statistics.median(evaluation)
    what = f"{epochs} epochs, {samples:,} samples, batches of {BATCH}, {source()}"
    return [
        row(
            f"a run with the callback at its defaults: {what}",
            "the run without it",
            ratios(taken["defaults"], taken["without"]),
            Target(1.15, unit="×"),
            threads=options.threads,
        ),
        row(
            f"a run with `max_overhead={LIMIT}`: the same",
            "the run without it",
            ratios(taken["limited"], taken["without"]),
            Target(1 + LIMIT + one, said=f"≤ {1 + LIMIT:g}× and one evaluation, {one:.2g}×"),
            threads=options.threads,
        ),
    ]


if __name__ == "__main__":
    pairs.main(measure, __doc__)
