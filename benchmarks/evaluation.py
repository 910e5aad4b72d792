"""One evaluation in a run, against its passes through the network alone.

The evaluation is the second one of a `Monitor` at its defaults without figures, with 1,024 training and 1,024
validation samples, of three networks of `benchmarks/sizes.py`. A hook on the network notes for each forward pass how
many samples it has and whether it records a graph. Every call of `torch.autograd.grad` is noted as one vector-Jacobian
product. The bare run repeats these calls on the network alone: the forward passes on as many samples, and for every
product the gradient of one logit with respect to the first local field, on the graph of the last pass that recorded
one. The difference is the cost of everything else that an evaluation does: draw noise, add it, rank, count, correct.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import count
from unittest.mock import patch

import pairs
import torch
from pairs import Clock, Options, Row, Target, alternate, ratios, row
from sizes import CLASSES, SIZES, learnt
from torch import Tensor, nn

from netdyn import Monitor

#: Samples of a forward pass and whether it records a graph; None: one vector-Jacobian product.
Pass = tuple[int, bool] | None
#: The recorded passes. They are a global because an evaluation restores everything that it can reach from the network,
#: including lists that belong to hooks.
MADE: list[Pass] = []
#: Network of `sizes.py` → the module that puts out its first local field.
FIRST = {
    "MLP 784-256-256-10": "1",
    "CNN 3-16-32-64, 32 × 32 pixels": "1",
    "transformer, 64 wide, 2 layers, 64 steps": "encoder.layers.0.linear1",
}


def watched(network: nn.Module, work: Callable[[], object]) -> list[Pass]:
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
            work()
    finally:
        hook.remove()
    return list(MADE)


def bare(network: nn.Module, first: nn.Module, x: Tensor, passes: list[Pass]) -> None:
    """The same passes on the network alone; ``first`` puts out the first local field."""
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
        inputs = x[:samples] if samples <= len(x) else x.repeat(-(-samples // len(x)), *(1,) * (x.ndim - 1))[:samples]
        if not recorded:
            with torch.no_grad():
                network(inputs)
            continue
        seen: list[Tensor] = []
        hook = first.register_forward_hook(lambda _, args, output, seen=seen: seen.append(output))
        outputs = network(inputs)
        hook.remove()
        graph = seen[0], outputs


def synchronisations(work: Callable[[], object]) -> int:
    """The number of times that an evaluation makes the host wait for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(entry.message) for entry in caught)


def measured(name: str, options: Options) -> list[Row]:
    """The row of one network, and another one on a GPU."""
    samples = options.pick(1024, 64)
    network, x, y, _ = learnt(SIZES[name], 2 * samples)
    network, x, y = network.to(options.device), x.to(options.device), y.to(options.device)
    monitor = Monitor((x[:samples], y[:samples]), (x[samples:], y[samples:]), figures="never")
    steps = count()

    def evaluation() -> None:
        monitor.measure(network, next(steps))

    evaluation()
    passes = watched(network, evaluation)
    forwards = [each for each in passes if each is not None]
    whole = sum(size for size, _ in forwards) / samples
    first = network.get_submodule(FIRST[name])
    works = {"evaluation": evaluation, "bare": lambda: bare(network, first, x[:samples], passes)}
    taken = alternate(works, options.pick(5, 2), Clock(options))
    note = (
        f"{name}: an evaluation makes {len(forwards)} forward passes, in which a sample passes through the network "
        f"{whole:.1f} times on average, and {len(passes) - len(forwards)} vector-Jacobian products."
    )
    rows = [
        row(
            f"an evaluation in a run, {samples:,} samples, {name}",
            "its passes through the network alone",
            ratios(taken["evaluation"], taken["bare"]),
            Target(1.4, unit="× their time"),
            unit="× their time",
            threads=options.threads,
            note=note,
        )
    ]
    if options.device.startswith("cuda"):
        waits = [float(synchronisations(evaluation)) for _ in range(options.pick(3, 1))]
        rows.append(row(f"synchronisations of an evaluation, {name}", "–", waits, unit="", threads=options.threads))
    return rows


def measure(options: Options) -> list[Row]:
    """The rows of all networks."""
    return [found for name in FIRST for found in measured(name, options)]


if __name__ == "__main__":
    pairs.main(measure, __doc__)
