"""Run a network once and see its activations, however they are called: as a module, a function or a method."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from netdyn._utils.trees import Inputs, count, map_tensors
from netdyn.tracing import activations, recurrent
from netdyn.tracing.elementwise import Candidate, acts_by_element, may_be_activation
from netdyn.tracing.gating import Gates, Operation, Value
from netdyn.tracing.names import Origins, is_quantised, numbered
from netdyn.tracing.outputs import COPIES, Probabilities, is_view_of_all
from netdyn.tracing.sample_axis import SampleAxis
from netdyn.tracing.site import Axes, Key, Site, Unread

#: Why activations cannot be read in some modules.
PACKED, COMPLEX = "run on packed sequences", "work on complex numbers"
TRANSFORMED = "run inside a transform of torch.func"


class Tracer(TorchFunctionMode):
    """Sees the activations of one run, and passes each local field to ``on_site``.

    A sigmoid that may be the model's output, and an activation that may be a part of a parameter-free module's own, are
    held until this is known. ``axes`` has the axis of the samples in each tensor that can be a local field; if it is
    empty, all have the samples first. If it is None (in a survey), every tensor is a local field, and ``seen`` collects
    them.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: int,
        on_site: Callable[[Site], None],
        *,
        straight: bool = False,  # the identity as activations' backward pass, average pooling's as max-pooling's
        promoted: Iterable[str] = (),  # names of modules whose outputs count as local fields
        axes: Axes | None,
        linear: Iterable[Key] = (),  # local fields whose activation is left out: the output is the field
        unread: Unread | None = None,  # takes the inputs of activations that have no row for each sample
    ) -> None:
        super().__init__()
        self.origins = Origins(model)
        self.samples, self.on_site, self.straight = samples, on_site, straight
        self.promoted, self.axes, self.linear = frozenset(promoted), axes, frozenset(linear)
        self.unread = unread
        self.calls: Counter[tuple[str, str]] = Counter()
        self.runs: Counter[str] = Counter()
        self.seen: dict[Key, Tensor] = {}
        self.refused: set[Key] = set()  #: candidates that do not act element by element
        self.held: list[Site] = []
        self.candidates: list[Candidate] = []
        self.probabilities = Probabilities(samples)
        self.latest: Callable[[], Tensor | None] = lambda: None  #: the last activation's output, if it still exists
        #: Names of modules whose activations cannot be read, by the reason.
        self.hidden: dict[str, set[str]] = {PACKED: set(), COMPLEX: set(), TRANSFORMED: set()}
        self.pooled = 0  #: number of local fields before the last max-pooling
        self._paused = False  #: whether activations are not traced now
        self.idle: set[Key] = set()  #: calls that kept a tensor within bounds which it did not reach
        self.whole: list[Value] = []  #: what has been computed inside modules that are one activation
        self.gates = Gates(model, axes is None, self.origins.returned_by)
        #: Whether activations that are written by hand are looked for: in a survey, and where one has been found.
        self._follows = axes is None or any(key[0] == "gate" and axis is not None for key, axis in axes.items())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        subject = args[0] if args else kwargs.get("input")
        if self._paused:
            return func(*args, **kwargs)
        if isinstance(subject, Tensor):
            if func in activations.ACTIVATIONS or func in activations.REGISTERED.functions:
                return self._activation(func, subject, args, kwargs)
            bounded = activations.bounded(func, args, kwargs, self.gates.is_constant)
            if bounded is not None:
                result = self._activation(func, bounded[0], bounded, kwargs, bounded=True)
                self.probabilities.add_copy(result, bounded[0])
                return result
        operation = self.gates.operation(func, args, kwargs) if self._follows else None
        if operation is not None and operation.gated is not None:
            return self._self_gated(func, args, kwargs, operation)
        result = self._other(func, subject, args, kwargs)
        if operation is not None:
            self.gates.note(operation, args[0] if operation.inplace else result)
        elif isinstance(result, Tensor):
            self.gates.note_constant(func, result)
        return result

    def _other(self, func: Any, subject: Any, args: Any, kwargs: Any) -> Any:
        """A function that is no activation."""
        if not isinstance(subject, Tensor):
            return func(*args, **kwargs)
        if func in activations.GATED and not isinstance(subject, nn.Parameter):
            return self._gate(subject, *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
        if (func in recurrent.LAYERS or func in recurrent.CELLS) and not kwargs:
            return self._recurrent(func, args)
        if func in activations.MAX_POOLS:
            self.pooled = sum(self.runs.values()) + len(self.held)
            return activations.shared_pool(func, args, kwargs) if self._goes_straight else func(*args, **kwargs)
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            return result
        if func in activations.SQUASHES:
            self.probabilities.add(result, subject)
        if func in COPIES:
            self.probabilities.add_copy(result, subject)
        starts = func in activations.LOOKUPS and self._goes_straight and not result.requires_grad
        return _new_graph(result) if starts else result

    @property
    def _goes_straight(self) -> bool:
        """Whether gradients go straight through activations now."""
        return self.straight and torch.is_grad_enabled()

    def _key(self, kind: Literal["call", "module", "output", "gate"], name: str) -> Key:
        self.calls[kind, name] += 1
        return kind, name, self.calls[kind, name] - 1

    def _axis(self, key: Key, value: Tensor) -> SampleAxis | None:
        """The axis of the samples in a tensor; None if it is not a local field."""
        if isinstance(value, nn.Parameter) or value.ndim < 1:
            return None
        if value.is_complex() or torch._C._functorch.is_functorch_wrapped_tensor(value):
            self.hidden[COMPLEX if value.is_complex() else TRANSFORMED].add(key[1])
            return None
        if not value.is_floating_point():
            return None
        if self.axes is None:
            self.seen[key] = value.detach().clone()
            return SampleAxis()
        axis = self.axes.get(key) if self.axes else SampleAxis()
        if axis is not None and axis.holds(value, self.samples):
            return axis
        # The survey has dealt with those that it knows to be none.
        if self.unread is not None and key[0] != "module" and (axis is not None or key not in self.axes):
            self.unread.add(key, value)
        return None

    def _activation(
        self, func: Any, subject: Tensor, args: Any, kwargs: Any, name: str | None = None, bounded: bool = False
    ) -> Tensor:
        name = name or self.origins.name_of(subject)
        key = self._key("call", name)
        axis = self._axis(key, subject)
        followed = self.gates.value(subject) if self._follows else None
        if bounded and axis is not None and self.axes is None and self.origins.returned_by(subject) is None:
            # A bound that nothing reaches only guards against a division by zero, for instance.
            copied = subject.detach().clone()
            if torch.equal(func(copied, *args[1:], **kwargs), subject):
                self.idle.add(key)
        output = self._activated(func, subject, args, kwargs, name, key, axis)
        if followed is not None:
            self.gates.note_activation(func.__name__, followed, output, key, emitted=axis is not None)
        return output

    def _activated(
        self, func: Any, subject: Tensor, args: Any, kwargs: Any, name: str, key: Key, axis: SampleAxis | None
    ) -> Tensor:
        if axis is None:
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        overwritten = activations.overwrites(func, args, kwargs)
        if key in self.linear:
            # A new tensor, or a new version of this one, as the activation would leave it: names depend on it.
            return subject.mul_(1) if overwritten else subject.view_as(subject)
        edge = output_edge = graph = carried = None
        if self._goes_straight:
            copied, edge = _with_edge(subject, overwritten)
            output, carried = activations.straight_through(func, subject, copied, args, kwargs)
            output_edge, graph = get_gradient_edge(carried), copied
        else:
            copied = subject.clone() if overwritten else subject
            output = func(*args, **kwargs)
        squashes, latest = func in activations.SQUASHES, self.latest()
        # A bound that guards a probability may be the end of the network together with it.
        guards = func in activations.BOUNDS and latest is not None and is_view_of_all(subject, latest)
        guards = guards and self.probabilities.behind(subject) is not None
        self.latest = weakref.ref(output)
        if squashes:
            self.probabilities.add(output, copied)
        site = Site(name, key, axis, copied.detach(), output.detach(), edge, output_edge, graph, carried)
        self._hold(site, may_be_output=squashes or guards, guards=guards)
        return output

    def _self_gated(self, func: Any, args: Any, kwargs: Any, operation: Operation) -> Any:
        """The last step of an activation that is written by hand."""
        field = operation.field
        target = args[0] if operation.inplace else None
        axis = None
        if field is not None:
            name = self.origins.name_of(field)
            key = self._key("gate", name)
            axis = self._axis(key, field)
        if field is None or axis is None:
            result = func(*args, **kwargs)
            self.gates.note(operation, result if target is None else target, key if field is not None else None)
            return result
        onto_field = target is field
        edge = output_edge = graph = carried = None
        if key in self.linear:
            copied = field.mul(1) if onto_field else field
            output = field.view_as(field) if target is None else _written(target, field, copied)
        elif self._goes_straight:
            copied, edge = _with_edge(field, onto_field)
            with torch.no_grad():
                own = args if target is None else (target.detach().clone(), *args[1:])
                value = func(*own, **kwargs)
                value = value if target is None else own[0]
            carried = activations.Carry.apply(copied, value)  # type: ignore[no-untyped-call]
            output = carried if target is None else _written(target, field, carried)
            output_edge, graph = get_gradient_edge(carried), copied
        else:
            copied = field.clone() if onto_field else field
            result = func(*args, **kwargs)
            output = result if target is None else target
            if self.axes is None and self.origins.returned_by(field) is None and torch.equal(copied, output):
                self.idle.add(key)
        self.gates.note(operation, output, key, emitted=True)
        self.latest = weakref.ref(output)
        if key not in self.linear:
            self._hold(Site(name, key, axis, copied.detach(), output.detach(), edge, output_edge, graph, carried))
        return None if operation.name == "__setitem__" else output

    def _gate(self, subject: Tensor, dim: int = -1) -> Tensor:
        """GLU: a·σ(b), whose local field is b."""
        value, gate = subject.chunk(2, dim=dim)
        return value * self._activation(torch.sigmoid, gate, (gate,), {}, name=self.origins.name_of(subject))

    def _recurrent(self, func: Any, args: Any) -> Any:
        # Packed sequences have no axis of samples.
        if func in recurrent.LAYERS and isinstance(args[1 if func is torch.lstm else 2], Tensor):
            self.hidden[PACKED].add(self.origins.innermost)
            # cuDNN has no backward pass for a recurrent network in eval mode.
            with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not self._goes_straight):
                return func(*args)
        return recurrent.run(func, args, self._recurrent_layer)

    def _recurrent_layer(
        self, kind: str, x: Tensor, state: recurrent.State, weights: recurrent.Weights, reverse: bool
    ) -> tuple[Tensor, recurrent.State]:
        """One layer in one direction; its local fields are gathered over all time steps."""
        name = self.origins.innermost
        keys = [self._key("call", name) for _ in recurrent.SLOTS[kind]]
        linear = {slot for slot, key in enumerate(keys) if key in self.linear}
        over_time = recurrent.OverTime(kind, x, weights, linear, self._goes_straight)
        result = recurrent.steps(kind, x, state, weights, reverse, over_time.activate)
        for slot, key in enumerate(keys):
            axis = self._axis(key, over_time.fields[slot])
            if axis is not None and slot not in linear:
                fields, outputs = over_time.fields[slot], over_time.outputs[slot]
                edge, graph = over_time.graph(slot)
                self._hold(Site(name, key, axis, fields, outputs, edge, edge, graph))
        return result

    def own_function(self, subject: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """A registered autograd function, traced in its own forward, where its input cannot be replaced by a copy."""
        name = self.origins.name_of(subject)
        key = self._key("call", name)
        axis = self._axis(key, subject)
        if axis is not None and key in self.linear:
            return subject.clone()
        field = subject.detach().clone()
        with patch.object(self, "_paused", True):
            output = compute()
        if axis is not None:
            edge = get_gradient_edge(subject) if self.straight and subject.requires_grad else None
            self._hold(Site(name, key, axis, field, output.detach(), edge, edge, subject))
        return output

    def unfollowed(self, hook: Callable[..., Any], *args: Any) -> Any:
        """Call a hook, whose own operations are not the network's."""
        follows, self._follows = self._follows, False
        try:
            return hook(*args)
        finally:
            self._follows = follows

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook."""
        name = self.origins.enter(module)
        registered = isinstance(module, tuple(activations.REGISTERED.modules))
        may_be = registered or (len(args) == 1 and may_be_activation(module))
        if not may_be or not args or not isinstance(args[0], Tensor):
            return
        argument = args[0]
        key = self._key("module", name)
        if (axis := self._axis(key, argument)) is None:
            return
        copied, edge = _with_edge(argument) if self._goes_straight else (argument.clone(), None)
        graph = copied if self._goes_straight else None
        site = Site(self.origins.name_of(argument), key, axis, copied.detach(), copied.detach(), edge, graph=graph)
        values = len(self.gates.values)
        self.candidates.append(Candidate(module, site, argument, copied, len(self.held), values))

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook."""
        name = self.origins.leave()
        if self.candidates and self.candidates[-1].module is module:
            candidate = self.candidates.pop()
            if output is not None:  # unless the module has raised
                output = self._leave_candidate(candidate, output)
        if self._goes_straight and is_quantised(module) and isinstance(output, Tensor):
            output = self.gates.replaced(output, output.detach())  # its backward pass does not give the gradient
        plain = isinstance(output, Tensor) and output.is_floating_point() and not output.requires_grad
        if self._goes_straight and plain and output._base is None and all(output is not value for value in args):
            # A graph begins at the first module, even if its weights are frozen.
            output = self.gates.replaced(output, _new_graph(output))
        parts = list(output) if isinstance(output, tuple | list) else [output]
        first = next((i for i, part in enumerate(parts) if isinstance(part, Tensor)), None)
        if first is not None and (self.axes is None or name in self.promoted):
            key = self._key("output", name)
            axis = self._axis(key, parts[first])
            if axis is not None and name in self.promoted:
                edge = None
                if self._goes_straight:
                    copied, edge = _with_edge(parts[first])
                    parts[first] = self.gates.replaced(parts[first], copied)
                    if isinstance(output, Tensor):
                        output = parts[first]
                    else:  # a named tuple takes its parts one by one
                        output = type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
                value = parts[first].detach()
                self._hold(Site(name, key, axis, value, value, edge, edge, parts[first]))
        self.origins.returned(name, parts)
        return output

    def _leave_candidate(self, candidate: Candidate, output: Any) -> Any:
        """A parameter-free module that used activations and kept the shape of its input is one activation itself."""
        inside = self.held[candidate.first :]
        registered = isinstance(candidate.module, tuple(activations.REGISTERED.modules))
        same_shape = isinstance(output, Tensor) and output.shape == candidate.copied.shape
        if registered and not same_shape:
            given = f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"{type(candidate.module).__name__} is registered as an activation: it must return one tensor of its "
                f"input's shape, {list(candidate.copied.shape)}, got {given}."
            )
        is_its_function = len(inside) == 1 and self.latest() is output
        whole = same_shape and (registered or (inside and not is_its_function))
        if whole and not registered and self.axes is None:
            with patch.object(self, "_paused", True):
                whole = acts_by_element(candidate.module, candidate.copied, output)
            if not whole:
                self.refused.add(candidate.site.key)
        if whole:
            del self.held[candidate.first :]
            self.whole += self.gates.values[candidate.first_value :]
            self.gates.forget(output)
            site, overwritten = candidate.site, output is candidate.argument
            if site.key in self.linear:
                return candidate.argument.copy_(candidate.copied) if overwritten else candidate.copied
            value = output.detach().clone()
            if site.edge is not None:
                carried: Tensor = activations.Carry.apply(candidate.copied, value)  # type: ignore[no-untyped-call]
                if overwritten and candidate.argument._base is not None:
                    site = replace(site, edge=get_gradient_edge(candidate.copied))
                site = replace(site, output_edge=get_gradient_edge(carried), carried=carried)
                output = candidate.argument.copy_(carried) if overwritten else carried
            self._hold(replace(site, output=value))
        elif not is_its_function:
            self._release()
        return output

    def _hold(self, site: Site, may_be_output: bool = False, guards: bool = False) -> None:
        if not guards:
            self._release()
        if may_be_output or self.candidates:
            # A held site may be overwritten before it is passed on.
            site = replace(site, field=site.field.clone(), output=site.output.clone())
        self.held.append(site)
        if not may_be_output:
            self._release()

    def _release(self) -> None:
        if self.candidates:
            return
        # What is computed from the fields is not the network's.
        with patch.object(self, "_paused", True):
            for site in self.held:
                # In a survey it is not known yet which sites count.
                name = site.name if self.axes is None else numbered(site.name, self.runs[site.name])
                self.runs[site.name] += 1
                self.on_site(replace(site, name=name))
        self.held.clear()

    def finish(self, output: Any) -> Any:
        """Pass on all held sites. Returns the logits if a sigmoid or softmax of them is the output, or the output."""
        found = self.probabilities.find(output)
        latest = self.latest()
        if found is not None and self.held and (latest is found.result or latest is found.value):
            self.held.clear()
        self._release()
        return output if found is None else found.logits.reshape(output.shape)


