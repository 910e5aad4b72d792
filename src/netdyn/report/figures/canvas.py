"""What all figures share: size, colours, short names. No pyplot; matplotlib is imported at the first drawing.

Everything has a place of its own, since a layout engine draws each figure twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from netdyn.report.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The colours of Okabe and Ito, without yellow, which is hard to see on white, and black, which stands for all samples.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: Colour of lines for comparison.
GREY = "0.55"
#: Colour of missing values: neither white, which means zero on one scale, nor a colour of the other scale.
BLANK = "0.85"
SIZE = (4.8, 3.4)
DPI = 120
#: Inches around the axes: at the left for numbers and a label, below for both, above for a title, at the right.
LEFT, BELOW, ABOVE, RIGHT = 0.65, 0.5, 0.36, 0.14
#: Inches of the numbers beside a colour scale, and of a label with its gaps.
NUMBERS, LABEL = 0.42, 0.35
#: Most names beside an axis, and most intervals between numbers: each number takes as long as a line to draw.
NAMES, NUMBERED = 12, 5


def blank(height: float = SIZE[1]) -> tuple[Figure, Axes]:
    """A figure with empty axes."""
    from matplotlib.figure import Figure

    figure, (width, _) = Figure(figsize=(SIZE[0], height), dpi=DPI), SIZE
    across, up = width - LEFT - RIGHT, height - BELOW - ABOVE
    return figure, figure.add_axes((LEFT / width, BELOW / height, across / width, up / height))


def make_room(figure: Figure, axes: Axes, left: float = 0.0, right: float = 0.0, below: float = 0.0) -> None:
    """Take so many inches from the axes' sides."""
    box, (width, height) = axes.get_position(), figure.get_size_inches()
    x, y = box.x0 + left / width, box.y0 + below / height
    axes.set_position((x, y, box.x1 - right / width - x, box.y1 - y))


def make_room_for(figure: Figure, axes: Axes, names: Sequence[str], size: float) -> None:
    """Take what names and a label left of the axes need beyond the room that is there."""
    make_room(figure, axes, left=max(0.0, widest(names, size) + LABEL - LEFT))


def widest(texts: Sequence[str], size: float) -> float:
    """Inches that the widest of some texts takes, in letters of ``size`` points; 0 without any."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    points = (text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] for text in texts)
    return max(points, default=0.0) / 72


def letters(names: Sequence[str], usual: float = 10.0) -> float:
    """Points of the letters of names beside the axes: fewer than usual where these are long."""
    return usual if widest(names, usual) < 1.6 else 0.7 * usual


def with_axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """A figure with one set of axes."""
    figure, axes = blank()
    figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(nbins=NUMBERED)
    return figure, axes


def short(name: str, length: int = 20) -> str:
    """A name shortened in the middle; dollar signs are escaped, because they would start a formula."""
    half = (length - 1) // 2
    return (name if len(name) <= length else f"{name[:half]}…{name[-half:]}").replace("$", r"\$")


def layer_labels(names: Sequence[str], length: int = 24) -> list[str]:
    """Names of layers, shortened in the middle if they are long, and still different."""
    return [name.replace("$", r"\$") for name in shortened(names, length)]


def thinned(number: int, most: int = NAMES) -> list[int]:
    """At most ``most`` of the first ``number`` integers, evenly spaced, including both ends."""
    shown = min(number, most)
    return [round(i * (number - 1) / max(shown - 1, 1)) for i in range(shown)]


def legend(figure: Figure, axes: Axes) -> None:
    """Put the legend beside the axes, or below them if it is short."""
    handles, labels = axes.get_legend_handles_labels()
    look = {"frameon": False, "borderaxespad": 0.2}
    # Beside the names there are lines.
    if len(handles) > 3 or sum(widest([label], 8) + 0.5 for label in labels) > SIZE[0]:
        make_room(figure, axes, right=widest(labels, (size := letters(labels, 8))) + 0.5)
        edge = axes.get_position()
        figure.legend(handles, labels, fontsize=size, loc="upper left", bbox_to_anchor=(edge.x1, edge.y1), **look)
    elif handles:
        make_room(figure, axes, below=0.25)
        figure.legend(handles, labels, fontsize=8, loc="lower center", ncols=len(handles), **look)


def as_array(values: Tensor | Sequence[float]) -> np.ndarray:
    """Numbers as a NumPy array, float64."""
    return torch.as_tensor(values, dtype=torch.float64).detach().cpu().numpy()


def thousands(step: int) -> str:
    """A step in few letters.

    >>> [thousands(step) for step in (0, 999, 2199, 25000, 3_000_000)]
    ['0', '999', '2.2k', '25k', '3M']
    """
    for size, unit in ((10**6, "M"), (10**3, "k")):
        if step >= size:
            return f"{step / size:.3g}{unit}"
    return str(step)
