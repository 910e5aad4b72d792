"""A module whose forward pass is a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from netdyn._utils.trees import Inputs


class Adapter(nn.Module):
    """Calls ``forward(module, inputs)``, and has the names, parameters and buffers of ``module``.

    It shares the module's dictionaries, so that a parameter that :func:`torch.func.functional_call` replaces here is
    replaced in the module. Each call enters a ``context`` of its own (mixed precision).
    """

    _call: Callable[[Any, Inputs], Any] | None
    _context: Callable[[], AbstractContextManager[Any]]
    _module: Callable[[Inputs], Any]

    def __init__(
        self,
        module: nn.Module,
        forward: Callable[[Any, Inputs], Any] | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__()
        shared = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
        self.__dict__.update({name: getattr(module, name) for name in shared})
        self.__dict__.update(_module=module, _call=forward, _context=context)

    def forward(self, inputs: Inputs) -> Any:
        """The function's result."""
        with self._context():
            return self._module(inputs) if self._call is None else self._call(self._module, inputs)
