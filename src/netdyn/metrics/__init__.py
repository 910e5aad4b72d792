"""netdyn's torchmetrics metrics."""

from netdyn.metrics.basins import SampleBasin, WeightBasin
from netdyn.metrics.modes import NeuronModes, RankDistribution
from netdyn.metrics.network import BatchNormGap, LinearTail, NetworkModes

__all__ = [
    "BatchNormGap",
    "LinearTail",
    "NetworkModes",
    "NeuronModes",
    "RankDistribution",
    "SampleBasin",
    "WeightBasin",
]
