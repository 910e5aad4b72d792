"""Write the results of the scripts into `docs/reproduction.md`, between the marks for them.

    python examples/reproduce/all.py --mnist DIR --out docs/reproduction
    python examples/reproduce/page.py

The rest of that page is written by hand.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RESULTS = DOCS / "reproduction.md", DOCS / "reproduction"
ORDER = (
    *("shallow", "phases", "first_layer", "linear_tail"),
    *("depth_width", "classes", "grokking_shallow", "grokking_deep"),
)
#: Claims on radii that grow (1) or shrink (−1): their name, the column, what grows, and whether depth or width varies.
CLAIMS = (
    ("with depth the sample radius grows", "sample {}", 1, "layers"),
    ("with depth the weight radius shrinks, each layer's own unit", "weight layer {}", -1, "layers"),
    ("with depth the weight radius shrinks, one unit for all layers", "weight global {}", -1, "layers"),
    ("with width the weight radius grows, each layer's own unit", "weight layer {}", 1, "width"),
    ("with width the weight radius grows, one unit for all layers", "weight global {}", 1, "width"),
)
CUTS, CLEAR = ("0.5", "0.7", "0.9"), 0.6
MARK = re.compile(r"(<!-- (verdicts|cuts|drift|results (\w+)) -->\n)(?:.*?\n)??(<!-- end -->)", re.S)


def results() -> dict[str, dict[str, Any]]:
    """The results of each script, in the order of the page."""
    return {script: json.loads((RESULTS / f"{script}.json").read_text(encoding="utf-8")) for script in ORDER}


def verdicts(found: dict[str, dict[str, Any]]) -> str:
    """One row per claim."""
    rows = [
        f"| [{claim['name']}](#{script}) | {claim['source']} | {claim['says']} | **{claim['verdict']}** |"
        for script, told in found.items()
        for claim in told["claims"]
    ]
    whole = sum(told["minutes"] for told in found.values())
    return "\n".join(
        [
            *("", "| claim | paper | what the paper says | verdict |", "|---|---|---|---|", *rows, ""),
            f"All scripts together took {whole:.0f} minutes on one core; `all.py` runs two at a time.",
            "",
        ]
    )


def results_of(told: dict[str, Any]) -> str:
    """Everything about the claims of one script: setting, numbers, figure, command."""
    lines = []
    for claim in told["claims"]:
        lines += ["", f"**{claim['name']}** ({claim['source']}): *{claim['verdict']}*", ""]
        lines += [f"{claim['says']}", "", f"Setting: {claim['setting']}", ""]
        lines += ["| statement | measured | verdict |", "|---|---:|---|"]
        lines += [f"| {part['statement']} | {part['text']} | {part['verdict']} |" for part in claim["parts"]]
        if claim["readings"]:
            lines += ["", "Other readings, which do not affect the verdict:", ""]
            lines += ["| statement | measured | verdict |", "|---|---:|---|"]
            lines += [f"| {part['statement']} | {part['text']} | {part['verdict']} |" for part in claim["readings"]]
        if claim["note"]:
            lines += ["", claim["note"]]
    script = told["script"]
    lines += ["", f"![{told['claims'][0]['name']}](reproduction/{script}.png)", ""]
    lines += [
        f"`{told['command']}` on {told['data']}: {told['seeds']} seeds, mean ± standard deviation, "
        f"{told['minutes']:g} minutes on one core; [all numbers](reproduction/{script}.csv).",
        "",
    ]
    return "\n".join(lines)


def cuts() -> str:
    """What the claims on depth and width say at each accuracy that defines a radius, before and in the last run."""
    lines = ["", "| claim | accuracy | before | last run | verdict |", "|---|---|---:|---:|---|"]
    tables = [_rows(RESULTS / f"{name}.csv") for name in ("depth_width", "cuts")]
    for claim, column, sign, axis in CLAIMS:
        for cut in CUTS:
            before, last = ([sign * value for value in _correlations(t, column.format(cut), axis)] for t in tables)
            held = [value >= CLEAR for value in last]
            verdict = "holds" if all(held) else "holds in part" if any(held) else "does not hold"
            lines.append(f"| {claim} | {cut} | {_shown(before, sign)} | {_shown(last, sign)} | {verdict} |")
    return "\n".join([*lines, ""])


def drift() -> str:
    """How far the running statistics are off in deep grokking's main setting, seed by seed."""
    rows = _rows(RESULTS / "drift.csv")
    heads = ["seed", "step", "drift, mean of layers", "drift, first layer", "drift, last layer"]
    heads += [f"test accuracy, {kind} statistics" for kind in ("batch", "running")]
    lines = ["", f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        learnt = next((row for row in own if float(row["train, batch"]) >= 0.99), own[-1])
        for row in dict.fromkeys((own.index(own[0]), own.index(learnt), len(own) - 1)):
            names = ("drift", "drift, first", "drift, last", "test, batch", "test, running")
            numbers = [f"{float(own[row][name]):.3f}" for name in names]
            lines.append(f"| {' | '.join([seed, own[row]['step'], *numbers])} |")
    return "\n".join([*lines, ""])


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _correlations(rows: list[dict[str, str]], column: str, axis: str) -> list[float]:
    """Spearman's correlation with depth or width, for each seed with all sizes; none if there is no such column."""
    found = []
    rows = [row for row in rows if row["normalisation"] == "batch"]
    own = [row for row in rows if (row["width"] == "128" if axis == "layers" else row["layers"] == "4")]
    sizes = {row[axis] for row in own}
    for seed in sorted({row["seed"] for row in own}):
        seen = sorted((row for row in own if row["seed"] == seed), key=lambda row: int(row[axis]))
        if column in seen[0] and len(seen) == len(sizes):
            values = [float(row[column]) for row in seen]
            ranks = [(sum(b < a for b in values) + sum(b <= a for b in values)) / 2 for a in values]
            found.append(statistics.correlation(ranks, range(len(ranks))))
    return found


def _shown(values: list[float], sign: int) -> str:
    """Mean ± standard deviation over the seeds, with the claim's own sign again."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{sign * statistics.fmean(values):.2f}{spread} ({len(values)} seeds)".replace("-", "−")


def written(page: str, found: dict[str, dict[str, Any]]) -> str:
    """The page with its results."""

    def filled(match: re.Match[str]) -> str:
        whole = {"verdicts": lambda: verdicts(found), "cuts": cuts, "drift": drift}
        content = results_of(found[match[3]]) if match[3] else whole[match[2]]()
        return f"{match[1]}{content}\n{match[4]}"

    return MARK.sub(filled, page)


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), results()), encoding="utf-8")


if __name__ == "__main__":
    main()
