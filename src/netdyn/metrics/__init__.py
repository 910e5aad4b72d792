"""netdyn's torchmetrics metrics: one address for the classes of the rooms beside this one."""

from netdyn.metrics.basins import SampleBasin, WeightBasin
from netdyn.metrics.modes import NeuronModes, RankDistribution
from netdyn.metrics.network import BatchNormGap, LinearTail

__all__ = ["BatchNormGap", "LinearTail", "NeuronModes", "RankDistribution", "SampleBasin", "WeightBasin"]
