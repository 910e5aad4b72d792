"""The tables and figures of docs/evidence.md, all from the two tables of the trainings."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import figures
import numpy as np
import rates
from records import Training, read
from truth import LEVELS, RULES

from netdyn.report import verdict as rules
from netdyn.report.verdict import NO_FINDING, Numbers, judge

#: What is said of a training: a level.
Judge = Callable[[Training], str]
MARK = re.compile(r"(<!-- table (\w+) -->\n)(?:.*?\n)??(<!-- end -->)", re.S)
#: Fewest trainings that a quantity must be known for.
FEWEST = 8


def said(training: Training, place: int = -1, again: bool = False) -> str:
    """The verdict's level on an evaluation."""
    return judge(training.numbers(place, again), training.earlier(place, again)).level


def by_accuracies(training: Training) -> str:
    """What the same rules say if all that they know are training and validation accuracy."""
    n = training.numbers()
    return judge(Numbers(n.samples, n.classes, n.guess, n.accuracy, n.val_accuracy, val_samples=n.val_samples)).level


def without(**unknown: float) -> Judge:
    """The verdict if some numbers were not measured."""
    return lambda training: judge(replace(training.numbers(), **unknown), training.earlier()).level


class Analysis:
    """Everything that the page shows, as tables in Markdown; ``numbers`` keeps what others quote."""

    def __init__(self, trainings: Sequence[Training]) -> None:
        self.all = list(trainings)
        self.known = [t for t in trainings if t.truth]
        self.halves = {half: [t for t in self.known if t.about["half"] == half] for half in "AB"}
        self.numbers: dict[str, object] = {}

    def tables(self) -> dict[str, str]:
        """Name → table."""
        makers = (self.made, self.truths, self.thresholds, self.confusion, self.alarms, self.alone, self.adds)
        makers += (self.early, self.twice, self.undecided, self.generalisation, self.grokking)
        # These put into words what the others have found.
        makers += (self.summary, self.ranking)
        return {maker.__name__: maker() for maker in makers}

    # --- the trainings ---

    def made(self) -> str:
        """What the trainings were made to be, and what they became."""
        kinds = sorted({t.about["kind"] for t in self.all})
        rows = []
        for kind in kinds:
            own = [t for t in self.all if t.about["kind"] == kind]
            became = Counter(t.truth or "none of them" for t in own)
            rows.append([kind, len(own), ", ".join(f"{level} {number}" for level, number in became.most_common())])
        minutes = sum(t.about["seconds"] for t in self.all) / 60
        self.numbers |= {"trainings": len(self.all), "labelled": len(self.known), "minutes": minutes}
        halves = " and ".join(f"{len(own)} in half {half}" for half, own in self.halves.items())
        total = f"{len(self.all)} trainings, {len(self.known)} of them with a true level ({halves}); "
        total += f"{minutes:.0f} minutes of one core."
        return _table(["made to be", "trainings", "became"], rows) + f"\n\n{total}"

    def truths(self) -> str:
        """The rules of truth, with the numbers of trainings in both halves."""
        counts = {half: Counter(t.truth for t in own) for half, own in self.halves.items()}
        rows = [[level, words, counts["A"][level], counts["B"][level]] for level, words, _ in RULES]
        return _table(["true level", "rule", "half A", "half B"], rows)

    # --- the verdict ---

    def thresholds(self) -> str:
        """For each threshold the best one on half A between the trainings on its two sides, and the one in use."""
        gap = "training − validation accuracy"
        sides: tuple[tuple[str, str, Callable[[Training], float], tuple[str, ...], tuple[str, ...]], ...] = (
            ("RISEN", "loss / the lower of the run's lowest and guessing's", _risen, _but("diverged"), ("diverged",)),
            ("DEAD", "largest share of dead units", _of("modes/dead_max"), _but("dead units"), ("dead units",)),
            ("STALE", "batch-norm gap, training probe", _of("batchnorm/train_gap"), FINE, ("stale batch norm",)),
            ("NARROW, WIDE", gap, _gap, ("healthy", "learning"), ("overfitting", "distribution shift")),
            ("APART", "distance of `coverage/apart` from ½", _away, ("overfitting",), ("distribution shift",)),
            ("LEARNT", "training accuracy", _of("accuracy"), ("learning",), ("healthy",)),
        )
        rows = []
        for name, what, value, below, above in sides:
            low, high = (_values(self.halves["A"], levels, value) for levels in (below, above))
            if len(low) and len(high):
                best, right = rates.best_threshold(low, high)
                used = ", ".join(f"{getattr(rules, one):g}" for one in name.split(", "))
                rows.append([name, what, f"{' or '.join(above)} above", f"{best:.3g}", f"{right:.3f}", used])
        return _table(["constant", "number", "side", "best on half A", "balanced accuracy there", "in use"], rows)

    def confusion(self) -> str:
        """Half B: the verdict on the last evaluation of each training against its true level."""
        own = self.halves["B"]
        levels = [level for level in LEVELS if any(t.truth == level for t in own)]
        columns = [*LEVELS, NO_FINDING]
        rows, counts = [], []
        for level in levels:
            found = Counter(said(t) for t in own if t.truth == level)
            number = sum(found.values())
            counts.append([found[column] for column in columns])
            cells = [f"**{found[c]}**" if c == level else found[c] or "" for c in columns]
            rows.append([level, *cells, _share(found[level], number)])
        self.counts = levels, columns, counts
        balanced = rates.balanced_accuracy([t.truth for t in own], [said(t) for t in own])
        recalls = [(row[columns.index(level)] / sum(row), sum(row)) for level, row in zip(levels, counts, strict=True)]
        error = 1.96 * math.sqrt(sum(p * (1 - p) / n for p, n in recalls)) / len(recalls)
        self.numbers |= {"balanced_accuracy": balanced, "error": error, "judged": len(own)}
        line = f"Balanced accuracy on half B: **{balanced:.3f}** ± {error:.3f} ({len(own)} trainings)."
        return _table(["truth \\ verdict", *columns, "recognised (95 %)"], rows) + f"\n\n{line}"

    def alarms(self) -> str:
        """Half B: how often each level is said of trainings of another level, of healthy ones, and is right."""
        own, rows = self.halves["B"], []
        healthy = [said(t) for t in own if t.truth == "healthy"]
        for level in LEVELS:
            others = [said(t) for t in own if t.truth != level]
            right = [t.truth == level for t in own if said(t) == level]
            of_healthy = "" if level == "healthy" else _share(healthy.count(level), len(healthy))
            rows.append([level, _share(others.count(level), len(others)), of_healthy, _share(sum(right), len(right))])
        alarms = len([level for level in healthy if level not in ("healthy", NO_FINDING)])
        self.numbers |= {"healthy": len(healthy), "false_alarms": alarms}
        line = f"Of {len(healthy)} healthy trainings {alarms} got an alarm: {_share(alarms, len(healthy))}. "
        line += f"No finding: {_share(healthy.count(NO_FINDING), len(healthy))}."
        watched = [(t, k) for t in own if t.truth == "healthy" for k in range(len(t.rows))]
        along = sum(said(t, k) not in CALM for t, k in watched)
        line += f" Of all evaluations of these runs, {_share(along, len(watched))} raised one."
        return _table(["verdict", "said of others", "said of healthy ones", "right where said"], rows) + f"\n\n{line}"

    def alone(self) -> str:
        """Half B: the whole rule against parts of it."""
        own, nan = self.halves["B"], math.nan
        judges: dict[str, Judge] = {
            "all rules": said,
            "training and validation accuracy alone": by_accuracies,
            "without `coverage/apart`": without(apart=nan),
            "without the batch-norm gaps": without(gap=nan, train_gap=nan),
            "without `modes/dead_max`": without(dead=nan),
            "without loss and finite outputs": without(loss=nan, finite=1.0),
        }
        rows = []
        for name, judged in judges.items():
            found = [judged(t) for t in own]
            balanced = rates.balanced_accuracy([t.truth for t in own], found)
            healthy = [level for t, level in zip(own, found, strict=True) if t.truth == "healthy"]
            alarms = sum(level not in ("healthy", NO_FINDING) for level in healthy)
            shares = [_plain_share(level, own, found) for level in LEVELS]
            rows.append([name, f"{balanced:.3f}", alarms, *shares])
            self.numbers[f"balanced: {name}"] = balanced
        return _table(["rules", "balanced accuracy", "alarms on healthy", *LEVELS], rows)

    def adds(self) -> str:
        """Half B: how well single numbers tell two levels apart, with the direction that half A shows."""
        pairs = (("healthy", "overfitting"), ("overfitting", "distribution shift"), ("healthy", "learning"))
        rows = []
        for name, value in QUANTITIES.items():
            cells = []
            for low, high in pairs:
                areas = [rates.area(*(_values(self.halves[h], (one,), value) for one in (low, high))) for h in "AB"]
                cells.append("" if math.isnan(sum(areas)) else f"{areas[1] if areas[0] >= 0.5 else 1 - areas[1]:.3f}")
            rows.append([name, *cells])
        return _table(["number", *(f"{high} against {low}" for low, high in pairs)], rows)

    def early(self) -> str:
        """Half B: from which evaluation on the verdict is right and stays so."""
        rows = []
        for level in LEVELS:
            own = [t for t in self.halves["B"] if t.truth == level]
            right = [t for t in own if said(t) == level]
            steps, shares = [], []
            for t in right:
                wrong = [k for k in range(len(t.rows)) if said(t, k) != level]
                first = t.rows[max(wrong, default=-1) + 1]["step"]
                steps.append(first)
                shares.append(first / max(t.rows[-1]["step"], 1))
            if steps:
                middle = f"{np.median(steps):.0f} ({min(steps):.0f} to {max(steps):.0f})"
                rows.append([level, len(right), middle, f"{np.median(shares):.2f}"])
        return _table(["level", "trainings", "right from step (median, range)", "as a share of the training"], rows)

    def twice(self) -> str:
        """Labelled trainings whose second probe is large enough: is the verdict on it the same?"""
        rows = []
        for half in ("A", "B"):
            own = [t for t in self.halves[half] if t.about["again/samples"] >= rules.FEWEST_SAMPLES]
            same = sum(said(t) == said(t, again=True) for t in own)
            rows.append([half, len(own), same, _share(same, len(own))])
            self.numbers[f"same_{half}"] = same / max(len(own), 1)
        return _table(["half", "trainings", "same verdict", "share (95 %)"], rows)

    def undecided(self) -> str:
        """Trainings without a true level: what the verdict says of them."""
        rows = []
        for kind in sorted({t.about["kind"] for t in self.all if not t.truth}):
            own = [t for t in self.all if not t.truth and t.about["kind"] == kind]
            found = Counter(said(t) for t in own)
            rows.append([kind, len(own), ", ".join(f"{level} {number}" for level, number in found.most_common())])
        return _table(["made to be", "trainings", "verdicts"], rows)

    # --- what a reading means ---

    def generalisation(self) -> str:
        """Kendall's τ of the final generalisation gap with each quantity, over all trainings and within equal data."""
        own = [t for t in self.all if t.about["kind"] == "stratum" and t.about["train_accuracy"] >= 0.9]
        gaps = np.array([t.about["train_accuracy"] - t.about["test_accuracy"] for t in own])
        strata = [t.stratum for t in own]
        self.taus: dict[str, list[tuple[float, float, float]]] = {}
        rows = []
        for name, value in STUDIED.items():
            x = np.array([value(t) for t in own])
            known = ~np.isnan(x)
            if known.sum() < FEWEST or len(set(x[known])) < 2:
                continue
            named = [s for s, k in zip(strata, known, strict=True) if k]
            found = []
            for within in (False, True):
                tau = rates.kendall(x[known], gaps[known], named if within else None)
                found.append((tau, *rates.interval(x[known], gaps[known], named, within)))
            self.taus[name] = found
            cells = ["–" if math.isnan(t) else f"{t:+.2f} ({low:+.2f} to {high:+.2f})" for t, low, high in found]
            rows.append([name, int(known.sum()), *cells])
        self.numbers |= {"compared": len(own), "strata": len(set(strata))}
        self.numbers["tau"] = {name: [[round(v, 3) for v in one] for one in both] for name, both in self.taus.items()}
        line = (
            f"{len(own)} trainings in {len(set(strata))} strata reached a training accuracy of .9; their gaps run from "
        )
        line += f"{gaps.min():.3f} to {gaps.max():.3f}."
        heads = ["quantity", "trainings", "τ over all (95 %)", "τ within equal data (95 %)"]
        return _table(heads, rows) + f"\n\n{line}"

    def grokking(self) -> str:
        """By how many steps each quantity is half-way before validation accuracy is, between memorising and the end."""
        runs = [t for t in self.all if t.about["kind"] == "grokking"]
        rows = []
        for name, value in WATCHED.items():
            leads = [lead for t in runs if not math.isnan(lead := _lead(t, value))]
            if leads:
                low, middle, high = (float(np.quantile(leads, q)) for q in (0, 0.5, 1))
                ahead = f"{sum(lead > 0 for lead in leads)} of {len(leads)}"
                rows.append([name, f"{middle:+.0f}", f"{low:+.0f} to {high:+.0f}", ahead])
        return _table(["quantity", "lead in steps (median)", "range", "ahead"], rows)

    def summary(self) -> str:
        """What is worth quoting of the verdict."""
        found, alone = self.numbers, "balanced: training and validation accuracy alone"
        alarms = _share(int(str(found["false_alarms"])), int(str(found["healthy"])))
        lines = [
            f"Balanced accuracy over {len(self.counts[0])} levels, on {found['judged']} trainings that no threshold "
            f"has seen: **{found['balanced_accuracy']:.3f}** ± {found['error']:.3f}. With training and validation "
            f"accuracy alone: {found[alone]:.3f}.",
            f"False alarms on healthy trainings: **{alarms}**.",
            f"The same verdict on another probe: {found['same_B']:.3f}.",
        ]
        return "\n".join(f"- {line}" for line in lines)

    def ranking(self) -> str:
        """The quantities whose τ within equal data differs from 0, by its size."""
        within = {name: both[1] for name, both in self.taus.items()}
        clear = {name: t for name, t in within.items() if t[1] > 0 or t[2] < 0}
        ordered = sorted(clear, key=lambda name: -abs(clear[name][0]))
        left = [name for name, t in within.items() if name not in clear and not math.isnan(t[0])]
        lines = [
            "The interval within equal data leaves out 0 for: "
            + ", ".join(f"{name} ({clear[name][0]:+.2f})" for name in ordered)
            + ".",
            "It holds 0 for: " + ", ".join(f"{name} ({within[name][0]:+.2f})" for name in left) + ".",
        ]
        return "\n\n".join(lines)


