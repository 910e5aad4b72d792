"""Entropy of gates: how undecided a unit is over the samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netdyn._utils.trees import Inputs
from netdyn.modes.ranks import statistic_dtype
from netdyn.tracing.fields import local_fields


def gate_entropy(model: nn.Module, inputs: Inputs, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Entropy of each unit's gate: −q·log₂ q − (1 − q)·log₂(1 − q), q the share of samples on which it is on.

    A unit is on where its local field is above 0: there a ReLU passes it on. A unit that is always on, or always off,
    does nothing that a linear one would not do; its entropy is 0.

    Args:
        model: Any eager PyTorch module; called with the inputs as its ``forward`` takes them.
        inputs: A tensor, or a sequence or mapping of tensors, samples first.
        layers: Names or globs of layers, as in :func:`netdyn.functional.local_fields`.

    Returns:
        Layer name → float64 ``[units]`` in bits, 0 to 1. Samples whose field is not finite are left out; a unit without
        any other is NaN.

    Raises:
        TypeError: As :func:`netdyn.functional.local_fields`.
        ValueError: As :func:`netdyn.functional.local_fields`.

    Source:
        Janik and Witaszczyk, *Complexity for deep neural networks*, arXiv:2006.04791: the mean over a layer is its
        nonlinearity.

    Examples:
        >>> net = nn.Sequential(nn.Identity(), nn.ReLU())
        >>> gate_entropy(net, torch.tensor([[1.0, 1.0], [2.0, -1.0]]), layers=["0"])["0"].tolist()
        [0.0, 1.0]
    """
    return {name: entropy_of_gates(fields) for name, fields in local_fields(model, inputs, layers).items()}


def entropy_of_gates(fields: Tensor) -> Tensor:
    """Entropy in bits of each unit's gate, from local fields ``[samples, units]``."""
    finite = fields.isfinite()
    known = finite.sum(dim=0)
    share = ((fields > 0) & finite).sum(dim=0).to(statistic_dtype(fields.device)) / known
    # x·ln x is 0 at 0, without a case of its own.
    bits: Tensor = -(torch.special.xlogy(share, share) + torch.special.xlogy(1 - share, 1 - share)) / math.log(2)
    return bits + 0.0  # no −0
