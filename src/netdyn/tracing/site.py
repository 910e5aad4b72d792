"""A local field in a run, and what identifies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.autograd.graph import GradientEdge

from netdyn.tracing.sample_axis import SampleAxis

Key = tuple[Literal["call", "module", "output"], str, int]
"""Identifies a tensor of a run: its kind, a module's name, and how many of this kind and name came before it."""


@dataclass(frozen=True)
class Site:
    """A local field in a run.

    Attributes:
        name: The layer's name.
        key: Identifies it among all tensors of the run.
        axis: The axis of its samples.
        field: The local field; valid only during the call of ``on_site``.
        output: The activation's output, valid as long (the field itself if there is no activation).
        edge: Where to take the gradient with respect to the field, in a straight-through run; None where the network
            itself has turned gradients off.
        output_edge: The same for the output; other uses of the field, beside its activation, have no part in it.
        graph: The field at its place in the graph, in a straight-through run.
    """

    name: str
    key: Key
    axis: SampleAxis
    field: Tensor
    output: Tensor
    edge: GradientEdge | None = None
    output_edge: GradientEdge | None = None
    graph: Tensor | None = None
