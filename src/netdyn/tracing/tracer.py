"""Run a network once and see its activations, whoever calls them.

The network runs as it is; a :class:`~torch.overrides.TorchFunctionMode` sees every call of an activation function,
made as a module, a function or a method. The call's input is a layer's local field. Module hooks, present only during
the run, say which module's output it is, and so name it. Recurrent layers, which PyTorch runs in one call, are run step
by step.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from netdyn._utils.doubts import Doubts, Question
from netdyn._utils.trees import Inputs, map_tensors
from netdyn.tracing import recurrent
from netdyn.tracing.activations import (
    GATED,
    LOOKUPS,
    MAX_POOLS,
    REGISTERED,
    SQUASHES,
    Carry,
    is_activation,
    overwrites,
    own_functions,
    shared_pool,
    straight_through,
)
from netdyn.tracing.names import Makers, is_quantised, numbered
from netdyn.tracing.sample_axis import Layout

#: Methods that may copy a tensor into another type or place. Others that copy are known by their values alone.
COPIES = {
    getattr(Tensor, name) for name in ("to", "type", "float", "double", "half", "bfloat16", "clone", "contiguous")
}

Key = tuple[Literal["call", "module", "output"], str, int]
"""A tensor of a run: what it is, a module's name, and how many of that kind and name came before it."""


@dataclass(frozen=True)
class Site:
    """A local field as it passes.

    Attributes:
        name: The layer's name.
        key: What tells it from all other tensors of the run.
        layout: Where in it the samples are.
        field: The local field; valid only while it is handed over.
        output: The activation's output, likewise (the field itself where there is no activation).
        edge: Where the gradient with respect to the field is to be taken, in a straight-through run; None where the
            network itself has turned gradients off.
        output_edge: The same for the output: without what reads the field beside its activation.
        graph: The field in its place of the graph, in a straight-through run.
    """

    name: str
    key: Key
    layout: Layout
    field: Tensor
    output: Tensor
    edge: GradientEdge | None = None
    output_edge: GradientEdge | None = None
    graph: Tensor | None = None


@dataclass(frozen=True)
class _Candidate:
    """A running module that may turn out to be one activation.

    Attributes:
        module: The module.
        site: Its site, but for the output.
        argument: What it was called with, and might overwrite.
        copied: A copy of that, in a straight-through run at the same place of the graph.
        first: Where the sites inside it begin.
    """

    module: nn.Module
    site: Site
    argument: Tensor
    copied: Tensor
    first: int


@dataclass(frozen=True)
class _Squashed:
    """What may turn out to be the model's output.

    Attributes:
        value: A sigmoid's or softmax's output, or a copy of it.
        logits: What it was made of.
        origin: The output itself.
        version: Of a copy that of its content: written over it is none any more.
    """

    value: Tensor
    logits: Tensor
    origin: Tensor
    version: int | None = None

    def is_output(self, output: Any) -> bool:
        """Whether the model's output is this."""
        written_over = self.version is not None and self.version != self.value._version
        return not written_over and _is_all_of(output, self.value)


