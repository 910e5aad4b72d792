"""A module whose forward pass is a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from netdyn._utils.trees import Inputs


class Adapter(nn.Module):
    """Calls ``forward(module, inputs)``, and has the names, parameters and buffers of ``module``.

    It shares the module's dictionaries of parameters, buffers and children. A parameter that is replaced here is
    therefore replaced in the module, which is how :func:`torch.func.functional_call` reaches the weights.

    Args:
        module: The module.
        forward: A function of the module and the inputs; None calls the module.
        context: Makes a context that is entered for each call (mixed precision).
    """

    _call: Callable[[Any, Inputs], Any]
    _context: Callable[[], AbstractContextManager[Any]]

    def __init__(
        self,
        module: nn.Module,
        forward: Callable[[Any, Inputs], Any] | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__()
        self.__dict__.update(
            _parameters=module._parameters,
            _buffers=module._buffers,
            _modules=module._modules,
            _non_persistent_buffers_set=module._non_persistent_buffers_set,
            training=module.training,
            _call=forward or _plain_call,
            _module=module,
            _context=context,
        )

    def forward(self, inputs: Inputs) -> Any:
        """The function's result."""
        with self._context():
            return self._call(self._module, inputs)


def _plain_call(module: nn.Module, inputs: Inputs) -> Any:
    return module(inputs)
