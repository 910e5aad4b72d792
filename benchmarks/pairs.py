"""What the benchmarks share: a clock, alternating turns, quartiles, and the rows of a table.

Two things are compared in one process, in turns: A B, B A, A B, … If the machine slows down meanwhile, it slows down
both. The ratio is taken in each turn, before the median.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Options:
    """Options of a benchmark run.

    Attributes:
        threads: Threads of torch.
        device: Device of the networks.
        quick: Tiny sizes and few turns, to check that it runs; the numbers mean nothing.
        json: Where to write the rows, for `run.py`.
    """

    threads: int = 1
    device: str = "cpu"
    quick: bool = False
    json: Path | None = None

    def pick(self, full: int, quick: int) -> int:
        """A size or a number of turns."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Target:
    """An upper or lower limit for a median; ``said`` replaces the number in the table."""

    limit: float
    at_most: bool = True
    unit: str = "×"
    said: str = ""

    def met(self, value: float) -> bool:
        """Whether a value meets the limit; NaN never does.

        >>> Target(1.5).met(1.5), Target(20, at_most=False).met(19), Target(1.5).met(math.nan)
        (True, False, False)
        """
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return self.said or f"{'≤' if self.at_most else '≥'} {self.limit:.4g}{self.unit}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        against: What it was compared with.
        n: Number of turns.
        median: Median over the turns.
        low: Their lower quartile.
        high: Their upper quartile.
        unit: Unit of these three: ``"×"`` the time of the other, ``"× faster"``, ``" µs"``, …
        target: The target in words; empty if there is none.
        met: Whether the target was met.
        threads: Threads; 0 if passes are counted, because threads do not change their number.
        note: A remark for the reader, such as why there is no number.
    """

    what: str
    against: str
    n: int = 0
    median: float = math.nan
    low: float = math.nan
    high: float = math.nan
    unit: str = "×"
    target: str = ""
    met: bool | None = None
    threads: int = 0
    note: str = ""


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile, interpolated between neighbours.

    >>> quartiles([4, 1, 3, 2, 5])
    (2.0, 3.0, 4.0)
    >>> quartiles([7.0])
    (7.0, 7.0, 7.0)
    """
    if len(values) == 1:
        return (float(values[0]),) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def row(
    what: str,
    against: str,
    values: Sequence[float],
    target: Target | None = None,
    *,
    unit: str = "×",
    threads: int = 0,
    note: str = "",
) -> Row:
    """A row from the value of each turn; the median decides whether the target is met."""
    low, middle, high = quartiles(values)
    said, met = ("", None) if target is None else (str(target), target.met(middle))
    return Row(what, against, len(values), middle, low, high, unit, said, met, threads, note)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """The ratio of each turn.

    >>> ratios([2, 9], [1, 3])
    [2.0, 3.0]
    """
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def order(names: Sequence[str], turn: int) -> list[str]:
    """The order within one turn: alternately forward and backward, so that each comes first equally often.

    >>> [order("ab", turn) for turn in range(4)]
    [['a', 'b'], ['b', 'a'], ['a', 'b'], ['b', 'a']]
    """
    return list(names) if turn % 2 == 0 else list(reversed(names))


class Clock:
    """Processor seconds on one thread of a CPU, on which other load has little influence; otherwise wall time.

    With several threads, processor seconds include threads that wait by spinning; on a GPU they mean nothing.
    """

    def __init__(self, options: Options) -> None:
        self.cuda = options.device.startswith("cuda")
        self.read = time.process_time if options.threads == 1 and not self.cuda else time.perf_counter

    def now(self) -> float:
        """The time, after all work on the device is done."""
        if self.cuda:
            torch.cuda.synchronize()
        return self.read()

    def seconds(self, work: Work) -> float:
        """The duration of some work."""
        gc.collect()
        begin = self.now()
        work()
        return self.now() - begin


def alternate(works: Mapping[str, Work], turns: int, clock: Clock, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each work at each turn, after ``warm`` rounds that do not count."""
    names = list(works)
    for _ in range(warm):
        for name in names:
            works[name]()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns):
        for name in order(names, turn):
            taken[name].append(clock.seconds(works[name]))
    return taken


def shown(value: float) -> str:
    """Three digits, or all digits before the decimal point.

    >>> shown(1.0449), shown(23.46), shown(1234.5), shown(0.01234)
    ('1.04', '23.5', '1234', '0.0123')
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def table(rows: Sequence[Row]) -> str:
    """The Markdown table, with its notes below it."""
    lines = [
        "| what | against | threads | n | median (quartiles) | target | met? |",
        "|---|---|:---:|---:|---:|---:|:---:|",
    ]
    notes: list[str] = []
    for line in rows:
        mark = ""
        if line.note:
            if line.note not in notes:
                notes.append(line.note)
            mark = f" ({notes.index(line.note) + 1})"
        measured = "–"
        if not math.isnan(line.median):
            measured = f"{shown(line.median)} ({shown(line.low)} to {shown(line.high)}){line.unit}"
        met = {None: "–", True: "yes", False: "**no**"}[line.met]
        lines.append(
            f"| {line.what}{mark} | {line.against} | {line.threads or '–'} | {line.n or '–'} | {measured} "
            f"| {line.target or '–'} | {met} |"
        )
    return "\n".join([*lines, *(f"\n({i}) {note}" for i, note in enumerate(notes, start=1))])


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes."""
    made = argparse.ArgumentParser(
        description=(doc or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    made.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    made.add_argument("--quick", action="store_true", help="tiny sizes, to check that it runs")
    made.add_argument("--json", type=Path, help="also write the rows to this file")
    return made


def main(measure: Callable[[Options], list[Row]], doc: str | None, arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark with its arguments, and print its table."""
    options = Options(**vars(parser(doc).parse_args(arguments)))
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    rows = measure(options)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(each) for each in rows]), encoding="utf-8")
    print(table(rows))