class Watch(TorchFunctionMode):
    """Sees the activations of one run and hands each local field to ``on_site``.

    A sigmoid may turn out to be the model's output, and an activation inside a parameter-free module a part of that
    module's own activation. Such sites are held until that is known.

    Args:
        model: The network.
        samples: Number of samples in the batch.
        on_site: Called with each local field.
        straight: Let the backward pass of an activation be the identity, and that of max-pooling an average's.
        promoted: Names of modules whose outputs count as local fields.
        layouts: Where the samples are in the tensors of a run, None for tensors that have none. A tensor that it does
            not know is a local field if samples come first. None: take everything for a local field, and write down
            what was seen.
        linear: Local fields whose activation is left out: the output is the field.
        doubts: Asked whether a module of somebody's own acts element by element.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: int,
        on_site: Callable[[Site], None],
        *,
        straight: bool = False,
        promoted: Iterable[str] = (),
        layouts: Mapping[Key, Layout | None] | None,
        linear: Iterable[Key] = (),
        doubts: Doubts | None = None,
    ) -> None:
        super().__init__()
        self.makers = Makers(model)
        self.samples, self.on_site, self.straight = samples, on_site, straight
        self.promoted, self.layouts, self.linear = frozenset(promoted), layouts, frozenset(linear)
        self.doubts = Doubts(None) if doubts is None else doubts
        self.calls: Counter[tuple[str, str]] = Counter()
        self.runs: Counter[str] = Counter()
        self.seen: dict[Key, Tensor] = {}
        #: Modules that were taken for activations, but do not act element by element.
        self.refused: set[Key] = set()
        self.held: list[Site] = []
        self.candidates: list[_Candidate] = []
        self.squashed: list[_Squashed] = []
        self.latest: weakref.ref[Tensor] | None = None
        #: Names of the modules whose samples have left their places (packed sequences).
        self.packed: list[str] = []
        #: How many local fields had passed when the last max-pooling ran.
        self.pooled = 0
        self._paused = False

    # --- what is seen ---

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        subject = args[0] if args else kwargs.get("input")
        if not isinstance(subject, Tensor):
            return func(*args, **kwargs)
        if is_activation(func):
            return self._activation(func, subject, args, kwargs)
        if func in GATED and not isinstance(subject, nn.Parameter):
            return self._gate(subject, *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
        if (func in recurrent.LAYERS or func in recurrent.CELLS) and not kwargs:
            return self._recurrent(func, args)
        if func in MAX_POOLS:
            self.pooled = sum(self.runs.values()) + len(self.held)
            return shared_pool(func, args, kwargs) if self._carries else func(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in SQUASHES and isinstance(result, Tensor):
            self._squash(result, subject)
        if func in COPIES and isinstance(result, Tensor):
            self._copied(result, subject)
        if func in LOOKUPS and self._carries and isinstance(result, Tensor) and not result.requires_grad:
            # A copy, since a leaf must not be written over.
            result = result.detach().requires_grad_().clone()
        return result

    @property
    def _carries(self) -> bool:
        """Whether gradients go straight through activations here."""
        return self.straight and torch.is_grad_enabled()

    def _key(self, kind: Literal["call", "module", "output"], name: str) -> Key:
        again = self.calls[kind, name]
        self.calls[kind, name] = again + 1
        return kind, name, again

    def _layout(self, key: Key, value: Tensor) -> Layout | None:
        """Where the samples are in a tensor; None if it is no local field."""
        if isinstance(value, nn.Parameter) or not value.is_floating_point() or value.ndim < 1:
            return None
        if self.layouts is None:
            self.seen[key] = value.detach().clone()
            return Layout()
        if key in self.layouts:
            return self.layouts[key]
        return Layout() if len(value) == self.samples else None

    # --- one activation ---

    def _activation(self, func: Any, subject: Tensor, args: Any, kwargs: Any, name: str | None = None) -> Tensor:
        name = name or self.makers.of(subject)
        key = self._key("call", name)
        layout = self._layout(key, subject)
        if layout is None:
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        if key in self.linear:
            # Another tensor, or a newer version of this one, as the activation would have left it: names depend on it.
            return subject.mul_(1) if overwrites(func, args, kwargs) else subject.view_as(subject)
        edge = output_edge = None
        if self._carries:
            copied, edge = _with_edge(subject, overwritten=overwrites(func, args, kwargs))
            output, carried = straight_through(func, subject, copied, args, kwargs)
            output_edge = get_gradient_edge(carried)
        else:
            copied = subject.clone() if overwrites(func, args, kwargs) else subject
            output = func(*args, **kwargs)
        self.latest = weakref.ref(output)
        if func in SQUASHES:
            self._squash(output, copied)
        graph = copied if self._carries else None
        site = Site(name, key, layout, copied.detach(), output.detach(), edge, output_edge, graph)
        self._hold(site, may_be_output=func in SQUASHES)
        return output

    def _gate(self, subject: Tensor, dim: int = -1) -> Tensor:
        """GLU: a·σ(b), whose local field is b."""
        value, gate = subject.chunk(2, dim=dim)
        return value * self._activation(torch.sigmoid, gate, (gate,), {}, name=self.makers.of(subject))

    def _recurrent(self, func: Any, args: Any) -> Any:
        call = recurrent.parse(func, args)
        if call is None:
            self.packed.append(self.makers.innermost)
            # cuDNN has no backward pass for a recurrent network in eval mode.
            with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not self._carries):
                return func(*args)
        return recurrent.run(call, self._recurrent_layer)

    def _recurrent_layer(
        self, kind: str, x: Tensor, state: recurrent.State, weights: recurrent.Weights, reverse: bool
    ) -> tuple[Tensor, recurrent.State]:
        """One layer in one direction; its local fields are gathered over time."""
        name, size = self.makers.innermost, recurrent.hidden(kind, weights)
        shapes = [(x.shape[1], len(x), width * size) for width in recurrent.SLOTS[kind]]
        keys = [self._key("call", name) for _ in shapes]
        fields, outputs = [x.new_empty(shape) for shape in shapes], [x.new_empty(shape) for shape in shapes]
        # Zeros added to the fields: their gradient is that of the fields, of all time steps together.
        shifts = [x.new_zeros(shape).requires_grad_() for shape in shapes] if self._carries else []
        pieces: list[dict[tuple[int, int], Tensor]] = [{} for _ in shapes]

        def activate(slot: int, time: int, columns: slice, field: Tensor, phi: recurrent.Phi) -> Tensor:
            if shifts:
                field = field + shifts[slot][:, time, columns]
                pieces[slot][time, columns.start] = field
            value = field if keys[slot] in self.linear else phi(field)
            if shifts:
                value = Carry.apply(field, value.detach())  # type: ignore[no-untyped-call]
            fields[slot][:, time, columns], outputs[slot][:, time, columns] = field.detach(), value.detach()
            return value

        result = recurrent.steps(kind, x, state, weights, reverse, activate)
        for slot, key in enumerate(keys):
            layout = self._layout(key, fields[slot])
            if layout is not None and key not in self.linear:
                edge = get_gradient_edge(shifts[slot]) if shifts else None
                graph = _joined(pieces[slot]) if shifts else None
                self._hold(Site(name, key, layout, fields[slot], outputs[slot], edge, edge, graph))
        return result

    def own_function(self, subject: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """A registered autograd function, seen from within its forward: no copy of its input can be put in its way."""
        name = self.makers.of(subject)
        key = self._key("call", name)
        layout = self._layout(key, subject)
        if layout is not None and key in self.linear:
            return subject.clone()
        field = subject.detach().clone()
        self._paused = True
        try:
            output = compute()
        finally:
            self._paused = False
        if layout is not None:
            edge = get_gradient_edge(subject) if self.straight and subject.requires_grad else None
            self._hold(Site(name, key, layout, field, output.detach(), edge, edge, subject))
        return output

    # --- modules ---

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook."""
        name = self.makers.enter(module)
        registered = isinstance(module, tuple(REGISTERED.modules))
        if not args or not isinstance(args[0], Tensor) or not (registered or (len(args) == 1 and _may_be(module))):
            return
        argument = args[0]
        key = self._key("module", name)
        if (layout := self._layout(key, argument)) is None:
            return
        copied, edge = _with_edge(argument) if self._carries else (argument.clone(), None)
        graph = copied if self._carries else None
        site = Site(self.makers.of(argument), key, layout, copied.detach(), copied.detach(), edge, graph=graph)
        self.candidates.append(_Candidate(module, site, argument, copied, len(self.held)))

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook."""
        name = self.makers.leave()
        if self.candidates and self.candidates[-1].module is module:
            candidate = self.candidates.pop()
            # There is no output where the module has raised.
            output = output if output is None else self._leave_candidate(candidate, output)
        if self._carries and is_quantised(module) and isinstance(output, Tensor):
            output = output.detach()  # what it would let through is no gradient
        output = self._begun(output, args)
        parts = list(output) if isinstance(output, tuple | list) else [output]
        first = next((i for i, part in enumerate(parts) if isinstance(part, Tensor)), None)
        if first is not None and (self.layouts is None or name in self.promoted):
            key = self._key("output", name)
            layout = self._layout(key, parts[first])
            if layout is not None and name in self.promoted:
                edge = None
                if self._carries:
                    parts[first], edge = _with_edge(parts[first])
                    output = parts[first] if isinstance(output, Tensor) else _like(output, parts)
                value = parts[first].detach()
                self._hold(Site(name, key, layout, value, value, edge, edge, parts[first]))
        self.makers.returned(name, parts)
        return output

    def _begun(self, output: Any, args: Any) -> Any:
        """In a straight-through run a graph begins at the first module, also where its weights are frozen."""
        plain = isinstance(output, Tensor) and output.is_floating_point() and not output.requires_grad
        if not (self._carries and plain) or output._base is not None or any(output is value for value in args):
            return output
        # A copy, since a leaf must not be written over.
        return output.detach().requires_grad_().clone()

    def _leave_candidate(self, candidate: _Candidate, output: Any) -> Any:
        """A parameter-free module that used activations and kept its input's shape is one activation itself."""
        inside = self.held[candidate.first :]
        registered = isinstance(candidate.module, tuple(REGISTERED.modules))
        same_shape = isinstance(output, Tensor) and output.shape == candidate.copied.shape
        if registered and not same_shape:
            raise ValueError(
                f"{type(candidate.module).__name__} is registered as an activation: it must return one tensor of its "
                f"input's shape, {list(candidate.copied.shape)}, got {_shown(output)}."
            )
        is_its_function = len(inside) == 1 and self.latest is not None and self.latest() is output
        whole = same_shape and (registered or (inside and not is_its_function))
        if whole and not registered and self.layouts is None and not self._acts_by_element(candidate, output):
            self.refused.add(candidate.site.key)
            whole = False
        if whole:
            del self.held[candidate.first :]
            site = candidate.site
            if site.key in self.linear:
                return candidate.argument.copy_(candidate.copied) if output is candidate.argument else candidate.copied
            value = output.detach().clone()
            if site.edge is not None:
                overwritten = output is candidate.argument
                carried: Tensor = Carry.apply(candidate.copied, value)  # type: ignore[no-untyped-call]
                if overwritten and candidate.argument._base is not None:
                    site = replace(site, edge=get_gradient_edge(candidate.copied))
                site = replace(site, output_edge=get_gradient_edge(carried))
                output = candidate.argument.copy_(carried) if overwritten else carried
            self._hold(replace(site, output=value))
        elif not is_its_function:
            self._release()
        return output

    def _acts_by_element(self, candidate: _Candidate, output: Tensor) -> bool:
        """Whether half of the outputs stay as they are when the inputs of the others change."""
        moved = torch.arange(candidate.copied.numel(), device=output.device).reshape(candidate.copied.shape) % 2 == 1
        self._paused = True
        try:
            other = candidate.module.forward(torch.where(moved, candidate.copied + 1, candidate.copied))
        finally:
            self._paused = False
        alike = ((other == output) | moved | output.isnan()).all()
        key = ("by element", self.samples, candidate.site.key)
        return bool(self.doubts.ask([Question(key, [alike], (True, False), lambda found: bool(found[0][0]))])[0])

    # --- handing over ---

    def _hold(self, site: Site, may_be_output: bool = False) -> None:
        self._release()
        if may_be_output or self.candidates:
            # What is held may be written over before it is handed on.
            site = replace(site, field=site.field.clone(), output=site.output.clone())
        self.held.append(site)
        if not may_be_output:
            self._release()

    def _release(self) -> None:
        if self.candidates:
            return
        for site in self.held:
            again = self.runs[site.name]
            self.runs[site.name] = again + 1
            # A survey has still to find out which of its sites count.
            self.on_site(replace(site, name=numbered(site.name, again)) if self.layouts is not None else site)
        self.held.clear()

    def _squash(self, result: Tensor, logits: Tensor) -> None:
        """Remember what may turn out to be the model's output; attention's weights are larger, and are not."""
        if result.ndim <= 2 and len(result) == self.samples:
            self.squashed.append(_Squashed(result, logits, result))

    def _copied(self, result: Tensor, subject: Tensor) -> None:
        """A copy of what may turn out to be the model's output may turn out to be it too."""
        # Tensors made in inference mode have no version.
        if result is subject or not result.is_floating_point() or result.is_inference():
            return
        found = next((each for each in self.squashed if _is_view_of_all(subject, each.value)), None)
        if found is not None:
            self.squashed.append(replace(found, value=result, version=result._version))

    def finish(self, output: Any) -> Any:
        """The logits, where a sigmoid or softmax made the output of them, else the output; releases what is held."""
        for each in reversed(self.squashed):
            if each.is_output(output):
                if self.held and self.latest is not None and self.latest() is each.origin:
                    self.held.pop()
                self._release()
                return each.logits.reshape(output.shape)
        self._release()
        return output


