"""Train networks whose state is known by construction, and measure how often the verdict on them is right.

    MNIST_DIR=… python examples/evidence/evidence.py [--workers 2] [--quick] [--out docs/evidence] [--progress DIR]

Without MNIST the digits of scikit-learn are used alone. A run that was stopped goes on where it stopped: each training
has a file of its own in the folder `--progress`. `--quick` makes a tenth of the trainings, which shows that everything
works and no more.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import records
import tables
import torch
from settings import Setting, settings
from training import train_one

ROOT = Path(__file__).parents[2]


def kept(setting: Setting, progress: Path) -> Path:
    """The file of a training."""
    return progress / f"{setting.name.replace('/', '_')}.json"


def make(setting: Setting, progress: Path, folder: str | None) -> str:
    """Make a training unless it has been made, and return its name."""
    path = kept(setting, progress)
    if not path.exists():
        torch.set_num_threads(1)
        found = train_one(setting, folder)
        # A script that is stopped while writing leaves no half of a file.
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(found), encoding="utf-8")
        unfinished.replace(path)
    return setting.name


def main() -> None:
    """Make the trainings that are missing, then the tables and figures of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", default=os.environ.get("MNIST_DIR"), help="folder of MNIST's files (MNIST_DIR)")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time, each with one thread")
    parser.add_argument("--quick", action="store_true", help="a tenth of the trainings, on scikit-learn's digits")
    parser.add_argument("--tables", action="store_true", help="only tables and figures, from the numbers in --out")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/evidence", help="folder of tables and figures")
    parser.add_argument("--progress", type=Path, default=ROOT / "build/evidence", help="folder of finished trainings")
    options = parser.parse_args()
    if options.tables:
        tables.write(options.out)
        return
    folder = None if options.quick else options.mnist or None
    wanted = settings(mnist=folder is not None, quick=options.quick)
    options.progress.mkdir(parents=True, exist_ok=True)
    missing = [s for s in wanted if not kept(s, options.progress).exists()]
    print(f"{len(wanted)} trainings, {len(missing)} of them to be made", flush=True)
    begin = time.monotonic()
    with ProcessPoolExecutor(options.workers) as pool:
        work = partial(make, progress=options.progress, folder=folder)
        for done, name in enumerate(pool.map(work, missing), 1):
            print(f"{done:4d} of {len(missing)}  {time.monotonic() - begin:6.0f} s  {name}", flush=True)
    records.write((json.loads(kept(s, options.progress).read_text(encoding="utf-8")) for s in wanted), options.out)
    tables.write(options.out)


if __name__ == "__main__":
    main()
