"""P1 on grokking in a shallow network: its basins are narrow while it memorises, and widen when it generalises.

P1 adopts Omnigrok's setting (Liu et al., arXiv:2210.01117): the first 1,000 MNIST images, 784–200–200–10 ReLU, all
parameters eight times as large as PyTorch initialises them, squared error against one-hot labels, AdamW at 1e-3 with
weight decay 0.01, batches of 200. Radius and RPD gradients are measured on the training images, test accuracy and
coverage on the whole test set, at 28 steps spaced evenly in their logarithm.

P1: the sample basin's radius is of order 10⁻² while only the training images are right, and above 10⁻¹ when the test
images are right too; coverage jumps at the same time; before that, both layers' RPD gradients are small.

    MNIST_DIR=… python examples/reproduce/grokking_shallow.py [--seeds N] [--quick] [--paper-size]

Three seeds with 50,000 steps take 14 minutes on one core; `--paper-size` trains for Omnigrok's 100,000 steps.
`--quick` scales the weights by four and uses weight decay 0.3, so that the jump comes within 3,000 steps. Without MNIST
the script uses 300 of scikit-learn's digits.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

import torch
from claims import Claim, Part, Task, task
from l_map import l_map, shares_and_defects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from training import Row, mlp, train

from netdyn import diagnose
from netdyn.functional import sample_basin

LAYERS = ("gradient 1", "gradient 2")
CUTS = (0.7, 0.9)
"""Further accuracies that define a radius; 0.5 gives the verdict."""
WIDE = "at the end the radius is above 0.1"
STEEPEST = 6 * (1 - 1 / 10)
"""The largest RPD gradient that ten classes of equal size allow."""


def squared(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared error against one-hot labels."""
    return nn.functional.mse_loss(logits, nn.functional.one_hot(labels, 10).to(logits.dtype))


def spaced(steps: int) -> list[int]:
    """0, then seven steps per decade from 10 on, and the last step.

    >>> spaced(30)
    [0, 10, 14, 19, 27, 30]
    """
    return sorted({0, steps, *(round(10 ** (k / 7)) for k in range(7, math.ceil(7 * math.log10(steps))))})


def trained(this: Task, scale: float, decay: float, steps: int, seed: int) -> list[Row]:
    """One training and its measurements."""
    data = this.data.first(300 if this.data.pixels < 784 else 1000)
    torch.manual_seed(seed)
    network = mlp(data.pixels, 200, 200, 10)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= scale
    network.to(data.x.device)

    def measure(_: int) -> Row:
        report = diagnose(
            network,
            data.x,
            data.y,
            val_inputs=data.test_x,
            val_target=data.test_y,
            measure=["modes", "linear", "sample_basin"],
            low=1e-4,
            progress=False,
        )
        seen = report.scalars()
        row = {"train": report.accuracy, "test": seen["probe/val_accuracy"], "radius": seen["basin/sample/radius"]}
        row |= {"coverage": report.coverage.own, "distance": report.coverage.distance}
        for cut in CUTS:
            row[f"radius {cut}"] = sample_basin(network, data.x, data.y, accuracy=cut, low=1e-4).radius
        row |= shares_and_defects(report)
        return row | {name: layer.rpd_gradient for name, layer in zip(LAYERS, report.layers, strict=True)}

    rows = train(
        network,
        data,
        torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=decay, fused=True),
        measure,
        spaced(steps),
        batch=200,
        seed=seed,
        progress=this.progress,
        setting=f"grokking_shallow first {len(data.x)} decay {decay:g}{'' if scale == 8 else f' scale {scale:g}'}",
        loss=squared,
    )
    last = rows[-1]
    this.say(f"seed {seed}: {last['test']:.3f} on the test set, radius {last['radius']:.3f}")
    return rows


def memorised(rows: list[Row]) -> Row:
    """The first measurement with 99 % of the training images right, or the last one if there is none."""
    return next((row for row in rows if row["train"] >= 0.99), rows[-1])


def halfway(rows: list[Row], name: str) -> float:
    """The step, interpolated in its logarithm, at which half of the rise since memorising is complete."""
    rows = rows[rows.index(memorised(rows)) :]
    goal = (rows[0][name] + rows[-1][name]) / 2
    for a, b in pairwise(rows):
        if a[name] <= goal < b[name]:
            return a["step"] * (b["step"] / a["step"]) ** ((goal - a[name]) / (b[name] - a[name]))
    return math.nan


