"""Three phases of learning: which layers of a deep network order the samples by their class, early and late.

P1 follows the gradient of each layer's rank probability distribution (RPD) through training. In phase I early layers
order more than late ones; in phase II late layers order more. A network of 10 layers × 512 ReLU with batch
normalisation goes from phase I to phase II. With some settings it is in phase II from the start. In a network of 23
layers × 128, trained by Adam in batches of 30,000, the gradients of nearly all layers converge: phase III.

For each seed this script trains 10 × 512 on all of MNIST in batches of 100 by plain SGD: for five epochs at rate 0.01
from PyTorch's default initialisation, then for one epoch with one change each: rate 0.1, rate 1, batches of 10 (same
number of steps), He's normal initialisation. For phase III it trains 23 × 128 by Adam at its usual rate 0.001 on 4,000
images in batches of 2,000, for 300 steps, and as another reading at rate 0.01. The claims name no rates; these are
plain choices. One seed takes about four and a half minutes on one core; --quick takes fifteen seconds.

--paper-size: phase III on all images in batches of 30,000, and five epochs of every setting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import fmean, median

import numpy as np
import torch
from claims import Claim, Part, Task, task
from data import Data
from l_map import l_map, shares_and_defects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor, nn
from training import Row, accuracy, he_normal, in_epochs, mlp, train

from netdyn import diagnose
from netdyn.functional import class_tuning, linear_substitution_map, local_fields, phase, rank_correlation, rpd_gradient

PROBE = 1000
LARGEST = 6 * (1 - 1 / 10)  # of an RPD gradient, with ten classes
ORDERED = LARGEST / 20
"""From this mean gradient on, a network counts as ordering its samples. The index of an untrained network is random."""
CLOSE = 0.2
"""Gradients that differ from the layers' median by no more than this share of it count as converged."""


@dataclass(frozen=True)
class Kind:
    """One way of training."""

    name: str
    layers: int = 10
    width: int = 512
    rate: float = 0.01
    batch: int = 100
    he: bool = False
    adam: bool = False


BASE = Kind("rate 0.01")
OTHERS = (Kind("rate 0.1", rate=0.1), Kind("rate 1", rate=1.0), Kind("batch 10", batch=10), Kind("He", he=True))
THIRD = Kind("23 × 128, Adam", layers=23, width=128, rate=0.001, batch=2000, adam=True)
FASTER = replace(THIRD, name="23 × 128, Adam at 0.01", rate=0.01)


def profile(network: nn.Module, data: Data, final: bool) -> Row:
    """The layers' gradients and their phase, and the same for the pathway that is not centred over classes.

    The last evaluation also has the accuracy on the test set, which takes longer than everything else.
    """
    x, y = data.x[:PROBE], data.y[:PROBE]
    report = diagnose(network, x, y, measure=["modes", "linear"])
    raw = phase(uncentred(network, x, y), 10)
    found = {"index": report.phase.index, "spread": report.phase.spread, "mean": report.phase.mean}
    found |= {"raw index": raw.index, "raw spread": raw.spread, "raw mean": raw.mean}
    found |= {"accuracy": report.accuracy} | shares_and_defects(report)
    if final:
        found["test accuracy"] = accuracy(network, data.test_x, data.test_y)
    return found | {f"gradient {at}": layer.rpd_gradient for at, layer in enumerate(report.layers, start=1)}


