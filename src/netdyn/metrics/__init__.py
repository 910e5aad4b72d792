"""netdyn's torchmetrics metrics."""

from netdyn.metrics.basins import SampleBasin, WeightBasin
from netdyn.metrics.modes import NeuronModes, RankDistribution
from netdyn.metrics.network import BatchNormGap, LinearTail

__all__ = ["BatchNormGap", "LinearTail", "NeuronModes", "RankDistribution", "SampleBasin", "WeightBasin"]
