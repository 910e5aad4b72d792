"""Which functions are activations, and what the linear substitution map puts in their place.

An activation acts element by element. In the map its backward pass is the identity (straight-through), and a
max-pooling shares its gradient over the window, while both keep their forward values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[..., Any]
T = TypeVar("T")

See = Callable[[Tensor, Callable[[], Tensor]], Tensor]
"""``see(subject, compute)`` → output: one call of an activation, as its forward meets it."""

_ELEMENTWISE = [
    "relu",
    "relu6",
    "leaky_relu",
    "rrelu",
    "prelu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "softplus",
    "softsign",
    "tanhshrink",
    "softshrink",
    "hardshrink",
    "hardtanh",
    "hardsigmoid",
    "hardswish",
    "logsigmoid",
    "log_sigmoid",
    "sigmoid",
    "expit",
    "special_expit",
    "tanh",
    "threshold",
]
#: What turns logits into probabilities.
_SQUASHING = ("sigmoid", "expit", "special_expit", "softmax", "log_softmax")
_HOLDERS = (F, torch, Tensor, torch.special, torch._C._nn, torch._C._special)  # type: ignore[attr-defined]


def _gather(names: Iterable[str]) -> frozenset[Function]:
    """The functions of these names, with their in-place twins, wherever torch has them."""
    found = (getattr(holder, n, None) for name in names for n in (name, f"{name}_") for holder in _HOLDERS)
    return frozenset(function for function in found if callable(function))


ACTIVATIONS = _gather(_ELEMENTWISE)
SQUASHES = _gather(_SQUASHING)


def _pools() -> dict[Function, Function]:
    """Each max-pooling function and the average pooling over the same windows."""
    pools: dict[Function, Function] = {}
    for n in (1, 2, 3):
        for maximum in (
            getattr(F, f"max_pool{n}d"),
            getattr(F, f"max_pool{n}d_with_indices"),
            getattr(torch, f"max_pool{n}d"),
        ):
            pools[maximum] = getattr(F, f"avg_pool{n}d")
        for maximum in (getattr(F, f"adaptive_max_pool{n}d"), getattr(F, f"adaptive_max_pool{n}d_with_indices")):
            pools[maximum] = getattr(F, f"adaptive_avg_pool{n}d")
    return pools


MAX_POOLS = _pools()
#: Gated functions a·σ(b) on the halves a, b of their input: the gate's half is the local field.
GATED = frozenset({F.glu})
#: Look-ups whose result starts a graph in a straight-through run, also where their weights are frozen.
LOOKUPS = frozenset({F.embedding, torch.embedding, F.embedding_bag})


@dataclass
class Registry:
    """Activations of users' own, beside those of torch: functions, module classes, autograd functions."""

    functions: set[Function] = field(default_factory=set)
    modules: set[type[nn.Module]] = field(default_factory=set)
    autograd: set[type[torch.autograd.Function]] = field(default_factory=set)


REGISTERED = Registry()


def register_activation(activation: T) -> T:
    """Let netdyn treat something of one's own as an activation that acts element by element.

    What it reads becomes a local field, and in the linear substitution map its backward pass is the identity. Modules
    without parameters, buffers and children that use torch's activations are recognised without it, and so is every
    element-wise function of :mod:`torch.nn.functional`.

    Args:
        activation: A function that takes a tensor first and that :class:`torch.overrides.TorchFunctionMode` sees (one
            of torch's, ``torch.sin`` for instance), a class of modules, or a subclass of
            :class:`torch.autograd.Function`. It must return one tensor of its first argument's shape.

    Returns:
        The argument, so that this works as a decorator.

    Raises:
        TypeError: If it is none of these.

    Source:
        netdyn's convention.

    Example:
        >>> @register_activation
        ... class Snake(nn.Module):
        ...     def forward(self, x):
        ...         return x + x.sin() ** 2
    """
    if isinstance(activation, type) and issubclass(activation, nn.Module):
        REGISTERED.modules.add(activation)
    elif isinstance(activation, type) and issubclass(activation, torch.autograd.Function):
        REGISTERED.autograd.add(activation)
    elif callable(activation) and not isinstance(activation, type | nn.Module):
        # One of torch's with its method and its in-place twin.
        twins = _gather([getattr(activation, "__name__", "")])
        REGISTERED.functions |= {activation, *(twins if activation in twins else ())}
    else:
        raise TypeError(
            "`activation` must be a function, a class of modules or a subclass of torch.autograd.Function, got "
            f"{activation!r}."
        )
    return activation


