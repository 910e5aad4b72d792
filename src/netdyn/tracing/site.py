"""A local field in a run, and what identifies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from netdyn.tracing.sample_axis import SampleAxis

Key = tuple[Literal["call", "module", "output", "gate"], str, int]
"""Identifies a tensor of a run: its kind, a module's name, and how many of this kind and name came before it."""
Axes = Mapping[Key, SampleAxis | None]
"""The axis of the samples in each tensor of a run; None for tensors without samples."""


class Unread:
    """Inputs of activations without a row for each sample, over several runs; those that never change do not count."""

    def __init__(self) -> None:
        self.keys: set[Key] = set()
        self._first: dict[Key, Tensor] = {}

    def add(self, key: Key, value: Tensor) -> None:
        """Take an input. One that no sample reaches, such as a weight, is the same in every run."""
        first = self._first.setdefault(key, value.detach().clone())
        if key not in self.keys and not (first.shape == value.shape and torch.equal(first, value)):
            self.keys.add(key)


@dataclass(frozen=True)
class Site:
    """A local field in a run. Its tensors are valid only during the call of ``on_site``."""

    name: str
    key: Key
    axis: SampleAxis
    field: Tensor
    output: Tensor  #: the activation's output; the field itself if there is no activation
    #: In a straight-through run, where to take the field's gradient; None if the network has turned gradients off.
    edge: GradientEdge | None = None
    #: The same for the output; other uses of the field, beside its activation, have no part in it.
    output_edge: GradientEdge | None = None
    graph: Tensor | None = None  #: the field at its place in the graph, in a straight-through run
    #: The output at its place in the graph; torch 2.6 crashes where an edge has outlived its custom function's output.
    carried: Tensor | None = None
