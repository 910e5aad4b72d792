"""P1's rule for the first layer: the lower its RPD gradient, the higher the test accuracy.

P1 compares plain SGD at rates 0.03 and 0.37: the higher rate flattens the rank probability distribution (RPD) of the
first layer, and the test accuracy rises from 97.14 to 97.89 %; linear networks stay at about 92.4 %.

Training: 784–2048–10 with ReLU and 784–256–10 without activation, each at both rates; cross entropy, batches of 100,
PyTorch's default initialisation, pixels between 0 and 1, 10 epochs each. Networks, batch size and number of epochs are
our choice, because we do not know P1's. As another reading: five layers, 784–128–128–128–128–10, at four rates. Three
seeds take 11 minutes on one core.

    MNIST_DIR=… python examples/reproduce/first_layer.py [--seeds N] [--quick] [--paper-size]

`--paper-size` trains 50 epochs, with 2,048 units in the linear network and 512 in each of the five layers. Without
MNIST the script uses scikit-learn's digits, which are fewer, and trains 100 epochs.
"""

from __future__ import annotations

import torch
from claims import Claim, Part, Task, task
from data import Data
from l_map import l_map, shares_and_defects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from training import Row, accuracy, in_epochs, mlp, train

from netdyn import diagnose
from netdyn.functional import class_tuning, linear_substitution_map, local_fields, rpd_gradient

LOW, HIGH = 0.03, 0.37
"""P1's two learning rates."""
RATES = [0.01, LOW, 0.1, HIGH]
BATCH, PROBE = 100, 1000
FIRST = "0"
COLOURS = {0.01: "#56B4E9", LOW: "#0072B2", 0.1: "#CC79A7", HIGH: "#D55E00"}
SHARES = [0, 0.001, 0.003, 0.01, 0.03, LOW / HIGH, 0.2, 0.5, 1]
"""Shares of the training after which to measure. At LOW / HIGH the higher rate has reached the same rate × steps as the
lower one at its end."""
Runs = dict[float, list[list[Row]]]
"""Rate → seed → what was measured over the training."""


def measured(network: nn.Module, data: Data) -> Row:
    """Gradients of the first layer on the first training images, for the centred pathway and for P1's raw pathway."""
    probe = data.first(PROBE)
    tuning = class_tuning(local_fields(network, probe.x, [FIRST])[FIRST], probe.y, 10)
    pathway = linear_substitution_map(network, probe.x, [FIRST])[FIRST]
    share = torch.bincount(probe.y, minlength=10) / len(probe.y)
    linear = diagnose(network, probe.x, probe.y, measure=["linear"], layers=[FIRST])
    return {
        **shares_and_defects(linear),
        "gradient": float(rpd_gradient(tuning, pathway, share)),
        "raw gradient": float(rpd_gradient(tuning, pathway, share, centre=False)),
        "train accuracy": accuracy(network, probe.x, probe.y),
        "test accuracy": accuracy(network, data.test_x, data.test_y),
    }


def trained(this: Task, widths: list[int], activation: type[nn.Module], rate: float, epochs: float) -> list[list[Row]]:
    """The measurements of a network trained at one rate, for each seed."""
    runs = []
    for seed in this.seeds:
        torch.manual_seed(seed)
        network = mlp(*widths, activation=activation).to(this.data.x.device)
        name = f"{'-'.join(map(str, widths))} {activation.__name__} rate {rate}"
        rows = train(
            network,
            this.data,
            torch.optim.SGD(network.parameters(), lr=rate),
            lambda step, network=network: measured(network, this.data),
            in_epochs([share * epochs for share in SHARES], len(this.data.x), BATCH),
            batch=BATCH,
            seed=seed,
            progress=this.progress,
            setting=f"first_layer {name} batch {BATCH} epochs {epochs}",
        )
        this.say(f"{name}, seed {seed}: {100 * rows[-1]['test accuracy']:.2f} % on the test set")
        runs.append(rows)
    return runs


def last(runs: list[list[Row]], what: str) -> list[float]:
    """A number at the end, for each seed."""
    return [rows[-1][what] for rows in runs]


