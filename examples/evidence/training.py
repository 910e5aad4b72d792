"""One labelled training: make it, watch it with a monitor, and check by other means that it is what it should be."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict

import suspects
import torch
from architectures import make
from images import Pair, Split, shifted, split
from settings import NETWORKS, Setting
from torch import Tensor, nn

import netdyn
from netdyn.report.trend import Moment

#: Samples of a training probe.
PROBE = 256
#: Steps with an evaluation, beside the last one.
LOOKED_AT = (0, 10, 30, 100, 300, 1000)
#: A network whose training loss is below this has learnt its data, and training ends.
FITTED = 0.05
#: Most samples of the training set that are asked for this.
ASKED = 1000
#: Steps between looks at the loss, and of the training that shows whether a network was still learning.
EVERY, MORE = 25, 300
#: Good steps of a training that then diverges.
GOOD = 75
MEASURES = ["modes", "linear", "sample_basin", "weight_basin", "batchnorm"]
Row = dict[str, float]


def train_one(setting: Setting, folder: str | None) -> dict[str, object]:
    """All that the tables need of one training: its setting, its evaluations, and the checks of its truth."""
    begin, data = time.process_time(), split(setting, folder)
    torch.manual_seed(1_000 * setting.seed + setting.network)
    network, optimiser = _prepared(setting, data.side)
    watched = _Watched(network, data, setting)
    checks = {f"start_{name}": value for name, value in loss_and_accuracy(network, *data.train).items()}
    steps = _train(setting, network, optimiser, data.train, watched)
    watched.look(steps)
    checks |= {f"train_{name}": value for name, value in loss_and_accuracy(network, *data.train).items()}
    checks |= {f"test_{name}": value for name, value in loss_and_accuracy(network, *data.test).items()}
    checks["off"] = largest_share_off(network, data.train[0])
    checks["renewed"] = renewed_accuracy(network, data)
    if setting.kind == "shift":
        moved = (shifted(data.test[0], setting.variant), data.test[1])
        checks["shifted"] = loss_and_accuracy(network, *moved)["accuracy"]
    again = watched.again()
    more = _compared(network, data) if setting.kind == "stratum" else {}
    if setting.kind == "learning":
        _steps(network, optimiser, data.train, setting, MORE, first=steps)
        checks["later_accuracy"] = loss_and_accuracy(network, *data.train)["accuracy"]
    return {
        "setting": asdict(setting),
        "steps": steps,
        "rows": watched.rows,
        "again": again,
        "checks": checks,
        "compared": more,
        "seconds": time.process_time() - begin,
    }


class _Watched:
    """The evaluations of one training, by one monitor."""

    def __init__(self, network: nn.Module, data: Split, setting: Setting) -> None:
        how = setting.variant if setting.kind == "shift" else "none"
        draw = torch.Generator().manual_seed(setting.seed)
        order = torch.randperm(len(data.train[0]), generator=draw)
        # A small training set is its own probe; the second probe then is most of it.
        few = min(PROBE, len(order) if len(order) >= 2 * PROBE else math.ceil(0.75 * len(order)))
        parts = order[:PROBE], order[-few:]
        self.network, self.rows = network, list[Row]()
        self.probes = [(data.train[0][part], data.train[1][part]) for part in parts]
        self.vals = [(shifted(x, how), y) for x, y in (data.val, data.val_again)]
        self.monitor = netdyn.Monitor(
            self.probes[0], self.vals[0], measure=MEASURES, figures="never", histograms=False, strict=True
        )
        self.moments = list[Moment]()

    def look(self, step: int) -> None:
        """One evaluation, unless this step has been looked at."""
        if self.rows and self.rows[-1]["step"] == step:
            return
        reached = [loss_and_accuracy(self.network, *pair)["accuracy"] for pair in (self.probes[1], self.vals[1])]
        self.moments.append(Moment(step, *reached))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = self.monitor.measure(self.network, step)
        assert report is not None
        self.rows.append({"step": float(step), **numbers(report)})

    def again(self) -> dict[str, object]:
        """The last network on the second probes, and what their run was."""
        (x, y), (val_x, val_y) = self.probes[1], self.vals[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = netdyn.diagnose(self.network, x, y, val_inputs=val_x, val_target=val_y, measure=MEASURES)
        return {"row": numbers(found), "moments": [list(moment) for moment in self.moments[:-1]]}


def numbers(report: netdyn.Report) -> Row:
    """The numbers of a report that the table keeps; NaN where it has none."""
    found, nan = report.scalars(), math.nan
    tests = [layer.order_z for layer in report.layers if not math.isnan(layer.order_z)]
    tags = (
        *("modes/opt_mean", "modes/dead_max", "phase/index", "phase/mean", "linear/functional_depth"),
        *("batchnorm/gap", "batchnorm/train_gap"),
        *("coverage/own", "coverage/other", "coverage/distance", "coverage/apart"),
        *(f"basin/{space}/{end}" for space in ("sample", "weight") for end in ("radius", "low", "high")),
        *(f"basin/{space}/{end}" for space in ("sample", "weight") for end in ("change", "change_low", "change_high")),
    )
    return {
        "samples": report.samples,
        "classes": report.num_classes,
        "guess": report.guess,
        "accuracy": report.accuracy,
        "val_accuracy": nan if report.val_accuracy is None else report.val_accuracy,
        "loss": report.loss,
        "finite": report.finite,
        "order_z": max(tests, default=nan),
        **{tag: found.get(tag, nan) for tag in tags},
    }


def _prepared(setting: Setting, side: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The untrained network with what is wrong with it, and its optimiser."""
    family, width, depth, optimiser, rate, decay = NETWORKS[setting.network]
    kind, variant = setting.kind, setting.variant
    if kind == "grokking":
        family, width, depth, optimiser, rate, decay = "mlp", 96, 3, "adam", 1e-3, 0.3
    network = make(family, width, depth, side)
    network.eval()(torch.zeros(2, side * side))  # lazy layers get their shape
    linears = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        if kind == "grokking":
            for parameter in network.parameters():
                parameter *= 6
        if kind == "untrained" and variant == "zeros":
            for parameter in linears[-1].parameters():
                parameter.zero_().requires_grad_(False)
        if kind == "dead" and variant in ("bias", "layer"):
            for layer in linears[:-1] if variant == "bias" else linears[-2:-1]:
                layer.bias.fill_(-3.0 if variant == "bias" else -10.0)
        if kind == "dead" and variant == "most":
            bias = linears[-2].bias
            bias[: math.ceil(0.7 * len(bias))] = -10.0
    if kind == "stale" and variant == "momentum":
        for module in _norms(network):
            module.momentum = 1e-3
    if kind == "untrained":
        rate = 1e-6 if variant == "rate" else rate / 5
    if kind == "learning":
        rate /= 5
    if kind == "dead" and variant == "rate":
        optimiser, rate = "sgd", 1.0
    if kind == "diverged" and variant == "adam":
        optimiser, rate = "adam", 1.0
    if kind == "diverged" and variant == "rate":
        optimiser, rate = "sgd", 30.0
    weights = [p for p in network.parameters() if p.requires_grad]
    if optimiser == "adam":
        return network, torch.optim.AdamW(weights, lr=rate, weight_decay=decay)
    return network, torch.optim.SGD(weights, lr=rate, momentum=0.9, weight_decay=decay)


