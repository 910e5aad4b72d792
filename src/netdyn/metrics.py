"""netdyn's torchmetrics metrics: one address for the classes of the rooms beside this one."""

from netdyn.basin_metrics import SampleBasin, WeightBasin
from netdyn.mode_metrics import NeuronModes, RankDistribution
from netdyn.network_metrics import BatchNormGap

__all__ = ["BatchNormGap", "NeuronModes", "RankDistribution", "SampleBasin", "WeightBasin"]
