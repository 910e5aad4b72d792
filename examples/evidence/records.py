"""The compact tables of all trainings: written once, and all that the analysis reads."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images import VALIDATION
from settings import NETWORKS, Setting
from truth import truth

from netdyn.report.trend import Moment
from netdyn.report.verdict import Numbers

Row = dict[str, float]
#: The columns that are no numbers.
WORDS = ("training", "kind", "variant", "data", "family", "optimiser", "half", "truth")


@dataclass(frozen=True)
class Training:
    """One training: what was made, its evaluations, its last one on the second probes, and its true level."""

    about: dict[str, Any]
    rows: list[Row]

    @property
    def truth(self) -> str:
        """The true level; empty if no rule applies."""
        return str(self.about["truth"])

    @property
    def stratum(self) -> str:
        """The data of the training."""
        return f"{self.about['data']}, {self.about['samples']:.0f} samples, noise {self.about['noise']}, {self.seed}"

    @property
    def seed(self) -> int:
        """The seed, which decides the half."""
        return int(self.about["seed"])

    def numbers(self, place: int = -1, again: bool = False) -> Numbers:
        """What the verdict reads of an evaluation, or of the last one on the second probes."""
        row = {name.removeprefix("again/"): v for name, v in self.about.items() if name.startswith("again/")}
        row = row if again else self.rows[place]
        return Numbers(
            samples=int(row["samples"]),
            classes=int(row["classes"]),
            guess=row["guess"],
            accuracy=row["accuracy"],
            val_accuracy=row["val_accuracy"],
            loss=row["loss"],
            finite=row["finite"],
            dead=row["modes/dead_max"],
            gap=row["batchnorm/gap"],
            train_gap=row["batchnorm/train_gap"],
            apart=row["coverage/apart"],
            val_samples=VALIDATION[self.about["data"]],
            untouched=place == 0,
        )

    def earlier(self, place: int = -1, again: bool = False) -> list[Moment]:
        """The evaluations before one; with ``again`` their accuracies are those on the second probes."""
        names = [f"again_{name}" if again else name for name in ("accuracy", "val_accuracy")]
        found = []
        for row in self.rows[: place % len(self.rows)]:
            accuracies = (row[name] for name in names)
            found.append(Moment(int(row["step"]), *accuracies, loss=row["loss"], train_gap=row["batchnorm/train_gap"]))
        return found


def write(found: Iterable[dict[str, Any]], folder: Path) -> None:
    """Write ``trainings.csv`` and ``evaluations.csv`` from the trainings' files."""
    trainings, evaluations = [], []
    for one in found:
        setting = Setting(**one["setting"])
        family, width, depth, optimiser, rate, decay = NETWORKS[setting.network]
        about = {"training": setting.name, **one["setting"], "half": setting.half, "family": family, "width": width}
        about |= {"depth": depth, "optimiser": optimiser, "rate": rate, "decay": decay}
        about |= {"steps": one["steps"], "seconds": one["seconds"]}
        about["truth"] = truth(setting.kind, one["checks"]) or ""
        again = {f"again/{name}": value for name, value in one["again"]["row"].items()}
        trainings.append(about | one["checks"] | one["compared"] | again)
        # The moments of the second probes are those before the last evaluation, which is the row above.
        moments = [
            *(moment[1:3] for moment in one["again"]["moments"]),
            [again["again/accuracy"], again["again/val_accuracy"]],
        ]
        for row, (accuracy, val_accuracy) in zip(one["rows"], moments, strict=True):
            second = {"again_accuracy": accuracy, "again_val_accuracy": val_accuracy}
            evaluations.append({"training": setting.name, **row, **second})
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "trainings.csv", sorted(trainings, key=lambda row: str(row["training"])))
    _write(folder / "evaluations.csv", sorted(evaluations, key=lambda row: (str(row["training"]), row["step"])))


def read(folder: Path) -> list[Training]:
    """All trainings, from the two tables."""
    rows: dict[str, list[Row]] = {}
    for row in _read(folder / "evaluations.csv"):
        rows.setdefault(row.pop("training"), []).append(row)
    return [Training(about, rows[about["training"]]) for about in _read(folder / "trainings.csv")]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[_short(row.get(name, "")) for name in columns] for row in rows])


def _short(value: Any) -> str:
    """Numbers with four digits; nothing for NaN."""
    if isinstance(value, float) and not value.is_integer():
        return "" if math.isnan(value) else f"{value:.4g}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _read(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: value if name in WORDS else float(value or "nan") for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
