"""From which layer on is a deep network linear? Its accuracy when the activations from a layer upward are left out.

P1 and P2 find that late layers of a trained network are linear, so that their activations can be left out without loss,
and that early in training nearly all layers are linear. The *functional depth* is the first layer (counted from 0) from
which on no activation is needed: without them the network loses no more than 0.02 of accuracy.

For each seed this script trains 10 layers × 256 ReLU with batch normalisation on 20,000 images for five epochs: plain
SGD at rate 0.1 in batches of 100, PyTorch's default initialisation. As another reading it trains the same network
without batch normalisation, at rate 0.01 from He's normal initialisation (from PyTorch's default it does not start to
learn in this time). At the end the activations are really replaced by the identity, and the accuracy on the test set is
measured.

Leaving out activations changes the input of the batch normalisations, but not their running statistics; another reading
uses the statistics of the batch. The script takes two minutes on one core; --quick takes ten seconds.

--paper-size: 10 layers × 512, all images, thirty epochs.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from claims import Claim, Part, Task, task
from data import Data
from l_map import l_map, shares_and_defects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from training import Row, accuracy, he_normal, in_epochs, mlp, train

from netdyn import diagnose
from netdyn.functional import functional_depth

PROBE = 1000
LOSS = 0.02
BEATEN = 0.2
"""A network clearly beats chance from this share of the way from chance to 1 on."""
EARLY = 0.2
"""Nearly all layers are linear if the functional depth is no more than this share of the layers."""


def left_out(network: nn.Sequential, layer: int) -> nn.Sequential:
    """The network with the identity in the place of the activations from a layer (counted from 0) upward."""
    modules = list(copy.deepcopy(network))
    places = [place for place, module in enumerate(modules) if isinstance(module, nn.ReLU)]
    for place in places[layer:]:
        modules[place] = nn.Identity()
    return nn.Sequential(*modules)


def with_batch_statistics(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Accuracy with batch normalisation as in training, measured on a copy because its running statistics change."""
    network = copy.deepcopy(network).train()
    with torch.no_grad():
        return float((network(x).argmax(1) == y).double().mean())


def measured(network: nn.Sequential, data: Data, last: bool) -> Row:
    """Netdyn's numbers on the probe; at the end also the test accuracy with activations really left out."""
    x, y = data.x[:PROBE], data.y[:PROBE]
    report = diagnose(network, x, y, measure=["linear"])
    count = len(report.layers)
    row: Row = {"accuracy": report.accuracy, "layers": count}
    row |= {f"tail {at}": layer.tail_accuracy for at, layer in enumerate(report.layers)}
    row |= shares_and_defects(report)
    cut = [left_out(network, layer) for layer in range(count)]
    again = {f"batch tail {at}": with_batch_statistics(part, x, y) for at, part in enumerate(cut)}
    row |= {"batch accuracy": with_batch_statistics(network, x, y), **again}
    if last:
        row["test accuracy"] = accuracy(network, data.test_x, data.test_y)
        row |= {f"probe pruned {at}": accuracy(part, x, y) for at, part in enumerate(cut)}
        row |= {f"test pruned {at}": accuracy(part, data.test_x, data.test_y) for at, part in enumerate(cut)}
    return row


def depths_of(row: Row, chance: float) -> Row:
    """The functional depth, and with the batch's statistics; NaN until the network clearly beats chance."""
    found: Row = {}
    for kind in ("", "batch "):
        own, tails = row[f"{kind}accuracy"], tail(row, f"{kind}tail")
        untrained = own - chance <= BEATEN * (1 - chance)
        named = {str(at): value for at, value in enumerate(tails)}
        found[f"{kind}depth"] = functional_depth(named, own, untrained=untrained)
    return found


