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
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from netdyn._utils.trees import Inputs, count, map_tensors
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
from netdyn.tracing.elementwise import Candidate, acts_by_element, may_be_activation
from netdyn.tracing.names import Makers, is_quantised, numbered
from netdyn.tracing.outputs import COPIES, Probabilities
from netdyn.tracing.sample_axis import SampleAxis
from netdyn.tracing.site import Key, Site


class Tracer(TorchFunctionMode):
    """Sees the activations of one run and hands each local field to ``on_site``.

    A sigmoid may turn out to be the model's output, and an activation inside a parameter-free module a part of that
    module's own activation. Such sites are held until that is known.

    Args:
        model: The network.
        samples: Number of samples in the batch.
        on_site: Called with each local field.
        straight: Let the backward pass of an activation be the identity, and that of max-pooling an average's.
        promoted: Names of modules whose outputs count as local fields.
        axes: Where the samples are in the tensors of a run, None for tensors that have none. A tensor that it does
            not know is a local field if samples come first. None: take everything for a local field, and write down
            what was seen.
        linear: Local fields whose activation is left out: the output is the field.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: int,
        on_site: Callable[[Site], None],
        *,
        straight: bool = False,
        promoted: Iterable[str] = (),
        axes: Mapping[Key, SampleAxis | None] | None,
        linear: Iterable[Key] = (),
    ) -> None:
        super().__init__()
        self.makers = Makers(model)
        self.samples, self.on_site, self.straight = samples, on_site, straight
        self.promoted, self.axes, self.linear = frozenset(promoted), axes, frozenset(linear)
        self.calls: Counter[tuple[str, str]] = Counter()
        self.runs: Counter[str] = Counter()
        self.seen: dict[Key, Tensor] = {}
        #: Modules that were taken for activations, but do not act element by element.
        self.refused: set[Key] = set()
        self.held: list[Site] = []
        self.candidates: list[Candidate] = []
        self.probabilities = Probabilities(samples)
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
            self.probabilities.add(result, subject)
        if func in COPIES and isinstance(result, Tensor):
            self.probabilities.add_copy(result, subject)
        if func in LOOKUPS and self._carries and isinstance(result, Tensor) and not result.requires_grad:
            # A copy, since a leaf must not be written over.
            result = result.detach().requires_grad_().clone()
        return result

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Within, activations are not looked at."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @property
    def _carries(self) -> bool:
        """Whether gradients go straight through activations here."""
        return self.straight and torch.is_grad_enabled()

    def _key(self, kind: Literal["call", "module", "output"], name: str) -> Key:
        again = self.calls[kind, name]
        self.calls[kind, name] = again + 1
        return kind, name, again

    def _axis(self, key: Key, value: Tensor) -> SampleAxis | None:
        """Where the samples are in a tensor; None if it is no local field."""
        if isinstance(value, nn.Parameter) or not value.is_floating_point() or value.ndim < 1:
            return None
        if self.axes is None:
            self.seen[key] = value.detach().clone()
            return SampleAxis()
        if key in self.axes:
            return self.axes[key]
        return SampleAxis() if len(value) == self.samples else None

    # --- one activation ---

    def _activation(self, func: Any, subject: Tensor, args: Any, kwargs: Any, name: str | None = None) -> Tensor:
        name = name or self.makers.of(subject)
        key = self._key("call", name)
        axis = self._axis(key, subject)
        if axis is None:
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
            self.probabilities.add(output, copied)
        graph = copied if self._carries else None
        site = Site(name, key, axis, copied.detach(), output.detach(), edge, output_edge, graph)
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
        name = self.makers.innermost
        keys = [self._key("call", name) for _ in recurrent.SLOTS[kind]]
        linear = {slot for slot, key in enumerate(keys) if key in self.linear}
        gathered = recurrent.OverTime(kind, x, weights, linear, self._carries)
        result = recurrent.steps(kind, x, state, weights, reverse, gathered.activate)
        for slot, key in enumerate(keys):
            axis = self._axis(key, gathered.fields[slot])
            if axis is not None and slot not in linear:
                edge, graph = gathered.edge(slot), gathered.graph(slot)
                fields, outputs = gathered.fields[slot], gathered.outputs[slot]
                self._hold(Site(name, key, axis, fields, outputs, edge, edge, graph))
        return result

    def own_function(self, subject: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """A registered autograd function, seen from within its forward: no copy of its input can be put in its way."""
        name = self.makers.of(subject)
        key = self._key("call", name)
        axis = self._axis(key, subject)
        if axis is not None and key in self.linear:
            return subject.clone()
        field = subject.detach().clone()
        with self._pause():
            output = compute()
        if axis is not None:
            edge = get_gradient_edge(subject) if self.straight and subject.requires_grad else None
            self._hold(Site(name, key, axis, field, output.detach(), edge, edge, subject))
        return output

    # --- modules ---

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook."""
        name = self.makers.enter(module)
        registered = isinstance(module, tuple(REGISTERED.modules))
        if (
            not args
            or not isinstance(args[0], Tensor)
            or not (registered or (len(args) == 1 and may_be_activation(module)))
        ):
            return
        argument = args[0]
        key = self._key("module", name)
        if (axis := self._axis(key, argument)) is None:
            return
        copied, edge = _with_edge(argument) if self._carries else (argument.clone(), None)
        graph = copied if self._carries else None
        site = Site(self.makers.of(argument), key, axis, copied.detach(), copied.detach(), edge, graph=graph)
        self.candidates.append(Candidate(module, site, argument, copied, len(self.held)))

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
        if first is not None and (self.axes is None or name in self.promoted):
            key = self._key("output", name)
            axis = self._axis(key, parts[first])
            if axis is not None and name in self.promoted:
                edge = None
                if self._carries:
                    parts[first], edge = _with_edge(parts[first])
                    output = parts[first] if isinstance(output, Tensor) else _like(output, parts)
                value = parts[first].detach()
                self._hold(Site(name, key, axis, value, value, edge, edge, parts[first]))
        self.makers.returned(name, parts)
        return output

    def _begun(self, output: Any, args: Any) -> Any:
        """In a straight-through run a graph begins at the first module, also where its weights are frozen."""
        plain = isinstance(output, Tensor) and output.is_floating_point() and not output.requires_grad
        if not (self._carries and plain) or output._base is not None or any(output is value for value in args):
            return output
        # A copy, since a leaf must not be written over.
        return output.detach().requires_grad_().clone()

    def _leave_candidate(self, candidate: Candidate, output: Any) -> Any:
        """A parameter-free module that used activations and kept its input's shape is one activation itself."""
        inside = self.held[candidate.first :]
        registered = isinstance(candidate.module, tuple(REGISTERED.modules))
        same_shape = isinstance(output, Tensor) and output.shape == candidate.copied.shape
        if registered and not same_shape:
            raise ValueError(
                f"{type(candidate.module).__name__} is registered as an activation: it must return one tensor of its "
                f"input's shape, {list(candidate.copied.shape)}, got {_shown(output)}."
            )
        is_its_function = len(inside) == 1 and self._is_latest(output)
        whole = same_shape and (registered or (inside and not is_its_function))
        if whole and not registered and self.axes is None and not self._acts_by_element(candidate, output):
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

    def _acts_by_element(self, candidate: Candidate, output: Tensor) -> bool:
        with self._pause():
            return acts_by_element(candidate.module, candidate.copied, output)

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
            self.on_site(replace(site, name=numbered(site.name, again)) if self.axes is not None else site)
        self.held.clear()

    def finish(self, output: Any) -> Any:
        """The logits, where a sigmoid or softmax made the output of them, else the output; releases what is held."""
        found = self.probabilities.behind(output)
        if found is not None and self.held and self._is_latest(found.origin):
            self.held.pop()
        self._release()
        return output if found is None else found.logits.reshape(output.shape)

    def _is_latest(self, output: Any) -> bool:
        """Whether this is what the last activation put out."""
        return self.latest is not None and self.latest() is output


