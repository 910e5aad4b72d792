"""Recurrent layers, run step by step: PyTorch runs them in one call, which hides their activations.

Layout inside: inputs and outputs ``[time, batch, features]``, states ``[batch, hidden]``. The local fields of a layer
run in one direction are, over all time steps ``[batch, time, width·hidden]``: for a plain recurrent layer the inputs of
its activation; for a GRU the pre-activations of r, z, n; for an LSTM those of its gates i, f, g, o, and as a second
local field the cell states, of which the output takes the tanh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from netdyn.tracing.activations import Carry

Phi = Callable[[Tensor], Tensor]
Activate = Callable[[int, int, slice, Tensor, Phi], Tensor]
"""``activate(slot, time, columns, field, phi)`` → output: an activation on some columns of a local field."""
State = tuple[Tensor, ...]

#: The functions behind PyTorch's recurrent modules, each with its kind.
LAYERS = {torch.lstm: "lstm", torch.gru: "gru", torch.rnn_tanh: "tanh", torch.rnn_relu: "relu"}
CELLS = {torch.lstm_cell: "lstm", torch.gru_cell: "gru", torch.rnn_tanh_cell: "tanh", torch.rnn_relu_cell: "relu"}
#: Widths of a kind's local fields, in hidden sizes.
SLOTS = {"lstm": (4, 1), "gru": (3,), "tanh": (1,), "relu": (1,)}


@dataclass(frozen=True)
class Weights:
    """The weights of one layer in one direction; None for those that it does not have."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    project: Tensor | None = None


@dataclass(frozen=True)
class Recurrent:
    """A call of a recurrent layer or cell, in a common form.

    Attributes:
        kind: Key of :data:`SLOTS`.
        x: Inputs ``[time, batch, features]``.
        states: Initial states of every layer and direction, in PyTorch's order.
        weights: Their weights, in the same order.
        directions: 1 or 2.
        batch_first: Whether the output has the batch before the time.
        cell: Whether this is a cell, a single step whose output is its state.
    """

    kind: str
    x: Tensor
    states: tuple[State, ...]
    weights: tuple[Weights, ...]
    directions: int = 1
    batch_first: bool = False
    cell: bool = False


