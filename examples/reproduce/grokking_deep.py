"""P1 on grokking in deep networks with batch normalisation: it is largely the lag of the running statistics.

The network has ten hidden layers × 128 ReLU with batch normalisation and is trained on the first 1,000 training images
in full batches, by Adam. It learns these images within twenty steps. In eval mode, with the running statistics
(momentum 0.1, PyTorch's default), it is still at chance by then and becomes right later. With the statistics of the
batch there is no delay.

We do not know P1's network for this claim. Nine settings are trained, and all that were tried are reported: the one
above, which was the first and gives the verdict, and eight others that differ from it in one or two values. Cross
entropy, PyTorch's default initialisation, pixels between 0 and 1. Accuracies are measured on the whole test set. For
batch statistics the test set is one batch. The drift of a normalisation is the distance of its running statistics from
those of the training images (at most 10,000), in standard deviations of these.

    MNIST_DIR=… python examples/reproduce/grokking_deep.py [--seeds N] [--quick] [--paper-size]

Three seeds take about five minutes on one core. Instead of the setting above, `--paper-size` trains 23 layers × 128 on
all 60,000 images in batches of 30,000 (P1's setting for another claim). Without MNIST the script uses scikit-learn's
digits.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

import torch
from claims import Claim, Part, Task, task
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from training import Row, accuracy, mlp, train

from netdyn.functional import batchnorm_gap, bn_drift

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999", "#000000")
CUTS = (0.5, 0.7, 0.9)
"""Shares of the last accuracy at which the two kinds of statistics are compared."""
AT = (0, 1, 2, 3, 5, 7, 10, 14, 19, 27, 37, 52, 72, 100)


@dataclass(frozen=True)
class Setting:
    """One kind of training; ``batch`` None means full batches."""

    depth: int = 10
    adam: bool = True
    rate: float = 1e-3
    momentum: float = 0.1
    samples: int = 1000
    batch: int | None = None

    def __str__(self) -> str:
        """The name in the legend and in the readings."""
        size = f"{self.depth} × 128, {'Adam' if self.adam else 'SGD'} {self.rate:g}"
        batch = "" if self.batch is None else f", batches of {self.batch:,}"
        return size + batch + ("" if self.momentum == 0.1 else f", statistics' momentum {self.momentum:g}")


MAIN, PAPER = Setting(), Setting(depth=23, samples=60_000, batch=30_000)
OTHERS = (
    Setting(rate=1e-2),
    Setting(adam=False, rate=1e-2),
    Setting(adam=False, rate=1e-1),
    Setting(depth=20),
    Setting(depth=20, adam=False, rate=1e-1),
    Setting(depth=2),
    Setting(batch=100),
    Setting(momentum=0.5),
)


def trained(this: Task, setting: Setting, seed: int) -> list[Row]:
    """One training; accuracies on training images and test set, with both kinds of statistics."""
    data = this.data.first(setting.samples)
    torch.manual_seed(seed)
    network = mlp(data.pixels, *[128] * setting.depth, 10, norm=True).to(data.x.device)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = setting.momentum

    def measure(_: int) -> Row:
        row = {}
        for name, x, y in (("train", data.x[:10_000], data.y[:10_000]), ("test", data.test_x, data.test_y)):
            row[f"{name}, running"] = accuracy(network, x, y)
            row[f"{name}, batch"] = row[f"{name}, running"] + batchnorm_gap(network, x, y)
        drift = list(bn_drift(network, data.x[:10_000]).values())
        return row | {"drift": statistics.fmean(drift), "drift, first": drift[0], "drift, last": drift[-1]}

    optimiser = (torch.optim.Adam if setting.adam else torch.optim.SGD)(network.parameters(), lr=setting.rate)
    rows = train(
        network,
        data,
        optimiser,
        measure,
        [step for step in AT if step <= 52 or not this.quick],
        batch=setting.batch or len(data.x),
        seed=seed,
        progress=this.progress,
        setting=f"grokking_deep {len(data.x)} images {setting}",
    )
    this.say(f"{setting}, seed {seed}: {rows[-1]['test, running']:.3f} on the test set")
    return [{"setting": str(setting), "seed": seed, **row} for row in rows]  # type: ignore[dict-item]


def learnt(rows: list[Row]) -> Row:
    """The first measurement with 99 % of the training images right, by batch statistics; the last if there is none."""
    return next((row for row in rows if row["train, batch"] >= 0.99), rows[-1])


def delays(runs: list[list[Row]], setting: Setting, label: str = "") -> list[Part]:
    """The statements that there is a delay with running statistics and none with batch statistics."""
    then, end = [learnt(rows) for rows in runs], [rows[-1] for rows in runs]

    def shares(kind: str) -> list[float]:
        return [a[f"test, {kind}"] / b[f"test, {kind}"] for a, b in zip(then, end, strict=True)]

    late, early = shares("running"), shares("batch")
    return [
        Part(
            f"{label}when 99 % of the training images are first right with batch statistics, the test accuracy with "
            "running statistics is at most half of its last value",
            late,
            [share <= 0.5 for share in late],
            place=("drift", str(setting), "share of the last test accuracy, running statistics"),
        ),
        Part(
            f"{label}at the same step the test accuracy with batch statistics is at least 0.8 of its last value",
            early,
            [share >= 0.8 for share in early],
            place=("drift", str(setting), "the same, batch statistics"),
        ),
    ]


def drifts(runs: list[list[Row]], setting: Setting, label: str = "") -> list[Part]:
    """The statements that the running statistics themselves are far off at first, and close in the end."""
    then = [learnt(rows)["drift"] for rows in runs]
    left = [rows[-1]["drift"] / before for rows, before in zip(runs, then, strict=True)]
    return [
        Part(
            f"{label}when 99 % of the training images are first right with batch statistics, the running statistics "
            "are at least half a standard deviation off (bn_drift, mean over layers)",
            then,
            [drift >= 0.5 for drift in then],
            place=("drift", str(setting), "drift"),
        ),
        Part(
            f"{label}after the last step at most a fifth of that drift is left",
            left,
            [share <= 0.2 for share in left],
            place=("drift", str(setting), "share of it left at the end"),
        ),
    ]


def lag(runs: list[list[Row]], cut: float) -> Part:
    """The statement that running statistics reach an accuracy much later than batch statistics do."""

    def reached(rows: list[Row], kind: str) -> float:
        goal = cut * rows[-1]["test, batch"]
        return next((row["step"] for row in rows if row[f"test, {kind}"] >= goal), math.inf)

    late = [reached(rows, "running") / reached(rows, "batch") for rows in runs]
    told = (
        "running statistics reach this share of the last test accuracy at least twice as late as batch statistics "
        "(ratio of steps)"
    )
    return Part(
        f"accuracy {cut}: {told}", late, [ratio >= 2 for ratio in late], "{:.1f}", ("cuts", told, f"accuracy {cut}")
    )


def closed(rows: list[Row]) -> float:
    """The first step after the last one at which batch statistics gain more than 0.1 of test accuracy."""
    wide = [row["test, batch"] - row["test, running"] > 0.1 for row in rows]
    return max([a["step"] for a, before in zip(rows[1:], wide, strict=False) if before], default=0.0)


def claim(runs: dict[Setting, list[list[Row]]], main: Setting, setting: str) -> Claim:
    """The claim; the main setting gives the verdict, and all others are readings."""
    own = runs[main]
    end = [abs(rows[-1]["test, batch"] - rows[-1]["test, running"]) for rows in own]
    seen = [learnt(rows) for rows in own]
    parts = [
        *delays(own, main),
        Part("after the last step the two differ by at most 0.03", end, [gap <= 0.03 for gap in end]),
        *drifts(own, main),
    ]
    readings = [lag(own, cut) for cut in CUTS]
    for other, found in runs.items():
        if other != main:
            readings += [*delays(found, other, f"{other}: "), *drifts(found, other, f"{other}: ")]
    trains = [row["train, running"] for row in seen]
    readings.append(
        Part(
            "when 99 % of the training images are first right with batch statistics, accuracy on the same images with "
            "running statistics is at least 0.9, as in true grokking",
            trains,
            [share >= 0.9 for share in trains],
        )
    )
    if (fast := replace(main, momentum=0.5)) in runs:
        ratio = [closed(a) / closed(b) for a, b in zip(own, runs[fast], strict=True)]
        told = (
            "with momentum 0.1 of the running statistics the gap closes (to 0.1) at least three times later than with "
            "0.5"
        )
        readings.append(Part(told, ratio, [r >= 3 for r in ratio], "{:.1f}"))
    step = ", ".join(f"{row['step']:.0f}" for row in seen)
    shown = [
        str(other) for other, found in runs.items() if all(part.verdict == "holds" for part in delays(found, other))
    ]
    return Claim(
        "Deep grokking is the lag of the running statistics",
        "P1",
        "In deep networks with batch normalisation the test accuracy stays low for a long time in eval mode, but rises "
        "at once with batch statistics: grokking is largely the gap between running and batch statistics.",
        setting,
        parts,
        readings,
        f"With batch statistics, 99 % of the training images are right after {step} steps (seed by seed). "
        f"Both halves of the claim hold for {len(shown)} of the {len(runs)} settings: {'; '.join(shown)}.",
    )


def picture(runs: dict[Setting, list[list[Row]]], main: Setting) -> Figure:
    """Accuracies of the main setting, and the gap of every setting, over steps."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    figure.suptitle("In deep networks with batch normalisation grokking is largely the running statistics' lag")
    left, right = figure.subplots(1, 2)
    names = ("train, batch", "train, running", "test, batch", "test, running")
    for name, colour in zip(names, ("#999999", "#56B4E9", "#E69F00", "#0072B2"), strict=True):
        seeds = [[row[name] for row in rows] for rows in runs[main]]
        _line(left, runs[main][0], seeds, colour, f"{name} statistics")
    left.set(title=str(main), xlabel="optimiser steps", ylabel="accuracy", ylim=(-0.03, 1.03))
    left.legend(loc="upper left")
    for colour, (setting, found) in zip(COLOURS, runs.items(), strict=False):
        seeds = [[row["test, batch"] - row["test, running"] for row in rows] for rows in found]
        _line(right, found[0], seeds, colour, str(setting))
    right.set(title="batch statistics against running statistics", xlabel="optimiser steps")
    right.set_ylabel("test accuracy gained")
    right.legend(fontsize=7, loc="upper left")
    right.set_ylim(top=1.05)
    return figure


