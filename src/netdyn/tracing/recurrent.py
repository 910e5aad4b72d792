"""Recurrent layers, run step by step: PyTorch runs them in one call, which hides their activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
#: Widths of a kind's local fields, in hidden sizes: an LSTM's gates i, f, g, o, and its cell states; a GRU's r, z, n.
SLOTS = {"lstm": (4, 1), "gru": (3,), "tanh": (1,), "relu": (1,)}


@dataclass(frozen=True)
class Weights:
    """The weights of one layer in one direction; None for those that it does not have."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    project: Tensor | None = None


def hidden(kind: str, weights: Weights) -> int:
    """Hidden size (the size of the cell state, if the output is projected)."""
    return weights.hh.shape[0] // SLOTS[kind][0]


Layer = Callable[[str, Tensor, State, Weights, bool], tuple[Tensor, State]]
"""``layer(kind, x, state, weights, reverse)`` → outputs and last state, see :func:`steps`."""


def run(function: Any, args: Sequence[Any], layer: Layer) -> Any:
    """Run all layers and directions in PyTorch's order; the result is that of PyTorch's function."""
    if function in CELLS:
        kind = CELLS[function]
        x, state, *flat = args
        _, last = layer(kind, x[None], tuple(state) if kind == "lstm" else (state,), Weights(*flat), False)
        return last if kind == "lstm" else last[0]
    kind = LAYERS[function]
    x, state, flat, biases, layers, _, _, bidirectional, batch_first = args
    initial = state if kind == "lstm" else (state,)
    directions = 2 if bidirectional else 1
    size = len(flat) // (layers * directions)
    x = x.transpose(0, 1) if batch_first else x
    states, parts = [], []
    for number in range(layers * directions):
        own = list(flat[number * size : (number + 1) * size])
        if not biases:
            own[2:2] = [None, None]
        first = tuple(part[number] for part in initial)
        outputs, last = layer(kind, x, first, Weights(*own), number % directions == 1)
        parts.append(outputs)
        states.append(last)
        if len(parts) == directions:
            x, parts = torch.cat(parts, dim=2), []
    final = tuple(torch.stack(each) for each in zip(*states, strict=True))
    return (x.transpose(0, 1) if batch_first else x, *final)


def steps(
    kind: str, x: Tensor, state: State, weights: Weights, reverse: bool, activate: Activate
) -> tuple[Tensor, State]:
    """Run one layer in one direction: outputs ``[time, batch, features]``, like ``x``, and the last state."""
    before = F.linear(x, weights.ih, weights.bias_ih)
    outputs: list[Tensor] = []
    times = range(len(x))
    for time in reversed(times) if reverse else times:
        after = F.linear(state[0], weights.hh, weights.bias_hh)
        state = _STEPS[kind](before[time], after, state, weights, time, activate)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state


class OverTime:
    """The local fields of one layer in one direction, and the activations' outputs, ``[batch, time, width·hidden]``.

    Slots in ``linear`` have no activation. With ``carries`` gradients go straight through the activations.
    """

    def __init__(self, kind: str, x: Tensor, weights: Weights, linear: set[int], carries: bool) -> None:
        shapes = [(x.shape[1], len(x), width * hidden(kind, weights)) for width in SLOTS[kind]]
        self.linear = linear
        self.fields, self.outputs = ([x.new_empty(shape) for shape in shapes] for _ in range(2))
        # Zeros that are added to the fields: their gradient is that of the fields, over all time steps together.
        self._shifts = [x.new_zeros(shape).requires_grad_() for shape in shapes] if carries else []
        #: Parts ``[batch, columns]`` of each field, by time, in the order of their columns.
        self._pieces: list[dict[int, list[Tensor]]] = [{} for _ in shapes]

    def activate(self, slot: int, time: int, columns: slice, field: Tensor, phi: Phi) -> Tensor:
        """One activation on some columns of a local field, see :data:`Activate`."""
        if self._shifts:
            field = field + self._shifts[slot][:, time, columns]
            self._pieces[slot].setdefault(time, []).append(field)
        value = field if slot in self.linear else phi(field)
        if self._shifts:
            value = Carry.apply(field, value.detach())  # type: ignore[no-untyped-call]
        self.fields[slot][:, time, columns], self.outputs[slot][:, time, columns] = field.detach(), value.detach()
        return value

    def graph(self, slot: int) -> tuple[GradientEdge | None, Tensor | None]:
        """Where to take the gradient with respect to the field, and the field at its place in the graph."""
        if not self._shifts:
            return None, None
        field = torch.stack([torch.cat(pieces, dim=1) for _, pieces in sorted(self._pieces[slot].items())], dim=1)
        return get_gradient_edge(self._shifts[slot]), field


def _lstm(x: Tensor, h: Tensor, state: State, weights: Weights, time: int, activate: Activate) -> State:
    n = hidden("lstm", weights)
    i, f, g, o = activate(0, time, slice(0, 4 * n), x + h, _lstm_gates).chunk(4, dim=1)
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


def _plain(phi: Phi, x: Tensor, h: Tensor, state: State, weights: Weights, time: int, activate: Activate) -> State:
    return (activate(0, time, slice(0, x.shape[1]), x + h, phi),)


_STEPS: dict[str, Callable[..., State]] = {
    "lstm": _lstm,
    "gru": _gru,
    "tanh": partial(_plain, torch.tanh),
    "relu": partial(_plain, torch.relu),
}
