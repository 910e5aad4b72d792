"""netdyn's public functions: they take tensors or a model and return tensors, and use no global state.

Functions that take a model run it in eval mode and leave it as they found it, also if they raise: training flags,
buffers, attributes and random generators.
"""

from __future__ import annotations

from netdyn.basins.coverage import Covered, coverage
from netdyn.basins.result import BasinResult
from netdyn.basins.sample_basin import sample_basin
from netdyn.basins.weight_basin import weight_basin
from netdyn.companions.bn_drift import bn_drift
from netdyn.companions.dimension import effective_dimension, effective_rank
from netdyn.companions.gates import gate_entropy
from netdyn.companions.graph_persistence import deep_graph_persistence
from netdyn.companions.localisation import localisation
from netdyn.companions.persistence import neural_persistence, weight_variance
from netdyn.companions.strength import layer_fluctuation, node_strength
from netdyn.linear.characteristic import characteristic_maps, subnetwork
from netdyn.linear.substitution import LinearMap, linear_substitution_map
from netdyn.linear.tails import functional_depth, linear_share, linear_tail
from netdyn.modes.order import order_alignment, order_index, rpd_gradient
from netdyn.modes.permutation import OrderTest, order_test
from netdyn.modes.phases import Phase, phase
from netdyn.modes.ranks import class_tuning, midranks, rank_correlation, rank_distribution
from netdyn.modes.transfer import transfer_order
from netdyn.probes.batchnorm import batchnorm_gap
from netdyn.tracing.activations import register_activation
from netdyn.tracing.fields import local_fields

__all__ = [
    "BasinResult",
    "Covered",
    "LinearMap",
    "OrderTest",
    "Phase",
    "batchnorm_gap",
    "bn_drift",
    "characteristic_maps",
    "class_tuning",
    "coverage",
    "deep_graph_persistence",
    "effective_dimension",
    "effective_rank",
    "functional_depth",
    "gate_entropy",
    "layer_fluctuation",
    "linear_share",
    "linear_substitution_map",
    "linear_tail",
    "local_fields",
    "localisation",
    "midranks",
    "neural_persistence",
    "node_strength",
    "order_alignment",
    "order_index",
    "order_test",
    "phase",
    "rank_correlation",
    "rank_distribution",
    "register_activation",
    "rpd_gradient",
    "sample_basin",
    "subnetwork",
    "transfer_order",
    "weight_basin",
    "weight_variance",
]
