"""Companions beside netdyn's own quantities: how each goes with test accuracy, over trainings of which it is known.

160 small networks are trained on the digits that ship with scikit-learn: ten strata (a choice of 80 to 1,000 training
samples, some with wrong labels) × 16 networks (2 or 4 layers of 32 or 128 ReLUs, with batch normalisation or without,
by SGD or Adam), each until its training loss is below 0.05, for 600 steps at most. At the end `diagnose` measures it on
256 training samples and as many others. All networks of a stratum have the same data, so that only their pairs are
compared: Kendall's τ_b within strata, with the 95 % interval of a bootstrap over strata.

    python examples/evidence/companions.py [--tables] [--quick]

It takes six minutes on one core, writes docs/evidence/companions.csv and the table of docs/companions.md; `--tables`
writes the table anew from the numbers. `--quick` makes a tenth of the trainings, and writes nothing.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

import netdyn

ROOT = Path(__file__).parents[2]
NUMBERS, PAGE = ROOT / "docs/evidence/companions.csv", ROOT / "docs/companions.md"
STRATA = tuple(product(((1000, 0.0), (300, 0.0), (80, 0.0), (300, 0.3), (600, 0.5)), (0, 1)))
NETWORKS = tuple(product((32, 128), (2, 4), (False, True), ("SGD", "Adam")))
PROBE, BATCH, MOST, FITTED = 256, 32, 600, 0.05
REPEATS = 400
MEASURES = ["modes", "linear", "sample_basin", "weight_basin", "batchnorm", "maps", "companions"]
BEGIN, END = "<!-- table -->", "<!-- end -->"
Row = dict[str, float]

#: Name, formula, cost and when to look at it. A number per layer counts with its mean over the layers.
COMPANIONS = (
    (
        "node_strength",
        "Σ incoming weights + bias + Σ outgoing weights, per unit",
        "weights",
        "to see a layer drift to one sign",
    ),
    ("layer_fluctuation", "standard deviation of the node strengths", "weights", "to compare stages of one training"),
    (
        "neural_persistence",
        "(Σ (1 − w)² / edges)^½ over the maximum spanning tree of w = \\|W\\|/max\\|W\\|",
        "weights, (inputs + outputs)² steps per layer",
        "in linear classifiers; in deep layers it is mostly the variance",
    ),
    (
        "weight_variance",
        "variance of \\|W\\|/max\\|W\\|",
        "weights",
        "beside neural persistence",
    ),
    (
        "deep_graph_persistence",
        "persistence of the strongest paths: max-min product of the standardised layers",
        "up to 2³⁰ comparisons",
        "in chains of linear layers",
    ),
    (
        "gate_entropy",
        "−q log₂ q − (1 − q) log₂(1 − q), q the share of samples with a field > 0",
        "none",
        "dead or linear units",
    ),
    (
        "effective_dimension",
        "(Σλ)²/Σλ² of the fields' covariance, without the bias of few samples",
        "none",
        "collapse of a layer",
    ),
    (
        "effective_rank",
        "exp of the entropy of the fields' singular values",
        "none",
        "collapse, with more samples than units",
    ),
    (
        "localisation",
        "Σw⁴/(Σw²)² of a first-layer unit's weights",
        "weights",
        "whether units look at a part of the input",
    ),
    (
        "map_localisation",
        "the same of the characteristic maps",
        "with `maps`",
        "whether logits look at a part of the input",
    ),
    (
        "bn_drift",
        "√(mean of [(m − μ)² + (s − σ)²]/σ²), running m, s against the probe's μ, σ",
        "one forward pass",
        "when validation is worse than training with batch normalisation",
    ),
)
OURS = (
    ("basin/sample/radius", "noise on the inputs at which accuracy is 0.5", "2.6 forward passes"),
    ("basin/weight/radius", "noise on the weights at which accuracy is 0.5", "6 forward passes"),
    (
        "coverage/own − other",
        "validation samples reached from the nearest sample of their class, and of another",
        "1 forward pass at most",
    ),
    ("modes/opt_mean", "share of order-preserving units", "one forward pass, sorting"),
    ("modes/dead_max", "share of dead units in the worst layer", "none beside modes"),
    ("phase/mean", "mean RPD gradient", "none beside modes"),
    ("linear/functional_depth", "first layer from which on the network acts linearly", "maps of 4 samples"),
)


def network(width: int, depth: int, norm: bool) -> nn.Sequential:
    """A fully connected ReLU network on 64 pixels."""
    layers: list[nn.Module] = []
    for inputs in (64, *[width] * (depth - 1)):
        layers += [nn.Linear(inputs, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def data(samples: int, noise: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test samples of a stratum; some of the training labels are wrong."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=draw)
    train, test = order[:samples], order[1000:]
    labels = y[train].clone()
    wrong = torch.randperm(samples, generator=draw)[: round(noise * samples)]
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, (len(wrong),), generator=draw)) % 10
    return x[train], labels, x[test], y[test]


def trained(stratum: tuple[tuple[int, float], int], setting: tuple[int, int, bool, str]) -> Row:
    """One training, and what is measured at its end."""
    (samples, noise), seed = stratum
    width, depth, norm, optimiser = setting
    x, y, test_x, test_y = data(samples, noise, seed)
    torch.manual_seed(seed)
    net = network(width, depth, norm)
    kinds = {"SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "Adam": lambda p: torch.optim.Adam(p, lr=2e-3)}
    step = kinds[optimiser](net.parameters())
    for _ in range(MOST):
        chosen = torch.randperm(samples)[:BATCH]
        step.zero_grad()
        loss = nn.functional.cross_entropy(net(x[chosen]), y[chosen])
        loss.backward()
        step.step()
        if loss < FITTED and nn.functional.cross_entropy(net(x), y) < FITTED:
            break
    net.eval()
    probe = slice(0, PROBE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", netdyn.DynamicsWarning)
        report = netdyn.diagnose(
            net, x[probe], y[probe], val_inputs=test_x[:PROBE], val_target=test_y[:PROBE], measure=MEASURES
        )
    with torch.no_grad():
        accuracies = [float((net(a).argmax(1) == b).float().mean()) for a, b in ((x, y), (test_x, test_y))]
    row = {"samples": samples, "noise": noise, "seed": seed, "width": width, "depth": depth, "norm": float(norm)}
    row |= {"adam": float(optimiser == "Adam"), "train accuracy": accuracies[0], "test accuracy": accuracies[1]}
    assert report.companions is not None
    for name, own in report.companions.layers.items():
        row[name] = statistics.fmean(own.values()) if own else math.nan
    scalars = report.scalars() | report.companions.network
    scalars["coverage/own − other"] = scalars["coverage/own"] - scalars["coverage/other"]
    names = [*(name for name, *_ in OURS), "deep_graph_persistence", "map_localisation"]
    return row | {name: scalars.get(name, math.nan) for name in names}


def kendall(x: ArrayLike, y: ArrayLike, strata: Sequence[object], often: ArrayLike | None = None) -> float:
    """Kendall's τ_b over pairs of the same stratum; ``often`` is how often each stratum counts. NaN makes no pair.

    >>> kendall([1, 2, 9, 8], [2, 1, 3, 4], "aabb"), kendall([1, 2, 9, 8], [1, 2, 3, 4], "aabb", [1, 0])
    (-1.0, 1.0)
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    names = {name: place for place, name in enumerate(dict.fromkeys(strata))}
    member = np.array([names[name] for name in strata])
    times = np.ones(len(names)) if often is None else np.asarray(often, float)
    pairs: NDArray[np.float64] = (member[:, None] == member[None]) * times[member][:, None]
    a, b = np.sign(x[:, None] - x[None]), np.sign(y[:, None] - y[None])
    pairs, a, b = pairs * np.isfinite(a) * np.isfinite(b), np.nan_to_num(a), np.nan_to_num(b)
    below = math.sqrt(float((pairs * a * a).sum()) * float((pairs * b * b).sum()))
    return float((pairs * a * b).sum()) / below if below > 0 else math.nan


