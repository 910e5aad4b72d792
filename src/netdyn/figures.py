"""Numbers in, matplotlib figures out.

Figures are made with matplotlib's object interface: pyplot, with its list of open figures, is not involved. They look
the same whatever style the user has set, fit a card of TensorBoard, and use colours that colour-blind people can tell
apart (cividis, a red-blue scale and the palette of Okabe and Ito). matplotlib is loaded when the first one is drawn.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What is said once where figures are wanted and matplotlib is not there.
MISSING = "netdyn draws no figures, for matplotlib is not installed. Get it with: pip install 'netdyn[plot]'."

#: Okabe and Ito's colours, without yellow, which is hard to see on white.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "0.55"
_SIZE = (4.8, 3.4)
_DPI = 160
#: So many names fit beside an axis.
_NAMES = 12
#: Names longer than this are shortened in the middle.
_LENGTH = 20
#: Classes shown as maps.
_MAPS = 20
#: Steps whose largest distance is so many times their smallest are shown on a logarithmic axis.
_UNEVEN = 20.0


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def _styled() -> Iterator[None]:
    """matplotlib's own style, whatever the user's is; put back afterwards.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if not available():
        raise ImportError(MISSING)
    from matplotlib import style

    with style.context("default"):
        yield


@_styled()
def pixels(figure: Figure) -> Tensor:
    """A figure as an image, uint8 ``[height, width, 3]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())


@_styled()
def rank_distributions(densities: Mapping[str, Tensor]) -> Figure:
    """The rank probability distribution of every layer, one curve a layer.

    Args:
        densities: Layer name → density ``[bins]`` on [0, 1], in order of execution.

    Returns:
        Curves from the first layer (dark) to the last (light); a dashed line marks the flat distribution of no order.
    """
    figure, axes = _blank("rank of the local field, along the wiring", "density of a class's samples")
    axes.axhline(1.0, color=_GREY, linestyle="--", linewidth=1)
    shades = _shades(len(densities))
    for (name, density), shade in zip(densities.items(), shades, strict=True):
        bins = len(density)
        axes.plot((np.arange(bins) + 0.5) / bins, _array(density), color=shade, linewidth=1.5, label=_short(name))
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    _name_curves(figure, axes, list(densities))
    return figure


@_styled()
def tail(accuracies: Mapping[str, float], accuracy: float, functional_depth: float) -> Figure:
    """Accuracy that is left when every activation from a layer upward is the identity, layer by layer.

    Args:
        accuracies: Layer name → accuracy, in order of execution.
        accuracy: Accuracy of the network as it is.
        functional_depth: The first layer from which on this costs nothing; the number of layers if there is none, NaN
            where the network does not beat chance.

    Returns:
        The accuracies, with the layers that act linearly shaded.
    """
    figure, axes = _blank("first layer without activation", "accuracy on the probe")
    layers = len(accuracies)
    if functional_depth < layers:
        axes.axvspan(functional_depth - 0.5, layers - 0.5, color=_PALETTE[5], alpha=0.3, linewidth=0)
    label = "network as it is" if math.isfinite(functional_depth) else "network as it is (no better than chance)"
    axes.axhline(accuracy, color=_PALETTE[1], linestyle="--", linewidth=1.2, label=label)
    axes.plot(
        np.arange(layers), _array(list(accuracies.values())), "o-", color=_PALETTE[0], markersize=4, label="linear tail"
    )
    axes.set_xlim(-0.5, max(layers, 1) - 0.5)
    axes.set_ylim(-0.03, 1.03)
    ticks = _thinned(layers)
    names = list(accuracies)
    axes.set_xticks(ticks, [_short(names[i]) for i in ticks], rotation=30, ha="right", rotation_mode="anchor")
    _legend(figure, axes)
    return figure


@_styled()
def basin_curves(
    sigma: Tensor,
    overall: Tensor,
    per_class: Tensor | None,
    accuracy: float,
    radius: float,
    interval: tuple[float, float],
    unit: str = "σ per input component",
) -> Figure:
    """Accuracy against the level of noise, for all samples and for each class, with the radius marked.

    Args:
        sigma: Noise levels ``[levels]``, positive.
        overall: Accuracy at each ``[levels]``.
        per_class: Accuracy of each class ``[classes, levels]`` (NaN: absent), or None.
        accuracy: The accuracy that defines the radius.
        radius: The radius; 0 where accuracy starts lower, inf where it never falls so low.
        interval: Its confidence interval.
        unit: What the noise level is measured in.

    Returns:
        One thin curve a class, one thick one for all. A radius off the axis is an arrow at its edge.
    """
    figure, axes = _blank(f"noise level ({unit})", "accuracy")
    levels = _array(sigma)
    axes.set_xscale("log")
    axes.set_xlim(levels.min(), levels.max())
    axes.set_ylim(-0.03, 1.03)
    if per_class is not None:
        _class_curves(axes, levels, _array(per_class))
    axes.plot(levels, _array(overall), color="black", linewidth=2.2, label="all samples")
    axes.axhline(accuracy, color=_GREY, linestyle="--", linewidth=1)
    _mark(axes, accuracy, radius, interval)
    _legend(figure, axes)
    return figure


def _class_curves(axes: Axes, levels: np.ndarray, curves: np.ndarray) -> None:
    """Few classes in colours of their own, many all alike."""
    from matplotlib.collections import LineCollection

    present = [k for k, curve in enumerate(curves) if not np.isnan(curve).all()]
    if len(present) < len(_PALETTE):  # the last one is black, as the curve for all samples
        for colour, k in zip(_PALETTE, present, strict=False):
            axes.plot(levels, curves[k], color=colour, linewidth=0.9, label=f"class {k}")
        return
    axes.add_collection(
        LineCollection(
            [np.column_stack([levels, curves[k]]) for k in present],
            colors=_PALETTE[0],
            linewidths=0.7,
            alpha=max(0.08, min(0.6, 8 / len(present))),
            label=f"each of {len(present)} classes",
        )
    )


def _mark(axes: Axes, accuracy: float, radius: float, interval: tuple[float, float]) -> None:
    """The crossing and its interval; what lies off the axis ends at its edge, with an arrow for the radius."""
    if math.isnan(radius):
        return
    left, right = axes.get_xlim()
    low, high = (min(max(end, left), right) for end in interval)
    place = min(max(radius, left), right)
    marker = "<" if radius < left else ">" if radius > right else "o"
    text = f"radius {radius:.3g}" if math.isfinite(radius) else f"radius above {right:.3g}"
    axes.plot([low, high], [accuracy] * 2, color=_PALETTE[1], linewidth=5, alpha=0.45, solid_capstyle="butt")
    axes.plot([place], [accuracy], marker, color=_PALETTE[1], markersize=8, clip_on=False, label=text, linestyle="none")


@_styled()
def characteristic_maps(maps: Tensor, names: Sequence[str] | None = None) -> Figure:
    """What each class's logit looks at, like radiographs: blue inputs speak against the class, red ones for it.

    Args:
        maps: A map a class, ``[classes, height, width]`` or ``[classes, channels, height, width]`` (shown: the sum over
            channels), or ``[classes, inputs]`` as bars; other shapes are laid out flat, as bars.
        names: Names of the classes; None: their numbers.

    Returns:
        A grid of the first 20 classes, on one scale that is symmetric about zero.
    """
    from matplotlib.figure import Figure

    values = _array(maps)
    values = values.sum(axis=1) if values.ndim == 4 else values
    values = values if values.ndim == 3 else values.reshape(len(values), -1)
    shown = min(len(values), _MAPS)
    labels = list(map(str, range(len(values)))) if names is None else list(names)
    finite = np.abs(values[:shown][np.isfinite(values[:shown])])
    limit = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    columns = min(5, math.ceil(math.sqrt(shown))) if values.ndim == 3 else min(4, math.ceil(math.sqrt(shown)))
    rows = math.ceil(shown / columns)
    figure = Figure(figsize=(_SIZE[0], max(_SIZE[1], 1.05 * rows + 0.5)), dpi=_DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in grid[shown:]:
        axes.set_axis_off()
    for axes, value, label in zip(grid, values[:shown], labels, strict=False):
        axes.set_title(_short(label, 12), fontsize=9, pad=2)
        axes.tick_params(labelsize=7)
        if value.ndim == 2:
            image = axes.imshow(value, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        else:
            _bars(axes, value, limit)
    if values.ndim == 3:
        figure.colorbar(image, ax=grid.tolist(), label="weight of the input", shrink=0.8)
    else:
        figure.supxlabel("input component", fontsize=9)
        figure.supylabel("weight of the input", fontsize=9)
    if shown < len(values):
        figure.suptitle(f"the first {shown} of {len(values)} classes", fontsize=9)
    return figure


def _bars(axes: Axes, value: np.ndarray, limit: float) -> None:
    """Positive and negative bars, side by side without a gap."""
    edges = np.arange(len(value) + 1) - 0.5
    for part, colour in ((np.clip(value, 0, None), "#B2182B"), (np.clip(value, None, 0), "#2166AC")):
        axes.stairs(part, edges, fill=True, color=colour)
    axes.axhline(0, color=_GREY, linewidth=0.6)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(-1.05 * limit, 1.05 * limit)


@_styled()
def heat_map(
    values: Tensor,
    layers: Sequence[str],
    steps: Sequence[int],
    label: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """How a layer's number went over the run: layer × step.

    Args:
        values: ``[layers, steps]``; NaN and inf are left blank.
        layers: Names of the layers, in order of execution; the first is shown at the bottom.
        steps: Training steps, increasing. Each column reaches halfway to its neighbours; the axis is logarithmic where
            the distances of the steps differ by more than a factor of 20.
        label: What the numbers are.
        limits: Ends of the colour scale; None: smallest and largest value. A scale from −a to a has two colours.

    Returns:
        The map.

    Raises:
        ValueError: If shapes do not fit or the steps do not increase.
    """
    if tuple(values.shape) != (len(layers), len(steps)):
        raise ValueError(
            f"`values` must have shape [layers, steps] = [{len(layers)}, {len(steps)}], got {list(values.shape)}."
        )
    if any(later <= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
        raise ValueError(f"`steps` must increase, got {list(steps)}.")
    figure, axes = _blank("training step", "")
    shown = np.ma.masked_invalid(_array(values))
    low, high = limits or ((float(shown.min()), float(shown.max())) if shown.count() else (0.0, 1.0))
    image = axes.pcolormesh(
        _edges(steps),
        np.arange(len(layers) + 1) - 0.5,
        shown,
        cmap="RdBu_r" if low == -high != 0 else "cividis",
        vmin=low,
        vmax=high,
    )
    gaps = np.diff(steps)
    if len(gaps) > 1 and gaps.max() > _UNEVEN * gaps.min():
        axes.set_xscale("symlog", linthresh=max(1.0, float(gaps.min())))
    ticks = _thinned(len(layers))
    axes.set_yticks(ticks, [_short(layers[i]) for i in ticks])
    figure.colorbar(image, ax=axes, label=label)
    return figure


def _edges(steps: Sequence[int]) -> np.ndarray:
    """Edges of the columns: halfway between neighbours, and as far beyond the outer ones."""
    at = np.asarray(steps, dtype=float)
    if len(at) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    middle = (at[1:] + at[:-1]) / 2
    return np.concatenate([[max(2 * at[0] - middle[0], min(at[0], 0.0))], middle, [2 * at[-1] - middle[-1]]])


def _blank(x: str, y: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _array(values: Tensor | Sequence[float]) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().double().numpy()


def _shades(number: int) -> list[tuple[float, ...]]:
    """Colours from dark to light, short of the lightest."""
    from matplotlib import colormaps

    return [tuple(colormaps["cividis"](0.9 * i / max(number - 1, 1))) for i in range(number)]


def _short(name: str, length: int = _LENGTH) -> str:
    """A name that fits, its middle left out; dollar signs would start a formula."""
    half = (length - 1) // 2
    return (name if len(name) <= length else f"{name[:half]}…{name[-half:]}").replace("$", r"\$")


def _thinned(number: int, most: int = _NAMES) -> list[int]:
    """At most ``most`` of the numbers from 0, at even distances, the first and the last among them."""
    if number <= most:
        return list(range(number))
    return [round(i * (number - 1) / (most - 1)) for i in range(most)]


def _name_curves(figure: Figure, axes: Axes, names: list[str]) -> None:
    """A legend where it fits, else a scale of colours with some of the names."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    if len(names) <= _NAMES:
        _legend(figure, axes)
        return
    ticks = _thinned(len(names))
    scale = ScalarMappable(cmap=ListedColormap(_shades(len(names))))
    scale.set_clim(-0.5, len(names) - 0.5)
    figure.colorbar(scale, ax=axes).set_ticks(ticks, labels=[_short(names[i]) for i in ticks])


def _legend(figure: Figure, axes: Axes) -> None:
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
