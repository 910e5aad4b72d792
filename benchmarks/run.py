"""Run the benchmarks, print one table, and write `docs/benchmarks.md`.

    python benchmarks/run.py [--only NAME …] [--threads 1 2] [--device cpu] [--quick] [--page PATH]

Every benchmark runs in a process of its own for each number of threads. The page is written by a full run on the CPU;
after any other one only where `--page` says.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pairs import Row, table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
#: In the order of the page; those that count passes or bytes run once, whatever the threads.
NAMES = (
    "training",
    "step",
    "evaluation",
    "saturation",
    "ranking",
    "sample_radius",
    "learning_coefficient",
    "eigenvalue",
    "scaling",
)
COUNTED = ("sample_radius",)
MINUTES = 15

HEAD = """---
hide: [toc]
---

# Benchmarks

<!-- Made by benchmarks/run.py: change that. -->

What netdyn costs, beside the same thing without it or done another way. Every line is a ratio of two things that ran
in one process, in turns, A B, B A, A B, …, after a round that does not count: a machine that slows down meanwhile slows
both. The ratio is taken in each turn; the table gives the median over n turns with the quartiles, and whether the
median reaches what we had set ourselves. On one thread the clock is the processor's, for which what else the machine
does counts little; on two it is the wall's.

```console
make bench    # about a quarter of an hour on two cores
```

A single one: `python benchmarks/run.py --only ranking`, or `python benchmarks/ranking.py --threads 2`. With
`--device cuda` they run on a GPU, with the clock read when it is done. What netdyn is compared with is installed in
environments under `build/peers`, with the versions of `constraints.txt`, and is no dependency.
"""

#: The first two columns hold words.
WIDE = '<div class="words" markdown>'


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """What is asked for."""
    made = argparse.ArgumentParser(
        description=(__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--only", nargs="+", choices=NAMES, default=None, metavar="NAME", help=", ".join(NAMES))
    made.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="threads of torch (default: 1 2)")
    made.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    made.add_argument("--quick", action="store_true", help="tiny sizes, to see that they run")
    made.add_argument("--page", type=Path, help="write the page there")
    return made.parse_args(given)


def run(name: str, threads: int, device: str, quick: bool) -> list[Row]:
    """The rows of one benchmark; where it ends badly, one that says how."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.json"
        command = [sys.executable, str(HERE / f"{name}.py"), "--threads", str(threads), "--device", device]
        command += ["--json", str(found), *(["--quick"] if quick else [])]
        try:
            done = subprocess.run(
                command,
                # The sources beside this file, wherever an installed netdyn may come from.
                env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(HERE.parent / "src")},
                capture_output=True,
                text=True,
                timeout=60 * MINUTES,
            )
        except subprocess.TimeoutExpired:
            return [Row(name, "–", threads=threads, note=f"{name} took more than {MINUTES} minutes.")]
        if done.returncode or not found.exists():
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            return [Row(name, "–", threads=threads, note=f"{name} failed: {last[0]}")]
        return [Row(**each) for each in json.loads(found.read_text(encoding="utf-8"))]


def processor() -> str:
    """The CPU's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """How many of them this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: str, command: str) -> str:
    """Where, when, with what and by which command the numbers were made."""
    versions = []
    for package in ("netdyn", "torch", "lightning", "numpy", "scipy"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} unknown")
    where = f"{processor()}, {cores()} cores"
    if device.startswith("cuda"):
        import torch

        where += f", {torch.cuda.get_device_name()}"
    return (
        f"{datetime.date.today().isoformat()}, {where}; Python {platform.python_version()}, {', '.join(versions)}.\n"
        f"Command: `{command}`."
    )


def told(name: str) -> str:
    """How a benchmark compares: its docstring, the first line as a heading."""
    doc = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))) or ""
    first, _, rest = doc.partition("\n")
    return f"### {first.rstrip('.')}\n\n`benchmarks/{name}.py`\n\n{rest.strip()}\n"


def page(rows: Sequence[Row], names: Sequence[str], where: str) -> str:
    """The whole page."""
    how = "\n".join(told(name) for name in names)
    shown = f"{WIDE}\n\n{table(rows)}\n\n</div>"
    return f"{HEAD}\n## The table\n\n{where}\n\n{shown}\n\n## How each comparison is made\n\n{how}"


def main(given: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    options = arguments(given)
    names = options.only or NAMES
    rows: list[Row] = []
    begin = time.monotonic()
    for name in names:
        for threads in options.threads[:1] if name in COUNTED else options.threads:
            print(f"{time.monotonic() - begin:6.0f} s  {name}, {threads} threads", file=sys.stderr, flush=True)
            rows += run(name, threads, options.device, options.quick)
    print(table(rows))
    print(f"{time.monotonic() - begin:6.0f} s", file=sys.stderr)
    full = options.only is None and not options.quick and options.device == "cpu"
    if target := options.page or (PAGE if full else None):
        command = " ".join(["python benchmarks/run.py", *(sys.argv[1:] if given is None else given)])
        where = machine(options.device, "make bench" if command == "python benchmarks/run.py" else command)
        target.write_text(page(rows, names, where), encoding="utf-8")


if __name__ == "__main__":
    main()
