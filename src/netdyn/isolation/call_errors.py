"""What to say when the model cannot be called with the user's inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from netdyn._utils.inputs import shown
from netdyn._utils.options import instead
from netdyn._utils.trees import Inputs, count, tensors
from netdyn._utils.user_code import explained

#: Inputs and target as the user passed them, while a few of the samples are tried.
_passed: ContextVar[tuple[Inputs, Any] | None] = ContextVar("passed", default=None)


@contextmanager
def trying(inputs: Inputs, target: Any = None) -> Iterator[None]:
    """Inside, the model is called with a few samples of these inputs, for the first time."""
    token = _passed.set((inputs, target))
    try:
        yield
    finally:
        _passed.reset(token)


@contextmanager
def call_explained(
    module: nn.Module, forward: Callable[[Any, Inputs], Any], inputs: Inputs, own: bool
) -> Iterator[None]:
    """An error inside, in a call of ``forward(module, inputs)``, names the inputs and what fits better.

    ``own`` says whether ``forward`` is the user's.
    """
    passed, target = _passed.get() or (inputs, None)

    def message(reason: str) -> str:
        some = "" if passed is inputs else f"{count(inputs)} of the {count(passed)} samples of "
        what = "`forward`" if own else "The model"
        raised = f"{what}, called with {some}`inputs` ({shown(passed)}), raised {reason}"
        if passed is not inputs and _runs(forward, module, passed):
            whole = instead("forward", "a `forward=`", "a module")
            return (
                f"{raised} It runs on all {count(passed)} at once: this model cannot be run on a part of its samples. "
                "Where its `forward` or its state fixes their number, take it from the input (`len(x)`). Where each "
                "sample needs all others (nodes of one graph), pass indices as `inputs`, and "
                f"{whole} that runs all and picks them."
            )
        if own:
            return f"{raised} It is called as `forward(model, inputs)`, and must return the logits [samples, classes]."
        return f"{raised} {_likely_reason(passed, target) or _how_to_call(module)}"

    with explained(message):
        yield


def _runs(forward: Callable[[Any, Inputs], Any], module: nn.Module, inputs: Inputs) -> bool:
    try:
        forward(module, inputs)
    except Exception:
        return False
    return True


def _likely_reason(inputs: Inputs, target: Any) -> str:
    """The likely reason, with what to do; empty if none is known."""
    labels = isinstance(inputs, Tensor) and inputs.ndim == 1 and not inputs.is_floating_point()
    if labels and isinstance(target, Tensor) and target.is_floating_point() and target.ndim > 1:
        order = instead("unpack", "`unpack=` returns (inputs, target)", "The order is (model, inputs, target)")
        return f"Are `inputs` and `target` swapped? {order}."
    if any(tensor.dtype == torch.uint8 for tensor in tensors(inputs)):
        return "Convert uint8 inputs as training does, for instance with `inputs.float() / 255`."
    return ""


def _how_to_call(module: nn.Module) -> str:
    other = instead(
        "forward",
        "`forward=`, a function of the model and the inputs that returns the logits",
        "wrap the model in a module that takes them",
    )
    return f"{_takes(module)}Pass inputs that fit (several as a sequence or a mapping), or {other}."


def _takes(module: nn.Module) -> str:
    """What ``forward`` takes, as a sentence; empty if that is not known."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # written in another language
        return ""
    names = [str(p).split(":")[0].split("=")[0] + "=…" * (p.default is not p.empty) for p in parameters]
    return f"`{type(module).__name__}.forward` takes ({', '.join(names[:6])}{', …' * (len(names) > 6)}). "
