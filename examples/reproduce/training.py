"""Networks and their training: a plain loop over tensors that can be stopped and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import torch
from data import Data
from torch import Tensor, nn

Row = dict[str, float]
Loss = Callable[[Tensor, Tensor], Tensor]
SAVE_EVERY = 60.0
"""A stopped script may lose this many seconds of training."""


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU, norm: bool = False) -> nn.Sequential:
    """A fully connected network; with `norm`, a batch normalisation precedes each activation."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def he_normal(network: nn.Sequential) -> nn.Sequential:
    """The network with new normal weights of variance 2 / inputs (He); biases are unchanged.

    >>> network = he_normal(mlp(400, 400, 1))
    >>> bool(abs(network[0].weight.std() - (2 / 400) ** 0.5) < 0.001)  # 8 standard errors
    True
    """
    for module in network:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def in_epochs(epochs: Iterable[float], samples: int, batch: int) -> list[int]:
    """The optimiser steps at which these epochs are complete, in order and without duplicates.

    >>> in_epochs([0, 0.01, 0.5, 2], samples=1000, batch=100)
    [0, 1, 5, 20]
    """
    a_epoch = -(-samples // batch)
    return sorted({round(epoch * a_epoch) if not 0 < epoch * a_epoch < 1 else 1 for epoch in epochs})


def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of correct predictions, in eval mode."""
    was = network.training
    network.eval()
    with torch.no_grad():
        right = sum(
            int((network(a).argmax(1) == b).sum()) for a, b in zip(x.split(10_000), y.split(10_000), strict=True)
        )
    network.train(was)
    return right / len(x)


def train(
    network: nn.Module,
    data: Data,
    optimiser: torch.optim.Optimizer,
    measure: Callable[[int], Row],
    at: Iterable[int],
    *,
    batch: int,
    seed: int,
    progress: Path,
    setting: str,
    loss: Loss = nn.functional.cross_entropy,
) -> list[Row]:
    """Train to the last of the steps `at`, and collect the result of `measure(step)` at each of them (0: untrained).

    The order of the samples depends only on `seed` and the number of the epoch. Resuming therefore needs only the
    network, the optimiser and the rows so far. They are saved in the folder `progress`, in a file named after `setting`
    (which must be unique to this training) and the seed.

    Returns:
        The rows, each with its ``"step"``.
    """
    kept = progress / f"{setting}-{seed}.pt".replace("/", "_").replace(" ", "_")
    step, rows = 0, []
    if kept.exists():
        saved = torch.load(kept, map_location=data.x.device, weights_only=True)
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        step, rows = saved["step"], saved["rows"]
    a_epoch = -(-len(data.x) // batch)
    wanted = sorted(set(at))
    order, last = torch.empty(0), time.monotonic()
    network.train()
    if not rows and 0 in wanted:
        rows.append({"step": 0, **measure(0)})
    while step < wanted[-1]:
        place = step % a_epoch
        if place == 0 or len(order) == 0:
            draw = torch.Generator().manual_seed(1_000_003 * seed + step // a_epoch)
            order = torch.randperm(len(data.x), generator=draw).to(data.x.device)
        chosen = order[batch * place : batch * (place + 1)]
        optimiser.zero_grad()
        loss(network(data.x[chosen]), data.y[chosen]).backward()
        optimiser.step()
        step += 1
        if step in wanted:
            rows.append({"step": step, **measure(step)})
            network.train()
        if time.monotonic() - last > SAVE_EVERY or step == wanted[-1]:
            _save(kept, network, optimiser, step, rows)
            last = time.monotonic()
    return [row for row in rows if row["step"] in wanted]


def _save(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, step: int, rows: list[Row]) -> None:
    """Save atomically: a script that is stopped while writing leaves the previous file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "rows": rows}
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