def run(norm: bool, width: int, epochs: int, seed: int, data: Data, todo: Task) -> list[Row]:
    """Train one network, measuring after powers of two and whole epochs."""
    torch.manual_seed(seed)
    network = mlp(data.pixels, *[width] * 10, 10, norm=norm).to(data.x.device)
    rate = 0.1 if norm else 0.01
    if not norm:
        he_normal(network)
    steps = in_epochs([1, epochs / 2, epochs], len(data.x), 100)
    rows = train(
        network,
        data,
        torch.optim.SGD(network.parameters(), lr=rate),
        lambda step: measured(network, data, step == steps[-1]),
        {0, *steps, *(2**power for power in range(20) if 2**power < steps[-1])},
        batch=100,
        seed=seed,
        progress=todo.progress,
        setting=f"linear_tail-norm={norm}-width={width}-rate={rate}-epochs={epochs}",
    )
    chance = float(torch.bincount(data.y[:PROBE]).max()) / PROBE
    found = [{**row, **depths_of(row, chance)} for row in rows]
    last = found[-1]
    todo.say(f"{name_of(norm)}, seed {seed}: depth {last['depth']:.0f}, test accuracy {last['test accuracy']:.4f}")
    return found


def name_of(norm: bool) -> str:
    """The name of a network in table and figure."""
    return "batch normalisation" if norm else "no normalisation"


def tail(row: Row, kind: str = "tail") -> list[float]:
    """One number per layer, first layer first."""
    return [row[f"{kind} {at}"] for at in range(int(row["layers"]))]


def with_all(row: Row, kind: str = "tail", whole: str = "accuracy") -> list[float]:
    """The same, followed by the number for the network with all its activations."""
    return [*tail(row, kind), row[whole]]


def learnt(rows: list[Row], kind: str = "") -> Row:
    """The first measurement at which the network clearly beats chance, or the last one."""
    return next((row for row in rows if math.isfinite(row[f"{kind}depth"])), rows[-1])


def parts_of(runs: list[list[Row]], kind: str = "") -> list[Part]:
    """The parts of the claim for one kind of training; `kind` as in :func:`depths_of`."""
    ends = [rows[-1] for rows in runs]
    depths = [end[f"{kind}depth"] for end in ends]
    counts = [end["layers"] for end in ends]
    early = [learnt(rows, kind)[f"{kind}depth"] for rows in runs]
    bound = round(EARLY * counts[0])
    parts = [
        Part(
            f"after training the functional depth is below the number of layers, {counts[0]:.0f}",
            depths,
            [depth < count for depth, count in zip(depths, counts, strict=True)],
            "{:.1f}",
        ),
        Part(
            f"early in training, when the network first beats chance clearly, the functional depth is at most {bound}",
            early,
            [depth <= bound for depth in early],
            "{:.1f}",
        ),
        Part(
            "the functional depth grows from then to the end of training, by",
            [after - before for after, before in zip(depths, early, strict=True)],
            [after > before for after, before in zip(depths, early, strict=True)],
            "{:.1f}",
        ),
    ]
    if not kind:
        lost = [
            end["test accuracy"] - end[f"test pruned {depth if depth < count else count - 1:.0f}"]
            for end, depth, count in zip(ends, depths, counts, strict=True)
        ]
        statement = (
            "leaving out the activations from the functional depth on, and the last layer's in any case, costs at most "
            f"{LOSS} test accuracy"
        )
        parts.insert(1, Part(statement, lost, [loss <= LOSS for loss in lost], "{:.4f}"))
    return parts


def readings_of(found: dict[bool, list[list[Row]]]) -> list[Part]:
    """Without normalisation, with the batch's statistics, by correlation, and the formula against real replacement."""
    ends = [rows[-1] for rows in found[True]]
    wrong = [
        max(abs(a - b) for a, b in zip(tail(end), tail(end, "probe pruned"), strict=True))
        for rows in found.values()
        for end in (seed_rows[-1] for seed_rows in rows)
    ]
    plain = [rows[-1] for rows in found[False]]
    last = [tail(end, "share")[-1] for end in ends]
    named = [
        ("with the batch's statistics", parts_of(found[True], "batch ")),
        ("without normalisation", parts_of(found[False])),
    ]
    return [
        *(Part(f"{name}: {p.statement}", p.measured, p.holds, p.form) for name, parts in named for p in parts),
        *l_map("batch normalisation, when it first beats chance clearly", [learnt(rows) for rows in found[True]]),
        *l_map("batch normalisation, at the end", ends),
        *l_map("no normalisation, at the end", plain),
        Part("the last layer's linear share is at least 0.9 after training", last, [share >= 0.9 for share in last]),
        Part(
            "netdyn's tail accuracies, from one formula, differ by at most 0.002 from those of networks whose "
            "activations are really replaced, on the same images (all networks)",
            wrong,
            [difference <= 0.002 for difference in wrong],
            "{:.4f}",
        ),
    ]


