"""What a paper says, what was measured, and the verdict; on the screen, as a table of numbers and as a picture."""

from __future__ import annotations

import argparse
import atexit
import csv
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib as mpl
import torch
from data import Data, load
from matplotlib.figure import Figure
from training import Row


@dataclass(frozen=True)
class Part:
    """One statement that is true or false of each seed's numbers.

    Attributes:
        statement: A sentence on what is to be true, with the bound that decides.
        measured: The number that decides, for each seed.
        holds: Whether it is true, for each seed.
        form: How the numbers are printed.
    """

    statement: str
    measured: Sequence[float]
    holds: Sequence[bool]
    form: str = "{:.3f}"

    @property
    def verdict(self) -> str:
        """Whether it is true of every seed, of some, or of none."""
        return verdict([self.holds])

    def __str__(self) -> str:
        """Mean ± standard deviation over the seeds."""
        values = list(self.measured)
        spread = f" ± {self.form.format(statistics.stdev(values)).lstrip('+')}" if len(values) > 1 else ""
        return f"{self.form.format(statistics.fmean(values))}{spread}".replace("-", "−")


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    Attributes:
        name: Short, for the table's first column.
        source: ``"P1"`` or ``"P2"``.
        says: What the paper says, with the figures it prints.
        setting: What was trained here, and how.
        parts: What is to be true.
        readings: The same under other conventions, for the page's text: they have no part in the verdict.
        note: What is to be said beside the numbers.
    """

    name: str
    source: str
    says: str
    setting: str
    parts: Sequence[Part]
    readings: Sequence[Part] = field(default=())
    note: str = ""

    @property
    def verdict(self) -> str:
        """Over all parts and seeds."""
        return verdict([part.holds for part in self.parts])


def verdict(held: Sequence[Sequence[bool]]) -> str:
    """A part is true where it holds for every seed.

    >>> verdict([[True, True], [True, True]]), verdict([[True, False]]), verdict([[False, False]])
    ('holds', 'holds in part', 'does not hold')
    >>> verdict([[True, True], [False, False]])
    'holds in part'
    """
    if all(all(seeds) for seeds in held):
        return "holds"
    return "holds in part" if any(any(seeds) for seeds in held) else "does not hold"


@dataclass(frozen=True)
class Task:
    """What a script was asked to do: its data, its seeds, where its results go.

    Attributes:
        started: When, on the clock.
        earlier: Seconds of the processor that runs before this one took, which were stopped or made the trainings kept.
    """

    script: str
    data: Data
    seeds: range
    quick: bool
    paper_size: bool
    out: Path
    progress: Path
    started: float
    earlier: float

    def spent(self) -> float:
        """Seconds of the processor, those of runs that were stopped among them."""
        return self.earlier + time.process_time()

    def remember(self) -> None:
        """Keep the seconds for a run that goes on from here."""
        self.progress.mkdir(parents=True, exist_ok=True)
        (self.progress / f"{self.script}.seconds").write_text(f"{self.spent():.1f}")

    def say(self, line: str) -> None:
        """A line of progress, with the minutes gone by."""
        print(f"[{self.script} {(time.monotonic() - self.started) / 60:5.1f} min] {line}", flush=True)

    def finish(self, claims: Sequence[Claim], rows: Sequence[Row | dict[str, str | float]], figure: Figure) -> None:
        """Print the verdicts, and write the rows as CSV, the figure as PNG and the claims as JSON."""
        self.out.mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with (self.out / f"{self.script}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            table.writerows({name: _short(value) for name, value in row.items()} for row in rows)
        figure.savefig(self.out / f"{self.script}.png", dpi=90, metadata={"Software": None})
        told = {
            "script": self.script,
            "command": self.command,
            "data": self.data.name,
            "seeds": len(self.seeds),
            "minutes": round(self.spent() / 60, 1),
            "claims": [
                asdict(claim)
                | {"verdict": claim.verdict}
                | {kind: [_told(part) for part in getattr(claim, kind)] for kind in ("parts", "readings")}
                for claim in claims
            ],
        }
        text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
        (self.out / f"{self.script}.json").write_text(text, encoding="utf-8")
        for claim in claims:
            print(f"\n{claim.name} ({claim.source}): {claim.verdict.upper()}\n  {claim.says}\n  Here: {claim.setting}")
            for kind, parts in (("", claim.parts), ("another reading: ", claim.readings)):
                for part in parts:
                    print(f"    {part.verdict:14s} {part!s:>18s}  {kind}{part.statement}")
            if claim.note:
                print(f"  {claim.note}")
        print(
            f"\nOn {self.data.name}, {len(self.seeds)} seeds. Numbers, figure and verdicts: {self.out}/{self.script}.*"
        )

    @property
    def command(self) -> str:
        """What to type for the same, given MNIST_DIR."""
        flags = [flag for flag, on in (("--quick", self.quick), ("--paper-size", self.paper_size)) if on]
        seeds = [] if len(self.seeds) == (1 if self.quick else 3) else [f"--seeds {len(self.seeds)}"]
        return " ".join([f"python examples/reproduce/{self.script}.py", *flags, *seeds])


def task(script: str, about: str, arguments: Sequence[str] | None = None) -> Task:
    """Read the command line.

    Args:
        script: Name of the script, without ending.
        about: Its docstring.
        arguments: Instead of those of the command line.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mnist", default=os.environ.get("MNIST_DIR"), help="folder with MNIST as IDX files (MNIST_DIR)"
    )
    parser.add_argument("--seeds", type=int, help="how many trainings of each kind (default: 3; with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="smaller and shorter: does it run at all?")
    parser.add_argument("--paper-size", action="store_true", help="as large and long as the paper says, see below")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("logs/reproduce"), help="where results go")
    parser.add_argument("--progress", type=Path, default=Path("checkpoints/reproduce"), help="where trainings are kept")
    options = parser.parse_args(arguments)
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    mpl.use("agg")
    mpl.rcParams.update({"axes.spines.right": False, "axes.spines.top": False, "legend.frameon": False, "font.size": 9})
    torch.manual_seed(0)
    data = load(options.mnist or None, options.device)
    if data.name != "MNIST":
        print("No MNIST (--mnist, MNIST_DIR): scikit-learn's digits stand in, which the papers say nothing about.")
    seeds = range(options.seeds or (1 if options.quick else 3))
    size = "-quick" if options.quick else "-paper" if options.paper_size else ""
    progress = options.progress / f"{data.name.split()[0]}{size}"
    kept = progress / f"{script}.seconds"
    earlier = float(kept.read_text()) if kept.exists() else 0.0
    own = Task(script, data, seeds, options.quick, options.paper_size, options.out, progress, time.monotonic(), earlier)
    atexit.register(own.remember)
    return own


def _told(part: Part) -> dict[str, object]:
    return asdict(part) | {"text": str(part), "verdict": part.verdict}


def _short(value: str | float) -> str | float:
    return f"{value:.5g}" if isinstance(value, float) else value
