"""The job of two processes that share the metrics' data, without Lightning: what every metric computes of all of it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from integration.scenarios.base import CLASSES, network, points
from netdyn import NetworkModes, NeuronModes, RankDistribution, SampleBasin, WeightBasin, diagnose
from netdyn.functional import linear_substitution_map, local_fields

#: Which of the 60 samples each process sees.
SPLITS = {"even": [(0, 30), (30, 60)], "uneven": [(0, 7), (7, 60)], "all on one": [(0, 60), (60, 60)]}


def share(split: str) -> dict[str, object]:
    """What this process of two computes, which has seen its part of the samples."""
    return computed(SPLITS[split][dist.get_rank()])


def computed(part: tuple[int, int]) -> dict[str, object]:
    """Every metric's value, of which this process has seen a part of the samples."""
    torch.manual_seed(0)
    net = network(width=30).eval()
    x, _ = points(60)
    with torch.no_grad():
        y = net(x).argmax(1)  # what the network says is right, so that it has basins
    field, pathway = local_fields(net, x)["1"], linear_substitution_map(net, x)["1"]
    own = slice(*part)
    values: dict[str, object] = {}
    for name, metric in {
        "modes": NeuronModes(CLASSES),
        "bounded modes": NeuronModes(CLASSES, max_samples=40),
        "distribution": RankDistribution(CLASSES, bins=10),
    }.items():
        if part[0] < part[1]:
            metric.update(field[own], y[own], pathway)
        value = metric.compute()
        values[name] = (
            {k: repr(float(v)) for k, v in value.items()} if isinstance(value, dict) else repr(value.tolist())
        )
    for name, basin in {
        "sample basin": SampleBasin(rays=2, per_class=True),
        "weight basin": WeightBasin(rays=3, samples=20, per_class=True),
    }.items():
        if part[0] < part[1]:
            basin.update(net, x[own], y[own])
        values[name] = repr(float(basin.compute()))
        values[f"{name} by class"] = repr(basin.result().per_class.tolist())
    modes = NetworkModes()
    if part[0] < part[1]:
        modes.update(net, x[own], y[own])
    values["network modes"] = {tag: repr(float(value)) for tag, value in modes.compute().items()}
    return values


def wrapped() -> dict[str, object]:
    """What two metrics make of a network that is wrapped for training, and the first process alone with `diagnose`."""
    torch.manual_seed(0)
    inside = network(width=30).train()
    net = DistributedDataParallel(inside)
    x, y = points(61)
    own = slice(dist.get_rank(), None, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[own]), y[own]).backward()
        optimizer.step()
    found: dict[str, object] = {}
    for metric in (SampleBasin(), WeightBasin(rays=2)):
        metric.update(net, x[own], y[own])
        found[type(metric).__name__] = repr(float(metric.compute()))
    if dist.get_rank() == 0:
        # The other process makes no pass meanwhile.
        whole, plain = (diagnose(each, x, y, progress=False).scalars() for each in (net, inside))
        found["alone"] = repr(whole) == repr(plain)
    assert all(module.training for module in net.modules())
    nn.functional.cross_entropy(net(x[own]), y[own]).backward()
    return found
