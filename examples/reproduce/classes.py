"""P1 on the basins of single digits: those of 0 and 2 are wide, that of 9 is narrow.

Two networks, 784–2048–10 and 784–256×6–10 ReLU, are trained on the first 20,000 images for three epochs: Adam at 1e-3,
batches of 100, cross entropy, PyTorch's default initialisation, pixels between 0 and 1. The radius of each digit comes
from the sample basin of the first 1,000 training images, four rays each, at accuracy 0.5. We do not know P1's networks,
noise units and training for this claim; these are plain choices.

If a network classifies all noise as one digit, that digit has no finite radius, because noise does not make its images
wrong. An infinite radius counts as the widest. The note beside the verdict names the fallback digit, the one that
strong noise is classified as most often. Other readings: the order without that digit, accuracy 0.9, accuracy counted
from the floor that noise leaves, test images, and the same networks trained on pixels of mean 0 and variance 1.

    MNIST_DIR=… python examples/reproduce/classes.py [--seeds N] [--quick] [--paper-size]

Three seeds take two and a half minutes on one core. `--paper-size` trains on all 60,000 images for 20 epochs. Without
MNIST the script uses scikit-learn's digits, with the same number of steps.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import torch
from claims import Claim, Part, Task, task
from data import Data
from matplotlib.figure import Figure
from training import Row, accuracy, mlp, train

from netdyn.functional import sample_basin

NETWORKS = {"shallow": [2048], "deep": [256] * 6}
COLOURS = {"shallow": "#0072B2", "deep": "#E69F00"}
MAIN = "0.5, training images"
BATCH, PROBE, RAYS = 100, 1000, 4


def normalised(data: Data) -> Data:
    """Pixels with mean 0 and variance 1 over all training images."""
    mean, spread = data.x.mean(), data.x.std()
    return replace(data, x=(data.x - mean) / spread, test_x=(data.test_x - mean) / spread)


def trained(this: Task, data: Data, name: str, pixels: str, seed: int) -> Row:
    """One network after its training: the radius of each digit under several readings, and the classes of noise."""
    torch.manual_seed(seed)
    network = mlp(data.pixels, *NETWORKS[name], 10).to(data.x.device)
    train_images, test_images = (data.x[:PROBE], data.y[:PROBE]), (data.test_x[:PROBE], data.test_y[:PROBE])

    def measure(_: int) -> Row:
        row = {"accuracy": accuracy(network, data.test_x, data.test_y)}
        for label, (x, y), level, relative in (
            (MAIN, train_images, 0.5, False),
            ("0.9, training images", train_images, 0.9, False),
            ("0.5 above the floor, training images", train_images, 0.5, True),
            ("0.5, test images", test_images, 0.5, False),
        ):
            basin = sample_basin(network, x, y, accuracy=level, relative=relative, rays=RAYS, per_class=True)
            row |= {f"{label}: {k}": radius for k, radius in enumerate(basin.per_class.tolist())}
            if label == MAIN and basin.noise_classes is not None:
                row |= {f"noise: {k}": share for k, share in enumerate(basin.noise_classes.tolist())}
        return row

    steps = 100 if this.quick else 20 * -(-len(data.x) // BATCH) if this.paper_size else 600
    row = train(
        network,
        data,
        torch.optim.Adam(network.parameters(), lr=1e-3),
        measure,
        [steps],
        batch=BATCH,
        seed=seed,
        progress=this.progress,
        setting=f"classes {name} {pixels} {len(data.x)} images {steps} steps",
    )[0]
    radii = ", ".join(f"{row[f'{MAIN}: {k}']:.2f}" for k in range(10))
    this.say(f"{name}, {pixels} pixels, seed {seed}: {row['accuracy']:.3f} on the test set; radii {radii}")
    return row


def radii(row: Row, label: str) -> list[float]:
    """The radii of the digits 0 to 9 under one reading."""
    return [row[f"{label}: {k}"] for k in range(10)]


def fallback(row: Row) -> int:
    """The digit that pure noise is classified as most often."""
    return max(range(10), key=lambda k: row[f"noise: {k}"])


def ranks(values: list[float]) -> list[float]:
    """Ranks, 1 for the widest; equal values share their mean rank.

    >>> ranks([0.1, math.inf, 0.2, 0.2])
    [4.0, 1.0, 2.5, 2.5]
    """
    return [(1 + sum(b > a for b in values) + sum(b >= a for b in values)) / 2 for a in values]


def part(rows: list[Row], name: str, digit: int) -> Part:
    """The statement that 0 and 2 are among the widest four, or 9 among the narrowest three."""
    rank = [ranks(radii(row, MAIN))[digit] for row in rows]
    bound, holds = (
        ("narrowest three", [r >= 8 for r in rank]) if digit == 9 else ("widest four", [r <= 4 for r in rank])
    )
    return Part(f"{name}: {digit} is among the {bound} (its rank, 1 the widest)", rank, holds, "{:.1f}")


def reading(rows: list[Row], label: str, name: str, without_fallback: bool = False) -> Part:
    """The same for all three digits, or for those that are not the fallback digit, in one number."""
    right, asked = [], []
    for row in rows:
        found = radii(row, label)
        if without_fallback:
            found[fallback(row)] = -1  # the narrowest, so that the other nine have the ranks 1 to 9
        rank, narrow = ranks(found), 7 if without_fallback else 8
        in_place = {0: rank[0] <= 4, 2: rank[2] <= 4, 9: rank[9] >= narrow}
        kept = [digit for digit in in_place if found[digit] >= 0]
        right.append(sum(in_place[digit] for digit in kept))
        asked.append(len(kept))
    holds = [r == a for r, a in zip(right, asked, strict=True)]
    kept_all = ", if among the other nine" if without_fallback else ""
    return Part(f"{name}: all three{kept_all} (number of digits that agree with P1)", right, holds, "{:.1f}")


def mean(values: list[float]) -> float:
    """Mean of the finite values; infinite if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.inf