def uncentred(network: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """The layers' gradients with the pathway's own signs."""
    pathways = linear_substitution_map(network, x)
    share = torch.bincount(y, minlength=10) / len(y)
    return [
        float(rpd_gradient(class_tuning(field, y, 10), pathways[name], share, centre=False))
        for name, field in local_fields(network, x).items()
    ]


def run(kind: Kind, seed: int, data: Data, steps: list[int], todo: Task) -> list[Row]:
    """Train one network, measuring after powers of two and after `steps`."""
    torch.manual_seed(seed)
    network = mlp(data.pixels, *[kind.width] * kind.layers, 10, norm=True).to(data.x.device)
    if kind.he:
        he_normal(network)
    make = torch.optim.Adam if kind.adam else torch.optim.SGD
    at = {0, *steps, *(2**power for power in range(20) if 2**power < steps[-1])}
    rows = train(
        network,
        data,
        make(network.parameters(), lr=kind.rate),
        lambda step: profile(network, data, step == steps[-1]),
        at,
        batch=kind.batch,
        seed=seed,
        progress=todo.progress,
        setting="-".join(["phases", *(f"{key}={value}" for key, value in vars(kind).items() if key != "name")]),
    )
    end = rows[-1]
    todo.say(f"{kind.name}, seed {seed}: index {end['index']:.2f}, test accuracy {end['test accuracy']:.4f}")
    return [row | {"rank index": untied(row)} for row in rows]


def untied(row: Row) -> float:
    """Spearman's correlation of gradient and depth: an index in which small differences count too."""
    profile = torch.tensor(gradients(row), dtype=torch.float64)
    return float(rank_correlation(profile[:, None], torch.arange(len(profile), dtype=torch.float64)))


def lowest(runs: list[list[Row]], until: int, name: str = "index", order: float = ORDERED) -> list[float]:
    """For each seed, the lowest index up to a step over the evaluations with order; NaN if there is none."""
    early = [[row[name] for row in rows if row["step"] <= until and row["mean"] >= order] for rows in runs]
    return [min(values, default=math.nan) for values in early]


def dip(rows: list[Row], until: int) -> Row:
    """The evaluation with the lowest index up to a step, of those with order if there are any."""
    early = [row for row in rows if row["step"] <= until]
    return min([row for row in early if row["mean"] >= ORDERED] or early, key=lambda row: row["index"])


def last(runs: list[list[Row]], name: str = "index") -> list[float]:
    """For each seed a number at the end."""
    return [rows[-1][name] for rows in runs]


def gradients(row: Row) -> list[float]:
    """Of one evaluation, first layer first."""
    return [value for name, value in row.items() if name.startswith("gradient")]


def converged(row: Row) -> float:
    """Share of the layers whose gradient is near the layers' median."""
    middle = median(gradients(row))
    return fmean(abs(gradient - middle) <= CLOSE * abs(middle) for gradient in gradients(row))


def below(statement: str, values: list[float], bound: float) -> Part:
    """A part that holds for values up to a bound."""
    return Part(statement, values, [value <= bound for value in values])


def above(statement: str, values: list[float], bound: float) -> Part:
    """A part that holds for values from a bound on."""
    return Part(statement, values, [value >= bound for value in values])


def picture(found: dict[str, list[list[Row]]], start: str) -> Figure:
    """The layers' gradients over the steps for three settings, and the phase index for all settings."""
    figure = Figure((9.6, 5.4), layout="constrained")
    figure.suptitle("From early layers that order the samples (phase I) to late ones (phase II) to nearly all (III)")
    maps, lines = figure.subplots(2, 3, height_ratios=[3, 2])
    others = [kind.name for kind in OTHERS if kind.name in found]
    shown = (BASE.name, start, THIRD.name)
    most = max(abs(gradient) for name in shown for rows in found[name] for row in rows for gradient in gradients(row))
    for axes, name in zip(maps, shown, strict=True):
        image = heat(axes, found[name], name, most)
    figure.colorbar(image, ax=maps, label="RPD gradient")
    for axes, names in zip(lines, ([BASE.name], others, [THIRD.name, FASTER.name]), strict=True):
        for name in names:
            steps = [max(row["step"], 0.5) for row in found[name][0]]
            values = np.array([[row["index"] for row in rows] for rows in found[name]])
            (line,) = axes.plot(steps, values.mean(0), label=name)
            axes.fill_between(steps, values.min(0), values.max(0), alpha=0.2, color=line.get_color(), lw=0)
        axes.axhline(0, color="0.7", lw=0.8, zorder=0)
        axes.set(xscale="log", ylim=(-1.05, 1.05), xlabel="step (0 drawn at ½)", ylabel="phase index")
        axes.legend(fontsize=7, ncols=1 + len(names) // 3, loc="lower right")
    return figure


def heat(axes: Axes, seeds: list[list[Row]], name: str, most: float) -> AxesImage:
    """Mean over the seeds; one column per evaluation, the first layer at the bottom."""
    shown = np.mean([[gradients(row) for row in rows] for rows in seeds], axis=0).T
    top = len(shown) + 0.5
    extent = (-0.5, shown.shape[1] - 0.5, 0.5, top)
    image = axes.imshow(shown, origin="lower", aspect="auto", extent=extent, cmap="RdBu_r", vmin=-most, vmax=most)
    steps = [int(row["step"]) for row in seeds[0]]
    axes.set_xticks(range(0, len(steps), 2), [str(step) for step in steps[::2]], rotation=60, fontsize=7)
    axes.set(title=name, xlabel="step", ylabel="layer")
    return image


def main() -> None:
    """Train, and report which phases occurred."""
    todo = task("phases", __doc__)
    data, base, others = todo.data, BASE, OTHERS
    epochs, steps = 5, 300
    if todo.quick:
        data, epochs, steps = data.first(2000), 2, 20
        base = replace(base, width=64)
        others = [replace(OTHERS[1], width=64)]
    few = data if todo.paper_size else data.first(4000)
    size = {"width": 32 if todo.quick else THIRD.width}
    size["batch"] = min(30_000 if todo.paper_size else THIRD.batch, -(-len(few.x) // 2))
    third, faster = replace(THIRD, **size), replace(FASTER, **size)
    epoch = -(-len(data.x) // base.batch)
    several, one = (in_epochs(range(1, 1 + length), len(data.x), base.batch) for length in (epochs, 1))
    found: dict[str, list[list[Row]]] = {kind.name: [] for kind in (base, *others, third, faster)}
    for seed in todo.seeds:
        found[base.name].append(run(base, seed, data, several, todo))
        for kind in others:
            found[kind.name].append(run(kind, seed, data, several if todo.paper_size else one, todo))
        for kind in (third, faster):
            found[kind.name].append(run(kind, seed, few, [steps], todo))
    # Of the other settings, the one whose index stays highest for every seed; one without any order does not count.
    floor = {
        kind.name: min(-2 if math.isnan(low) else low for low in lowest(found[kind.name], epoch)) for kind in others
    }
    start = max(floor, key=lambda name: floor[name])
    rows = [
        {"setting": name, "seed": seed, **row}
        for name, runs in found.items()
        for seed, of_seed in zip(todo.seeds, runs, strict=True)
        for row in of_seed
    ]
    claims = [first_two(found, epoch, start), third_phase(found, len(few.x), third)]
    todo.finish(claims, rows, picture(found, start))


def first_two(found: dict[str, list[list[Row]]], epoch: int, start: str) -> Claim:
    """Phase I, then phase II; and phase II from the start."""
    base, others = found[BASE.name], {kind.name: found[kind.name] for kind in OTHERS if kind.name in found}
    order = f"in the first epoch, where the mean gradient is at least {ORDERED:.2f}"
    parts = [
        below(f"phase I: the index falls to −0.5 or lower {order}", lowest(base, epoch), -0.5),
        above("phase II: the index ends at 0.5 or above", last(base), 0.5),
        above(
            f"phase II from the start in one of the other settings ({start}): the index never falls below 0 {order}",
            lowest(others[start], epoch),
            0.0,
        ),
    ]
    readings = [
        below("phase I, from half that mean gradient on", lowest(base, epoch, order=ORDERED / 2), -0.5),
        below("phase I, with the pathway's raw signs", lowest(base, epoch, "raw index"), -0.5),
        below("phase I, small differences not counted as ties", lowest(base, epoch, "rank index"), -0.5),
        above("phase II, with the pathway's raw signs", last(base, "raw index"), 0.5),
        above(
            f"phase II from the start ({start}), small differences not counted as ties",
            lowest(others[start], epoch, "rank index"),
            0.0,
        ),
    ]
    for name, runs in others.items():
        readings += [
            below(f"phase I ({name})", lowest(runs, epoch), -0.5),
            above(f"phase II at the end of the first epoch ({name})", last(runs), 0.5),
            above(f"phase II from the start ({name})", lowest(runs, epoch), 0.0),
        ]
    named = f"{BASE.layers} × {BASE.width}, {BASE.name}"
    readings += l_map(f"{named}, at the lowest index of the first epoch", [dip(rows, epoch) for rows in base])
    readings += l_map(f"{named}, at the end", [rows[-1] for rows in base])
    note = (
        "An index of 0 can also result from differences between layers that are too small to count. The reading that "
        "counts them shows whether there was phase II from the start or no phase at all."
    )
    return Claim(
        "Phases I and II",
        "P1",
        "In a network of 10 layers × 512, early layers order the samples more at first (phase I), and late layers do "
        "later (phase II). With some settings late layers do from the start.",
        f"10 layers of ReLU with batch normalisation, SGD at 0.01, batches of 100, {base[0][-1]['step']} steps; and "
        f"the same with one change each ({', '.join(others)}), {others[start][0][-1]['step']} steps.",
        parts,
        readings,
        note,
    )


def third_phase(found: dict[str, list[list[Row]]], samples: int, third: Kind) -> Claim:
    """The gradients of nearly all layers converge."""
    ends, faster, others = ([rows[-1] for rows in found[kind.name]] for kind in (THIRD, FASTER, BASE))
    starts = [next((row for row in rows if row["mean"] >= ORDERED), rows[-1]) for rows in found[THIRD.name]]
    gained = [converged(end) - converged(start) for end, start in zip(ends, starts, strict=True)]
    near = f"the gradients of 85 % of the layers lie within {CLOSE:.0%} of the layers' median"
    large = LARGEST / 4
    return Claim(
        "Phase III",
        "P1",
        "In a network of 23 layers × 128, trained by Adam in batches of 30,000, the RPD gradients of nearly all layers "
        "converge.",
        f"{third.layers} × {third.width} ReLU with batch normalisation, Adam at {third.rate}, {samples} images in "
        f"batches of {third.batch}, {ends[0]['step']} steps.",
        [
            above(f"at the end {near}", [converged(end) for end in ends], 0.85),
            Part("that share is larger than when order began, by", gained, [value > 0 for value in gained]),
            above(
                f"their mean is at least {large:.2f}, a quarter of the largest", [end["mean"] for end in ends], large
            ),
        ],
        [
            below("the spread of all layers is at most half their mean", [e["spread"] / e["mean"] for e in ends], 0.5),
            below("the same with the pathway's raw signs", [e["raw spread"] / e["raw mean"] for e in ends], 0.5),
            above(f"Adam at {FASTER.rate}: at the end {near}", [converged(end) for end in faster], 0.85),
            above(f"Adam at {FASTER.rate}: the mean is at least {large:.2f}", [end["mean"] for end in faster], large),
            above(f"the network of 10 layers, by SGD: at the end {near}", [converged(end) for end in others], 0.85),
            *l_map(f"{third.layers} × {third.width}, Adam at {third.rate}, at the end", ends),
        ],
        ""
        if third.batch == 30_000
        else "This verdict is on a smaller training than P1's. `--paper-size` trains on all "
        "images in batches of 30,000, as P1 does.",
    )


if __name__ == "__main__":
    main()