def flatter(runs: Runs, what: str = "gradient", where: str = "") -> Part:
    """Is the gradient lower at the higher rate?"""
    ratio = [a / b for a, b in zip(last(runs[HIGH], what), last(runs[LOW], what), strict=True)]
    statement = f"{where}the first layer's {what} at rate {HIGH} is at most 0.95 of that at {LOW}"
    return Part(statement, ratio, [r <= 0.95 for r in ratio])


def better(runs: Runs, where: str = "") -> Part:
    """Is the test accuracy higher at the higher rate?"""
    pairs = zip(last(runs[HIGH], "test accuracy"), last(runs[LOW], "test accuracy"), strict=True)
    gain = [100 * (a - b) for a, b in pairs]
    statement = f"{where}test accuracy at rate {HIGH} is higher than at {LOW} by 0.3 points or more"
    return Part(statement, gain, [g >= 0.3 for g in gain], "{:+.2f} points")


def equal_way(runs: Runs) -> list[Part]:
    """The two rates at the same rate × steps: any remaining difference is not due to the length of training."""
    step = min(runs[HIGH][0], key=lambda row: abs(row["step"] * HIGH - runs[LOW][0][-1]["step"] * LOW))["step"]
    there = [next(row for row in rows if row["step"] == step) for rows in runs[HIGH]]
    ratio = [a["gradient"] / b for a, b in zip(there, last(runs[LOW], "gradient"), strict=True)]
    gain = [100 * (a["test accuracy"] - b) for a, b in zip(there, last(runs[LOW], "test accuracy"), strict=True)]
    when = f"at equal rate × steps (the higher rate after {step:,} steps)"
    return [
        Part(f"{when} the gradient of the higher rate is at most 0.95 of the other", ratio, [r <= 0.95 for r in ratio]),
        Part(
            f"{when} its test accuracy is higher by 0.3 points or more",
            gain,
            [g >= 0.3 for g in gain],
            "{:+.2f} points",
        ),
    ]


def over_rates(runs: Runs, where: str) -> Part:
    """Correlation over the rates, at the end of training."""
    values = [
        _correlation([trainings[seed][-1] for trainings in runs.values()])
        for seed in range(len(next(iter(runs.values()))))
    ]
    rates = ", ".join(map(str, runs))
    statement = f"{where}over the rates {rates} gradient and test accuracy correlate with −0.5 or less"
    return Part(statement, values, [value <= -0.5 for value in values], "{:+.2f}")


def over_time(runs: Runs, rate: float, where: str = "") -> Part:
    """Correlation within a training, after the steep start in which both rise."""
    peaks = [max(range(len(rows)), key=lambda i, rows=rows: rows[i]["gradient"]) for rows in runs[rate]]
    values = [_correlation(rows[peak:]) for rows, peak in zip(runs[rate], peaks, strict=True)]
    statement = (
        f"{where}within a training at rate {rate}, from the gradient's maximum on, gradient and test accuracy "
        "correlate with −0.5 or less"
    )
    return Part(statement, values, [value <= -0.5 for value in values], "{:+.2f}")


def _correlation(rows: list[Row]) -> float:
    """Pearson's correlation of gradient and test accuracy; 0 for a single row, when the gradient has never fallen."""
    if len(rows) < 2:
        return 0.0
    pairs = torch.tensor([[row["gradient"], row["test accuracy"]] for row in rows], dtype=torch.float64)
    return float(torch.corrcoef(pairs.T)[0, 1])


def percent(runs: list[list[Row]], statement: str, low: float, high: float) -> Part:
    """Is the test accuracy in a range?"""
    values = [100 * value for value in last(runs, "test accuracy")]
    return Part(statement, values, [low <= value <= high for value in values], "{:.2f} %")


