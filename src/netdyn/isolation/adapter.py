"""A module that is called with its inputs alone and puts out logits, however the user calls theirs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from netdyn._utils.trees import Inputs
from netdyn.isolation.call_errors import call_explained
from netdyn.isolation.isolated import isolated
from netdyn.isolation.wrappers import unwrapped

#: Kinds of parameters that take an argument by position.
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Adapter(nn.Module):
    """Calls a module as people call it, opens its output, and has the names, parameters and buffers of the module.

    The module is called as ``forward(module, inputs)`` if that is given, else as :func:`call` does. The adapter shares
    the module's dictionaries, so that a parameter that :func:`torch.func.functional_call` replaces here is replaced in
    the module. Each call enters a ``context`` of its own (mixed precision), and may ``convert`` the inputs. An adapter
    of an adapter takes its place.
    """

    _call: Callable[[Any, Inputs], Any]
    _context: Callable[[], AbstractContextManager[Any]]
    _convert: Callable[[Inputs], Inputs] | None
    _module: nn.Module
    several: bool = False  #: whether the last output was a tuple of several tensors, of which the first was taken

    def __init__(
        self,
        module: nn.Module,
        forward: Callable[[Any, Inputs], Any] | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        convert: Callable[[Inputs], Inputs] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(module, Adapter):
            forward = forward or module._call
            context = context if module._context is nullcontext else partial(_within, context, module._context)
            convert, module = module._convert, module._module
        shared = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
        self.__dict__.update({name: getattr(module, name) for name in shared})
        self.__dict__.update(_module=module, _call=forward or call, _context=context, _convert=convert)

    def modules(self, *options: Any, **named: Any) -> Iterator[nn.Module]:
        """The modules that run: the adapted one in place of the adapter."""
        return self._module.modules(*options, **named)  # which options there are depends on the release of torch

    def forward(self, inputs: Inputs, /) -> Any:
        """The logits."""
        inputs = inputs if self._convert is None else self._convert(inputs)
        with self._context(), call_explained(self._module, self._call, inputs, own=self._call is not call):
            output = self._call(self._module, inputs)
            logits = opened(output)
            several = isinstance(output, tuple) and len(list(filter(_is_batch, output))) > 1
            self.__dict__["several"] = several and logits is output[0] and not hasattr(output, "logits")
            return logits


@contextmanager
def isolated_task(
    model: nn.Module,
    *functions: Any,
    forward: Callable[[Any, Inputs], Any] | None = None,
    part: Callable[[nn.Module], nn.Module] | None = None,
    observer_hooks: Sequence[Any] = (),
) -> Iterator[tuple[Any, ...]]:
    """A network in place of the model, called with inputs alone and putting out logits, and copies of ``functions``.

    ``part`` picks the part of the model to run. See :func:`isolated`.
    """
    _, precision = unwrapped(model)
    copies = isolated(model, forward, *functions, observer_hooks=observer_hooks)
    with copies as (own, forward, *others), _without_autocast() as autocast:
        own = own if part is None else part(own)
        if precision is not None:
            own = Adapter(own, context=precision.forward_context, convert=precision.convert_input)
        if autocast is not None:
            own = Adapter(own, context=autocast)
        yield Adapter(own, forward), *others


@contextmanager
def _within(outer: Callable[[], Any], inner: Callable[[], Any]) -> Iterator[None]:
    """Two contexts, one inside of the other."""
    with outer(), inner():
        yield


@contextmanager
def _without_autocast() -> Iterator[Callable[[], AbstractContextManager[Any]] | None]:
    """Switch off the user's autocast, which is for the network alone; gives what switches it on again, if it was on."""
    on = {kind: torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)}

    @contextmanager
    def again() -> Iterator[None]:
        with ExitStack() as inside:
            for kind, dtype in on.items():
                inside.enter_context(torch.autocast(kind, dtype))
            yield

    with ExitStack() as undo:
        for kind in on:
            undo.enter_context(torch.autocast(kind, enabled=False))
        yield again if on else None


@contextmanager
def isolated_network(model: nn.Module, forward: Callable[[Any, Inputs], Any] | None = None) -> Iterator[nn.Module]:
    """The network of :func:`isolated_task`."""
    with isolated_task(model, forward=forward) as (network,):
        yield network


def call(module: nn.Module, inputs: Inputs) -> Any:
    """Call a module as its ``forward`` takes the inputs: ``(**mapping)``, ``(*sequence)`` or ``(inputs)``.

    A ``forward`` that takes one argument gets a mapping or a sequence whole.
    """
    if isinstance(inputs, Mapping) and _takes_keywords(_parameters(module), inputs):
        return module(**inputs)
    if isinstance(inputs, Sequence) and not isinstance(inputs, str) and _takes_items(_parameters(module), len(inputs)):
        return module(*inputs)
    return module(inputs)


def _is_batch(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim > 1


def opened(output: Any) -> Any:
    """The logits in an output: its ``.logits``, its item ``"logits"``, or the first item of a tuple; else itself."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, Mapping):
        logits = output.get("logits")
    if logits is None and isinstance(output, tuple) and output:
        logits = output[0]
    return logits if isinstance(logits, Tensor) else output


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    """The parameters of a module's ``forward``; of a wrapper that takes anything, those of its only child's."""
    module, _ = unwrapped(module)
    try:
        own = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []  # written in another language
    anything = [p.kind for p in own] == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    return _parameters(children[0]) if anything and len(children) == 1 else own


def _takes_keywords(parameters: Sequence[inspect.Parameter], inputs: Mapping[Any, Any]) -> bool:
    """Whether a mapping's keys are the names of arguments."""
    if not all(isinstance(key, str) for key in inputs):
        return False
    try:
        inspect.Signature(parameters).bind(**inputs)
    except TypeError:
        return False
    return True


def _takes_items(parameters: Sequence[inspect.Parameter], items: int) -> bool:
    """Whether so many tensors can be arguments by position. Those with a default other than None are options."""
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return True
    places = [p for p in parameters if p.kind in _BY_POSITION]
    needed = sum(p.default is p.empty for p in places)
    named_only = any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)
    able = [p for p in places if p.default is p.empty or p.default is None]
    return len(able) > 1 and needed <= items <= len(able) and not named_only
