"""Short trainings on digits, one healthy and five not: the pictures of docs/runs.md, reading.md and README.md.

    python docs/scripts/runs.py [NAME ...]

Takes about five minutes on two cores. Each run trains a fully connected network on scikit-learn's digits with the
callback, and draws the curves that the callback has logged. A run differs from the healthy one in what its title names.
"""

from __future__ import annotations

import argparse
import io
import logging
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import Logger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from netdyn import DynamicsMonitor, Monitor, Report

Kept = dict[str, tuple[list[int], list[float]]]
"""Tag → steps and values."""

IMAGES = Path(__file__).parents[1] / "images"
# Okabe and Ito's colours, which colour-blind people can distinguish.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
# Eight steps per decade.
SCHEDULE = sorted({round(10 ** (k / 8)) for k in range(40)})
PROBES = {"probe/accuracy": "training probe", "probe/val_accuracy": "validation probe"}
#: Everything is logged.
ALL = {"detail": "full", "report": False}
SPACES = {"sample": "σ per input component", "weight": "σ per weight tensor"}
LAYERED = {
    "modes/opt_fraction": "OPT share",
    "modes/rpd_gradient": "RPD gradient",
    "modes/dead_fraction": "share of dead units",
    "linear/tail_accuracy": "linear tail accuracy",
}


def no_norm(width: int) -> nn.Module:
    """No normalisation."""
    return nn.Identity()


