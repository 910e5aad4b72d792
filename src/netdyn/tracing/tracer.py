"""Trace a network: run it once and see its activations, however they are called.

The network runs as it is. A :class:`~torch.overrides.TorchFunctionMode` sees every call of an activation function, as a
module, a function or a method. The call's input is a layer's local field. Module hooks, present only during the run,
show which module's output it is, and so name it. Recurrent layers, which PyTorch runs in one call, run step by step.
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
from netdyn.tracing.names import Origins, is_quantised, numbered
from netdyn.tracing.outputs import COPIES, Probabilities
from netdyn.tracing.sample_axis import SampleAxis
from netdyn.tracing.site import Key, Site


class Tracer(TorchFunctionMode):
    """Sees the activations of one run, and passes each local field to ``on_site``.

    A sigmoid may turn out to be the model's output, and an activation inside a parameter-free module may be a part of
    that module's own activation. Such sites are held until this is known.

    Args:
        model: The network.
        samples: Number of samples in the batch.
        on_site: Called with each local field.
        straight: Let the backward pass of activations be the identity, and that of max-pooling be average pooling's.
        promoted: Names of modules whose outputs count as local fields.
        axes: The axis of the samples in each tensor of a run; None for tensors without samples. A tensor that is not in
            it is a local field if its first dimension is the number of samples. None (in a survey): every tensor is a
            local field, and ``seen`` collects them.
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
        self.origins = Origins(model)
        self.samples, self.on_site, self.straight = samples, on_site, straight
        self.promoted, self.axes, self.linear = frozenset(promoted), axes, frozenset(linear)
        self.calls: Counter[tuple[str, str]] = Counter()
        self.runs: Counter[str] = Counter()
        self.seen: dict[Key, Tensor] = {}
        #: Candidates that do not act element by element.
        self.refused: set[Key] = set()
        self.held: list[Site] = []
        self.candidates: list[Candidate] = []
        self.probabilities = Probabilities(samples)
        self.latest: weakref.ref[Tensor] | None = None
        #: Names of the modules that run on packed sequences, which have no axis of samples.
        self.packed: list[str] = []
        #: Number of local fields before the last max-pooling.
        self.pooled = 0
        self._paused = False

    # --- function calls ---

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
            return shared_pool(func, args, kwargs) if self._goes_straight else func(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in SQUASHES and isinstance(result, Tensor):
            self.probabilities.add(result, subject)
        if func in COPIES and isinstance(result, Tensor):
            self.probabilities.add_copy(result, subject)
        if func in LOOKUPS and self._goes_straight and isinstance(result, Tensor) and not result.requires_grad:
            # A copy, since a leaf must not be overwritten.
            result = result.detach().requires_grad_().clone()
        return result

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Inside, activations are not traced."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @property
    def _goes_straight(self) -> bool:
        """Whether gradients go straight through activations now."""
        return self.straight and torch.is_grad_enabled()

    def _key(self, kind: Literal["call", "module", "output"], name: str) -> Key:
        again = self.calls[kind, name]
        self.calls[kind, name] = again + 1
        return kind, name, again

    def _axis(self, key: Key, value: Tensor) -> SampleAxis | None:
        """The axis of the samples in a tensor; None if it is not a local field."""
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
        name = name or self.origins.name_of(subject)
        key = self._key("call", name)
        axis = self._axis(key, subject)
        if axis is None:
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        if key in self.linear:
            # A new tensor, or a new version of this one, as the activation would leave it: names depend on it.
            return subject.mul_(1) if overwrites(func, args, kwargs) else subject.view_as(subject)
        edge = output_edge = None
        if self._goes_straight:
            copied, edge = _with_edge(subject, overwritten=overwrites(func, args, kwargs))
            output, carried = straight_through(func, subject, copied, args, kwargs)
            output_edge = get_gradient_edge(carried)
        else:
            copied = subject.clone() if overwrites(func, args, kwargs) else subject
            output = func(*args, **kwargs)
        self.latest = weakref.ref(output)
        if func in SQUASHES:
            self.probabilities.add(output, copied)
        graph = copied if self._goes_straight else None
        site = Site(name, key, axis, copied.detach(), output.detach(), edge, output_edge, graph)
        self._hold(site, may_be_output=func in SQUASHES)
        return output

    def _gate(self, subject: Tensor, dim: int = -1) -> Tensor:
        """GLU: a·σ(b), whose local field is b."""
        value, gate = subject.chunk(2, dim=dim)
        return value * self._activation(torch.sigmoid, gate, (gate,), {}, name=self.origins.name_of(subject))

    def _recurrent(self, func: Any, args: Any) -> Any:
        call = recurrent.parse(func, args)
        if call is None:
            self.packed.append(self.origins.innermost)
            # cuDNN has no backward pass for a recurrent network in eval mode.
            with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not self._goes_straight):
                return func(*args)
        return recurrent.run(call, self._recurrent_layer)

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
                edge, graph = over_time.edge(slot), over_time.graph(slot)
                fields, outputs = over_time.fields[slot], over_time.outputs[slot]
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
        with self._pause():
            output = compute()
        if axis is not None:
            edge = get_gradient_edge(subject) if self.straight and subject.requires_grad else None
            self._hold(Site(name, key, axis, field, output.detach(), edge, edge, subject))
        return output

    # --- modules ---

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook."""
        name = self.origins.enter(module)
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
        copied, edge = _with_edge(argument) if self._goes_straight else (argument.clone(), None)
        graph = copied if self._goes_straight else None
        site = Site(self.origins.name_of(argument), key, axis, copied.detach(), copied.detach(), edge, graph=graph)
        self.candidates.append(Candidate(module, site, argument, copied, len(self.held)))

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook."""
        name = self.origins.leave()
        if self.candidates and self.candidates[-1].module is module:
            candidate = self.candidates.pop()
            # There is no output if the module has raised.
            output = output if output is None else self._leave_candidate(candidate, output)
        if self._goes_straight and is_quantised(module) and isinstance(output, Tensor):
            output = output.detach()  # its backward pass does not give the gradient
        output = self._start_graph(output, args)
        parts = list(output) if isinstance(output, tuple | list) else [output]
        first = next((i for i, part in enumerate(parts) if isinstance(part, Tensor)), None)
        if first is not None and (self.axes is None or name in self.promoted):
            key = self._key("output", name)
            axis = self._axis(key, parts[first])
            if axis is not None and name in self.promoted:
                edge = None
                if self._goes_straight:
                    parts[first], edge = _with_edge(parts[first])
                    output = parts[first] if isinstance(output, Tensor) else _rebuilt(output, parts)
                value = parts[first].detach()
                self._hold(Site(name, key, axis, value, value, edge, edge, parts[first]))
        self.origins.returned(name, parts)
        return output

    def _start_graph(self, output: Any, args: Any) -> Any:
        """In a straight-through run a graph begins at the first module, even if its weights are frozen."""
        plain = isinstance(output, Tensor) and output.is_floating_point() and not output.requires_grad
        if not (self._goes_straight and plain) or output._base is not None or any(output is value for value in args):
            return output
        # A copy, since a leaf must not be overwritten.
        return output.detach().requires_grad_().clone()

    def _leave_candidate(self, candidate: Candidate, output: Any) -> Any:
        """A parameter-free module that used activations and kept the shape of its input is one activation itself."""
        inside = self.held[candidate.first :]
        registered = isinstance(candidate.module, tuple(REGISTERED.modules))
        same_shape = isinstance(output, Tensor) and output.shape == candidate.copied.shape
        if registered and not same_shape:
            raise ValueError(
                f"{type(candidate.module).__name__} is registered as an activation: it must return one tensor of its "
                f"input's shape, {list(candidate.copied.shape)}, got {_described(output)}."
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

    # --- passing sites on ---

    def _hold(self, site: Site, may_be_output: bool = False) -> None:
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
        for site in self.held:
            again = self.runs[site.name]
            self.runs[site.name] = again + 1
            # In a survey it is not known yet which sites count.
            self.on_site(replace(site, name=numbered(site.name, again)) if self.axes is not None else site)
        self.held.clear()

    def finish(self, output: Any) -> Any:
        """Pass on all held sites. Returns the logits if a sigmoid or softmax of them is the output, or the output."""
        found = self.probabilities.find(output)
        if found is not None and self.held and self._is_latest(found.result):
            self.held.pop()
        self._release()
        return output if found is None else found.logits.reshape(output.shape)

    def _is_latest(self, output: Any) -> bool:
        """Whether this is the output of the last activation."""
        return self.latest is not None and self.latest() is output


def _rebuilt(container: Any, parts: list[Any]) -> Any:
    return type(container)(*parts) if hasattr(container, "_fields") else type(container)(parts)


def _described(output: Any) -> str:
    return f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__


def _with_edge(tensor: Tensor, overwritten: bool = False) -> tuple[Tensor, GradientEdge]:
    """A copy at the same place in the graph, and the edge where to take the gradient with respect to the tensor.

    The edge is the original's, as it is now, since a field may also be used beside its activation; a use after it was
    overwritten is a use of the output. It is the copy's edge if the original has no gradient, or is a view that is
    overwritten, whose place in the graph autograd makes anew.
    """
    copied = tensor.clone() if tensor.requires_grad else tensor.detach().clone().requires_grad_()
    place = tensor.requires_grad and not (overwritten and tensor._is_view())
    return copied, get_gradient_edge(tensor if place else copied)


@contextmanager
def traced(tracer: Tracer, model: nn.Module, inputs: Inputs) -> Iterator[tuple[Any, Any]]:
    """Run the network under a tracer; inside, gradients can be taken.

    Yields:
        The model's output, and the logits: another tensor if a sigmoid, softmax or log_softmax ends the network.
    """
    with own_functions(tracer.own_function, straight=tracer.straight):
        with ExitStack() as undo:
            for module in tracer.origins.names:
                if not isinstance(module, torch.jit.ScriptModule):
                    undo.callback(module.register_forward_pre_hook(tracer.enter).remove)
                    # Also if the module raises, since the network may catch the error.
                    undo.callback(module.register_forward_hook(tracer.leave, always_call=True).remove)
            undo.enter_context(tracer)
            # A network may overwrite its input.
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
    """Run the network once, and pass on its local fields in order of execution.

    Args:
        model: The network, in eval mode.
        inputs: A batch of inputs.
        on_site: Called with each local field.
        straight: Let the backward pass of activations be the identity, and that of max-pooling be average pooling's.
        promoted: Names of modules whose outputs count as local fields.
        axes: The axis of the samples in each tensor of a run; the first for tensors that are not in it.
        linear: Local fields whose activation is left out.

    Returns:
        The model's output, and the logits: another tensor if a sigmoid, softmax or log_softmax ends the network.
    """
    options: dict[str, Any] = {"straight": straight, "promoted": promoted, "linear": linear}
    tracer = Tracer(model, count(inputs), on_site, axes=axes or {}, **options)
    with traced(tracer, model, inputs) as results:
        return results
