"""Characteristic maps, subnetworks and heat maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from torch import Tensor

from netdyn._utils.drawing import styled
from netdyn.report.figures.canvas import (
    ABOVE,
    BELOW,
    BLANK,
    GREY,
    NUMBERED,
    NUMBERS,
    SIZE,
    as_array,
    blank,
    layer_labels,
    letters,
    make_room,
    make_room_for,
    short,
    thinned,
    thousands,
    with_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

N = TypeVar("N", int, float)
#: Most classes shown as maps.
_MAPS = 20
#: The axis of steps is logarithmic if their largest distance exceeds the smallest by this factor.
_UNEVEN = 20.0
#: Colours of inputs that lower and that raise a logit.
COLOURS = ("#2166AC", "#B2182B")
#: Inches: the height of a panel's title, the gap between panels, and the width of all panels beside a scale or an axis.
_TITLE, _GAP, _WIDTH = 0.17, 0.07, 3.6
#: Inches around images, and those of the figure's title and of the scale.
_EDGE, _HEAD, _SCALE = 0.12, 0.28, 0.11
#: Leading digits of the numbers beside a scale of colours, as matplotlib chooses them beside axes.
ROUND = (1, 2, 2.5, 5, 10)
#: Half the height of a panel of bars, of which the highest is 1.
_REACH = 1.05


@styled()
def characteristic_maps(maps: Tensor, names: Sequence[str] | None = None) -> Figure:
    """How each logit weighs the input ``[classes, …]``: images (channels are summed) or bars; the first 20 classes."""
    values = as_array(maps)
    labels = list(map(str, range(len(values)))) if names is None else list(names)
    title = "How each logit weighs the inputs"
    title += f" (the first {_MAPS} of {len(values)} classes)" * (len(values) > _MAPS)
    return _panels(values[:_MAPS], labels[:_MAPS], title)


@styled()
def subnetwork(units: Tensor, shares: Tensor, maps: Tensor) -> Figure:
    """The units that contribute most to each logit, and how each weighs the input; the first ten classes.

    Indices of units ``[classes, most]``, the share of the logit's variance that each explains, and its map (pathway ×
    input) ``[classes, most, *input shape]``.
    """
    rows, columns = min(len(units), _MAPS // 2), units.shape[1]
    labels = [
        f"{k}: unit {int(units[k, j])}, {100 * float(shares[k, j]):.0f} %" for k in range(rows) for j in range(columns)
    ]
    values = as_array(maps[:rows]).reshape(rows * columns, *maps.shape[2:])
    title = "First layer: units that contribute most to each logit"
    title += f" (the first {rows} of {len(units)} classes)" * (rows < len(units))
    return _panels(values, labels, title, columns)


@styled()
def heat_map(
    values: Tensor,
    layers: Sequence[str],
    steps: Sequence[float],
    label: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A number of each layer over the run, ``[layers, steps]``, first layer at the bottom; NaN and inf are blank."""
    if tuple(values.shape) != (len(layers), len(steps)):
        raise ValueError(
            f"`values` must have shape [layers, steps] = [{len(layers)}, {len(steps)}], got {list(values.shape)}."
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError(f"`steps` must increase, got {list(steps)}.")
    figure, axes = with_axes(f"{label[0].upper()}{label[1:]}, per layer", "training step", "layer")
    shown = np.ma.masked_invalid(as_array(values))
    low, high = limits or ((float(shown.min()), float(shown.max())) if shown.count() else (0.0, 1.0))
    colours = "RdBu_r" if low == -high != 0 else "cividis"
    edges = np.arange(len(layers) + 1) - 0.5
    image = axes.pcolormesh(_edges(steps), edges, shown, cmap=colours, vmin=low, vmax=high)
    axes.set_facecolor(BLANK)
    _step_axis(axes, steps)
    ticks, labels = thinned(len(layers)), layer_labels(layers)
    names = [labels[i] for i in ticks]
    axes.set_yticks(ticks, names, fontsize=(size := letters(names)))
    make_room_for(figure, axes, names, size)
    make_room(figure, axes, right=NUMBERS)
    _colour_scale(figure, image, ax=axes)
    return figure


def _colour_scale(figure: Figure, image: ScalarMappable, ax: Axes | None = None, cax: Axes | None = None) -> None:
    """The scale of colours of an image, beside ``ax`` or in ``cax``, with few numbers in few letters."""
    from matplotlib.ticker import MaxNLocator

    def written(number: float, _: object) -> str:
        return f"{number:.4g}".replace("-", "−")

    figure.colorbar(image, ticks=MaxNLocator(NUMBERED, steps=ROUND), format=written, ax=ax, cax=cax)


def _step_axis(axes: Axes, steps: Sequence[float]) -> None:
    """Label up to three steps one by one; put very uneven steps on a logarithmic axis, linear near zero."""
    from matplotlib.ticker import MaxNLocator

    gaps = np.diff(steps)
    if len(steps) <= 3:
        axes.set_xticks(list(steps))
    elif gaps.max() > _UNEVEN * gaps.min():
        axes.set_xscale("symlog", linthresh=float(gaps.min()))
        axes.set_xlabel("training step (logarithmic)")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(NUMBERED, integer=True))
    # Beside a logarithmic axis powers of ten would be typeset as formulas, which takes a tenth of the drawing time.
    axes.xaxis.set_major_formatter(lambda step, _: thousands(round(step)))