def claim(runs: list[list[Row]], setting: str) -> Claim:
    """The claim, judged at the first measurement with 99 % of the training images right and at the end."""
    then, end = [memorised(rows) for rows in runs], [rows[-1] for rows in runs]

    def values(rows: list[Row], *names: str) -> list[float]:
        return [max((row[name] for name in names), key=abs) for row in rows]

    def rise(name: str) -> list[float]:
        return [b[name] - a[name] for a, b in zip(then, end, strict=True)]

    before = values(then, "radius")
    lag = [abs(math.log2(halfway(rows, "coverage") / halfway(rows, "test"))) for rows in runs]
    steep = values(then, *LAYERS)
    parts = [
        Part(
            "it groks: test accuracy is below 0.5 when 99 % of the training images are right, and …",
            values(then, "test"),
            [x < 0.5 for x in values(then, "test")],
        ),
        Part("… at the end at least 0.8", values(end, "test"), [x >= 0.8 for x in values(end, "test")]),
        *widening(then, end, "radius", "0.5"),
        Part("between the two, coverage rises by at least 0.3", rise("coverage"), [x >= 0.3 for x in rise("coverage")]),
        Part(
            "coverage and test accuracy complete half of their rise at steps within a factor of 2 of each other "
            "(difference in octaves)",
            lag,
            [x <= 1 for x in lag],
        ),
        Part(
            f"when 99 % of the training images are right no layer's RPD gradient exceeds {STEEPEST / 10:.2f}, a tenth "
            "of the largest possible (the larger one, in absolute value)",
            steep,
            [abs(x) <= STEEPEST / 10 for x in steep],
        ),
    ]
    crossed = [next((row["test"] for row in rows if row["radius"] > 0.1), math.nan) for rows in runs]
    readings = [
        *(part for cut in CUTS for part in widening(then, end, f"radius {cut}", f"{cut}")),
        *l_map("when 99 % of the training images are right", then),
        *l_map("at the end", end),
        Part("before, the radius is below 10^−1.5, order 10⁻² by rounding", before, [x < 10**-1.5 for x in before]),
        Part(
            "test accuracy is between 0.3 and 0.7 when the radius is first above 0.1",
            crossed,
            [0.3 < x < 0.7 for x in crossed],
        ),
        *(
            Part(
                f"at the end the RPD gradient of layer {number} exceeds {STEEPEST / 10:.2f}",
                values(end, name),
                [x > STEEPEST / 10 for x in values(end, name)],
            )
            for number, name in enumerate(LAYERS, start=1)
        ),
    ]
    steps = ", ".join(f"{row['step']:,.0f}" for row in then)
    half = ", ".join(f"{halfway(rows, 'test'):,.0f}" for rows in runs)
    return Claim(
        "Grokking is the widening of the sample basin",
        "P1",
        "In Omnigrok's setting the sample basin's radius is of order 10⁻² while only the training images are right, "
        "and above 10⁻¹ when the test images are right too; coverage jumps at the same time; before that, both RPD "
        "gradients are small.",
        setting,
        parts,
        readings,
        f"99 % of the training images are right at step {steps}; half of the later rise of the test accuracy is "
        f"complete at step {half}. The test images lie {end[0]['distance']:.3f} (median, RMS per pixel) from the "
        "nearest training image of their digit.",
    )


def widening(then: list[Row], end: list[Row], name: str, cut: str) -> list[Part]:
    """The statements on the radius, for one accuracy that defines it."""
    label = "" if name == "radius" else f"radius at accuracy {cut}: "
    narrow = "when 99 % of the training images are right the radius is below 0.05"
    before, after = [row[name] for row in then], [row[name] for row in end]
    return [
        Part(label + narrow, before, [x < 0.05 for x in before], place=("cuts", narrow, f"accuracy {cut}")),
        Part(
            f"{label}at the end it is above 0.1",
            after,
            [x > 0.1 for x in after],
            place=("cuts", WIDE, f"accuracy {cut}"),
        ),
    ]


def picture(runs: list[list[Row]]) -> Figure:
    """Accuracies and coverage, the radius, and the gradients, over steps."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle("Grokking: the sample basin widens, and covers the test images, when the network generalises")
    shares, radius, gradients = figure.subplots(1, 3)
    for name, label, colour in (
        ("train", "training accuracy", "#999999"),
        ("test", "test accuracy", "#0072B2"),
        ("coverage", "coverage", "#E69F00"),
    ):
        _line(shares, runs, name, label, colour)
    shares.set(ylabel="share", ylim=(-0.03, 1.03))
    _line(radius, runs, "radius", "", "#009E73")
    radius.axhline(runs[0][-1]["distance"], color="grey", linewidth=0.8, linestyle=":")
    place = radius.get_yaxis_transform()
    radius.text(0.02, 1.05 * runs[0][-1]["distance"], "distance to test images", transform=place, color="grey")
    radius.set(ylabel="radius of the sample basin, σ per pixel", yscale="log")
    for name, colour in zip(LAYERS, ("#56B4E9", "#CC79A7"), strict=True):
        _line(gradients, runs, name, f"layer {name[-1]}", colour)
    gradients.set(ylabel=f"RPD gradient (at most {STEEPEST:.1f})")
    shares.legend(loc="upper left", fontsize=8, handlelength=1)
    gradients.legend(loc="upper left")
    return figure


def _line(axes: Axes, runs: Sequence[list[Row]], name: str, label: str, colour: str) -> None:
    """Mean and range over the seeds; a radius of 0 cannot be drawn on a logarithmic axis."""
    rows = [[row for row in found if row["step"]] for found in runs]
    steps = [row["step"] for row in rows[0]]
    found = [[row[name] if row[name] or name != "radius" else math.nan for row in a] for a in zip(*rows, strict=True)]
    axes.plot(steps, [statistics.fmean(at) for at in found], color=colour, label=label)
    axes.fill_between(steps, [min(at) for at in found], [max(at) for at in found], color=colour, alpha=0.2, linewidth=0)
    axes.set(xscale="log", xlabel="optimiser steps")


def main() -> None:
    """Train, measure, and give the verdict."""
    this = task("grokking_shallow", __doc__ or "")
    scale, decay, steps = (4, 0.3, 3000) if this.quick else (8, 0.01, 100_000 if this.paper_size else 50_000)
    runs = [trained(this, scale, decay, steps, seed) for seed in this.seeds]
    images = 300 if this.data.pixels < 784 else 1000
    setting = (
        f"{this.data.pixels}–200–200–10 ReLU, parameters × {scale}, the first {images:,} images, squared error, "
        f"AdamW 1e-3, weight decay {decay:g}, batches of 200, {steps:,} steps"
    )
    rows = [{"seed": seed, **row} for seed, found in zip(this.seeds, runs, strict=True) for row in found]
    this.finish([claim(runs, setting)], rows, picture(runs))


if __name__ == "__main__":
    main()
