"""P1 on one wide hidden layer: with few samples a tanh network acts like a linear one, with many it does not.

The same trainings of 784–2048–10 test two claims:

1. On 600 training images the tanh network, the network without activation and the tanh network's L-map (its
   activation replaced by the identity after training) have the same accuracy and the same rank probability
   distribution (RPD). On 60,000 images they differ, and the tanh network is the best one.
2. The RPD is flat before training and steepest early in it; later it flattens for tanh and ReLU, but not for the linear
   network.

Training: cross entropy, plain SGD at rate 0.1, batches of 100, PyTorch's default initialisation, pixels between 0 and
1. All networks of a seed start from the same weights and see the same batches. Each training has 6,000 steps, so that
few and many images differ in nothing else; for the many images these are 10 epochs. We do not know P1's learning rate
and number of steps for this network; these are plain choices. Three seeds take 20 minutes on one core.

    MNIST_DIR=… python examples/reproduce/shallow.py [--seeds N] [--quick] [--paper-size]

`--paper-size` trains five times as long. Without MNIST, a tenth of scikit-learn's digits is compared with all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from claims import Claim, Part, Task, task
from data import Data
from l_map import l_map, shares_and_defects
from matplotlib.figure import Figure
from torch import nn
from training import Row, mlp, train

from netdyn import Report, diagnose
from netdyn.functional import class_tuning, linear_substitution_map, local_fields, rpd_gradient

WIDTH, RATE, BATCH, PROBE = 2048, 0.1, 100, 1000
ACTIVATIONS = {"tanh": nn.Tanh, "linear": nn.Identity, "relu": nn.ReLU}
COLOURS = {"tanh": "#0072B2", "linear": "#E69F00", "relu": "#009E73", "tanh, L-map": "#56B4E9"}
HIDDEN = ["0"]  # a linear network has no activation: its hidden layer's output counts as local field by this name


@dataclass(frozen=True)
class Trained:
    """A network after its training, and the measurements made during training."""

    rows: list[Row]
    report: Report
    uncentred: float

    def last(self, name: str) -> float:
        """A number at the end."""
        return self.rows[-1][name]

    @property
    def gradients(self) -> list[float]:
        """RPD gradients over the training."""
        return [row["gradient"] for row in self.rows]


def measured(network: nn.Module, probe: Data) -> Row:
    """Gradient on the probe; accuracy on the test set, with the activation and with the identity in its place."""
    modes = diagnose(network, probe.x, probe.y, measure=["modes"], layers=HIDDEN, progress=False)
    test = diagnose(network, probe.test_x, probe.test_y, measure=["linear"], layers=HIDDEN, progress=False)
    return {
        "gradient": modes.layers[0].rpd_gradient,
        "opt_fraction": modes.layers[0].opt_fraction,
        "train accuracy": modes.accuracy,
        "test accuracy": test.accuracy,
        "L-map accuracy": test.layers[0].tail_accuracy,
        **shares_and_defects(test),
    }


def trained(this: Task, name: str, samples: int, steps: int, seed: int) -> Trained:
    """One network, trained on a given number of images."""
    data, probe = this.data.chosen(samples, seed), this.data.first(PROBE)
    torch.manual_seed(seed)
    network = mlp(data.pixels, WIDTH, 10, activation=ACTIVATIONS[name])
    network.to(data.x.device)
    at = {0, *(round(10 ** (i / 3)) for i in range(3, 30)), steps}
    rows = train(
        network,
        data,
        torch.optim.SGD(network.parameters(), lr=RATE),
        lambda step: measured(network, probe),
        [step for step in at if step <= steps],
        batch=BATCH,
        seed=seed,
        progress=this.progress,
        setting=f"shallow {name} {WIDTH} rate {RATE} batch {BATCH} samples {samples} steps {steps}",
    )
    report = diagnose(network, probe.x, probe.y, measure=["modes"], layers=HIDDEN, progress=False)
    this.say(f"{name}, {samples:,} images, seed {seed}: {100 * rows[-1]['test accuracy']:.2f} % on the test set")
    return Trained(rows, report, _uncentred(network, probe))


def _uncentred(network: nn.Module, probe: Data) -> float:
    """The gradient with P1's raw sign of the pathway."""
    fields = local_fields(network, probe.x, HIDDEN)[HIDDEN[0]]
    pathway = linear_substitution_map(network, probe.x, HIDDEN)[HIDDEN[0]]
    share = torch.bincount(probe.y, minlength=10) / len(probe.y)
    return float(rpd_gradient(class_tuning(fields, probe.y, 10), pathway, share, centre=False))