def with_interval(x: ArrayLike, y: ArrayLike, strata: Sequence[object]) -> str:
    """τ, and the percentile interval of a bootstrap over the strata."""
    total = len(set(strata))
    draws = np.random.default_rng(0).multinomial(total, np.full(total, 1 / total), size=REPEATS)
    found = np.array([kendall(x, y, strata, often) for often in draws])
    low, high = np.nanquantile(found, [0.025, 0.975])
    return f"{kendall(x, y, strata):+.2f} ({low:+.2f} to {high:+.2f})".replace("-", "−")


def table(rows: Sequence[Row]) -> str:
    """The table of the page: companions, then netdyn's own."""
    strata = [(row["samples"], row["noise"], row["seed"]) for row in rows]
    accuracy = [row["test accuracy"] for row in rows]
    lines = ["| quantity | formula | cost | τ with test accuracy | look at it |", "|---|---|---|---|---|"]
    for name, formula, cost, when in (*COMPANIONS, *((*ours, "") for ours in OURS)):
        shown = f"[`{name}`](api/functional.md#netdyn.functional.{name})" if name in FUNCTIONS else f"`{name}`"
        tau = with_interval([row[name] for row in rows], accuracy, strata)
        lines.append(f"| {shown} | {formula} | {cost} | {tau} | {when} |")
    return "\n".join(lines)


#: The companions that are functions of their own name.
FUNCTIONS = {name for name, *_ in COMPANIONS} & set(netdyn.functional.__all__)


def filled(page: str, made: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}"


def read() -> list[Row]:
    """The numbers of all trainings."""
    with NUMBERS.open(newline="", encoding="utf-8") as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]


def write(rows: Sequence[Row]) -> None:
    """Write the numbers; nothing stands for NaN."""
    NUMBERS.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with NUMBERS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            values = [row.get(name, math.nan) for name in columns]
            writer.writerow(["" if math.isnan(value) else f"{value:.5g}" for value in values])


def main() -> None:
    """Train, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="only the table, from the numbers")
    parser.add_argument("--quick", action="store_true", help="a tenth of the trainings; nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        wanted = [(stratum, setting) for stratum in STRATA for setting in NETWORKS]
        rows = [trained(*each) for each in (wanted[::10] if options.quick else wanted)]
        if options.quick:
            print(f"{len(rows)} trainings, mean test accuracy {statistics.fmean(r['test accuracy'] for r in rows):.3f}")
            return
        write(rows)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), table(read())), encoding="utf-8")


if __name__ == "__main__":
    main()
