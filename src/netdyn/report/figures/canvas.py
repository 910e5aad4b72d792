"""What all figures share: size, colours, short names. No pyplot; matplotlib is imported at the first drawing."""

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
DPI = 160
#: Most names beside an axis.
NAMES = 12


def blank(height: float = SIZE[1]) -> Figure:
    """An empty figure."""
    from matplotlib.figure import Figure

    return Figure(figsize=(SIZE[0], height), dpi=DPI, layout="constrained")


def with_axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """A figure with one set of axes."""
    figure = blank()
    axes = figure.subplots()
    figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
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
    if handles:
        beside = len(handles) > 3
        figure.legend(
            handles,
            labels,
            loc="outside right upper" if beside else "outside lower center",
            ncols=1 if beside else len(handles),
            fontsize=8,
            frameon=False,
        )


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
