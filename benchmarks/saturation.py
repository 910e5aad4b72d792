"""Statistics of layers during training, against delve's saturation.

The network 784-256-256-10 trains in a plain loop with batches of 128. Both tools look at the same two layers, the
inputs of the ReLUs, and at 128 samples at a time. netdyn measures the modes (`diagnose(measure=["modes"])`) of a fixed
probe of that size. delve's `SaturationTracker` adds the batch's covariance to its running covariance in a forward hook,
every `log_interval` steps, and `add_saturations` computes the eigenvalues. Neither writes a file. The table compares
the time that a loop takes in addition to the bare loop in the same turn. There are four rows: statistics every 100
steps, with delve at `log_interval=100`; the same with delve at `log_interval=1`, its default, which uses every batch;
statistics at every step on both sides; and statistics every 100 steps with netdyn's usual probe of 1,024 samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import pairs
import torch
from pairs import Clock, Options, Row, Target, alternate, ratios, row
from peers import failed, inside, version
from torch import nn
from workload import PROBE, data, mlp

from netdyn import diagnose

BATCH = 128
LAYERS = ["0", "2"]
WHAT, AGAINST = "statistics of two layers", "`delve.SaturationTracker`"
Statistics = Callable[[nn.Module, int], None]


def loop(steps: int, images: torch.Tensor, labels: torch.Tensor, prepare: Callable[[nn.Module], Statistics]) -> None:
    """Train a new network; `prepare` returns what is to happen after each step."""
    network = mlp().to(images.device)
    after = prepare(network)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(1, steps + 1):
        batch = torch.arange(BATCH * step, BATCH * step + BATCH) % len(images)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimiser.step()
        after(network, step)


def nothing(_: nn.Module) -> Statistics:
    """The bare loop."""
    return lambda network, step: None


def netdyns(every: int, images: torch.Tensor, labels: torch.Tensor) -> Callable[[nn.Module], Statistics]:
    """The modes of a probe."""

    def after(network: nn.Module, step: int) -> None:
        if step % every == 0:
            diagnose(network, images, labels, measure=["modes"], layers=LAYERS, progress=False)

    return lambda _: after


def delves(every: int, interval: int, folder: str, device: str) -> Callable[[nn.Module], Statistics]:
    """Saturation."""
    import delve

    def prepare(network: nn.Module) -> Statistics:
        tracker: Any = delve.SaturationTracker(
            folder,
            save_to="csv",
            modules=network,
            layer_filter=lambda layers: {name: layer for name, layer in layers.items() if name in LAYERS},
            log_interval=interval,
            stats=["lsat"],
            device=device,
        )
        return lambda _, step: tracker.add_saturations(save=False) if step % every == 0 else None

    return prepare


def measure(options: Options) -> list[Row]:
    """Four rows."""
    if (missing := inside("delve", WHAT, AGAINST)) is not None:
        return missing
    try:
        import delve

        delve.logger.log.setLevel("ERROR")
        return compare(options)
    except Exception as error:
        return failed("delve", WHAT, AGAINST, error)


def compare(options: Options) -> list[Row]:
    """The rows, inside delve's environment."""
    images, labels = (part.to(options.device) for part in data(128 * 300))
    small, large = (images[:BATCH], labels[:BATCH]), (images[:PROBE], labels[:PROBE])
    rows = []
    for every, interval, probe, steps in (
        (100, 100, small, options.pick(200, 100)),
        (100, 1, small, options.pick(200, 100)),
        (1, 1, small, options.pick(20, 2)),
        (100, 100, large, options.pick(200, 100)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            kinds = {
                "bare": nothing,
                "netdyn": netdyns(every, *probe),
                "delve": delves(every, interval, folder, options.device),
            }
            taken = alternate(
                {name: partial(loop, steps, images, labels, kind) for name, kind in kinds.items()},
                options.pick(5 if options.threads == 1 else 3, 1),
                Clock(options),
            )
        extra = {name: [a - b for a, b in zip(taken[name], taken["bare"], strict=True)] for name in ("netdyn", "delve")}
        said = "every step" if every == 1 else f"every {every} steps"
        rows.append(
            row(
                f"{WHAT} {said}, {len(probe[1]):,} samples",
                f"{AGAINST}, `log_interval={interval}` ({version('delve')})",
                ratios(extra["netdyn"], extra["delve"]),
                Target(1, unit="× its time", said="cheaper") if probe is small else None,
                unit="× its time",
                threads=options.threads,
            )
        )
    return rows


if __name__ == "__main__":
    pairs.main(measure, __doc__)