def _joined(pieces: dict[tuple[int, int], Tensor]) -> Tensor:
    """Pieces ``[batch, columns]`` of a field, each with its time and first column: ``[batch, time, width]``."""
    times = sorted({time for time, _ in pieces})
    rows = [torch.cat([pieces[key] for key in sorted(pieces) if key[0] == time], dim=1) for time in times]
    return torch.stack(rows, dim=1)


def _like(container: Any, parts: list[Any]) -> Any:
    return type(container)(*parts) if hasattr(container, "_fields") else type(container)(parts)


def _shown(output: Any) -> str:
    return f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__


def _is_all_of(output: Any, tensor: Tensor) -> bool:
    """Whether ``output`` is a tensor, a view of all of it (``sigmoid(x).squeeze(1)``), or a copy in another type."""
    if not isinstance(output, Tensor) or output.numel() != tensor.numel():
        return False
    return _is_view_of_all(output, tensor) or torch.equal(output.to(tensor.dtype).reshape(tensor.shape), tensor)


def _is_view_of_all(output: Tensor, tensor: Tensor) -> bool:
    return output is tensor or (output._base is tensor and output.numel() == tensor.numel())


def _with_edge(tensor: Tensor, overwritten: bool = False) -> tuple[Tensor, GradientEdge]:
    """A copy in the same place of the graph, and where the tensor's own gradient is to be taken.

    That is the original's place as it is now, for a field may be used beside its activation; who uses it after it was
    written over sees the output. It is the copy's where the original has no gradient, or is a view that is written
    over: autograd then makes its place anew.
    """
    copied = tensor.clone() if tensor.requires_grad else tensor.detach().clone().requires_grad_()
    place = tensor.requires_grad and not (overwritten and tensor._is_view())
    return copied, get_gradient_edge(tensor if place else copied)


def _may_be(module: nn.Module) -> bool:
    """A leaf of somebody's own making without parameters and buffers (torch's own are seen as functions)."""
    own = not type(module).__module__.startswith("torch.nn.")
    return own and not (module._modules or module._parameters or module._buffers)


@contextmanager
def watching(watch: Watch, model: nn.Module, inputs: Inputs) -> Iterator[tuple[Any, Any]]:
    """Run the network under watch; within, gradients may be taken.

    Yields:
        The model's output, and the logits: another tensor where a sigmoid, softmax or log_softmax ends the network.
    """
    with own_functions(watch.own_function, straight=watch.straight):
        with ExitStack() as undo:
            for module in watch.makers.names:
                if not isinstance(module, torch.jit.ScriptModule):
                    undo.callback(module.register_forward_pre_hook(watch.enter).remove)
                    # Also when it raises: the network may catch that.
                    undo.callback(module.register_forward_hook(watch.leave, always_call=True).remove)
            undo.enter_context(watch)
            # A network may write over its input.
            output = model(map_tensors(lambda tensor: tensor.clone(), inputs))
        yield output, watch.finish(output)