def slow_norm(width: int) -> nn.Module:
    """Batch normalisation whose running statistics follow the weights slowly."""
    return nn.BatchNorm1d(width, momentum=0.002)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        title: Heading of the picture.
        samples: Number of training digits.
        wrong: Share of training digits with random labels.
        scale: Factor of the initial weights.
        norm: The normalisation of the hidden layers.
        rate: Learning rate.
        decay: Weight decay; above 0 the optimiser is AdamW, otherwise SGD with momentum.
        squared: Whether to use squared error instead of cross entropy.
        steps: Number of optimiser steps, in batches of 64, or full batches if there are fewer than 256 digits.
        shown: Whether it is a picture of docs/runs.md; the others are only read for docs/reading.md.
    """

    title: str
    samples: int = 600
    wrong: float = 0.0
    scale: float = 1.0
    norm: Callable[[int], nn.Module] = no_norm
    rate: float = 0.05
    decay: float = 0.0
    squared: bool = False
    steps: int = 2000
    shown: bool = True


RUNS = {
    "healthy": Run("healthy: 600 digits with their own labels"),
    "overfitted": Run("overfitted: the same, but 40 % of the labels are drawn at random", wrong=0.4),
    "dead": Run("dead: the same as healthy, but with twenty times the learning rate", rate=1.0),
    "grokking": Run(
        "grokking: 200 digits, weights six times too large, weight decay",
        samples=200,
        scale=6.0,
        rate=1e-3,
        decay=0.3,
        squared=True,
        steps=5000,
    ),
    "stale": Run("stale: batch normalisation with momentum 0.002", norm=slow_norm, shown=False),
    "layernorm": Run("layer normalisation", norm=nn.LayerNorm, shown=False),
}


FIRST, LAST = "hidden.0.0", "hidden.2.0"
BOTH = ("healthy", "overfitted")
#: Name of a picture of docs/reading.md → its lines: run, tag, label.
READING = {
    "modes": [(name, f"modes/opt_fraction/{FIRST}", name) for name in BOTH],
    "order": [(name, f"modes/order_z/{FIRST}", name) for name in BOTH],
    "gradient": [(name, f"modes/rpd_gradient/{LAST}", name) for name in BOTH],
    "transfer": [(name, f"modes/transfer_order/{LAST}", name) for name in ("healthy", "dead")],
    # The field of a normalised layer is what its normalisation returns.
    "defect": [
        ("healthy", "linear/affine_defect/hidden.0.0", "healthy"),
        ("layernorm", "linear/affine_defect/hidden.0.1", "with layer normalisation"),
    ],
    "tail": [(name, f"linear/tail_accuracy/{FIRST}", name) for name in BOTH],
    "depth": [(name, "linear/functional_depth", name) for name in BOTH],
    "share": [(name, f"linear/share/{FIRST}", name) for name in BOTH],
    "phase": [("healthy", f"phase/{name}", name) for name in ("index", "spread", "mean")],
    "batchnorm": [("stale", f"batchnorm/{name}", name) for name in ("gap", "train_gap")],
    "sample_basin": [(name, "basin/sample/radius", name) for name in BOTH],
    "weight_basin": [(name, "basin/weight/radius", name) for name in BOTH],
    "coverage": [("overfitted", f"coverage/{name}", name) for name in ("own", "other")],
}


class Net(L.LightningModule):
    """Three hidden layers of 96 units."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        hidden = [nn.Sequential(nn.Linear(a, b), run.norm(b), nn.ReLU()) for a, b in pairwise([64, 96, 96, 96])]
        self.hidden = nn.Sequential(*hidden)
        self.head = nn.Linear(96, 10)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter *= run.scale

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.hidden(images))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """The loss."""
        logits, labels = self(batch[0]), batch[1]
        if self.run.squared:
            return nn.functional.mse_loss(logits, nn.functional.one_hot(labels, 10).float())
        return nn.functional.cross_entropy(logits, labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW or SGD."""
        if self.run.decay:
            return torch.optim.AdamW(self.parameters(), lr=self.run.rate, weight_decay=self.run.decay)
        return torch.optim.SGD(self.parameters(), lr=self.run.rate, momentum=0.9)


class Curves(Logger):
    """Keeps every scalar: tag → ([steps], [values])."""

    name, version = "curves", 0

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep the values; the x-axis counts completed optimiser steps, and the untrained network comes first."""
        made = (step or 0) + 1 if self.kept else 0
        for tag, value in metrics.items():
            steps, values = self.kept[tag]
            steps.append(made)
            values.append(float(value))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Not kept."""


def trained(run: Run) -> tuple[Kept, Monitor]:
    """Train, and return the curves and the monitor that has measured them."""
    L.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    chance = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=chance)
    x, y = torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    train_y = y[: run.samples].clone()
    spoilt = torch.rand(run.samples, generator=chance) < run.wrong
    train_y[spoilt] = torch.randint(10, (int(spoilt.sum()),), generator=chance)
    batch = 64 if run.samples >= 256 else run.samples
    curves, monitor = Curves(), DynamicsMonitor(schedule=SCHEDULE, val_probe=(x[1400:], y[1400:]), **ALL)
    trainer = L.Trainer(
        max_steps=run.steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=curves,
        callbacks=[monitor],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    train = DataLoader(TensorDataset(x[: run.samples], train_y), batch_size=batch, shuffle=True)
    trainer.fit(Net(run), train)
    return dict(curves.kept), monitor.monitor


def picture(run: Run, curves: Kept) -> Figure:
    """One panel per quantity: accuracies, the numbers of the layers, and both basins with their intervals."""
    layered = {name: tags for name in LAYERED if (tags := sorted(tag for tag in curves if tag.startswith(f"{name}/")))}
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    figure.suptitle(run.title)
    panels = list(figure.subplots(2, 3, sharex=True).flat)
    for axes in panels[len(layered) + 2 :]:
        axes.remove()

    accuracy = panels[0]
    for colour, (tag, label) in zip(COLOURS, PROBES.items(), strict=False):
        accuracy.plot(*curves[tag], color=colour, label=label)
    accuracy.set(ylabel="accuracy", ylim=(-0.03, 1.03))

    basin = panels[1]
    for colour, (space, unit) in zip(COLOURS, SPACES.items(), strict=False):
        steps, radius = curves[f"basin/{space}/radius"]
        basin.plot(steps, radius, color=colour, label=f"{space} basin, {unit}")
        ends = [curves[f"basin/{space}/{end}"] for end in ("low", "high")]
        if all(found[0] == steps for found in ends):
            basin.fill_between(steps, *(found[1] for found in ends), color=colour, alpha=0.25, linewidth=0)
    basin.set(ylabel="radius", ylim=(0, 1.3 * max(0.1, basin.get_ylim()[1])))

    for axes, (name, tags) in zip(panels[2:], layered.items(), strict=False):
        for colour, tag in zip(COLOURS, tags, strict=False):
            axes.plot(*curves[tag], color=colour, label=tag.removeprefix(f"{name}/"))
        axes.set(ylabel=LAYERED[name])
        if name != "modes/rpd_gradient":
            axes.set(ylim=(-0.03, 1.03))
        if name == "modes/opt_fraction":
            axes.axhline(0.05, color="grey", linewidth=0.8, linestyle=":")

    last = max(max(steps) for steps, _ in curves.values())
    for axes in panels[: len(layered) + 2]:
        steps_below(axes, last)
        axes.legend(fontsize=8, loc="upper left" if axes is basin else "best")
    for axes in panels[3 : len(layered) + 2]:
        axes.set_xlabel("optimiser steps")
    return figure


def steps_below(axes: Axes, last: int) -> None:
    """A logarithmic axis of steps, with the untrained network at 0."""
    ticks = [0] + [10**k for k in range(int(math.log10(last)) + 1)]
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, last)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.tick_params(labelbottom=True)
    axes.grid(alpha=0.25)


def small_picture(lines: list[tuple[str, str, str]], curves: dict[str, Kept]) -> Figure:
    """One number in one or two runs, with its interval where it has one."""
    figure = Figure(figsize=(3.6, 2.5), layout="constrained")
    axes = figure.subplots()
    for colour, (name, tag, label) in zip(COLOURS, lines, strict=False):
        steps, values = curves[name][tag]
        axes.plot(steps, values, color=colour, label=label)
        ends = [curves[name].get(f"{tag.rpartition('/')[0]}/{end}") for end in ("low", "high")]
        if tag.endswith("radius") and all(found is not None and found[0] == steps for found in ends):
            axes.fill_between(steps, *(found[1] for found in ends if found), color=colour, alpha=0.25, linewidth=0)
    steps_below(axes, max(max(curves[name][tag][0]) for name, tag, _ in lines))
    tags = {re.sub(r"/hidden.*", "", tag) for _, tag, _ in lines}
    axes.set(xlabel="optimiser steps", title=tags.pop() if len(tags) == 1 else lines[0][1].partition("/")[0])
    axes.legend(fontsize=8)
    return figure


def map_picture(report: Report) -> Figure:
    """What the first logits look at: digits of 8 × 8 pixels."""
    assert report.characteristic_maps is not None
    maps = report.characteristic_maps.reshape(10, 8, 8)[:6]
    figure = Figure(figsize=(3.6, 2.5), layout="constrained")
    figure.suptitle("wpa/characteristic_maps", fontsize=10)
    for digit, (axes, one) in enumerate(zip(figure.subplots(2, 3).flat, maps, strict=True)):
        axes.imshow(one, cmap="RdBu_r", vmin=-float(maps.abs().max()), vmax=float(maps.abs().max()))
        axes.set_title(f"{digit}", fontsize=8)
        axes.set_axis_off()
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG with 64 colours, which are enough for curves."""
    raw = io.BytesIO()
    figure.savefig(raw, dpi=100, format="png")
    with Image.open(raw) as drawn:
        drawn.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Train and draw the named runs, by default all."""
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/runs.md.")
    parser.add_argument("names", nargs="*", choices=[*RUNS, []], default=[])
    names = parser.parse_args().names or list(RUNS)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    curves: dict[str, Kept] = {}
    for name in names:
        curves[name], monitor = trained(RUNS[name])
        draw(name, curves[name], monitor)
    for name, lines in READING.items():
        if all(run in curves for run, _, _ in lines):
            save(small_picture(lines, curves), IMAGES / f"reading_{name}.png")


def draw(name: str, curves: Kept, monitor: Monitor) -> None:
    """The pictures of one run."""
    report = monitor.report
    assert report is not None
    print(f"{name}: {report.verdict}")
    if RUNS[name].shown:
        save(picture(RUNS[name], curves), IMAGES / f"run_{name}.png")
    if name == "healthy":
        save(map_picture(report), IMAGES / "reading_maps.png")
    if name == "overfitted":
        save(monitor.history.overview(report.verdict), IMAGES / "overview.png")


if __name__ == "__main__":
    main()