#: Levels that are no alarm on the way of a run that goes well, and those without a fault of the network's own.
CALM = ("healthy", "learning", "untrained", NO_FINDING)
FINE = ("healthy", "learning", "overfitting", "distribution shift", "untrained")


def _but(level: str) -> tuple[str, ...]:
    return tuple(other for other in LEVELS if other not in (level, "diverged"))


def _of(name: str) -> Callable[[Training], float]:
    return lambda t: t.rows[-1][name]


def _gap(t: Training) -> float:
    return t.rows[-1]["accuracy"] - t.rows[-1]["val_accuracy"]


def _away(t: Training) -> float:
    return abs(t.rows[-1]["coverage/apart"] - 0.5)


def _risen(t: Training) -> float:
    """The loss over the lowest of the run, or that of guessing if larger; infinite if it is not finite."""
    losses = [row["loss"] for row in t.rows[:-1]]
    loss = t.rows[-1]["loss"]
    return loss / max(math.log(10), min(losses)) if math.isfinite(loss) else math.inf


def _difference(high: str, low: str) -> Callable[[Training], float]:
    return lambda t: t.rows[-1][high] - t.rows[-1][low]


def _finished(t: Training, name: str) -> float:
    return float(t.about[name])


#: Numbers of a last evaluation that need no validation data, but for those of coverage; for telling levels apart.
QUANTITIES: dict[str, Callable[[Training], float]] = {
    "training − validation accuracy": _gap,
    "sample radius": _of("basin/sample/radius"),
    "weight radius": _of("basin/weight/radius"),
    "mean OPT share": _of("modes/opt_mean"),
    "mean RPD gradient": _of("phase/mean"),
    "phase index": _of("phase/index"),
    "largest order z": _of("order_z"),
    "functional depth": _of("linear/functional_depth"),
    "coverage own": _of("coverage/own"),
    "coverage other": _of("coverage/other"),
    "coverage own − other": _difference("coverage/own", "coverage/other"),
    "`coverage/apart`, distance from ½": _away,
    "training loss": _of("loss"),
}
#: Quantities of the study of generalisation.
STUDIED: dict[str, Callable[[Training], float]] = {
    **{name: value for name, value in QUANTITIES.items() if name != "training − validation accuracy"},
    "coverage own, between halves of the training probe": lambda t: _finished(t, "half_own"),
    "coverage other, between halves": lambda t: _finished(t, "half_other"),
    "coverage own − other, between halves": lambda t: _finished(t, "half_own") - _finished(t, "half_other"),
    "sample radius / distance to another class": lambda t: (
        t.rows[-1]["basin/sample/radius"] / _finished(t, "to_others")
    ),
    "distance to another class (data alone)": lambda t: _finished(t, "to_others"),
    "1-NN leave-one-out error (data alone)": lambda t: _finished(t, "neighbour_error"),
    "product of spectral norms": lambda t: _finished(t, "spectral"),
    "product of Frobenius norms": lambda t: _finished(t, "frobenius"),
    "normalised margin": lambda t: _finished(t, "margin"),
    "top Hessian eigenvalue": lambda t: _finished(t, "eigenvalue"),
    "gradient noise scale": lambda t: _finished(t, "noise_scale"),
}
#: Quantities whose change is timed against validation accuracy's.
WATCHED: dict[str, Callable[[dict[str, float]], float]] = {
    "training accuracy": lambda row: row["accuracy"],
    "training loss": lambda row: row["loss"],
    "sample radius": lambda row: row["basin/sample/radius"],
    "weight radius": lambda row: row["basin/weight/radius"],
    "mean OPT share": lambda row: row["modes/opt_mean"],
    "mean RPD gradient": lambda row: row["phase/mean"],
    "phase index": lambda row: row["phase/index"],
    "functional depth": lambda row: row["linear/functional_depth"],
    "coverage own": lambda row: row["coverage/own"],
    "coverage other": lambda row: row["coverage/other"],
    "coverage own − other": lambda row: row["coverage/own"] - row["coverage/other"],
}