def order(rows: list[Row], label: str) -> str:
    """The digits from the widest to the narrowest, by their mean rank."""
    rank = [ranks(radii(row, label)) for row in rows]
    return " ".join(str(k) for k in sorted(range(10), key=lambda k: statistics.fmean(found[k] for found in rank)))


def claim(found: dict[tuple[str, str], list[Row]], setting: str) -> Claim:
    """The verdict uses pixels between 0 and 1, training images and accuracy 0.5; everything else is a reading."""
    main, readings, notes = [], [], []
    labels = [key.removesuffix(": 0") for key in next(iter(found.values()))[0] if key.endswith("images: 0")]
    for (name, pixels), rows in found.items():
        if pixels == "raw":
            main += [part(rows, f"{name} network", digit) for digit in (0, 2, 9)]
        readings += [
            reading(rows, label, f"{name} network, {pixels} pixels, accuracy {label}")
            for label in labels
            if (pixels, label) != ("raw", MAIN)
        ]
        readings.append(reading(rows, MAIN, f"{name} network, {pixels} pixels, without the fallback digit", True))
        taken = ", ".join(f"{fallback(row)} ({row[f'noise: {fallback(row)}']:.0%})" for row in rows)
        infinite = sum(math.isinf(radius) for row in rows for radius in radii(row, MAIN))
        test = ", ".join(f"{row['accuracy']:.3f}" for row in rows)
        notes.append(
            f"{name}, {pixels} pixels: {test} on the test set; widest to narrowest {order(rows, MAIN)} (test images "
            f"{order(rows, '0.5, test images')}); the fallback digit is {taken}; {infinite} infinite radii."
        )
    return Claim(
        "Digits 0 and 2 have wide basins, 9 a narrow one",
        "P1",
        "The sample basins of the digits 0 and 2 are wide, that of 9 is narrow.",
        setting,
        main,
        readings,
        " ".join(notes).replace("%", " %"),
    )


def picture(found: dict[tuple[str, str], list[Row]]) -> Figure:
    """The radius of each digit, for both networks; infinite radii are shown at the top."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    figure.suptitle("The sample basins of 0 and 2 are wide, that of 9 is narrow (mean, least and largest of the seeds)")
    for axes, label in zip(figure.subplots(1, 2), (MAIN, "0.9, training images"), strict=True):
        for shift, name in ((-0.12, "shallow"), (0.12, "deep")):
            rows = found[name, "raw"]
            for k in range(10):
                finite = [r for r in (radii(row, label)[k] for row in rows) if math.isfinite(r)]
                if finite:
                    axes.plot([k + shift] * 2, [min(finite), max(finite)], color=COLOURS[name], alpha=0.5, linewidth=4)
                    axes.plot(k + shift, mean(finite), "o", color=COLOURS[name], label=name if k == 5 else None)
                if len(finite) < len(rows):
                    text = "∞" if not finite else f"{len(rows) - len(finite)}× ∞"
                    axes.text(
                        k + shift, 0.97, text, color=COLOURS[name], transform=axes.get_xaxis_transform(), ha="center"
                    )
        axes.set(title=f"at accuracy {label}", xlabel="digit", ylabel="radius, σ per pixel", ylim=(0, None))
        axes.set_xticks(range(10))
        axes.margins(y=0.15)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def main() -> None:
    """Train, measure, and give the verdict."""
    this = task("classes", __doc__ or "")
    data = this.data if this.paper_size else this.data.first(20_000)
    kinds = {"raw": data} if this.quick else {"raw": data, "normalised": normalised(data)}
    found = {
        (name, pixels): [trained(this, images, name, pixels, seed) for seed in this.seeds]
        for pixels, images in kinds.items()
        for name in NETWORKS
    }
    steps = found["deep", "raw"][0]["step"]
    setting = (
        f"784–2048–10 and 784–256×6–10 ReLU, Adam 1e-3, batches of {BATCH}, {steps:,.0f} steps on {len(data.x):,} "
        f"images; {PROBE:,} training images, {RAYS} rays each, accuracy 0.5"
    ).replace("784", str(data.pixels))
    rows = [
        {
            "network": name,
            "pixels": pixels,
            "seed": seed,
            "test accuracy": row["accuracy"],
            "measured": what,
            "digit": digit,
            "value": row[f"{what}: {digit}"],
        }
        for (name, pixels), rows in found.items()
        for seed, row in zip(this.seeds, rows, strict=True)
        for what in dict.fromkeys(name.rpartition(": ")[0] for name in row if ": " in name)
        for digit in range(10)
    ]
    this.finish([claim(found, setting)], rows, picture(found))


if __name__ == "__main__":
    main()