def _edges(steps: Sequence[float]) -> np.ndarray:
    """Edges of the columns: halfway between neighbours, and as far beyond the first and the last."""
    at = np.asarray(steps, dtype=float)
    if len(at) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    middle = (at[1:] + at[:-1]) / 2
    return np.concatenate([[max(2 * at[0] - middle[0], min(at[0], 0.0))], middle, [2 * at[-1] - middle[-1]]])


@dataclass(frozen=True)
class _Sheet(Generic[N]):
    """Where the panels are on one set of axes, y downward: sets of their own take over a second for forty maps."""

    columns: int
    width: N
    height: N
    right: N  # from a panel's left edge to its neighbour's
    down: N  # from a panel's upper edge to its neighbour's

    def corner(self, number: int) -> tuple[N, N]:
        """Left and upper edge of a panel."""
        return number % self.columns * self.right, number // self.columns * self.down

    def finish(self, axes: Axes, labels: Sequence[str], above: float, face: str) -> None:
        """Draw the panels' frames, their labels somewhat above them, and make room for both."""
        from matplotlib.collections import PolyCollection

        frames = []
        for number, label in enumerate(labels):
            left, top = self.corner(number)
            right, bottom = left + self.width, top + self.height
            frames.append([(left, top), (right, top), (right, bottom), (left, bottom)])
            place, size = (left + self.width / 2, top - above), 9 if len(label) < 8 else 7
            axes.text(*place, short(label), fontsize=size, ha="center", va="bottom")
        axes.add_collection(PolyCollection(frames, facecolors=face, edgecolors="none", zorder=-1), autolim=False)
        line = PolyCollection(frames, facecolors="none", edgecolors="black", linewidths=0.8, zorder=3, clip_on=False)
        axes.add_collection(line, autolim=False)
        rows = math.ceil(len(labels) / self.columns)
        axes.set_xlim(0, (self.columns - 1) * self.right + self.width)
        axes.set_ylim((rows - 1) * self.down + self.height, self.height - self.down)
        axes.spines[:].set_visible(False)


def _panels(values: np.ndarray, labels: Sequence[str], title: str, columns: int | None = None) -> Figure:
    """A grid of maps on one scale, symmetric about zero: images (channels summed) or bars."""
    values = values.sum(axis=1) if values.ndim == 4 else values
    values = values if values.ndim == 3 else values.reshape(len(values), -1)
    finite = np.abs(values[np.isfinite(values)])
    limit = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    columns = columns or min(5 if values.ndim == 3 else 4, math.ceil(math.sqrt(len(values))))
    figure = (_images if values.ndim == 3 else _bars)(values, labels, limit, columns)
    figure.suptitle(title, fontsize=9)
    return figure