def half_way(steps: Sequence[float], values: Sequence[float]) -> float:
    """The first step at which values are half-way from their first to their last, between evaluations in proportion.

    >>> half_way([0, 10, 20], [0.0, 0.2, 1.0])
    13.75
    """
    known = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if len(known) < 2 or known[0][1] == known[-1][1]:
        return math.nan
    start, end = known[0][1], known[-1][1]
    shares = [(s, (v - start) / (end - start)) for s, v in known]
    for (before, low), (after, high) in pairwise(shares):
        if low < 0.5 <= high:
            return before + (after - before) * (0.5 - low) / (high - low)
    return math.nan


def _lead(t: Training, value: Callable[[dict[str, float]], float]) -> float:
    rows = t.rows[1:]
    steps = [row["step"] for row in rows]
    return half_way(steps, [row["val_accuracy"] for row in rows]) - half_way(steps, [value(row) for row in rows])


def _values(trainings: Sequence[Training], levels: Sequence[str], value: Callable[[Training], float]) -> list[float]:
    found = [value(t) for t in trainings if t.truth in levels]
    return [v for v in found if not math.isnan(v)]


def _share(hits: int, of: int) -> str:
    if not of:
        return "–"
    low, high = rates.wilson(hits, of)
    return f"{hits} of {of}: {hits / of:.3f} ({low:.3f} to {high:.3f})"


def _plain_share(level: str, own: Sequence[Training], found: Sequence[str]) -> str:
    right = [one == level for t, one in zip(own, found, strict=True) if t.truth == level]
    return f"{np.mean(right):.2f}" if right else "–"


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write(folder: Path) -> None:
    """Write tables, figures and the numbers that others quote from the two tables of the trainings in ``folder``."""
    analysis = Analysis(read(folder))
    tables = analysis.tables()
    (folder / "numbers.json").write_text(json.dumps(analysis.numbers, indent=1, ensure_ascii=False), encoding="utf-8")
    figures.confusion(*analysis.counts, folder / "confusion.png")
    figures.taus(analysis.taus, folder / "generalisation.png")
    page = folder.parent / "evidence.md"
    if page.exists():
        page.write_text(filled(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    else:
        text = "\n\n".join(f"## {name}\n\n{table}" for name, table in tables.items())
        (folder / "tables.md").write_text(text + "\n", encoding="utf-8")


def filled(page: str, tables: dict[str, str]) -> str:
    """The page with each table between its marks."""
    return MARK.sub(lambda mark: f"{mark[1]}\n{tables[mark[2]]}\n\n{mark[3]}", page)