def parse(function: Any, args: Sequence[Any]) -> Recurrent | None:
    """The call in the common form; None for packed sequences, which have no axis of samples."""
    kind = CELLS.get(function)
    if kind is not None:
        x, state, *flat = args
        state = tuple(state) if kind == "lstm" else (state,)
        return Recurrent(kind, x[None], (state,), (Weights(*flat),), cell=True)
    kind = LAYERS[function]
    if isinstance(args[1 if kind == "lstm" else 2], Tensor):
        return None
    x, state, flat, biases, layers, _, _, bidirectional, batch_first = args
    each = tuple(state) if kind == "lstm" else (state,)
    runs = layers * (2 if bidirectional else 1)
    size = len(flat) // runs
    groups = [list(flat[i * size : (i + 1) * size]) for i in range(runs)]
    weights = tuple(_weights(group, bool(biases)) for group in groups)
    states = tuple(tuple(part[i] for part in each) for i in range(runs))
    return Recurrent(kind, x.transpose(0, 1) if batch_first else x, states, weights, runs // layers, batch_first)


def hidden(kind: str, weights: Weights) -> int:
    """Hidden size (the size of the cell state, if the output is projected)."""
    return weights.hh.shape[0] // SLOTS[kind][0]


def _weights(group: list[Tensor], biases: bool) -> Weights:
    ih, hh, *rest = group
    bias_ih, bias_hh = (rest.pop(0), rest.pop(0)) if biases else (None, None)
    return Weights(ih, hh, bias_ih, bias_hh, rest[0] if rest else None)


Layer = Callable[[str, Tensor, State, Weights, bool], tuple[Tensor, State]]
"""``layer(kind, x, state, weights, reverse)`` → outputs and last state, as :func:`steps` gives them."""


def run(call: Recurrent, layer: Layer) -> Any:
    """Run all layers and directions in order; the result is that of PyTorch's function."""
    x, states = call.x, []
    parts: list[Tensor] = []
    for number, (state, weights) in enumerate(zip(call.states, call.weights, strict=True)):
        outputs, last = layer(call.kind, x, state, weights, number % call.directions == 1)
        parts.append(outputs)
        states.append(last)
        if len(parts) == call.directions:
            x, parts = torch.cat(parts, dim=2), []
    if call.cell:
        return states[0] if call.kind == "lstm" else states[0][0]
    final = tuple(torch.stack(each) for each in zip(*states, strict=True))
    return (x.transpose(0, 1) if call.batch_first else x, *final)


def steps(
    kind: str, x: Tensor, state: State, weights: Weights, reverse: bool, activate: Activate
) -> tuple[Tensor, State]:
    """Run one layer in one direction, step by step: outputs ``[time, batch, hidden]`` and the last state."""
    before = F.linear(x, weights.ih, weights.bias_ih)
    outputs: list[Tensor] = []
    times = range(len(x))
    for time in reversed(times) if reverse else times:
        after = F.linear(state[0], weights.hh, weights.bias_hh)
        state = _STEPS[kind](before[time], after, state, weights, time, activate)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state


class OverTime:
    """The local fields of one layer in one direction, gathered over its time steps.

    Args:
        kind: Key of :data:`SLOTS`.
        x: Inputs ``[time, batch, features]``.
        weights: The layer's weights.
        linear: Slots whose activation is left out.
        carries: Let gradients go straight through the activations.

    Attributes:
        fields: The field of each slot, ``[batch, time, width·hidden]``.
        outputs: The outputs of the activations, with the same shapes.
    """

    def __init__(self, kind: str, x: Tensor, weights: Weights, linear: set[int], carries: bool) -> None:
        shapes = [(x.shape[1], len(x), width * hidden(kind, weights)) for width in SLOTS[kind]]
        self.linear = linear
        self.fields, self.outputs = [x.new_empty(shape) for shape in shapes], [x.new_empty(shape) for shape in shapes]
        # Zeros that are added to the fields: their gradient is that of the fields, over all time steps together.
        self._shifts = [x.new_zeros(shape).requires_grad_() for shape in shapes] if carries else []
        #: Pieces ``[batch, columns]`` of each field, by time and first column.
        self._pieces: list[dict[tuple[int, int], Tensor]] = [{} for _ in shapes]

    def activate(self, slot: int, time: int, columns: slice, field: Tensor, phi: Phi) -> Tensor:
        """One activation on some columns of a local field, see :data:`Activate`."""
        if self._shifts:
            field = field + self._shifts[slot][:, time, columns]
            self._pieces[slot][time, columns.start] = field
        value = field if slot in self.linear else phi(field)
        if self._shifts:
            value = Carry.apply(field, value.detach())  # type: ignore[no-untyped-call]
        self.fields[slot][:, time, columns], self.outputs[slot][:, time, columns] = field.detach(), value.detach()
        return value

    def edge(self, slot: int) -> GradientEdge | None:
        """Where to take the gradient with respect to the field."""
        return get_gradient_edge(self._shifts[slot]) if self._shifts else None

    def graph(self, slot: int) -> Tensor | None:
        """The field, at its place in the graph."""
        if not self._shifts:
            return None
        pieces = self._pieces[slot]
        times = sorted({time for time, _ in pieces})
        rows = [torch.cat([pieces[key] for key in sorted(pieces) if key[0] == time], dim=1) for time in times]
        return torch.stack(rows, dim=1)


def _lstm(x: Tensor, h: Tensor, state: State, weights: Weights, time: int, activate: Activate) -> State:
    n = hidden("lstm", weights)
    gates = activate(0, time, slice(0, 4 * n), x + h, _lstm_gates)
    i, f, g, o = gates.chunk(4, dim=1)
    cell = f * state[1] + i * g
    output = o * activate(1, time, slice(0, n), cell, torch.tanh)
    return output if weights.project is None else F.linear(output, weights.project), cell


def _lstm_gates(field: Tensor) -> Tensor:
    i, f, g, o = field.chunk(4, dim=1)
    return torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], dim=1)


def _gru(x: Tensor, h: Tensor, state: State, weights: Weights, time: int, activate: Activate) -> State:
    n = hidden("gru", weights)
    r, z = activate(0, time, slice(0, 2 * n), (x + h)[:, : 2 * n], torch.sigmoid).chunk(2, dim=1)
    new = activate(0, time, slice(2 * n, 3 * n), x[:, 2 * n :] + r * h[:, 2 * n :], torch.tanh)
    return ((1 - z) * new + z * state[0],)


def _plain(phi: Phi) -> Callable[..., State]:
    def step(x: Tensor, h: Tensor, state: State, weights: Weights, time: int, activate: Activate) -> State:
        return (activate(0, time, slice(0, x.shape[1]), x + h, phi),)

    return step


_STEPS: dict[str, Callable[..., State]] = {
    "lstm": _lstm,
    "gru": _gru,
    "tanh": _plain(torch.tanh),
    "relu": _plain(torch.relu),
}
