"""Curves of ranks, linear tails and basins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from netdyn._utils.drawing import styled
from netdyn.report.figures.canvas import (
    GREY,
    LEFT,
    NAMES,
    PALETTE,
    RIGHT,
    SIZE,
    as_array,
    layer_labels,
    legend,
    letters,
    make_room,
    short,
    thinned,
    widest,
    with_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: A bin that exceeds both neighbours by more than SPIKE is a spike; ties explain it above this share of equal fields.
SPIKE, TIED = 0.5, 0.05


def _has_spike(density: np.ndarray) -> bool:
    """Whether one bin stands out from its neighbours."""
    left, right = np.append(density[1:2], density[:-1]), np.append(density[1:], density[-2:-1])
    return bool((density - np.maximum(left, right) > SPIKE).any())


@styled()
def rank_distributions(densities: Mapping[str, Tensor], tied: Mapping[str, float] | None = None) -> Figure:
    """The rank distribution ``[bins]`` of each layer, first (dark) to last (light); a dashed line: no order.

    ``tied`` is the share of equal local fields in each layer: a note says where these make a spike.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    figure, axes = with_axes("Ranks per layer", "rank of the local field, along the wiring", "density")
    axes.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
    layers, names = len(densities), layer_labels(list(densities))
    # Without the lightest.
    shades = [tuple(colormaps["cividis"](0.9 * i / max(layers - 1, 1))) for i in range(layers)]
    for name, density, shade in zip(names, densities.values(), shades, strict=True):
        bins = len(density)
        axes.plot((np.arange(bins) + 0.5) / bins, as_array(density), color=shade, linewidth=1.5, label=name)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    spiked = [n for n, d in densities.items() if (tied or {}).get(n, 0.0) > TIED and _has_spike(as_array(d))]
    if spiked:
        named = ",\n".join(short(name) for name in spiked[:2]) + " and others" * (len(spiked) > 2)
        note = f"spikes are ties:\nequal local fields in\n{named}"
        axes.text(0.03, 0.97, note, fontsize=7, va="top", transform=axes.transAxes)
    if layers <= NAMES:
        legend(figure, axes)
        return figure
    # Too many for a legend: a colour scale with some of the names.
    scale, ticks = ScalarMappable(cmap=ListedColormap(shades)), thinned(layers)
    scale.set_clim(-0.5, layers - 0.5)
    shown = [short(list(densities)[i], 24) for i in ticks]
    make_room(figure, axes, right=widest(shown, (size := letters(shown))))
    figure.colorbar(scale, ax=axes).set_ticks(ticks, labels=shown, fontsize=size)
    return figure


@styled()
def tail(accuracies: Mapping[str, float], accuracy: float, functional_depth: float) -> Figure:
    """Accuracy when every activation from a layer on is the identity, by layer; layers that act linearly are shaded."""
    title = "Accuracy without the activations from a layer on"
    figure, axes = with_axes(title, "first layer without activation", "accuracy")
    layers = len(accuracies)
    if functional_depth < layers:
        ends = (functional_depth - 0.5, layers - 0.5)
        axes.axvspan(*ends, color=PALETTE[5], alpha=0.3, linewidth=0, label="acts linearly")
    whole = "network" if math.isfinite(functional_depth) else "network (no better than chance)"
    axes.axhline(accuracy, color=PALETTE[1], linestyle="--", linewidth=1.2, label=whole)
    heights = as_array(list(accuracies.values()))
    size = 4 if layers <= 30 else 2
    axes.plot(np.arange(layers), heights, "o-", color=PALETTE[0], markersize=size, label="linear tail")
    axes.set_xlim(-0.5, max(layers, 1) - 0.5)
    axes.set_ylim(-0.03, 1.03)
    ticks, names = thinned(layers, 9), layer_labels(list(accuracies), 18)
    shown = [names[i] for i in ticks]
    points = letters(shown)
    axes.set_xticks(ticks, shown, rotation=30, ha="right", rotation_mode="anchor", fontsize=points)
    # Turned by 30° a name is half as high as it is long. The first one begins left of its tick, which moves less than
    # the edge of the axes.
    half = 0.5 / max(layers, 1)
    missing = 0.87 * widest(shown[:1], points) + 0.1 - LEFT - half * (SIZE[0] - LEFT - RIGHT)
    make_room(figure, axes, left=max(0.0, missing / (1 - half)), below=0.5 * widest(shown, points))
    legend(figure, axes)
    return figure


@styled()
def basin_curves(
    sigma: Tensor,
    overall: Tensor,
    per_class: Tensor | None,
    accuracy: float,
    radius: float,
    interval: tuple[float, float],
    unit: str = "σ per input component",
    names: Sequence[str] | None = None,
) -> Figure:
    """Accuracy against noise, per class (thin; absent: NaN) and overall; the radius is marked with its interval.

    ``names`` are the classes', with their radii.
    """
    figure, axes = with_axes("Accuracy under noise", f"noise level ({unit})", "accuracy")
    levels = as_array(sigma)
    axes.set_xscale("log")
    # Powers of ten would be typeset as formulas, which takes a fifth of the drawing time.
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    # A curve of one level, as that of a network without a basin, still needs an axis.
    low, high = levels.min(), levels.max()
    make_room(figure, axes, right=max(0.0, widest([f"{high:g}"], 10) / 2 - RIGHT))
    axes.set_xlim((low, high) if low < high else (low / 10, low * 10))
    axes.set_ylim(-0.03, 1.03)
    if per_class is not None:
        names = names or [f"class {k}" for k in range(len(per_class))]
        _class_curves(axes, levels, as_array(per_class), names)
    axes.plot(levels, as_array(overall), color="black", linewidth=2.2, label="all samples")
    axes.axhline(accuracy, color=GREY, linestyle="--", linewidth=1)
    _mark(axes, accuracy, radius, interval)
    legend(figure, axes)
    return figure


def _class_curves(axes: Axes, levels: np.ndarray, curves: np.ndarray, names: Sequence[str]) -> None:
    """Draw few classes in different colours, many in the same one."""
    from matplotlib.collections import LineCollection

    present = [k for k, curve in enumerate(curves) if not np.isnan(curve).all()]
    if len(present) <= 2 * len(PALETTE):
        looks = itertools.product(("-", "--"), PALETTE)
        for (line, colour), k in zip(looks, present, strict=False):
            axes.plot(levels, curves[k], line, color=colour, linewidth=0.9, label=names[k])
        return
    lines = [np.column_stack([levels, curves[k]]) for k in present]
    alpha = max(0.1, min(0.6, 8 / len(present)))
    axes.add_collection(
        LineCollection(lines, colors=PALETTE[0], linewidths=0.7, alpha=alpha, label=f"{len(present)} classes")
    )


def _mark(axes: Axes, accuracy: float, radius: float, interval: tuple[float, float]) -> None:
    """Mark the radius and its interval; off the axis, the interval ends at the edge and the radius is an arrow."""
    if math.isnan(radius):
        return
    left, right = axes.get_xlim()
    low, high = (min(max(end, left), right) for end in interval)
    place = min(max(radius, left), right)
    marker = "<" if radius < left else ">" if radius > right else "o"
    text = f"radius {radius:.3g}" if math.isfinite(radius) else f"radius above {right:.3g}"
    axes.plot(
        [low, high], [accuracy] * 2, "|-", color=PALETTE[1], linewidth=2, markersize=9, zorder=3, label="its interval"
    )
    axes.plot(place, accuracy, marker, color=PALETTE[1], markersize=5, zorder=4, clip_on=False, label=text)
