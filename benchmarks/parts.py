"""How the time of a run with the callback is spent: evaluations, figures, logging, and the rest.

Makes one run as in `training.py` without the callback, one with its defaults and one with `max_overhead=0.05`, after
one run that does not count. Prints the processor seconds of each run, and of the callback's parts in it. Takes a minute
or two on one core.

    OMP_NUM_THREADS=1 python benchmarks/parts.py
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from lightning.pytorch import Callback
from lightning_run import prepare
from workload import data

from netdyn import DynamicsMonitor, Monitor
from netdyn.loggers.tensorboard import LightningTensorBoard, TensorBoard

#: Part → the methods that are it, each with its class.
PARTS: dict[str, list[tuple[type, str]]] = {
    "evaluations": [(Monitor, "_evaluated")],
    "figures": [(Monitor, "_draw"), (Monitor, "_write_report")],
    "scalars, histograms, layout": [
        (LightningTensorBoard, "scalars"),
        (TensorBoard, "histograms"),
        (TensorBoard, "about"),
        (TensorBoard, "arrange"),
    ],
    "choosing the probe": [(DynamicsMonitor, "_get_probes"), (DynamicsMonitor, "_get_val_probe")],
}
SPENT: Counter[str] = Counter()


def watched(part: str, owner: type, name: str) -> None:
    """Count the seconds of a method under the name of a part."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return method(self, *args, **kwargs)
        finally:
            SPENT[part] += time.process_time() - start

    setattr(owner, name, timed)


def seconds(callbacks: list[Callback], epochs: int = 5) -> float:
    """Processor seconds of one run."""
    images, labels = data(60_000)
    with tempfile.TemporaryDirectory() as folder:
        trainer, module, loader = prepare(images, labels, epochs, "cpu", callbacks, Path(folder))
        start = time.process_time()
        trainer.fit(module, loader)
        return time.process_time() - start


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    for part, methods in PARTS.items():
        for owner, name in methods:
            watched(part, owner, name)
    seconds([], epochs=1)
    without = seconds([])
    print(f"| seconds | whole run | {' | '.join(PARTS)} |\n|---|---:|{'---:|' * len(PARTS)}")
    print(f"| without the callback | {without:.1f} |{' |' * len(PARTS)}")
    for name, given in {"defaults": {}, "`max_overhead=0.05`": {"max_overhead": 0.05}}.items():
        SPENT.clear()
        whole = seconds([DynamicsMonitor(**given)])
        print(f"| {name} | {whole:.1f} | {' | '.join(f'{SPENT[part]:.2f}' for part in PARTS)} |")


if __name__ == "__main__":
    main()
