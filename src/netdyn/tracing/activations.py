"""Which functions are activations, and what the linear substitution map puts in place of their backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[..., Any]
T = TypeVar("T")
See = Callable[[Tensor, Callable[[], Tensor]], Tensor]
"""``see(subject, compute)`` → output: called in place of the forward pass of a registered autograd function."""

_NAMESPACES = (F, torch, Tensor, torch.special, torch._C._nn, torch._C._special)  # type: ignore[attr-defined]


def _functions_named(names: str) -> frozenset[Function]:
    """The functions with these names, and their in-place twins, in all of torch's namespaces."""
    twins = [twin for name in names.split() for twin in (name, f"{name}_")]
    found = (getattr(namespace, name, None) for name in twins for namespace in _NAMESPACES)
    return frozenset(function for function in found if callable(function))


ACTIVATIONS = _functions_named(
    "relu relu6 leaky_relu rrelu prelu elu selu celu gelu silu mish softplus softsign tanhshrink softshrink hardshrink "
    "hardtanh hardsigmoid hardswish logsigmoid log_sigmoid sigmoid expit special_expit tanh threshold"
)
#: Functions that keep a tensor within bounds: activations where these hold no samples, and where they are reached.
BOUNDS = _functions_named("clamp clamp_min clamp_max clip maximum minimum fmax fmin max min")
#: Functions that turn logits into probabilities.
SQUASHES = _functions_named("sigmoid expit special_expit softmax log_softmax")
#: Each max-pooling function and the average pooling over the same windows.
MAX_POOLS: dict[Function, Function] = {}
for _n in (1, 2, 3):
    for _maximum in (f"max_pool{_n}d", f"max_pool{_n}d_with_indices"):
        MAX_POOLS[getattr(F, _maximum)] = getattr(F, f"avg_pool{_n}d")
        MAX_POOLS[getattr(F, f"adaptive_{_maximum}")] = getattr(F, f"adaptive_avg_pool{_n}d")
    MAX_POOLS[getattr(torch, f"max_pool{_n}d")] = getattr(F, f"avg_pool{_n}d")
#: Gated functions a·σ(b) of the halves a, b of their input: the half b, the gate's, is the local field.
GATED = frozenset({F.glu})
#: Look-ups whose result starts a graph in a straight-through run, even if their weights are frozen.
LOOKUPS = frozenset({F.embedding, torch.embedding, F.embedding_bag})


@dataclass
class Registry:
    """Activations that the user has registered: functions, module classes and autograd functions."""

    functions: set[Function] = field(default_factory=set)
    modules: set[type[nn.Module]] = field(default_factory=set)
    autograd: set[type[torch.autograd.Function]] = field(default_factory=set)


REGISTERED = Registry()


def register_activation(activation: T) -> T:
    """Register an activation that acts element by element.

    Its input becomes a local field, and in the linear substitution map its backward pass is the identity. The
    element-wise functions of :mod:`torch.nn.functional` need no registration. Neither do modules without parameters,
    buffers and children that use them, nor activations that are written by hand as a product, quotient, ``where`` or
    maximum of a tensor and a function of itself (``h * torch.sigmoid(h)``), or as constant bounds (``h.clamp(min=0)``).

    Args:
        activation: A function of a tensor that :class:`torch.overrides.TorchFunctionMode` sees (one of torch's, for
            instance ``torch.sin``), a class of modules, or a subclass of :class:`torch.autograd.Function`. The tensor
            is its first argument, and it must return one tensor of the same shape.

    Returns:
        The argument, so that this works as a decorator.

    Raises:
        TypeError: If the argument is something else.

    Source:
        netdyn's convention.

    Examples:
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
        # A function of torch's comes with its method and its in-place twin.
        twins = _functions_named(getattr(activation, "__name__", ""))
        REGISTERED.functions |= {activation, *(twins if activation in twins else ())}
    else:
        raise TypeError(
            "`activation` must be a function, a class of modules or a subclass of torch.autograd.Function, got "
            f"{activation!r}."
        )
    return activation


def is_activation(module: nn.Module) -> bool:
    """Whether a module is one of torch's element-wise activations, or a registered one."""
    torchs = type(module).__module__ == nn.ReLU.__module__
    others = nn.MultiheadAttention | nn.Softmax | nn.Softmax2d | nn.LogSoftmax | nn.Softmin
    return (torchs and not isinstance(module, others)) or isinstance(module, tuple(REGISTERED.modules))


