"""Numbers in, matplotlib figures out: what a run shows beside its curves.

Colours are those that colour-blind people can tell apart: cividis, a red-blue scale, the palette of Okabe and Ito.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from netdyn.report.figures.canvas import (
    BLANK,
    GREY,
    PALETTE,
    layer_labels,
    legend,
    name_shades,
    shades,
    styled,
    thinned,
    with_axes,
)
from netdyn.report.figures.maps import radiographs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Classes shown as maps.
_MAPS = 20
#: Steps whose largest distance is so many times their smallest are shown on a logarithmic axis.
_UNEVEN = 20.0


@styled()
def rank_distributions(densities: Mapping[str, Tensor]) -> Figure:
    """The rank probability distribution of every layer, one curve a layer.

    Args:
        densities: Layer name → density ``[bins]`` on [0, 1], in order of execution.

    Returns:
        Curves from the first layer (dark) to the last (light); a dashed line marks the flat distribution of no order.
    """
    figure, axes = with_axes("rank of the local field, along the wiring", "density of a class's samples")
    axes.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
    names = layer_labels(list(densities))
    for name, density, shade in zip(names, densities.values(), shades(len(densities)), strict=True):
        bins = len(density)
        axes.plot((np.arange(bins) + 0.5) / bins, _array(density), color=shade, linewidth=1.5, label=name)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    name_shades(figure, axes, list(densities))
    return figure


@styled()
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
    figure, axes = with_axes("first layer without activation", "accuracy on the probe")
    layers = len(accuracies)
    if functional_depth < layers:
        axes.axvspan(
            functional_depth - 0.5, layers - 0.5, color=PALETTE[5], alpha=0.3, linewidth=0, label="acts linearly"
        )
    whole = "network" if math.isfinite(functional_depth) else "network (no better than chance)"
    axes.axhline(accuracy, color=PALETTE[1], linestyle="--", linewidth=1.2, label=whole)
    heights = _array(list(accuracies.values()))
    size = 4 if layers <= 30 else 2
    axes.plot(np.arange(layers), heights, "o-", color=PALETTE[0], markersize=size, label="linear tail")
    axes.set_xlim(-0.5, max(layers, 1) - 0.5)
    axes.set_ylim(-0.03, 1.03)
    ticks, names = thinned(layers, 9), layer_labels(list(accuracies), 14)
    axes.set_xticks(ticks, [names[i] for i in ticks], rotation=30, ha="right", rotation_mode="anchor")
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
    figure, axes = with_axes(f"noise level ({unit})", "accuracy")
    levels = _array(sigma)
    axes.set_xscale("log")
    # Powers of ten would be typeset as formulas, which takes a fifth of the time.
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(levels.min(), levels.max())
    axes.set_ylim(-0.03, 1.03)
    if per_class is not None:
        _class_curves(axes, levels, _array(per_class))
    axes.plot(levels, _array(overall), color="black", linewidth=2.2, label="all samples")
    axes.axhline(accuracy, color=GREY, linestyle="--", linewidth=1)
    _mark(axes, accuracy, radius, interval)
    legend(figure, axes)
    return figure


def _class_curves(axes: Axes, levels: np.ndarray, curves: np.ndarray) -> None:
    """Few classes in colours of their own, many all alike."""
    from matplotlib.collections import LineCollection

    present = [k for k, curve in enumerate(curves) if not np.isnan(curve).all()]
    if len(present) <= 2 * len(PALETTE):
        looks = itertools.product(("-", "--"), PALETTE)
        for (line, colour), k in zip(looks, present, strict=False):
            axes.plot(levels, curves[k], line, color=colour, linewidth=0.9, label=f"class {k}")
        return
    axes.add_collection(
        LineCollection(
            [np.column_stack([levels, curves[k]]) for k in present],
            colors=PALETTE[0],
            linewidths=0.7,
            alpha=max(0.1, min(0.6, 8 / len(present))),
            label=f"{len(present)} classes",
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
    axes.plot(
        [low, high], [accuracy] * 2, "|-", color=PALETTE[1], linewidth=2, markersize=9, zorder=3, label="its interval"
    )
    axes.plot(
        [place],
        [accuracy],
        marker,
        color=PALETTE[1],
        markersize=5,
        zorder=4,
        clip_on=False,
        label=text,
        linestyle="none",
    )


@styled()
def characteristic_maps(maps: Tensor, names: Sequence[str] | None = None) -> Figure:
    """What each class's logit looks at, like radiographs: blue inputs speak against the class, red ones for it.

    Args:
        maps: A map a class, ``[classes, height, width]`` or ``[classes, channels, height, width]`` (shown: the sum over
            channels), or ``[classes, inputs]`` as bars; other shapes are laid out flat, as bars.
        names: Names of the classes; None: their numbers.

    Returns:
        A grid of the first 20 classes, on one scale that is symmetric about zero.
    """
    values = _array(maps)
    shown = min(len(values), _MAPS)
    labels = list(map(str, range(len(values)))) if names is None else list(names)
    title = f"the first {shown} of {len(values)} classes" if shown < len(values) else None
    return radiographs(values[:shown], labels[:shown], title)


@styled()
def subnetwork(units: Tensor, shares: Tensor, maps: Tensor) -> Figure:
    """The units that carry most of each class's logit, and what of the input each brings to it.

    Args:
        units: Indices of the units ``[classes, most]``.
        shares: Share of the logit's variance that each carries ``[classes, most]``.
        maps: Pathway × input map of each ``[classes, most, *input shape]``, as in :func:`characteristic_maps`.

    Returns:
        A row for each of the first ten classes, a column for each unit, on one scale that is symmetric about zero.
    """
    rows, columns = min(len(units), _MAPS // 2), units.shape[1]
    labels = [f"{k}: unit {int(units[k, j])}, {float(shares[k, j]):.0%}" for k in range(rows) for j in range(columns)]
    values = _array(maps[:rows]).reshape(rows * columns, *maps.shape[2:])
    title = f"the first {rows} of {len(units)} classes" if rows < len(units) else None
    return radiographs(values, labels, title, columns)


@styled()
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
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError(f"`steps` must increase, got {list(steps)}.")
    figure, axes = with_axes("training step", "")
    shown = np.ma.masked_invalid(_array(values))
    low, high = limits or ((float(shown.min()), float(shown.max())) if shown.count() else (0.0, 1.0))
    colours = "RdBu_r" if low == -high != 0 else "cividis"
    edges = np.arange(len(layers) + 1) - 0.5
    image = axes.pcolormesh(_edges(steps), edges, shown, cmap=colours, vmin=low, vmax=high)
    axes.set_facecolor(BLANK)
    _step_axis(axes, steps)
    ticks, names = thinned(len(layers)), layer_labels(layers)
    axes.set_yticks(ticks, [names[i] for i in ticks])
    figure.colorbar(image, ax=axes, label=label)
    return figure


def _step_axis(axes: Axes, steps: Sequence[int]) -> None:
    """Few steps are written out; very uneven ones stand on a logarithmic axis, which is straight up to the first."""
    from matplotlib.ticker import MaxNLocator

    gaps = np.diff(steps)
    if len(steps) <= 3:
        axes.set_xticks(list(steps))
    elif gaps.max() > _UNEVEN * gaps.min():
        axes.set_xscale("symlog", linthresh=float(gaps.min()))
        axes.set_xlabel("training step (logarithmic)")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _edges(steps: Sequence[int]) -> np.ndarray:
    """Edges of the columns: halfway between neighbours, and as far beyond the outer ones."""
    at = np.asarray(steps, dtype=float)
    if len(at) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    middle = (at[1:] + at[:-1]) / 2
    return np.concatenate([[max(2 * at[0] - middle[0], min(at[0], 0.0))], middle, [2 * at[-1] - middle[-1]]])


def _array(values: Tensor | Sequence[float]) -> np.ndarray:
    return torch.as_tensor(values, dtype=torch.float64).detach().cpu().numpy()