def _new_graph(tensor: Tensor) -> Tensor:
    """The tensor at the start of a graph; a copy, since a leaf must not be overwritten."""
    return tensor.detach().requires_grad_().clone()


def _written(target: Tensor, field: Tensor, value: Tensor) -> Tensor:
    """A tensor with a value written over it; what it was before, if it is not the field, has no gradient any more."""
    if target is not field and target.requires_grad and not target._is_view():
        target.detach_()
    return target.copy_(value)


def _with_edge(tensor: Tensor, overwritten: bool = False) -> tuple[Tensor, GradientEdge]:
    """A copy at the same place in the graph, and the edge where to take the gradient with respect to the tensor."""
    # The edge is the original's, as it is now, since a field may be used beside its activation too. It is the copy's if
    # the original has no gradient, or is a view that is overwritten, whose place in the graph autograd makes anew.
    copied = tensor.clone() if tensor.requires_grad else tensor.detach().clone().requires_grad_()
    place = tensor.requires_grad and not (overwritten and tensor._is_view())
    return copied, get_gradient_edge(tensor if place else copied)


@contextmanager
def traced(tracer: Tracer, model: nn.Module, inputs: Inputs) -> Iterator[tuple[Any, Any]]:
    """Run the network under a tracer; inside, gradients can be taken. Yields what :func:`run` returns."""
    with activations.own_functions(tracer.own_function, straight=tracer.straight):
        with ExitStack() as undo:
            for module in tracer.origins.names:
                if not isinstance(module, torch.jit.ScriptModule):
                    enter, leave = (partial(tracer.unfollowed, hook) for hook in (tracer.enter, tracer.leave))
                    undo.callback(module.register_forward_pre_hook(enter).remove)
                    # Also if the module raises, since the network may catch the error.
                    undo.callback(module.register_forward_hook(leave, always_call=True).remove)
            undo.enter_context(tracer)
            # A network may overwrite its input.
            output = model(map_tensors(lambda tensor: tensor.clone(), inputs))
        yield output, tracer.finish(output)


def run(
    model: nn.Module, inputs: Inputs, on_site: Callable[[Site], None], axes: Axes | None = None, **options: Any
) -> tuple[Any, Any]:
    """Run a network in eval mode under a :class:`Tracer`; its output and the logits, see :meth:`Tracer.finish`."""
    tracer = Tracer(model, count(inputs), on_site, axes=axes or {}, **options)
    with traced(tracer, model, inputs) as results:
        return results
