"""One picture that shows how a training stands: the verdict as its title, and six panels over the run.

TensorBoard's smallest card shows 326 × 215 dots, and of a picture twice as large every second dot in each direction:
letters and lines must be two dots wide. The picture is drawn often, so it has few ticks and no layout engine.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from netdyn._utils.drawing import styled
from netdyn.report.figures.canvas import BLANK, PALETTE, as_array, thousands

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from netdyn.report.history import History
    from netdyn.report.verdict import Verdict

#: Dots of the picture, and per inch.
WIDTH, HEIGHT, DPI = 652, 430, 100
#: Colours of verdicts; all others are :data:`ALARM`.
COLOURS = {"healthy": "#00704E", "learning": "#005A8E", "untrained": "0.35", "no finding": "0.35"}
ALARM = "#B2182B"
#: More layers than these are drawn as a heat map.
MOST_LINES = 8
#: Most letters in a line below the verdict.
LETTERS = 62
#: Letters, in points: the verdict, all others.
LARGE, SMALL = 17.0, 11.5
#: Dots of a panel, and left of it: a number such as −0.31 has room there.
ACROSS, DOWN, LEFT = 150, 88, 60
#: The best step is marked if validation accuracy has fallen by more than this since.
FALLEN = 0.02
#: Steps whose largest distance exceeds the smallest by this factor are spread evenly.
UNEVEN = 20.0
#: Columns of a heat map.
COLUMNS = 200


@styled()
def overview(history: History, verdict: Verdict) -> Figure:
    """The verdict, and over the run: accuracies, both basins, OPT, RPD gradients, dead units and linear tails."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams.update({"font.weight": "bold", "font.size": SMALL, "axes.linewidth": 1.6, "axes.titleweight": "bold"})
    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI)
    _title(figure, verdict, history)
    panels = [_panel(figure, place, history) for place in range(6)]
    accuracies = {"train": "probe/accuracy", "val": "probe/val_accuracy"}
    _network(panels[0], history, "accuracy", accuracies, PALETTE, 1.0)
    _best(panels[0], history)
    # Colours of their own: these are no training and validation data.
    basins = {"input": "basin/sample", "weight": "basin/weight"}
    _network(panels[1], history, "noise withstood, σ", basins, PALETTE[2:])
    _layers(panels[2], history, "units in order (OPT)", "modes/opt_fraction")
    _layers(panels[3], history, "order of the samples\n(RPD gradient)", "modes/rpd_gradient")
    _layers(panels[4], history, "dead units", "modes/dead_fraction")
    _layers(panels[5], history, "accuracy without\nactivations", "linear/tail_accuracy", 1.0)
    return figure


def _title(figure: Figure, verdict: Verdict, history: History) -> None:
    """The verdict on a strip of its colour with the step, and below it why, and what to try."""
    from matplotlib.patches import Rectangle

    colour, height = COLOURS.get(verdict.level, ALARM), 36 / HEIGHT
    figure.add_artist(Rectangle((0, 1 - height), 1, height, facecolor=colour, transform=figure.transFigure))
    figure.text(0.012, 1 - height / 2, verdict.level, color="white", size=LARGE, va="center_baseline")
    step = f"step {history.steps[-1]:,}" + ", log-like axis" * _uneven(history.places())
    figure.text(0.988, 1 - height / 2, step, color="white", ha="right", va="center_baseline")
    why = f"{verdict.reason}." + f" Try: {verdict.advice}." * bool(verdict.advice)
    lines = textwrap.wrap(why, LETTERS, max_lines=2, placeholder=" …")
    figure.text(0.012, 1 - 42 / HEIGHT, "\n".join(lines), va="top", linespacing=1.1, parse_math=False)


