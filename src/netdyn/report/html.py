"""A report as HTML for a notebook, with the content of the text."""

from __future__ import annotations

from html import escape

from netdyn.report.findings import findings
from netdyn.report.reasons import reasons
from netdyn.report.results import Report
from netdyn.report.text import COLUMNS, layer_numbers, probe_line, summary

#: The colours are the notebook's own, light or dark.
TABLE_STYLE = "border-collapse: collapse; color: inherit; background: transparent; font-variant-numeric: tabular-nums"
CELL_STYLE = "padding: 2px 8px; border-bottom: 1px solid rgba(128, 128, 128, 0.4); background: transparent"


def html(report: Report) -> str:
    """The report for a notebook, with the full names of the layers."""
    parts = [_paragraph(f"{report.verdict}"), _paragraph(probe_line(report))]
    if report.layers:
        head = "".join(_cell("th", name, right=place > 0, title=title) for place, (name, title) in enumerate(COLUMNS))
        rows = [
            _cell("td", layer.name, right=False) + "".join(_cell("td", number) for number in layer_numbers(layer))
            for layer in report.layers
        ]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        parts.append(f'<table style="{TABLE_STYLE}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')
        parts += [_paragraph(line) for line in reasons(report)]
    parts += [_paragraph(line) for line in summary(report)]
    if sentences := findings(report):
        parts.append("<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>")
    return "<div>" + "".join(parts) + "</div>"


def _paragraph(line: str) -> str:
    return f'<p style="margin: 4px 0">{escape(line)}</p>'


def _cell(kind: str, content: str, right: bool = True, title: str = "") -> str:
    style = f"{CELL_STYLE}; text-align: {'right' if right else 'left'}"
    hint = f' title="{escape(title)}"' if title else ""
    return f'<{kind} style="{style}"{hint}>{escape(content)}</{kind}>'