def picture(found: dict[bool, list[list[Row]]]) -> Figure:
    """Tail accuracy over layers, through training and at the end; with batch normalisation on the left."""
    figure = Figure((9.6, 4.4), layout="constrained")
    figure.suptitle("Late layers are linear after training, nearly all layers early in training")
    for axes, (norm, runs) in zip(figure.subplots(1, 2, sharey=True), found.items(), strict=True):
        length, layers = len(runs[0]), range(len(with_all(runs[0][0])))
        for shade, at in zip((0.75, 0.5, 0.25), (length // 4, length // 2, 3 * length // 4), strict=True):
            values = np.array([with_all(rows[at]) for rows in runs])
            band(axes, layers, values, f"step {runs[0][at]['step']:.0f}, probe", str(shade))
        ends = [rows[-1] for rows in runs]
        band(axes, layers, np.array([with_all(end) for end in ends]), f"step {ends[0]['step']:.0f}, probe", "C0")
        kinds = [("test pruned", "test accuracy", "the same, test set, in fact", "C3")]
        kinds += [("batch tail", "batch accuracy", "the same, statistics of the batch", "C2")] if norm else []
        for kind, whole, label, colour in kinds:
            band(axes, layers, np.array([with_all(end, kind, whole) for end in ends]), label, colour, ls="--")
        axes.axvline(np.mean([rows[-1]["depth"] for rows in runs]), color="0.6", ls=":", label="functional depth")
        axes.set(title=name_of(norm), xlabel="first layer without activation (10: none)", ylim=(0, 1.02))
    figure.axes[0].set_ylabel("accuracy")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def band(axes: Axes, layers: range, values: np.ndarray, label: str, colour: str, ls: str = "-") -> None:
    """Mean and range over the seeds."""
    axes.plot(layers, values.mean(0), color=colour, label=label, ls=ls)
    axes.fill_between(layers, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)


def main() -> None:
    """Train, and report the functional depths."""
    todo = task("linear_tail", __doc__)
    data, width, epochs = todo.data.first(20_000), 256, 5
    if todo.paper_size:
        data, width, epochs = todo.data, 512, 30
    if todo.quick:
        data, width, epochs = todo.data.first(2000), 64, 2
    found: dict[bool, list[list[Row]]] = {True: [], False: []}
    for seed in todo.seeds:
        for norm, runs in found.items():
            runs.append(run(norm, width, epochs, seed, data, todo))
    claim = Claim(
        "Late layers are linear",
        "P1, P2",
        "Late layers of a trained network can be linear without loss; early in training nearly all layers are.",
        f"10 layers × {width} ReLU with batch normalisation, {len(data.x)} images, SGD at 0.1, batches of 100, "
        f"{epochs} epochs; without normalisation: SGD at 0.01, He's initialisation.",
        parts_of(found[True]),
        readings_of(found),
        "Early in training the running statistics lag behind, and leaving out activations often raises the accuracy; "
        "the answer then depends on the reading. After training, with batch normalisation, it hardly does.",
    )
    rows = [
        {"setting": name_of(norm), "seed": seed, **row}
        for norm, runs in found.items()
        for seed, rows in zip(todo.seeds, runs, strict=True)
        for row in rows
    ]
    todo.finish([claim], rows, picture(found))


if __name__ == "__main__":
    main()
