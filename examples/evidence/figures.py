"""The figures of docs/evidence.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt


def confusion(levels: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]], path: Path) -> None:
    """The confusion matrix: shares of each true level as shades, counts as numbers."""
    values = np.array(counts, float)
    shares = values / values.sum(axis=1, keepdims=True)
    figure, axes = plt.subplots(figsize=(7.5, 0.5 + 0.5 * len(levels)), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if value:
            dark = shares[row, column] > 0.5
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(levels)), levels)
    axes.set_xlabel("verdict")
    axes.set_ylabel("truth")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def taus(found: dict[str, list[tuple[float, float, float]]], path: Path) -> None:
    """Kendall's τ of each quantity with the generalisation gap, over all trainings and within equal data."""
    figure, axes = plt.subplots(figsize=(7.5, 0.8 + 0.27 * len(found)), layout="constrained")
    names = list(found)[::-1]
    for place, (label, colour, marker) in enumerate(
        (("over all", "#E69F00", "o"), ("within equal data", "#0072B2", "s"))
    ):
        heights = np.arange(len(names)) + (0.15 if place == 0 else -0.15)
        values = np.array([found[name][place] for name in names]).reshape(-1, 3)
        axes.hlines(heights, values[:, 1], values[:, 2], color=colour, linewidth=1.5)
        axes.plot(values[:, 0], heights, marker, color=colour, markersize=4, label=label)
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("Kendall's τ with the generalisation gap (bars: 95 % intervals)")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