def apart(a: Trained, b: Trained) -> float:
    """Half the area between the two layers' RPDs: 0 for the same, 1 for RPDs without a common rank."""
    p, q = a.report.layers[0].distribution, b.report.layers[0].distribution
    assert p is not None
    assert q is not None
    return float((p - q).abs().mean()) / 2


def same_or_not(this: Task, few: dict[str, list[Trained]], many: dict[str, list[Trained]], setting: str) -> Claim:
    """Claim 1."""

    def points(runs: dict[str, list[Trained]], other: str, row: int = -1) -> list[float]:
        """Points of test accuracy by which the tanh network is better."""
        against = [t.rows[row]["L-map accuracy"] for t in runs["tanh"]]
        if other == "linear":
            against = [t.rows[row]["test accuracy"] for t in runs["linear"]]
        return [100 * (t.rows[row]["test accuracy"] - b) for t, b in zip(runs["tanh"], against, strict=True)]

    def distances(runs: dict[str, list[Trained]]) -> list[float]:
        return [apart(a, b) for a, b in zip(runs["tanh"], runs["linear"], strict=True)]

    def ratios(runs: dict[str, list[Trained]], centred: bool = True) -> list[float]:
        pairs = zip(runs["tanh"], runs["linear"], strict=True)
        return [a.last("gradient") / b.last("gradient") if centred else a.uncentred / b.uncentred for a, b in pairs]

    parts, readings = [], []
    for runs, few_or_many, same in ((few, "few", True), (many, "many", False)):
        for other, name in (("linear", "the linear network"), ("L-map", "its own L-map")):
            gap = points(runs, other)
            verb, bound = ("differs from", "no more") if same else ("exceeds", "more")
            parts.append(
                Part(
                    f"{few_or_many} images: in test accuracy the tanh network {verb} {name} by {bound} than 1 point",
                    gap,
                    [abs(g) <= 1 if same else g > 1 for g in gap],
                    "{:+.2f} points",
                )
            )
        area = distances(runs)
        bound = "at most" if same else "more than"
        parts.append(
            Part(
                f"{few_or_many} images: {bound} 0.02 of the area lies between the RPDs of tanh and linear network",
                area,
                [(a <= 0.02) == same for a in area],
            )
        )
        for centred, which in ((True, "centred"), (False, "raw")):
            ratio = ratios(runs, centred)
            differ = "no more" if same else "more"
            readings.append(
                Part(
                    f"{few_or_many} images: the gradients of tanh and linear network differ by {differ} than 10 % "
                    f"(their ratio; {which} pathway)",
                    ratio,
                    [(abs(r - 1) <= 0.1) == same for r in ratio],
                )
            )
    early = -3
    for other, name in (("linear", "the linear network"), ("L-map", "its own L-map")):
        gap = points(many, other, early)
        when = f"many images, but only {many['tanh'][0].rows[early]['step']:,} steps"
        statement = f"{when}: in test accuracy the tanh network differs from {name} by no more than 1 point"
        readings.append(Part(statement, gap, [abs(g) <= 1 for g in gap], "{:+.2f} points"))
    for runs, images in ((few, "few images"), (many, "many images")):
        readings += l_map(f"tanh, {images}, at the end", [t.rows[-1] for t in runs["tanh"]])
    return Claim(
        "Few samples: linear; many: not linear",
        "P1",
        "784–2048–10: tanh network, linear network and the tanh network's L-map coincide in accuracy and RPD when "
        "trained on 600 samples, and differ when trained on 60,000.",
        setting,
        parts,
        readings,
        "The L-map has the tanh network's weights, so its hidden layer has the tanh network's RPD by definition.",
    )