def _like(container: Any, parts: list[Any]) -> Any:
    return type(container)(*parts) if hasattr(container, "_fields") else type(container)(parts)


def _shown(output: Any) -> str:
    return f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__


def _with_edge(tensor: Tensor, overwritten: bool = False) -> tuple[Tensor, GradientEdge]:
    """A copy in the same place of the graph, and where the tensor's own gradient is to be taken.

    That is the original's place as it is now, for a field may be used beside its activation; who uses it after it was
    written over sees the output. It is the copy's where the original has no gradient, or is a view that is written
    over: autograd then makes its place anew.
    """
    copied = tensor.clone() if tensor.requires_grad else tensor.detach().clone().requires_grad_()
    place = tensor.requires_grad and not (overwritten and tensor._is_view())
    return copied, get_gradient_edge(tensor if place else copied)


@contextmanager
def traced(tracer: Tracer, model: nn.Module, inputs: Inputs) -> Iterator[tuple[Any, Any]]:
    """Run the network under tracer; within, gradients may be taken.

    Yields:
        The model's output, and the logits: another tensor where a sigmoid, softmax or log_softmax ends the network.
    """
    with own_functions(tracer.own_function, straight=tracer.straight):
        with ExitStack() as undo:
            for module in tracer.makers.names:
                if not isinstance(module, torch.jit.ScriptModule):
                    undo.callback(module.register_forward_pre_hook(tracer.enter).remove)
                    # Also when it raises: the network may catch that.
                    undo.callback(module.register_forward_hook(tracer.leave, always_call=True).remove)
            undo.enter_context(tracer)
            # A network may write over its input.
            output = model(map_tensors(lambda tensor: tensor.clone(), inputs))
        yield output, tracer.finish(output)


def run(
    model: nn.Module,
    inputs: Inputs,
    on_site: Callable[[Site], None],
    *,
    straight: bool = False,
    promoted: Iterable[str] = (),
    axes: Mapping[Key, SampleAxis | None] | None = None,
    linear: Iterable[Key] = (),
) -> tuple[Any, Any]:
    """Run the network once and hand over its local fields, in order of execution.

    Args:
        model: The network, in eval mode.
        inputs: A batch of inputs.
        on_site: Called with each local field.
        straight: Let the backward pass of an activation be the identity, and that of max-pooling an average's.
        promoted: Names of modules whose outputs count as local fields.
        axes: Where the samples are in the run's tensors; first, where it does not say.
        linear: Local fields whose activation is left out.

    Returns:
        The model's output, and the logits: another tensor where a sigmoid, softmax or log_softmax ends the network.
    """
    options: dict[str, Any] = {"straight": straight, "promoted": promoted, "linear": linear}
    tracer = Tracer(model, count(inputs), on_site, axes=axes or {}, **options)
    with traced(tracer, model, inputs) as results:
        return results
