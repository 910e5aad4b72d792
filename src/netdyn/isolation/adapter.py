"""A module seen through a function of one's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from netdyn._utils.trees import Inputs


class Adapter(nn.Module):
    """Calls ``forward(module, inputs)`` under the names, parameters and buffers of ``module`` itself.

    The three dictionaries are the module's own, not copies: what replaces a parameter here replaces it there, which is
    how :func:`torch.func.functional_call` reaches the weights.

    Args:
        module: The module to look at.
        forward: A function of the module and the inputs; None calls the module.
        context: Made anew and entered around every call (mixed precision).
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
            _seen=module,
            _context=context,
        )

    def forward(self, inputs: Inputs) -> Any:
        """The function's result."""
        with self._context():
            return self._call(self._seen, inputs)


def _plain_call(module: nn.Module, inputs: Inputs) -> Any:
    return module(inputs)