def _norms(network: nn.Module) -> Iterator[nn.Module]:
    return (m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d))


def _train(
    setting: Setting, network: nn.Module, optimiser: torch.optim.Optimizer, train: Pair, watched: _Watched
) -> int:
    """Train until the construction is complete; the number of steps."""
    kind, variant, step = setting.kind, setting.variant, 0
    looked = range(0, setting.steps, 250) if kind == "grokking" else LOOKED_AT
    most = {"untrained": 100, "dead": 200, "stale": 300, "diverged": 100}.get(kind, setting.steps)
    most = 300 if variant == "ascent" else most
    stops = {*looked, GOOD} if kind == "diverged" else looked
    asked = train[0][:ASKED], train[1][:ASKED]
    watched.look(0)
    while step < most:
        every = min([EVERY if kind != "learning" else 5, most - step, *(s - step for s in stops if s > step)])
        _steps(network, optimiser, train, setting, every, first=step)
        step += every
        if kind == "stale" and variant == "frozen" and step == 10:
            for module in _norms(network):
                module.momentum = 0.0
        if step in looked:
            watched.look(step)
        if kind == "diverged" and variant == "jump" and step == GOOD:
            for group in optimiser.param_groups:
                group["lr"] *= 300
        fits = kind in ("stratum", "healthy", "shift") and step % EVERY == 0
        if fits and loss_and_accuracy(network, *asked)["loss"] < FITTED:
            break
        if kind == "learning" and loss_and_accuracy(network, *asked)["accuracy"] >= float(variant):
            break
    return step


