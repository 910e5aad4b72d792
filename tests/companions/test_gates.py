"""Entropy of gates, sample by sample."""

import math

import pytest
import torch
from torch import nn

from netdyn.companions.gates import entropy_of_gates
from netdyn.functional import gate_entropy, local_fields


def bits(column):
    """Entropy of one gate."""
    finite = [h for h in column if math.isfinite(h)]
    if not finite:
        return math.nan
    on = sum(h > 0 for h in finite) / len(finite)
    return -sum(q * math.log2(q) for q in (on, 1 - on) if q > 0)


def test_equals_a_count_of_samples():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, 2))
    inputs = torch.randn(11, 1, 6, 6)
    found, fields = gate_entropy(net, inputs), local_fields(net, inputs)
    assert list(found) == ["0", "3"]
    for name, entropy in found.items():
        assert entropy.tolist() == pytest.approx([bits(column) for column in fields[name].t().tolist()])


def test_a_decided_gate_has_none_and_zero_is_off():
    assert entropy_of_gates(torch.tensor([[0.0, -1.0, 5.0, 0.0], [0.0, -2.0, 6.0, 1.0]])).tolist() == [0, 0, 0, 1]


def test_samples_that_are_not_finite_are_left_out():
    nan, inf = math.nan, math.inf
    fields = torch.tensor([[1.0, nan, inf], [-1.0, nan, 1.0], [nan, nan, -1.0]])
    assert entropy_of_gates(fields).tolist() == pytest.approx([1.0, nan, 1.0], nan_ok=True)


def test_layers_are_chosen_by_name():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
    assert list(gate_entropy(net, torch.randn(4, 2), layers=["2"])) == ["2"]