@contextmanager
def own_functions(see: See, straight: bool) -> Iterator[None]:
    """Inside, ``see`` replaces registered autograd functions' forward; with ``straight`` they pass gradients on."""
    with ExitStack() as undo:
        # All are looked up before the first is replaced, since one may inherit from another.
        for function, own in [(function, _watched(function, see, straight)) for function in REGISTERED.autograd]:
            for name, replacement in own.items():
                undo.enter_context(patch.object(function, name, staticmethod(replacement)))
        yield


def _watched(function: Any, see: See, straight: bool) -> dict[str, Function]:
    """The temporary forward and backward of an autograd function."""
    original_forward = function.forward
    position = 0

    def forward(*args: Any) -> Any:
        nonlocal position
        # The older kind of function takes its context as the first argument.
        own = args if function.setup_context is not torch.autograd.Function.setup_context else args[1:]
        position = next(i for i, value in enumerate(own) if isinstance(value, Tensor))
        return see(own[position], lambda: original_forward(*args))

    def backward(context: Any, *gradients: Any) -> Any:
        return tuple(gradients[0] if i == position else None for i in range(len(context.needs_input_grad)))

    return {"forward": forward, "backward": backward} if straight else {"forward": forward}


def _inplace_position(function: Function) -> int | None:
    """Position of the argument ``inplace``; None if the function does not have it."""
    with suppress(TypeError, ValueError):  # functions without a signature
        return list(inspect.signature(function).parameters).index("inplace")
    return None


_INPLACE = {function: _inplace_position(function) for function in ACTIVATIONS}


def overwrites(function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether this call overwrites its input with its result."""
    name = getattr(function, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return True
    if (position := _INPLACE.get(function)) is None:
        return False
    return bool(args[position]) if len(args) > position else bool(kwargs.get("inplace", False))


def bounded(
    function: Function, args: Sequence[Any], kwargs: dict[str, Any], is_constant: Callable[[Any], bool]
) -> Sequence[Any] | None:
    """The arguments of a call that keeps a tensor within constant bounds, that tensor first; None for other calls."""
    given = [*args, *(value for key, value in kwargs.items() if key != "input")]
    if function not in BOUNDS or "out" in kwargs or "dim" in kwargs or "keepdim" in kwargs or len(given) < 2:
        return None
    if "cla" in function.__name__ or "clip" in function.__name__:
        return args if all(map(is_constant, given[1:] if args else given)) else None
    if len(args) != 2 or not isinstance(args[0], Tensor) or not isinstance(args[1], Tensor):
        return None
    first, second = map(is_constant, args)
    return None if first == second else args if second else (args[1], args[0])


class Carry(torch.autograd.Function):
    """A value whose gradient goes unchanged to another tensor, the surrogate, of the same shape."""

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
    """The output, whose gradient goes to ``copied``, a copy of the input ``subject``; and the result in the graph."""
    options = {key: value for key, value in kwargs.items() if key != "input"}
    with torch.no_grad():
        value = function(copied.detach().clone(), *args[1:], **options)
    carried: Tensor = Carry.apply(copied, value)  # type: ignore[no-untyped-call]
    # Other references to an input that is overwritten, or to one that it is a view of, see the result too.
    return (subject.copy_(carried) if overwrites(function, args, kwargs) else carried), carried


def shared_pool(function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Max-pooling with average pooling's gradient, so that all units keep their pathway; not for dilated windows."""
    result = function(*args, **kwargs)
    adaptive = function.__name__.startswith("adaptive")
    own = ("output_size",) if adaptive else ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    names = ("input", *own)
    given = dict(zip(names, args, strict=False)) | {key: value for key, value in kwargs.items() if key in names}
    dilation = given.pop("dilation", 1)
    if any(step != 1 for step in (dilation if isinstance(dilation, tuple | list) else (dilation,))):
        return result
    if not adaptive:
        given["count_include_pad"] = False
    surrogate = MAX_POOLS[function](**{key: value for key, value in given.items() if value is not None})
    if isinstance(result, tuple):
        return Carry.apply(surrogate, result[0].detach()), *result[1:]  # type: ignore[no-untyped-call]
    return Carry.apply(surrogate, result.detach())  # type: ignore[no-untyped-call]