def picture(shallow: Runs, deep: Runs, linear: Runs) -> Figure:
    """The path of each network: gradient of the first layer against test accuracy."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axis, runs, title in ((left, shallow, "one hidden layer of 2,048"), (right, deep, "five layers")):
        for rate, trainings in runs.items():
            _way(axis, trainings, COLOURS[rate], f"ReLU, rate {rate}")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("RPD gradient of the first layer")
    for rate, colour in ((LOW, "#BBBBBB"), (HIGH, "#777777")):
        _way(left, linear[rate], colour, f"linear, rate {rate}")
    for axis in (left, right):
        axis.legend(loc="lower left")
    left.set_ylabel("test accuracy")
    left.set_ylim(0.8, 1)
    figure.suptitle("A lower RPD gradient of the first layer goes with higher test accuracy (dots: end of training)")
    return figure


def _way(axis: Axes, trainings: list[list[Row]], colour: str, label: str) -> None:
    """The mean over seeds as a line, the end of each seed as a dot."""
    values = torch.tensor([[[row["gradient"], row["test accuracy"]] for row in rows] for rows in trainings])
    axis.plot(*values.mean(0).T, color=colour, linewidth=1, label=label)
    axis.plot(*values[:, -1].T, color=colour, marker="o", markersize=5, linestyle="none")


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, compare."""
    this = task("first_layer", __doc__, arguments)
    small = len(this.data.x) < 10_000
    epochs = (5 if small else 0.5) if this.quick else (100 if small else 10) * (5 if this.paper_size else 1)
    wide = [this.data.pixels, 2048, 10]
    plain = [this.data.pixels, 2048 if this.paper_size else 256, 10]
    five = [this.data.pixels, *4 * [512 if this.paper_size else 128], 10]
    shallow = {rate: trained(this, wide, nn.ReLU, rate, epochs) for rate in (LOW, HIGH)}
    linear = {rate: trained(this, plain, nn.Identity, rate, epochs) for rate in (HIGH, LOW)}
    deep = {rate: trained(this, five, nn.ReLU, rate, epochs) for rate in RATES}
    claim = Claim(
        "A flat first layer generalises",
        "P1",
        "A lower RPD gradient of the first layer goes with higher test accuracy: 97.14 % with SGD at rate 0.03, "
        "97.89 % at rate 0.37; linear networks reach about 92.4 %.",
        f"{'–'.join(map(str, wide))} ReLU, SGD, batches of {BATCH}, {epochs} epochs; gradient on {PROBE:,} training "
        f"images. Linear network: {'–'.join(map(str, plain))}; five layers: {'–'.join(map(str, five))}.",
        [
            flatter(shallow),
            better(shallow),
            percent(linear[HIGH], f"the linear network's test accuracy is 91.9 to 92.9 % (rate {HIGH})", 91.9, 92.9),
        ],
        [
            flatter(shallow, "raw gradient"),
            *equal_way(shallow),
            percent(linear[LOW], f"the linear network's test accuracy is 91.9 to 92.9 % (rate {LOW})", 91.9, 92.9),
            percent(shallow[LOW], f"test accuracy at rate {LOW} is within 0.5 points of P1's 97.14 %", 96.64, 97.64),
            percent(shallow[HIGH], f"test accuracy at rate {HIGH} is within 0.5 points of P1's 97.89 %", 97.39, 98.39),
            flatter(deep, where="five layers: "),
            better(deep, "five layers: "),
            over_rates(deep, "five layers: "),
            over_time(shallow, LOW),
            over_time(shallow, HIGH),
            over_time(deep, HIGH, "five layers: "),
            *(
                part
                for name, runs in (("one hidden layer", shallow), ("five layers", deep))
                for rate in (LOW, HIGH)
                for part in l_map(f"{name}, rate {rate}, at the end", [rows[-1] for rows in runs[rate]])
            ),
        ],
        "The readings at equal rate × steps test whether the rate matters by itself, or only because it moves the "
        "network farther in the same number of epochs.",
    )
    rows = [
        {"network": name, "rate": rate, "seed": seed, **row}
        for name, runs in (("ReLU", shallow), ("linear", linear), ("five layers, ReLU", deep))
        for rate, trainings in runs.items()
        for seed, training in zip(this.seeds, trainings, strict=True)
        for row in training
    ]
    this.finish([claim], rows, picture(shallow, deep, linear))


if __name__ == "__main__":
    main()
