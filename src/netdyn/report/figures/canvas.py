"""What every figure is drawn on: matplotlib's own style, a size that fits a card of TensorBoard, names that fit.

Figures are made with matplotlib's object interface: pyplot, with its list of open figures, is not involved, and
matplotlib is loaded when the first figure is drawn.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What is said where figures are wanted and matplotlib is not there.
MISSING = "netdyn draws no figures, for matplotlib is not installed. Get it with: pip install 'netdyn[plot]'."

#: Okabe and Ito's colours, without yellow, which is hard to see on white, and black, which is the whole's.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: Lines that are there for comparison.
GREY = "0.55"
#: Where a map has no value: neither white, which means zero in one of the scales, nor a colour of the other.
BLANK = "0.85"
SIZE = (4.8, 3.4)
DPI = 160
#: So many names fit beside an axis.
NAMES = 12


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def styled() -> Iterator[None]:
    """Inside, matplotlib has its own style, whatever the user's is.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if not available():
        raise ImportError(MISSING)
    from matplotlib import style

    with style.context("default"):
        yield


@styled()
def pixels(figure: Figure) -> Tensor:
    """A figure as an image, uint8 ``[height, width, 3]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A name in letters that the font lacks is shown as boxes.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        canvas.draw()  # type: ignore[no-untyped-call]
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())  # type: ignore[no-untyped-call]


def blank(height: float = SIZE[1]) -> Figure:
    """An empty figure."""
    from matplotlib.figure import Figure

    return Figure(figsize=(SIZE[0], height), dpi=DPI, layout="constrained")


def with_axes(x: str, y: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure = blank()
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def shades(number: int) -> list[tuple[float, ...]]:
    """Colours from dark to light, short of the lightest."""
    from matplotlib import colormaps

    return [tuple(colormaps["cividis"](0.9 * i / max(number - 1, 1))) for i in range(number)]


def short(name: str, length: int = 20) -> str:
    """A name that fits, its middle left out; dollar signs would start a formula.

    >>> short("encoder.layers.10.fc1", 12)
    'encod…0.fc1'
    """
    half = (length - 1) // 2
    return (name if len(name) <= length else f"{name[:half]}…{name[-half:]}").replace("$", r"\$")


def layer_labels(names: Sequence[str], length: int = 20) -> list[str]:
    """Layers' names without the modules that all of them are in, so that what tells them apart has room.

    >>> layer_labels(["encoder.layers.0.fc1", "encoder.layers.10.fc1"], 12)
    ['0.fc1', '10.fc1']
    """
    parts = [name.split(".") for name in names]
    common = 0
    while len(parts) > 1 and all(len(part) > common + 1 and part[common] == parts[0][common] for part in parts):
        common += 1
    return [short(".".join(part[common:]), length) for part in parts]


def thinned(number: int, most: int = NAMES) -> list[int]:
    """At most ``most`` of the numbers from 0, at even distances, the first and the last among them.

    >>> thinned(9, 3)
    [0, 4, 8]
    """
    if number <= most:
        return list(range(number))
    return [round(i * (number - 1) / (most - 1)) for i in range(most)]


def legend(figure: Figure, axes: Axes) -> None:
    """Beside the axes, where it hides nothing; below them where it is short."""
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


def name_shades(figure: Figure, axes: Axes, names: list[str]) -> None:
    """Say which of the shades is whose: a legend where it fits, else a scale with some of the names."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    if len(names) <= NAMES:
        legend(figure, axes)
        return
    ticks, labels = thinned(len(names)), layer_labels(names)
    scale = ScalarMappable(cmap=ListedColormap(shades(len(names))))
    scale.set_clim(-0.5, len(names) - 0.5)
    figure.colorbar(scale, ax=axes).set_ticks(ticks, labels=[labels[i] for i in ticks])


def as_array(values: Tensor | Sequence[float]) -> np.ndarray:
    """Numbers as an array of NumPy, float64."""
    return torch.as_tensor(values, dtype=torch.float64).detach().cpu().numpy()
