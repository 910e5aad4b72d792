"""The effect of depth and width on test accuracy and on the basins in sample space and in weight space.

P1 finds that the test accuracy peaks near 6 to 8 layers; that with depth the basin in sample space grows and the basin
in weight space shrinks; and that with width the basin in weight space grows.

For each seed this script trains ReLU networks with batch normalisation of 1 to 16 layers × 128, and of 4 layers × 32 to
512, on 20,000 images for eight epochs: plain SGD at rate 0.1 in batches of 100, PyTorch's default initialisation. A
radius is the noise level at which the accuracy on 1,000 training images has fallen to one half. Other readings use 0.7
and 0.9 instead of one half, measure the noise on the weights in units of the spread of all weights together instead of
each layer's, or train the depths without normalisation, at rate 0.01 from He's normal initialisation. The script takes
nine minutes on one core; --quick takes ten seconds.

--paper-size: 1 to 16 layers × 512 and 4 layers × 64 to 2048, all images, thirty epochs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from claims import Claim, Part, task
from data import Data
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from training import Row, accuracy, he_normal, mlp, train

from netdyn import diagnose
from netdyn.functional import rank_correlation

PROBE = 1000
PEAK = (6, 8)
CUTS = (0.5, 0.7, 0.9)
"""The accuracies that define a radius; the first gives the verdicts."""
CLEAR = 0.6
"""From this Spearman correlation with depth or width on, a radius counts as growing."""
Networks = dict[tuple[int, int], Row]


def measured(network: nn.Module, data: Data) -> Row:
    """Accuracies and radii, for both normalizations of the weights' noise and each accuracy that defines a radius."""
    x, y = data.x[:PROBE], data.y[:PROBE]
    row: Row = {"test accuracy": accuracy(network, data.test_x, data.test_y)}
    for bound in CUTS:
        for scale in ("layer", "global"):
            wanted = ["sample_basin", "weight_basin"] if scale == "layer" else ["weight_basin"]
            report = diagnose(network, x, y, measure=wanted, accuracy=bound, normalization=scale)
            row[f"weight {scale} {bound}"] = report.weight_basin.radius
            if report.sample_basin is not None:
                row[f"sample {bound}"] = report.sample_basin.radius
            row["accuracy"] = report.accuracy
    return row


