"""Figures and sparklines as SVG inside a page of HTML."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from netdyn._utils.drawing import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Size of a sparkline, and the room around its line, in pixels.
WIDTH, HEIGHT, MARGIN = 160, 28, 3
#: What the file of a figure holds besides the drawing.
AROUND = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>\s*", re.S)
#: Names of a figure's parts, and references to them.
NAMES = re.compile(r'(\bid="|url\(#|href="#)')


def inline(figure: Figure, name: str) -> str:
    """A matplotlib figure as an element ``<svg>``; ``name`` keeps the names of its parts apart from other figures'."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file, dpi = io.StringIO(), figure.dpi
    # Letters remain letters, in the reader's own font.
    with styled(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "netdyn"}):
        # `savefig` would draw the figure twice.
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})  # type: ignore[no-untyped-call]
    figure.dpi = dpi
    return NAMES.sub(rf"\g<1>{name}-", AROUND.sub("", file.getvalue()))


def sparkline(values: Sequence[float], limits: tuple[float, float] | None, label: str) -> str:
    """A line through the values, in order and evenly spaced; unknown and infinite values are gaps.

    Args:
        values: The values, in any unit.
        limits: The values at the lower and the upper edge. None: 0 and the largest one.
        label: What it shows, for those who cannot see it.
    """
    known = [value for value in values if math.isfinite(value)]
    low, high = limits or (min([0.0, *known]), max([0.0, *known]) or 1.0)

    def point(place: int, value: float) -> tuple[float, float]:
        across = place / max(len(values) - 1, 1)
        up = min(max((value - low) / (high - low), 0.0), 1.0)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    lines: list[list[tuple[float, float]]] = [[]]
    for place, value in enumerate(values):
        if math.isfinite(value):
            lines[-1].append(point(place, value))
        elif lines[-1]:
            lines.append([])
    drawn = [
        f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in line)}" fill="none" stroke="currentColor"/>'
        for line in lines
        if len(line) > 1
    ]
    ends = [line[-1] for line in lines if line]
    drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="currentColor"/>' for x, y in ends]
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg>'