@contextmanager
def own_functions(see: See, straight: bool) -> Iterator[None]:
    """Within, ``see`` is asked for the results of registered autograd functions, also of an ``apply`` kept elsewhere.

    With ``straight`` their backward pass is the identity, for graphs made within and walked within.
    """
    with ExitStack() as undo:
        # All are looked up before the first is replaced: one may inherit from another.
        for function, own in [(function, _seen(function, see, straight)) for function in REGISTERED.autograd]:
            for name, replacement in own.items():
                undo.enter_context(patch.object(function, name, staticmethod(replacement)))
        yield


def _seen(function: Any, see: See, straight: bool) -> dict[str, Function]:
    """An autograd function's forward and backward, as they are to be for a while."""
    original_forward = function.forward
    place = 0

    def forward(*args: Any) -> Any:
        nonlocal place
        # Functions of the older kind are handed their context first.
        own = args if function.setup_context is not torch.autograd.Function.setup_context else args[1:]
        place = next(i for i, value in enumerate(own) if isinstance(value, Tensor))
        return see(own[place], lambda: original_forward(*args))

    def backward(context: Any, *gradients: Any) -> Any:
        return tuple(gradients[0] if i == place else None for i in range(len(context.needs_input_grad)))

    return {"forward": forward, "backward": backward} if straight else {"forward": forward}


def is_activation(function: Function) -> bool:
    """Whether a function is an activation, torch's or registered."""
    return function in ACTIVATIONS or function in REGISTERED.functions


def _inplace_position(function: Function) -> int | None:
    """Position of the argument ``inplace``, None where the function has none."""
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return parameters.index("inplace") if "inplace" in parameters else None


_INPLACE = {function: position for function in ACTIVATIONS if (position := _inplace_position(function)) is not None}


def overwrites(function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether this call writes its result over its input.

    >>> overwrites(F.relu, (None, True), {}), overwrites(torch.relu_, (None,), {}), overwrites(torch.relu, (None,), {})
    (True, True, False)
    """
    name = getattr(function, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return True
    position = _INPLACE.get(function)
    if position is None:
        return False
    return bool(args[position]) if len(args) > position else bool(kwargs.get("inplace", False))


class Carry(torch.autograd.Function):
    """A value whose gradient goes, unchanged, to another tensor of the same shape.

    >>> x = torch.tensor([-1.0, 2.0], requires_grad=True)
    >>> torch.autograd.grad(Carry.apply(x, x.detach().relu()).sum(), x)
    (tensor([1., 1.]),)
    """

    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, value: Tensor) -> Tensor:
        """The value."""
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient, for the surrogate."""
        return gradients[0], None


def straight_through(
    function: Function, subject: Tensor, copied: Tensor, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The activation's output, whose gradient goes to ``copied``, a copy of the activation's input ``subject``.

    Where the activation overwrites its input the result is written there, so that whoever else holds that tensor, or
    one that it is a part of, sees it too. The second tensor is the result itself, whose place in the graph stays.
    """
    rest = args[1:] if args else ()
    options = {key: value for key, value in kwargs.items() if key != "input"}
    with torch.no_grad():
        value = function(copied.detach().clone(), *rest, **options)
    carried: Tensor = Carry.apply(copied, value)  # type: ignore[no-untyped-call]
    return (subject.copy_(carried) if overwrites(function, args, kwargs) else carried), carried


def shared_pool(function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Max-pooling forward, average pooling's gradient: no pathway is cut because its unit lost a comparison.

    Padding takes no share. Dilated windows, which average pooling does not have, keep their own gradient.
    """
    result = function(*args, **kwargs)
    adaptive = function.__name__.startswith("adaptive")
    names = (
        ("input", "output_size") if adaptive else ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    )
    given = dict(zip(names, args, strict=False)) | {key: value for key, value in kwargs.items() if key in names}
    dilation = given.pop("dilation", 1)
    if any(step != 1 for step in (dilation if isinstance(dilation, tuple | list) else (dilation,))):
        return result
    options = {} if adaptive else {"count_include_pad": False}
    given = {key: value for key, value in given.items() if value is not None}
    surrogate = MAX_POOLS[function](**given, **options)
    if isinstance(result, tuple):
        return Carry.apply(surrogate, result[0].detach()), *result[1:]  # type: ignore[no-untyped-call]
    return Carry.apply(surrogate, result.detach())  # type: ignore[no-untyped-call]
