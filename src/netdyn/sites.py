"""Find a network's local fields and read them.

The network runs as it is; a :class:`~torch.overrides.TorchFunctionMode` sees every call of an activation function,
made as a module, a function or a method. The call's input is a layer's local field, whoever made it. Module hooks,
present only during the run, say which module's output it is, and so name it.
"""

from __future__ import annotations

import fnmatch
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from netdyn._checks import nearest, warn
from netdyn.activations import ACTIVATIONS, MAX_POOLS, SQUASHES, Carry, overwrites, shared_pool, straight_through
from netdyn.batches import Inputs, count, map_tensors, take

ROOT = "model"
"""Name of a local field that no submodule made."""


@dataclass(frozen=True)
class Site:
    """A local field as it passes.

    Attributes:
        name: The layer's name.
        field: The local field, samples first; valid only while it is handed over.
        output: The activation's output (the field itself where there is no activation).
        edge: Where the gradient with respect to the field is to be taken, in a straight-through run; None where the
            network itself has turned gradients off.
    """

    name: str
    field: Tensor
    output: Tensor
    edge: GradientEdge | None = None


@dataclass(frozen=True)
class _Made:
    """A tensor that a module returned; no longer so once somebody wrote over it."""

    name: str
    tensor: weakref.ref[Tensor]
    version: int

    @classmethod
    def by(cls, name: str, tensor: Tensor) -> _Made:
        return cls(name, weakref.ref(tensor), _version(tensor))

    def is_still(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and self.version == _version(tensor)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class _Candidate:
    """A running module that may turn out to be one activation.

    Attributes:
        module: The module.
        name: What its local field would be called.
        argument: What it was called with, and might overwrite.
        field: A copy of that.
        edge: Where the field's gradient is to be taken.
        first: Where the sites inside it begin.
    """

    module: nn.Module
    name: str
    argument: Tensor
    field: Tensor
    edge: GradientEdge | None
    first: int


class _Watch(TorchFunctionMode):
    """Sees the activations of one run and hands each local field to ``on_site``.

    A sigmoid may turn out to be the model's output, and an activation inside a parameter-free module a part of that
    module's own activation. Such sites are held until that is known.
    """

    def __init__(
        self, model: nn.Module, samples: int, on_site: Callable[[Site], None], straight: bool, promoted: frozenset[str]
    ) -> None:
        super().__init__()
        self.names = {module: clean_name(name) for name, module in model.named_modules()}
        self.samples, self.on_site, self.straight, self.promoted = samples, on_site, straight, promoted
        self.running: list[str] = []
        self.makers: dict[int, _Made] = {}
        self.runs: dict[str, int] = {}
        self.held: list[Site] = []
        self.candidates: list[_Candidate] = []
        self.squashed: tuple[Tensor, Tensor] | None = None
        self.latest: weakref.ref[Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        subject = args[0] if args else kwargs.get("input")
        if func in ACTIVATIONS and self._is_field(subject):
            return self._activate(func, subject, args, kwargs)
        if self.straight and func in MAX_POOLS and isinstance(subject, Tensor):
            return shared_pool(func, args, kwargs)
        result = func(*args, **kwargs)
        if func in SQUASHES and isinstance(subject, Tensor) and isinstance(result, Tensor):
            self.squashed = (result, subject)
        return result

    def _is_field(self, value: Any) -> bool:
        """A floating tensor with the samples first; not a parameter on its way to a weight."""
        return (
            isinstance(value, Tensor)
            and not isinstance(value, nn.Parameter)
            and value.is_floating_point()
            and value.ndim >= 1
            and len(value) == self.samples
        )

    def _activate(self, func: Any, subject: Tensor, args: Any, kwargs: Any) -> Tensor:
        name = self._maker(subject)
        edge = None
        if self.straight and torch.is_grad_enabled():
            field, edge = _with_edge(subject, overwritten=overwrites(func, args, kwargs))
            output = straight_through(func, subject, field, args, kwargs)
        else:
            field = subject.clone() if overwrites(func, args, kwargs) else subject
            output = func(*args, **kwargs)
        self.latest = weakref.ref(output)
        if func in SQUASHES:
            self.squashed = (output, field)
        self._hold(Site(name, field.detach(), output.detach(), edge), may_be_output=func in SQUASHES)
        return output

    def _maker(self, field: Tensor) -> str:
        made = self.makers.get(id(field))
        if made is not None and made.is_still(field):
            return made.name
        return self.running[-1] if self.running else ROOT

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook."""
        self.running.append(self.names[module] or ROOT)
        if not (_may_be_activation(module) and len(args) == 1 and self._is_field(args[0])):
            return
        argument = args[0]
        if self.straight and torch.is_grad_enabled():
            field, edge = _with_edge(argument)
        else:
            field, edge = argument.clone(), None
        self.candidates.append(_Candidate(module, self._maker(argument), argument, field, edge, len(self.held)))

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook."""
        name = self.running.pop()
        if self.candidates and self.candidates[-1].module is module:
            output = self._leave_candidate(self.candidates.pop(), output)
        if name in self.promoted and self._is_field(output):
            edge = None
            if self.straight and torch.is_grad_enabled():
                output, edge = _with_edge(output)
            self._hold(Site(name, output.detach(), output.detach(), edge))
        for value in output if isinstance(output, tuple | list) else (output,):
            known = self.makers.get(id(value))
            if isinstance(value, Tensor) and (known is None or not known.is_still(value)):
                self.makers[id(value)] = _Made.by(name, value)
        return output

    def _leave_candidate(self, candidate: _Candidate, output: Any) -> Any:
        """A parameter-free module that used activations and kept its input's shape is one activation itself."""
        inside = self.held[candidate.first :]
        is_its_function = len(inside) == 1 and self.latest is not None and self.latest() is output
        same_shape = isinstance(output, Tensor) and output.shape == candidate.field.shape
        if inside and same_shape and not is_its_function:
            del self.held[candidate.first :]
            value = output.detach().clone()
            edge = candidate.edge
            if edge is not None:
                overwritten = output is candidate.argument
                edge = get_gradient_edge(candidate.field) if overwritten else edge
                carried: Tensor = Carry.apply(candidate.field, value)  # type: ignore[no-untyped-call]
                output = candidate.argument.copy_(carried) if overwritten else carried
            self._hold(Site(candidate.name, candidate.field.detach(), value, edge))
        elif not is_its_function:
            self._release()
        return output

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
            again = self.runs.get(site.name, 0)
            self.runs[site.name] = again + 1
            self.on_site(replace(site, name=f"{site.name}:{again}") if again else site)
        self.held.clear()

    def finish(self, output: Any) -> Any:
        """The logits, where a sigmoid or softmax made the output of them, else the output; releases what is held."""
        squashed, logits = self.squashed or (None, None)
        if squashed is None or logits is None or not _is_all_of(output, squashed):
            self._release()
            return output
        if self.held and self.latest is not None and self.latest() is squashed:
            self.held.pop()
        self._release()
        return logits.reshape(output.shape)


def _is_all_of(output: Any, tensor: Tensor) -> bool:
    """Whether ``output`` is a tensor or a view of all of it (``sigmoid(x).squeeze(1)``)."""
    return output is tensor or (
        isinstance(output, Tensor) and output._base is tensor and output.numel() == tensor.numel()
    )


def _with_edge(tensor: Tensor, overwritten: bool = False) -> tuple[Tensor, GradientEdge]:
    """A copy in the same place of the graph, and where the tensor's own gradient is to be taken.

    That is the original's place, for a field may be used beside its activation. It is the copy's where the original has
    no gradient, or is written over: who uses it later sees the output.
    """
    copied = tensor.clone() if tensor.requires_grad else tensor.detach().clone().requires_grad_()
    return copied, get_gradient_edge(tensor if tensor.requires_grad and not overwritten else copied)


def _may_be_activation(module: nn.Module) -> bool:
    """A leaf of somebody's own making without parameters and buffers (torch's own are seen as functions)."""
    own = not type(module).__module__.startswith("torch.nn.")
    return own and not (module._modules or module._parameters or module._buffers)


def clean_name(name: str) -> str:
    """A module's name without what compiling put into it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def run(
    model: nn.Module,
    inputs: Inputs,
    on_site: Callable[[Site], None],
    *,
    straight: bool = False,
    promoted: Iterable[str] = (),
) -> tuple[Any, Any]:
    """Run the network once and hand over its local fields, in order of execution.

    Args:
        model: The network, in eval mode; with gradients enabled for a straight-through run.
        inputs: A batch of inputs.
        on_site: Called with each local field.
        straight: Let the backward pass of an activation be the identity, and that of max-pooling an average's.
        promoted: Names of modules whose outputs count as local fields.

    Returns:
        The model's output, and the logits: another tensor where a sigmoid, softmax or log_softmax ends the network.
    """
    watch = _Watch(model, count(inputs), on_site, straight, frozenset(promoted))
    with ExitStack() as undo:
        for module in watch.names:
            if not isinstance(module, torch.jit.ScriptModule):
                undo.callback(module.register_forward_pre_hook(watch.enter).remove)
                # Also when it raises: the network may catch that.
                undo.callback(module.register_forward_hook(watch.leave, always_call=True).remove)
        undo.enter_context(watch)
        # A network may write over its input.
        output = model(map_tensors(lambda tensor: tensor.clone(), inputs))
    return output, watch.finish(output)


def discover(model: nn.Module, inputs: Inputs) -> tuple[list[str], bool]:
    """Names of the local fields that activations read, and whether the outputs are probabilities; runs two samples."""
    names: list[str] = []
    if scripted := [n for n, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]:
        warn(f"The modules {scripted} are TorchScript, which hides its inside: their local fields are not read.")
    output, logits = run(model, take(inputs, slice(0, 2)), lambda site: names.append(site.name))
    return names, logits is not output


def choose(model: nn.Module, found: Sequence[str], layers: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """What ``layers=`` asks for.

    Args:
        model: The network.
        found: Names of the local fields that activations read.
        layers: Names or globs, or None for all that was found.

    Returns:
        The layers to keep, and the modules whose output is to count as a local field: a pattern that matches a found
        local field means that field, only one that matches none means modules.

    Raises:
        TypeError: If ``layers`` is a single string.
        ValueError: If a pattern matches nothing, or there is nothing to read.
    """
    modules = [clean_name(name) for name, _ in model.named_modules() if name]
    if isinstance(layers, str):
        raise TypeError(f"`layers` must be a list of names or globs, got the string {layers!r}.")
    if layers is None:
        if not found:
            raise ValueError(
                "No activation function was seen, so there is no local field to read. For a linear network name the "
                f"modules whose outputs are to count in `layers=`, for instance {modules[:3]}."
            )
        return list(found), []
    kept: list[str] = []
    promoted: list[str] = []
    for pattern in layers:
        if matches := fnmatch.filter(found, pattern):
            kept += matches
        elif matches := fnmatch.filter(modules, pattern):
            promoted += matches
        else:
            raise ValueError(
                f"`layers` names {pattern!r}, which matches nothing. {nearest(pattern, [*found, *modules])}"
            )
    return kept + promoted, promoted


def rows(value: Tensor) -> Tensor:
    """``[samples, units]``: every channel at every position is a unit."""
    return value.reshape(len(value), -1)


def read(
    model: nn.Module,
    inputs: Inputs,
    on_layer: Callable[[str, Tensor, Tensor], None],
    names: Iterable[str],
    promoted: Iterable[str] = (),
) -> Any:
    """Hand over ``name``, field and output ``[samples, units]`` of the chosen layers; returns the model's output."""
    wanted, promoted = set(names), set(promoted)

    def visit(site: Site) -> None:
        if site.name in wanted or site.name.split(":")[0] in promoted:
            on_layer(site.name, rows(site.field), rows(site.output))

    return run(model, inputs, visit, promoted=promoted)[0]
