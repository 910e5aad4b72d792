"""Figures of made-up numbers, one of each kind, and how to read them."""

import math

import numpy as np
import torch

from netdyn.report.figures.curves import basin_curves, rank_distributions, tail
from netdyn.report.figures.maps import characteristic_maps, heat_map

NAN, INF = math.nan, math.inf


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def densities(layers, bins=20):
    values = gaussian(layers, bins).abs()
    values /= values.mean(dim=1, keepdim=True)
    return {f"net.{i}.fc": row for i, row in enumerate(values)}


def accuracies(layers):
    return {f"net.{i}.fc": (i + 1) / layers for i in range(layers)}


SIGMA = torch.logspace(-3, 1, 60)


def curve(middle):
    return 0.9 / (1 + (SIGMA / middle) ** 2)


def basin(classes=3, radius=0.3, interval=(0.25, 0.4), **options):
    per_class = None if classes is None else torch.stack([curve(0.1 * 1.01**k) for k in range(classes)])
    return basin_curves(SIGMA, curve(0.3), per_class, 0.5, radius, interval, **options)


def heat(layers=3, steps=(0, 10, 20), **options):
    values = gaussian(layers, len(steps))
    return heat_map(values, [f"net.{i}.fc" for i in range(layers)], steps, "OPT fraction", **options), values


def axes_of(figure):
    return figure.axes[0]


def drawn_line(axes, label):
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def names_on(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


ALL = {
    "rank distributions": lambda: rank_distributions(densities(5)),
    "rank distributions, 100 layers": lambda: rank_distributions(densities(100)),
    "rank distributions, 1 layer": lambda: rank_distributions(densities(1)),
    "rank distributions, no layer": lambda: rank_distributions({}),
    "tail": lambda: tail(accuracies(5), 0.9, 3),
    "tail, 100 layers": lambda: tail(accuracies(100), 0.9, 100),
    "tail, 1 layer": lambda: tail(accuracies(1), 0.9, NAN),
    "tail, no layer": lambda: tail({}, 0.9, NAN),
    "tail, NaN": lambda: tail({"a": NAN, "b": 0.5}, NAN, NAN),
    "basin": basin,
    "basin, no classes": lambda: basin(None),
    "basin, 2 classes": lambda: basin(2),
    "basin, 1000 classes": lambda: basin(1000),
    "basin, infinite": lambda: basin(radius=INF, interval=(2.0, INF)),
    "basin, all infinite": lambda: basin(radius=INF, interval=(INF, INF)),
    "basin, zero": lambda: basin(radius=0.0, interval=(0.0, 0.0)),
    "basin, NaN": lambda: basin(radius=NAN, interval=(NAN, NAN)),
    "maps, images": lambda: characteristic_maps(gaussian(10, 8, 8)),
    "maps, colour": lambda: characteristic_maps(gaussian(2, 3, 8, 8)),
    "maps, flat": lambda: characteristic_maps(gaussian(10, 6)),
    "maps, 1000 classes": lambda: characteristic_maps(gaussian(1000, 5)),
    "maps, one logit": lambda: characteristic_maps(gaussian(1, 5, 5)),
    "maps, NaN and inf": lambda: characteristic_maps(torch.tensor([[[NAN, 1.0], [INF, -2.0]]])),
    "maps, zero": lambda: characteristic_maps(torch.zeros(3, 4, 4)),
    "maps, volumes": lambda: characteristic_maps(gaussian(3, 2, 2, 2, 2)),
    "heat": lambda: heat()[0],
    "heat, 100 layers": lambda: heat(100, list(range(0, 1000, 7)))[0],
    "heat, one step": lambda: heat(1, [0])[0],
    "heat, uneven": lambda: heat(4, [0, 1, 2, 4, 8, 1000, 50000])[0],
    "heat, NaN": lambda: heat_map(torch.full((2, 2), NAN), ["a", "b"], [0, 1], "x"),
}
