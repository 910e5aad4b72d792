"""The cost of a full evaluation at 10 and at 100 layers: time, and memory in addition to the network's own.

The networks are those of `benchmarks/depth.py`: fully connected with batch normalisation, 64 units per layer, 1,024
samples, and labels for which the network is right on every sample. The exponent p of seconds ∝ layersᵖ is fitted to 10,
20, 50 and 100 layers, once per turn. Memory is the largest number of bytes of tensors alive at one time during an
evaluation, counted as torch creates and frees them, in addition to what was there before (network, probe, labels).
Of each layer an evaluation keeps its weights' copy, its map, what its activation adds to the logits, and in the first
evaluation of a network a few numbers of each sample, by which two runs are compared.
"""

from __future__ import annotations

import weakref
from typing import Any

import pairs
import torch
from depth import exponent, mlp, settled
from pairs import Clock, Options, Row, Target, alternate, row
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from workload import generator

from netdyn import diagnose
from netdyn.engine.config import MEASURES

WIDTH = 64


class Peak(TorchDispatchMode):
    """The largest number of bytes alive at one time among the tensors that torch creates while this is active."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self.known: dict[int, Any] = {}

    def know(self, *tensors: Tensor) -> None:
        """Do not count these tensors, which existed before."""
        for tensor in tensors:
            self.known[id(tensor.untyped_storage())] = tensor.untyped_storage()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self.known:
                    self._born(storage)
        return result

    def _born(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        self.known[key] = weakref.ref(storage, lambda _: self._dead(key, size))
        self.alive += size
        self.most = max(self.most, self.alive)

    def _dead(self, key: int, size: int) -> None:
        del self.known[key]
        self.alive -= size


def peak(network: nn.Module, inputs: Tensor, target: Tensor, measures: list[str]) -> int:
    """Peak memory of an evaluation in bytes, in addition to what was there before."""
    meter = Peak()
    meter.know(inputs, target, *network.state_dict().values())
    with meter:
        diagnose(network, inputs, target, measure=measures, progress=False)
    return meter.most


def measure(options: Options) -> list[Row]:
    """One row for the time, and one for the memory of each kind of measure."""
    samples, width = options.pick(1024, 64), options.pick(WIDTH, 8)
    depths = (10, 20, 50, 100) if not options.quick else (2, 4)
    inputs = torch.randn(samples, width, generator=generator(1)).to(options.device)
    made = {}
    for depth in depths:
        torch.manual_seed(0)
        network = mlp(depth, width).to(options.device)
        made[depth] = network, settled(network, inputs)
    taken = alternate(
        {
            str(depth): lambda one=network, target=target: diagnose(one, inputs, target, progress=False)
            for depth, (network, target) in made.items()
        },
        options.pick(3, 1),
        Clock(options),
    )
    exponents = [exponent(depths, turn) for turn in zip(*taken.values(), strict=True)]
    rows = [
        row(
            f"a full evaluation, {depths[0]} to {depths[-1]} layers",
            "exponent p of seconds ∝ layersᵖ",
            exponents,
            Target(1.0, unit=""),
            unit="",
            threads=options.threads,
        )
    ]
    if options.threads > 1:
        return rows
    ends = depths[0], depths[-1]
    for said, measures in (("the modes", ["modes"]), ("a full evaluation", list(MEASURES))):
        few, many = (peak(made[depth][0], inputs, made[depth][1], measures) for depth in ends)
        own = [sum(t.numel() * t.element_size() for t in made[depth][0].state_dict().values()) for depth in ends]
        fields = (ends[1] - ends[0]) * samples * width * inputs.element_size()
        note = (
            f"Peak memory in addition to network and probe: {few / 1e6:.1f} MB at {ends[0]} layers and "
            f"{many / 1e6:.1f} MB at {ends[1]}. The networks take {own[0] / 1e6:.1f} and {own[1] / 1e6:.1f} MB; the "
            f"local fields of the {ends[1] - ends[0]} additional layers would be {fields / 1e6:.1f} MB."
        )
        rows.append(
            row(
                f"memory of {said} in addition to the network's own, {ends[1]} layers",
                f"{ends[0]} layers",
                [many / few],
                Target(1.5),
                note=note,
            )
        )
    return rows


if __name__ == "__main__":
    pairs.main(measure, __doc__)
