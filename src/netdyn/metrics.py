"""netdyn's torchmetrics metrics: one address for the classes of the rooms beside this one."""

from netdyn.basin_metrics import SampleBasin, WeightBasin
from netdyn.mode_metrics import NeuronModes, RankDistribution
from netdyn.network_metrics import BatchNormGap, LinearTail

__all__ = ["BatchNormGap", "LinearTail", "NeuronModes", "RankDistribution", "SampleBasin", "WeightBasin"]
