"""A local field as it passes, and what identifies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.autograd.graph import GradientEdge

from netdyn.tracing.sample_axis import SampleAxis

Key = tuple[Literal["call", "module", "output"], str, int]
"""A tensor of a run: what it is, a module's name, and how many of that kind and name came before it."""


@dataclass(frozen=True)
class Site:
    """A local field as it passes.

    Attributes:
        name: The layer's name.
        key: What tells it from all other tensors of the run.
        axis: Where in it the samples are.
        field: The local field; valid only while it is handed over.
        output: The activation's output, likewise (the field itself where there is no activation).
        edge: Where the gradient with respect to the field is to be taken, in a straight-through run; None where the
            network itself has turned gradients off.
        output_edge: The same for the output: without what reads the field beside its activation.
        graph: The field in its place of the graph, in a straight-through run.
    """

    name: str
    key: Key
    axis: SampleAxis
    field: Tensor
    output: Tensor
    edge: GradientEdge | None = None
    output_edge: GradientEdge | None = None
    graph: Tensor | None = None