def run(layers: int, width: int, epochs: int, seed: int, data: Data, progress: Path, norm: bool = True) -> Row:
    """Train one network, and measure it at the end."""
    torch.manual_seed(seed)
    network = mlp(data.pixels, *[width] * layers, 10, norm=norm).to(data.x.device)
    if not norm:
        he_normal(network)
    (row,) = train(
        network,
        data,
        torch.optim.SGD(network.parameters(), lr=0.1 if norm else 0.01),
        lambda _: measured(network, data),
        [epochs * -(-len(data.x) // 100)],
        batch=100,
        seed=seed,
        progress=progress,
        setting=f"depth_width-{layers}x{width}-norm={norm}-epochs={epochs}",
    )
    return row


def correlation(row_of: Networks, name: str, axis: int) -> float:
    """Spearman's correlation of a number with the depth (axis 0) or the width (axis 1)."""
    sizes = torch.tensor([size[axis] for size in row_of], dtype=torch.float64)
    return float(rank_correlation(torch.tensor([[row[name]] for row in row_of.values()]), sizes))


def grows(statement: str, seeds: list[Networks], name: str, axis: int, sign: int = 1) -> Part:
    """The statement that a number grows with depth or width (with sign −1: shrinks)."""
    bound = f"at least {CLEAR}" if sign > 0 else f"at most −{CLEAR}"
    values = [correlation(row_of, name, axis) for row_of in seeds]
    return Part(
        f"{statement} (rank correlation {bound})", values, [sign * value >= CLEAR for value in values], "{:.2f}"
    )


def at_cuts(statement: str, seeds: list[Networks], kind: str, axis: int, sign: int = 1) -> list[Part]:
    """That statement for each accuracy that defines a radius; noise on weights has the named unit or each layer's."""
    unit = kind.removeprefix("weight ")
    found = []
    for cut in CUTS:
        convention = f"radius at accuracy {cut}" + (f', normalization "{unit}"' if unit != kind else "")
        plain = cut == CUTS[0] and unit != "global"
        part = grows(statement if plain else f"{convention}: {statement}", seeds, f"{kind} {cut}", axis, sign)
        row = f'{statement}, normalization "{unit}"' if unit != kind else statement
        found.append(replace(part, place=("cuts", row, f"accuracy {cut}")))
    return found


def peak(seeds: list[Networks]) -> tuple[list[Part], list[Part]]:
    """At which depth the test accuracy is best, and whether the difference exceeds the spread over seeds."""

    def of(row_of: Networks, *depths: int) -> float:
        return fmean(row["test accuracy"] for (depth, _), row in row_of.items() if depth in depths)

    best = [max(row_of, key=lambda size: row_of[size]["test accuracy"])[0] for row_of in seeds]
    shallow, deep = (f(depth for depth, _ in seeds[0]) for f in (min, max))
    over = {depth: [of(row_of, *PEAK) - of(row_of, depth) for row_of in seeds] for depth in (shallow, deep)}
    parts = [
        Part("the best of the depths on the test set is 6 or 8", best, [depth in PEAK for depth in best], "{:.1f}"),
        *(
            Part(
                f"6 and 8 layers are on average better than {depth} on the test set, by",
                gained,
                [g > 0 for g in gained],
                "{:.4f}",
            )
            for depth, gained in over.items()
        ),
    ]
    errors = {depth: stdev(gained) / len(gained) ** 0.5 if len(gained) > 1 else 0.0 for depth, gained in over.items()}
    far = {depth: fmean(gained) / errors[depth] for depth, gained in over.items() if errors[depth]}
    return parts, [
        Part(
            f"against {depth} the gain is more than two standard errors over the seeds", [value], [value > 2], "{:.1f}"
        )
        for depth, value in far.items()
    ]


def picture(by_depth: list[Networks], by_width: list[Networks], plain: list[Networks]) -> Figure:
    """Test accuracy and both radii, against depth above and against width below."""
    figure = Figure((9.6, 5.4), layout="constrained")
    figure.suptitle("With depth sample basins grow and weight basins shrink; with width weight basins grow")
    names = {"test accuracy": ["test accuracy"], "sample radius": [f"sample {bound}" for bound in CUTS]}
    names["weight radius"] = [f"weight {scale} {bound}" for scale in ("layer", "global") for bound in CUTS]
    for line, (axis, seeds) in zip(figure.subplots(2, 3), enumerate((by_depth, by_width)), strict=True):
        sizes = [size[axis] for size in seeds[0]]
        for axes, (label, columns) in zip(line, names.items(), strict=True):
            for column in columns:
                curve(axes, sizes, seeds, column, column)
            if label.endswith("radius") and axis == 0:
                curve(axes, sizes, plain, columns[0], f"{columns[0]}, not normalised", "--")
                axes.set_ylim(0, 1.5 * axes.get_ylim()[1])
                axes.legend(fontsize=7)
            axes.set(xlabel="layers" if axis == 0 else "width", ylabel=label, xscale="log")
            axes.set_xticks(sizes, map(str, sizes))
            axes.minorticks_off()
    return figure


def curve(axes: Axes, sizes: list[int], seeds: list[Networks], column: str, label: str, line: str = "-") -> None:
    """Mean and range over the seeds."""
    values = np.array([[row[column] for row in row_of.values()] for row_of in seeds])
    (drawn,) = axes.plot(sizes, values.mean(0), marker="o", ms=3, ls=line, label=label)
    axes.fill_between(sizes, values.min(0), values.max(0), alpha=0.2, lw=0, color=drawn.get_color())


def main() -> None:
    """Train networks of all depths and widths, and compare them."""
    todo = task("depth_width", __doc__)
    data, epochs, width = todo.data.first(20_000), 8, 128
    depths, widths = (1, 2, 4, 6, 8, 12, 16), (32, 64, 128, 256, 512)
    if todo.paper_size:
        data, epochs, width, widths = todo.data, 30, 512, (64, 128, 256, 512, 1024, 2048)
    if todo.quick:
        data, epochs, depths, widths, width = todo.data.first(2000), 2, (1, 6, 12), (16, 32, 64), 32
    sizes = dict.fromkeys([*((depth, width) for depth in depths), *((4, wide) for wide in widths)])
    seeds: list[Networks] = []
    plain: list[Networks] = []
    for seed in todo.seeds:
        seeds.append({size: run(*size, epochs, seed, data, todo.progress) for size in sizes})
        todo.say(
            f"seed {seed}: " + ", ".join(f"{d}×{w} {row['test accuracy']:.4f}" for (d, w), row in seeds[-1].items())
        )
        plain.append(
            {(depth, width): run(depth, width, epochs, seed, data, todo.progress, norm=False) for depth in depths}
        )
    by_depth = [{size: row_of[size] for size in ((depth, width) for depth in depths)} for row_of in seeds]
    by_width = [{size: row_of[size] for size in ((4, wide) for wide in widths)} for row_of in seeds]
    setting = (
        f"ReLU with batch normalisation, SGD at 0.1, batches of 100, {len(data.x)} images, {epochs} epochs; "
        f"layers {', '.join(map(str, depths))} × {width}; 4 layers × {', '.join(map(str, widths))}."
    )
    parts, readings = peak(by_depth)
    readings += [replace(part, statement=f"without normalisation: {part.statement}") for part in peak(plain)[0]]
    sample = at_cuts("the sample radius grows with depth", by_depth, "sample", 0)
    weight = at_cuts("the weight radius shrinks with depth", by_depth, "weight layer", 0, -1)
    wider = at_cuts("the weight radius grows with width", by_width, "weight layer", 1)
    claims = [
        Claim("Best depth", "P1", "The test accuracy peaks near 6 to 8 layers.", setting, parts, readings),
        Claim(
            "Basins and depth",
            "P1",
            "With depth the basin in sample space grows and the basin in weight space shrinks.",
            setting,
            [sample[0], weight[0]],
            [
                *(*sample[1:], *weight[1:]),
                *at_cuts("the weight radius shrinks with depth", by_depth, "weight global", 0, -1),
                grows("without normalisation: the sample radius grows with depth", plain, "sample 0.5", 0),
                grows("without normalisation: the weight radius shrinks with depth", plain, "weight layer 0.5", 0, -1),
            ],
            "Networks without normalisation, from He's initialisation at a low rate, have learnt less at the end of "
            "these epochs, the shallow ones least. Their radii therefore also belong to different stages of training.",
        ),
        Claim(
            "Basins and width",
            "P1",
            "With width the basin in weight space grows.",
            setting,
            wider[:1],
            [*wider[1:], *at_cuts("the weight radius grows with width", by_width, "weight global", 1)],
        ),
    ]
    rows = [
        {"normalisation": kind, "layers": depth, "width": wide, "seed": seed, **row}
        for kind, networks in (("batch", seeds), ("none", plain))
        for seed, row_of in zip(todo.seeds, networks, strict=True)
        for (depth, wide), row in row_of.items()
    ]
    todo.finish(claims, rows, picture(by_depth, by_width, plain))


if __name__ == "__main__":
    main()
