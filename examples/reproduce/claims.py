"""A paper's claim, the measurements and the verdict: printed, as a table of numbers and as a figure."""

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

import netdyn


@dataclass(frozen=True)
class Part:
    """One statement that is true or false for the numbers of each seed.

    Attributes:
        statement: The statement as a sentence, with its bound.
        measured: The number that is compared with the bound, for each seed.
        holds: Whether the statement is true, for each seed.
        form: Format string of the numbers.
        place: Where the page shows the numbers once more: ``(table, row, column)``, if anywhere.
    """

    statement: str
    measured: Sequence[float]
    holds: Sequence[bool]
    form: str = "{:.3f}"
    place: tuple[str, str, str] | None = None

    @property
    def verdict(self) -> str:
        """Whether the statement is true for every seed, for some, or for none."""
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
        name: A short name for the first column of the table.
        source: ``"P1"`` or ``"P2"``.
        says: The paper's claim, with the numbers that it gives.
        setting: What was trained here, and how.
        parts: The statements that decide the verdict.
        readings: The same under other conventions, for the page; they do not affect the verdict.
        note: A remark on the numbers.
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
        """The verdict over all parts and seeds."""
        return verdict([part.holds for part in self.parts])


def verdict(held: Sequence[Sequence[bool]]) -> str:
    """The verdict over parts; a part is true if it holds for every seed.

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
    """What a script was asked to do: its data, its seeds, and where its results go.

    Attributes:
        started: Clock reading at the start.
        earlier: Processor seconds of earlier runs, which were stopped or whose trainings were saved.
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
        """Processor seconds, including those of earlier runs."""
        return self.earlier + time.process_time()

    def remember(self) -> None:
        """Save the seconds for a run that resumes from here."""
        self.progress.mkdir(parents=True, exist_ok=True)
        (self.progress / f"{self.script}.seconds").write_text(f"{self.spent():.1f}")

    def say(self, line: str) -> None:
        """Print a line of progress, with the minutes since the start."""
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
            "versions": {"netdyn": netdyn.__version__, "torch": torch.__version__},
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
        """The command that repeats this run, if MNIST_DIR is set."""
        flags = [flag for flag, on in (("--quick", self.quick), ("--paper-size", self.paper_size)) if on]
        seeds = [] if len(self.seeds) == (1 if self.quick else 3) else [f"--seeds {len(self.seeds)}"]
        return " ".join([f"python examples/reproduce/{self.script}.py", *flags, *seeds])


def task(script: str, about: str, arguments: Sequence[str] | None = None) -> Task:
    """Read the command line.

    Args:
        script: Name of the script, without ending.
        about: The docstring of the script.
        arguments: Arguments to use instead of those of the command line.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mnist", default=os.environ.get("MNIST_DIR"), help="folder with MNIST as IDX files (MNIST_DIR)"
    )
    parser.add_argument("--seeds", type=int, help="number of trainings of each kind (default: 3; with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="small and short, to check that the script runs")
    parser.add_argument("--paper-size", action="store_true", help="the sizes and steps of the paper, see above")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("logs/reproduce"), help="folder for the results")
    parser.add_argument(
        "--progress", type=Path, default=Path("checkpoints/reproduce"), help="where trainings are saved"
    )
    options = parser.parse_args(arguments)
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    mpl.use("agg")
    mpl.rcParams.update({"axes.spines.right": False, "axes.spines.top": False, "legend.frameon": False, "font.size": 9})
    torch.manual_seed(0)
    data = load(options.mnist or None, options.device)
    if data.name != "MNIST":
        print("No MNIST (--mnist, MNIST_DIR): scikit-learn's digits stand in. The papers make no claims about them.")
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
