"""One full evaluation, against its passes through the network alone.

The evaluation is `diagnose` at its defaults on 784-256-256-10 after 400 steps of Adam, with 1,024 of its training
samples. A first evaluation is recorded. A hook on the network notes for each forward pass how many samples it has and
whether it records a graph. Every call of `torch.autograd.grad` is noted as one vector-Jacobian product. The bare run
repeats these calls on the network alone: the forward passes on as many samples, and for every product the gradient of
one logit with respect to the input of the first activation, on the graph of the last pass that recorded one. The
difference is the cost of everything else that an evaluation does: draw noise, add it, rank, count, correct.
"""

from __future__ import annotations

import warnings
from unittest.mock import patch

import pairs
import torch
from pairs import Clock, Options, Row, Target, alternate, ratios, row
from torch import Tensor, nn
from workload import CLASSES, trained

from netdyn import diagnose

#: Samples of a forward pass and whether it records a graph; None: one vector-Jacobian product.
Pass = tuple[int, bool] | None
#: The recorded passes. They are a global because an evaluation restores everything that it can reach from the network,
#: including lists that belong to hooks.
MADE: list[Pass] = []


def watched(network: nn.Module, x: Tensor, y: Tensor) -> list[Pass]:
    """The passes of an evaluation, in order."""
    MADE.clear()
    real = torch.autograd.grad

    def note_forward(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        MADE.append((len(inputs[0]), torch.is_grad_enabled()))

    def note_gradient(outputs: object, inputs: object, *args: object, **kwargs: object) -> object:
        MADE.append(None)
        return real(outputs, inputs, *args, **kwargs)

    hook = network.register_forward_pre_hook(note_forward)
    try:
        with patch.object(torch.autograd, "grad", note_gradient):
            diagnose(network, x, y, progress=False)
    finally:
        hook.remove()
    return list(MADE)


def bare(network: nn.Sequential, x: Tensor, passes: list[Pass]) -> None:
    """The same passes on the network alone."""
    graph: tuple[Tensor, Tensor] | None = None
    products = 0
    for each in passes:
        if each is None:
            if graph is None:
                raise RuntimeError("a vector-Jacobian product without a graph")
            fields, outputs = graph
            torch.autograd.grad(outputs[:, products % CLASSES].sum(), fields, retain_graph=True)
            products += 1
            continue
        samples, recorded = each
        # If a pass has more samples than the probe, as with many rays at once, repeat the probe.
        inputs = x[:samples] if samples <= len(x) else x.repeat(-(-samples // len(x)), 1)[:samples]
        with torch.set_grad_enabled(recorded):
            fields = network[0](inputs)
            outputs = network[1:](fields)
        if recorded:
            graph = fields, outputs


def synchronisations(network: nn.Module, x: Tensor, y: Tensor) -> int:
    """The number of times that an evaluation makes the host wait for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            diagnose(network, x, y, progress=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(entry.message) for entry in caught)


def measure(options: Options) -> list[Row]:
    """One row, and a second one on a GPU."""
    network, x, y = trained(options.pick(400, 50), options.device)
    if options.quick:
        x, y = x[:128], y[:128]
    passes = watched(network, x, y)
    forwards = [each for each in passes if each is not None]
    whole = sum(samples for samples, _ in forwards) / len(x)
    works = {
        "evaluation": lambda: diagnose(network, x, y, progress=False),
        "bare": lambda: bare(network, x, passes),
    }
    taken = alternate(works, options.pick(11, 2), Clock(options))
    note = (
        f"An evaluation makes {len(forwards)} forward passes, in which a sample of the probe passes through the "
        f"network {whole:.1f} times on average, and {len(passes) - len(forwards)} vector-Jacobian products."
    )
    rows = [
        row(
            f"a full evaluation, {len(x):,} samples",
            "its passes through the network alone",
            ratios(taken["evaluation"], taken["bare"]),
            Target(1.5, unit="× their time"),
            unit="× their time",
            threads=options.threads,
            note=note,
        )
    ]
    if options.device.startswith("cuda"):
        waits = [float(synchronisations(network, x, y)) for _ in range(options.pick(3, 1))]
        rows.append(row("synchronisations of a full evaluation", "–", waits, unit="", threads=options.threads))
    return rows


if __name__ == "__main__":
    pairs.main(measure, __doc__)