def _steps(
    network: nn.Module, optimiser: torch.optim.Optimizer, train: Pair, setting: Setting, number: int, first: int
) -> None:
    """Some optimiser steps; the order of the samples depends on seed and epoch alone."""
    x, y = train
    batch = len(x) if setting.kind == "grokking" else 64 if len(x) >= 200 else 32
    epoch = len(x) // batch
    network.train()
    for step in range(first, first + number):
        draw = torch.Generator().manual_seed(1_000_003 * setting.seed + step // epoch)
        order = torch.randperm(len(x), generator=draw)
        chosen = order[batch * (step % epoch) : batch * (step % epoch + 1)]
        optimiser.zero_grad()
        outputs = network(x[chosen])
        if setting.kind == "grokking":
            loss = (outputs - nn.functional.one_hot(y[chosen], 10)).square().mean()
        else:
            loss = nn.functional.cross_entropy(outputs, y[chosen])
        if setting.kind == "diverged" and step >= GOOD:
            loss = loss * {"nan": math.nan, "ascent": -1.0}.get(setting.variant, 1.0)
        if loss.requires_grad:
            loss.backward()
            optimiser.step()
    network.eval()


# --- checks that do not use netdyn ---


def loss_and_accuracy(network: nn.Module, x: Tensor, y: Tensor) -> Row:
    """Mean cross-entropy and share of right answers in eval mode, on all samples."""
    network.eval()
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in x.split(2000)])
    right = (outputs.argmax(dim=1) == y) & outputs.isfinite().all(dim=1)
    return {"loss": float(nn.functional.cross_entropy(outputs, y)), "accuracy": float(right.float().mean())}


def largest_share_off(network: nn.Module, x: Tensor) -> float:
    """Of each ReLU the share of units, or channels, that are 0 for every training sample; the largest of all."""
    shares: list[float] = [0.0]

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        units = output.detach().transpose(0, 1).flatten(1)
        shares.append(float((units == 0).all(dim=1).float().mean()))

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.ReLU)]
    network.eval()
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return max(shares)


def renewed_accuracy(network: nn.Module, data: Split) -> float:
    """Training accuracy once the statistics of batch normalisation have been computed anew from all training data."""
    copied = copy.deepcopy(network)
    if not list(_norms(copied)):
        return math.nan
    torch.optim.swa_utils.update_bn([data.train[0]], copied)
    return loss_and_accuracy(copied, *data.train)["accuracy"]


def _compared(network: nn.Module, data: Split) -> Row:
    """What the study of generalisation compares: the usual suspects, and coverage between halves of the probe."""
    network.eval()
    x, y = (part[:PROBE] for part in data.train)
    found = suspects.norms(network)
    halves = netdyn.functional.coverage(network, x[0::2], y[0::2], x[1::2], y[1::2])
    work: dict[str, Callable[[], float]] = {
        "margin": lambda: suspects.margin(network, x, y, found["spectral"]),
        "eigenvalue": lambda: suspects.top_eigenvalue(network, x, y),
        "noise_scale": lambda: suspects.noise_scale(network, x, y),
        "neighbour_error": lambda: suspects.neighbour_error(*data.train),
        "to_others": lambda: suspects.distance_to_others(x, y),
    }
    found |= {name: measure() for name, measure in work.items()}
    return found | {"half_own": halves.own, "half_other": halves.other}