def _line(axes: Axes, rows: list[Row], seeds: list[list[float]], colour: str, label: str) -> None:
    """Mean and range over the seeds."""
    steps = [row["step"] for row in rows]
    axes.plot(steps, [statistics.fmean(at) for at in zip(*seeds, strict=True)], color=colour, label=label)
    axes.fill_between(
        steps,
        [min(at) for at in zip(*seeds, strict=True)],
        [max(at) for at in zip(*seeds, strict=True)],
        color=colour,
        alpha=0.2,
        linewidth=0,
    )
    axes.set_xscale("symlog", linthresh=1)


def main() -> None:
    """Train, measure, and give the verdict."""
    this = task("grokking_deep", __doc__ or "")
    chosen = PAPER if this.paper_size else MAIN
    others = () if this.paper_size else OTHERS[2:4] if this.quick else OTHERS
    runs = {setting: [trained(this, setting, seed) for seed in this.seeds] for setting in (chosen, *others)}
    setting = (
        f"{chosen}{'' if chosen.batch else ', full batches'}; ReLU, batch normalisation, the first "
        f"{min(chosen.samples, len(this.data.x)):,} training images, {runs[chosen][0][-1]['step']:.0f} steps"
    )
    rows = [row for found in runs.values() for seed in found for row in seed]
    this.finish([claim(runs, chosen, setting)], rows, picture(runs, chosen))


if __name__ == "__main__":
    main()