def _images(values: np.ndarray, labels: Sequence[str], limit: float, columns: int) -> Figure:
    panels, height, width = values.shape
    rows = math.ceil(panels / columns)
    most = max(SIZE[1], 1.05 * rows + 0.5)
    # Inches per input, limited by the width or by the height.
    inch = min((_WIDTH / columns - _GAP) / width, ((most - 0.3) / rows - _TITLE - _GAP) / height)
    # All panels are parts of one image: forty images take four times as long. Its dots are so small that a gap is two
    # of them or more.
    fine = math.ceil(2 * inch / _GAP)
    inch, height, width = inch / fine, height * fine, width * fine
    sheet = _Sheet(columns, width, height, width + round(_GAP / inch), height + round((_TITLE + _GAP) / inch))
    # Rounded up to quarters of an inch, which are whole dots.
    inches = max(2.25, math.ceil(4 * (rows * sheet.down * inch + _HEAD + _EDGE)) / 4)
    figure, axes = blank(inches)
    bottom, up = _EDGE / inches, 1 - (_HEAD + _EDGE) / inches
    axes.set_position((_EDGE / SIZE[0], bottom, _WIDTH / SIZE[0], up))
    beside = figure.add_axes(((_WIDTH + 2 * _EDGE) / SIZE[0], bottom + 0.05 * up, _SCALE / SIZE[0], 0.9 * up))
    whole = np.full((rows * sheet.down, columns * sheet.right), np.nan)
    for number, value in enumerate(values):
        left, top = sheet.corner(number)
        whole[top : top + height, left : left + width] = value.repeat(fine, axis=0).repeat(fine, axis=1)
    extent = (0, whole.shape[1], whole.shape[0], 0)
    image = axes.imshow(whole, "RdBu_r", extent=extent, vmin=-limit, vmax=limit, interpolation="nearest")
    sheet.finish(axes, labels, _GAP / 3 / inch, BLANK)
    axes.set_xticks([])
    axes.set_yticks([])
    _colour_scale(figure, image, cax=beside)
    beside.tick_params(labelsize=9)
    beside.set_ylabel("weight of the input", fontsize=9)
    return figure


def _bars(values: np.ndarray, labels: Sequence[str], limit: float, columns: int) -> Figure:
    """Draw bars without gaps, positive and negative ones in two colours."""
    from matplotlib.collections import LineCollection, PolyCollection

    panels, inputs = values.shape
    rows = math.ceil(panels / columns)
    height = max(SIZE[1], 1.05 * rows + 0.5)
    down = (height - BELOW - ABOVE) / rows
    # A panel is as wide as it has inputs, and 2 · _REACH high.
    scale = 2 * _REACH / (down - _TITLE - _GAP)
    sheet = _Sheet(columns, inputs, 2 * _REACH, inputs * (1 + 2 * _GAP * columns / _WIDTH), down * scale)
    figure, axes = blank(height)
    shown = np.nan_to_num(values, nan=0.0, posinf=limit, neginf=-limit) / limit
    corners = np.array([sheet.corner(number) for number in range(panels)])
    middles = corners[:, 1] + _REACH
    edges = np.repeat(np.arange(inputs + 1.0), 2)
    for part, colour in zip((np.clip(shown, None, 0), np.clip(shown, 0, None)), COLOURS, strict=True):
        outline = np.zeros((panels, 2 * inputs + 2, 2))
        outline[:, :, 0] = corners[:, :1] + edges
        outline[:, :, 1] = middles[:, None]
        outline[:, 1:-1, 1] -= np.repeat(part, 2, axis=1)
        # As vectors, forty panels of 784 bars took three of the four megabytes of a report.
        bars = PolyCollection(list(outline), facecolors=colour, edgecolors="none", label=colour, rasterized=True)
        axes.add_collection(bars, autolim=False)
    zeros = [[(left, middle), (left + inputs, middle)] for left, middle in zip(corners[:, 0], middles, strict=True)]
    axes.add_collection(LineCollection(zeros, colors=GREY, linewidths=0.6), autolim=False)
    sheet.finish(axes, labels, _GAP / 3 * scale, "white")
    high = _round_number(limit)
    places, numbers = _ticks([(mid - at / limit, at) for mid in middles[::columns] for at in (-high, 0.0, high)])
    axes.set_yticks(places, numbers)
    make_room_for(figure, axes, numbers[:3], 7)
    far = _round_number(inputs - 1)
    last_row = corners[(rows - 1) * columns :, 0]
    axes.set_xticks(*_ticks([(left + at + 0.5, at) for left in last_row for at in (0.0, far)]))
    axes.tick_params(labelsize=7)
    axes.set_xlabel("input component", fontsize=9)
    axes.set_ylabel("weight of the input", fontsize=9)
    return figure


def _ticks(places: list[tuple[float, float]]) -> tuple[list[float], list[str]]:
    """Places and labels of ticks, from places and the numbers there."""
    return [place for place, _ in places], [f"{number:g}".replace("-", "−") for _, number in places]


def _round_number(most: float) -> float:
    """The largest of …, 0.1, 0.2, 0.5, 1, 2, 5, … that is at most ``most``; 0 if ``most`` is not positive."""
    if most <= 0:
        return 0.0
    power = math.floor(math.log10(most))
    first = most / 10.0**power
    digit = max(step for step in (1, 2, 5) if step <= first * (1 + 1e-9) or step == 1)
    return float(f"{digit}e{power}")
