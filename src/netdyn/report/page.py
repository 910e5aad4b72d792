"""A report as one HTML file: nothing in it is loaded from elsewhere, and no script runs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from netdyn._utils.drawing import available
from netdyn.report.findings import with_rules
from netdyn.report.reasons import reasons
from netdyn.report.results import LayerReport, Report
from netdyn.report.svg import inline, sparkline
from netdyn.report.text import COLUMNS, layer_numbers, probe_line, summary
from netdyn.tags import FIGURES, OVERVIEW, SCALARS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What is drawn over the run, in this order; and where a report itself keeps some of it.
RUN = (
    "probe/accuracy",
    "probe/val_accuracy",
    "basin/sample/radius",
    "basin/weight/radius",
    "modes/opt_mean",
    "modes/dead_max",
    "linear/functional_depth",
    "batchnorm/gap",
    "coverage/own",
    "coverage/other",
)
KEPT = {
    "probe/accuracy": "accuracy",
    "probe/val_accuracy": "val_accuracy",
    "basin/sample/radius": "sample_radius",
    "basin/weight/radius": "weight_radius",
}
#: What is drawn in the row of a layer.
OF_LAYER = "modes/opt_fraction"
#: Numbers of a layer that are shares and have a bar, by the head of their column.
BARS = {"OPT": "opt_fraction", "NPT": "npt_fraction", "dead": "dead_fraction", "linear tail": "tail_accuracy"}
#: Colours: green where all is well, red where something is to be done, blue otherwise.
GOOD, BAD = ("healthy",), ("overfitting", "dead units", "stale batch norm", "distribution shift", "diverged")
#: A browser that reads this loads nothing and runs nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #57606a; --page: #ffffff; --line: #d0d7de;
  --bar: #b6d4f0; --good: #1a7f37; --bad: #b3261e; --other: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9aa4af; --page: #0d1117; --line: #3d444d;
  --bar: #1f4b77; --good: #4ac26b; --bad: #ff8a80; --other: #79b8ff; } }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem; }
h1 { margin: 0; font-size: 1.9rem; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.2rem; }
h1.good { color: var(--good); } h1.bad { color: var(--bad); } h1.other { color: var(--other); }
p { margin: .3rem 0; } .soft, dt, li small { color: var(--soft); } li small { display: block; }
li { margin: .5rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
td.bar { min-width: 5rem; background: linear-gradient(var(--bar), var(--bar)) no-repeat left / var(--share) 100%; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .5rem; border: 1px solid var(--line); border-radius: 6px; background: #fff; }
header + .figures { max-width: 42rem; margin: 1.2rem 0; } figure svg { width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #57606a; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .25rem 1rem; }
dt { overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
@media print { :root { color-scheme: light; --text: #000; --soft: #444; --page: #fff; --line: #999; --bar: #cfe3f5;
  --good: #1a7f37; --bad: #b3261e; --other: #0b5cad; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } h2 { break-after: avoid; }
  figure, tr, li { break-inside: avoid; } .figures { grid-template-columns: 1fr 1fr; } figure svg { max-height: 21cm; }
  .figures { align-items: start; } header + .figures { grid-template-columns: 1fr; } .wide { overflow: visible; }
  td.bar { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


Curves = Mapping[str, Sequence[float]]
"""Tag → its value at each evaluation of a run."""


def write(
    report: Report,
    path: str | os.PathLike[str],
    figures: Mapping[str, Figure] | None = None,
    curves: Curves | None = None,
) -> None:
    """Write the page; without ``figures`` and ``curves`` those that the report itself has."""
    if figures is None:
        figures = report.figures() if available() else {}
    Path(path).write_text(page(report, figures, _own_curves(report) if curves is None else curves), encoding="utf-8")


def _own_curves(report: Report) -> Curves:
    moments = [*report.trend, report.moment]
    return {tag: [getattr(moment, name) for moment in moments] for tag, name in KEPT.items()} if report.trend else {}


def page(report: Report, figures: Mapping[str, Figure], curves: Curves) -> str:
    """The whole page."""
    verdict = report.verdict
    colour = "good" if verdict.level in GOOD else "bad" if verdict.level in BAD else "other"
    first = {tag: figure for tag, figure in figures.items() if tag.endswith(OVERVIEW)}
    others = {tag: figure for tag, figure in figures.items() if tag not in first}
    when = "" if report.step is None else f", step {report.step:,}"
    body = [
        f'<header><p class="soft">netdyn report{when}</p><h1 class="{colour}">{escape(verdict.level)}</h1>',
        _paragraph(f"{verdict.reason}."),
        _paragraph(f"Try: {verdict.advice}.") if verdict.advice else "",
        f'<p class="soft">{escape(probe_line(report))}</p>',
        f'<p class="soft">The rule, and how often it is right: {escape(verdict.rule)}</p></header>',
        _figures(first),
        _section("What stands out", _findings(report)),
        _section("The run", _run(curves)),
        _section("Layers", _layers(report, curves)),
        _section("In numbers", "".join(map(_paragraph, summary(report)))),
        _section("Figures", _figures(others)),
        _section("Glossary", _glossary(report)),
        _section("How it was measured", _measured(report)),
    ]
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>netdyn: {escape(verdict.level)}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>{"".join(body)}</main></body></html>\n'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _paragraph(line: str) -> str:
    return f"<p>{escape(line)}</p>"


def _findings(report: Report) -> str:
    """The sentences, and below those of one rule that rule."""
    items = []
    for rule, found in groupby(with_rules(report), key=itemgetter(1)):
        sentences = "".join(_paragraph(sentence) for sentence, _ in found)
        items.append(f"<li>{sentences}<small>Rule: {escape(rule)}</small></li>")
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _run(curves: Curves) -> str:
    """One line per quantity: its course from evaluation to evaluation, its first and its last value."""
    known = {tag.name: tag for tag in SCALARS}
    rows = []
    for tag in (known[name] for name in RUN if name in curves):
        values = [value for value in curves[tag.name] if not math.isnan(value)]
        if values:
            line = sparkline(curves[tag.name], (0.0, 1.0) if tag.unit.startswith("share, 0") else None, tag.meaning)
            ends = f"<td>{values[0]:.3g}</td><td>{values[-1]:.3g}</td>"
            rows.append(f"<tr><td>{escape(tag.meaning)}</td><td>{line}</td>{ends}</tr>")
    head = "<tr><th></th><th>from evaluation to evaluation</th><th>first</th><th>last</th></tr>"
    return _table(head, rows) if rows else ""


def _layers(report: Report, curves: Curves) -> str:
    """The table of layers, and why some have no numbers."""
    if not report.layers:
        return ""
    drawn = {layer.name: curves.get(f"{OF_LAYER}/{layer.name}", ()) for layer in report.layers}
    head = "".join(f'<th title="{escape(meaning)}">{escape(name)}</th>' for name, meaning in COLUMNS)
    head += "<th>OPT over the run</th>" if any(drawn.values()) else ""
    rows = []
    for layer in report.layers:
        line = sparkline(drawn[layer.name], (0.0, 1.0), f"OPT of {layer.name}") if any(drawn.values()) else ""
        course = f"<td>{line}</td>" if line else ""
        rows.append(f"<tr><td>{escape(layer.name)}</td>{_cells(layer)}{course}</tr>")
    return _table(f"<tr>{head}</tr>", rows) + "".join(map(_paragraph, reasons(report)))


def _cells(layer: LayerReport) -> str:
    cells = []
    for (head, _), number in zip(COLUMNS[1:], layer_numbers(layer), strict=True):
        share = getattr(layer, BARS[head]) if head in BARS else math.nan
        bar = "" if math.isnan(share) else f' class="bar" style="--share: {100 * share:.1f}%"'
        cells.append(f"<td{bar}>{escape(number)}</td>")
    return "".join(cells)


def _table(head: str, rows: Sequence[str]) -> str:
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _figures(figures: Mapping[str, Figure]) -> str:
    """The figures with what they show."""
    shown, drawn = {tag.name: tag.meaning for tag in FIGURES}, []
    for tag, figure in figures.items():
        caption = escape(": ".join(filter(None, (tag, shown.get(tag, "")))))
        drawn.append(f"<figure>{inline(figure, _name(tag))}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""


def _name(tag: str) -> str:
    """A tag as the name of an element."""
    return "f-" + re.sub(r"\W", "-", tag)


def _glossary(report: Report) -> str:
    """The heads of the table, and the tags that this report has."""
    sent = report.scalars()
    terms = [(name, meaning) for name, meaning in COLUMNS if report.layers]
    for tag in SCALARS:
        stem = tag.name.partition("<")[0]
        if any(name == stem or (stem.endswith("/") and name.startswith(stem)) for name in sent):
            terms.append((tag.name, f"{tag.meaning} ({tag.unit})"))
    return _list(terms)


def _measured(report: Report) -> str:
    return _list([*report.measured.items(), *(("note", note) for note in report.notes)])


def _list(terms: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms)
    return f"<dl>{items}</dl>" if items else ""