def _panel(figure: Figure, place: int, history: History) -> Axes:
    """An empty panel, with the first, the middle and the last step below it."""
    row, column = divmod(place, 3)
    left, bottom = (column * WIDTH / 3 + LEFT) / WIDTH, (220 - row * 176) / HEIGHT
    axes = figure.add_axes((left, bottom, ACROSS / WIDTH, DOWN / HEIGHT))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3, width=1.6, pad=2)
    x, steps = spread(history.places()), history.steps
    shown = sorted({0, len(x) // 2, len(x) - 1})
    axes.set_xticks([x[i] for i in shown], [thousands(steps[i]) for i in shown])
    axes.set_xlim(x[0], max(x[-1], x[0] + 1))
    for label, side in zip(axes.get_xticklabels(), ("left", "center", "right")[: len(shown)], strict=True):
        label.set(horizontalalignment=side)
    return axes


def spread(steps: Sequence[float]) -> np.ndarray:
    """Where steps are drawn: as they are, or closer together the larger they are, if they are very uneven."""
    at = np.asarray(steps, dtype=float)
    return np.arcsinh(at / np.diff(at).min()) if _uneven(steps) else at


def _uneven(steps: Sequence[float]) -> bool:
    gaps = np.diff(np.asarray(steps, dtype=float))
    return len(gaps) > 1 and bool(gaps.max() > UNEVEN * gaps.min())


def _network(
    axes: Axes,
    history: History,
    title: str,
    curves: Mapping[str, str],
    colours: Sequence[str],
    top: float | None = None,
) -> None:
    """Numbers of the whole network; a basin with its interval. Their last values stand below, in their colours."""
    x, words, highest = spread(history.places()), [], 0.0
    for (name, tag), colour in zip(curves.items(), colours, strict=False):
        basin = tag.startswith("basin")
        values = as_array(history.curve(f"{tag}/radius" if basin else tag))
        if np.isnan(values).all():
            continue
        axes.plot(x, values, "o-", color=colour, linewidth=2.2, markersize=3 if len(x) > 1 else 6)
        ends = values
        if basin:
            low, ends = as_array(history.curve(f"{tag}/low")), as_array(history.curve(f"{tag}/high"))
            axes.fill_between(x, low, ends, color=colour, alpha=0.25, linewidth=0)
        highest = max(highest, np.nanmax(values), np.nanmax(np.nan_to_num(ends)))
        words.append((f"{name} {_number(values[-1])}", colour))
    _finish(axes, title, words, 0.0, top or highest * 1.05)


def _best(axes: Axes, history: History) -> None:
    """A vertical line where validation accuracy was best, if it has fallen since."""
    values = as_array(history.curve("probe/val_accuracy"))
    if np.isnan(values).all() or not np.nanmax(values) - values[-1] > FALLEN:
        return
    axes.axvline(spread(history.places())[np.nanargmax(values)], color="0.5", linewidth=1.6, linestyle=":", zorder=0)


def _layers(axes: Axes, history: History, title: str, kind: str, top: float | None = None) -> None:
    """A number of each layer: lines from dark (first layer) to bright (last), or a heat map of many layers."""
    from matplotlib import colormaps

    values, x = as_array(history.curves(kind)), spread(history.places())
    values = values[~np.isnan(values).all(axis=1)]
    if not len(values):
        _finish(axes, title, [], 0.0, 1.0)
        return
    low, high = min(np.nanmin(values), 0.0), top or max(np.nanmax(values), 0.05)
    colours, last = colormaps["viridis"], values[:, -1]
    if len(values) <= MOST_LINES:
        shades = [colours(0.75 * i / max(len(values) - 1, 1)) for i in range(len(values))]
        for row, shade in zip(values, shades, strict=True):
            axes.plot(x, row, "o-", color=shade, linewidth=2.2, markersize=3 if len(x) > 1 else 6)
        words = [(f"layer 1: {_number(last[0])}", shades[0]), (f"{len(last)}: {_number(last[-1])}", shades[-1])]
        _finish(axes, title, words[: len(values)], low - 0.03 * (high - low), low + 1.05 * (high - low))
        _ends(axes, low if -low > high else 0.0, high)
        return
    # The evaluation that is nearest to each column, so that a long run is drawn as fast as a short one.
    columns = np.abs(x[None] - np.linspace(x[0], x[-1], COLUMNS)[:, None]).argmin(axis=1)
    extent = (x[0], max(x[-1], x[0] + 1), 0.5, len(values) + 0.5)
    axes.imshow(
        values[:, columns],
        colours,
        vmin=low,
        vmax=high,
        extent=extent,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )
    axes.set_facecolor(BLANK)
    words = [(f"{_number(low)} dark", colours(0.0)), (f"{_number(high)} bright", colours(0.75))]
    _finish(axes, title, words, 0.5, len(values) + 0.5)
    _ends(axes, 1, len(values))


def _finish(axes: Axes, title: str, words: Sequence[tuple[str, object]], low: float, high: float) -> None:
    """The title, the line below the panel, and the range of the numbers."""
    edge = (6 - LEFT) / ACROSS
    axes.set_title(title, size=SMALL, loc="left", x=edge, pad=4, linespacing=1.0)
    for (word, colour), (place, side) in zip(words, ((edge, "left"), (1.02, "right")), strict=False):
        axes.text(place, -0.26, word, color=colour, ha=side, va="top", transform=axes.transAxes)
    if not words:
        axes.text(0.5, 0.5, "not measured", color="0.5", ha="center", transform=axes.transAxes)
    high = high if high > low else low + 1.0
    axes.set_ylim(low, high)
    _ends(axes, low, high)


def _ends(axes: Axes, low: float, high: float) -> None:
    """Two numbers beside the panel, which do not reach beyond it."""
    axes.set_yticks([low, high], [_number(low), _number(high)])
    for label, side in zip(axes.get_yticklabels(), ("bottom", "top"), strict=True):
        label.set(verticalalignment=side)


def _number(value: float) -> str:
    """A number in few letters.

    >>> [_number(value) for value in (0.0, 0.314, 3.14, 31.4, -0.5, float("nan"))]
    ['0', '0.31', '3.1', '31.4', '−0.5', '–']
    """
    return "–" if value != value else f"{round(value, 2 if abs(value) < 1 else 1):g}".replace("-", "−")