def over_training(many: dict[str, list[Trained]], few: dict[str, list[Trained]], setting: str) -> Claim:
    """Claim 2."""

    def parts(runs: dict[str, list[Trained]], images: str) -> list[Part]:
        told = []
        for name, trainings in runs.items():
            start = [t.gradients[0] / max(t.gradients) for t in trainings]
            when = [max(t.rows, key=lambda row: row["gradient"])["step"] / t.last("step") for t in trainings]
            left = [t.last("gradient") / max(t.gradients) for t in trainings]
            label = f"{name}{images}: the gradient"
            told.append(
                Part(
                    f"{label} starts below 0.1 of its maximum, in absolute value", start, [abs(s) <= 0.1 for s in start]
                )
            )
            if name == "linear":
                told.append(Part(f"{label} ends at 0.95 of its maximum or more", left, [x >= 0.95 for x in left]))
            else:
                told.append(Part(f"{label} peaks within the first fifth of the steps", when, [w <= 0.2 for w in when]))
                told.append(Part(f"{label} ends at 0.9 of its maximum or less", left, [x <= 0.9 for x in left]))
        return told

    maps = []
    for name in ("tanh", "relu"):
        steepest = [max(t.rows, key=lambda row: row["gradient"]) for t in many[name]]
        maps += l_map(f"{name}, many images, when steepest", steepest)
        maps += l_map(f"{name}, many images, at the end", [t.rows[-1] for t in many[name]])
    return Claim(
        "Steep early, flatter later",
        "P1",
        "The RPD is flat at the start and steepest early in training; later it flattens for tanh and ReLU, but not for "
        "the linear network.",
        setting,
        parts(many, ""),
        [*parts(few, ", few images"), *maps],
    )


def picture(few: dict[str, list[Trained]], many: dict[str, list[Trained]], counts: tuple[int, int]) -> Figure:
    """Accuracy and gradient over training, for few and for many images."""
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    for column, (runs, count) in enumerate(zip((few, many), counts, strict=True)):
        lines = {name: (trainings, "test accuracy") for name, trainings in runs.items()}
        for name, (trainings, what) in {**lines, "tanh, L-map": (runs["tanh"], "L-map accuracy")}.items():
            _line(axes[0, column], name, trainings, what)
        for name, trainings in runs.items():
            _line(axes[1, column], name, trainings, "gradient")
        axes[0, column].set_title(f"{count:,} training images", fontsize=10)
        axes[1, column].set_xlabel("optimiser steps")
    axes[0, 0].set_ylabel("test accuracy")
    axes[0, 0].set_ylim(0.8, 1)
    axes[1, 0].set_ylabel("RPD gradient, hidden layer")
    axes[0, 1].legend(loc="lower right")
    figure.suptitle("Few samples: tanh network, L-map and linear network coincide; many: they differ")
    return figure


def _line(axis: object, name: str, trainings: list[Trained], what: str) -> None:
    steps = [row["step"] for row in trainings[0].rows]
    values = torch.tensor([[row[what] for row in t.rows] for t in trainings], dtype=torch.float64)
    colour = COLOURS[name]
    axis.plot(steps, values.mean(0), label=name, color=colour, linestyle="--" if "L-map" in name else "-")
    axis.fill_between(steps, values.amin(0), values.amax(0), color=colour, alpha=0.25, linewidth=0)
    axis.set_xscale("symlog", linthresh=10)


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, compare."""
    this = task("shallow", __doc__, arguments)
    small = len(this.data.x) < 10_000
    longer = 5 if this.paper_size else 1
    counts = (len(this.data.x) // 10 if small else 600, len(this.data.x))
    steps = 100 if this.quick else (2000 if small else 6000) * longer
    few, many = (
        {name: [trained(this, name, count, steps, seed) for seed in this.seeds] for name in names}
        for names, count in zip((["tanh", "linear"], ACTIVATIONS), counts, strict=True)
    )
    setting = (
        f"{this.data.pixels}–{WIDTH}–10, SGD at rate {RATE}, batches of {BATCH}, {steps:,} steps on {counts[0]:,} and "
        f"on {counts[1]:,} images; gradient and RPD on {PROBE:,} training images."
    )
    rows = [
        {"activation": name, "samples": count, "seed": seed, **row, "rpd_gradient_raw": t.uncentred}
        for runs, count in ((few, counts[0]), (many, counts[1]))
        for name, trainings in runs.items()
        for seed, t in zip(this.seeds, trainings, strict=True)
        for row in t.rows
    ]
    claims = [same_or_not(this, few, many, setting), over_training(many, few, setting)]
    this.finish(claims, rows, picture(few, many, counts))


if __name__ == "__main__":
    main()
