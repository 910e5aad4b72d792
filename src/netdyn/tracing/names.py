"""Which module a tensor is the output of: this names the layers."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

ROOT = "model"
"""Name of tensors that are not the output of a submodule."""


@dataclass(frozen=True)
class _Returned:
    """A tensor that a module returned. Once it is overwritten it no longer counts as that module's output."""

    name: str
    tensor: weakref.ref[Tensor]
    version: int

    @classmethod
    def by(cls, name: str, tensor: Tensor) -> _Returned:
        return cls(name, weakref.ref(tensor), _version(tensor))

    def is_still(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and self.version == _version(tensor)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class Origins:
    """The running modules, innermost last, and the tensors that modules have returned.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: clean_name(name) or ROOT for name, module in model.named_modules()}
        self._running: list[str] = []
        self._returned: dict[int, _Returned] = {}

    @property
    def innermost(self) -> str:
        """Name of the innermost running module."""
        return self._running[-1] if self._running else ROOT

    def name_of(self, tensor: Tensor) -> str:
        """Name of the module that returned a tensor, or of the innermost running module."""
        known = self._returned.get(id(tensor))
        return known.name if known is not None and known.is_still(tensor) else self.innermost

    def enter(self, module: nn.Module) -> str:
        """Note that a module begins; returns its name."""
        self._running.append(self.names[module])
        return self._running[-1]

    def leave(self) -> str:
        """Note that the innermost module ends; returns its name."""
        return self._running.pop()

    def returned(self, name: str, values: Iterable[Any]) -> None:
        """Note what a module has returned. A tensor that it only passes on keeps the name of the first module."""
        for value in values:
            known = self._returned.get(id(value))
            if isinstance(value, Tensor) and (known is None or not known.is_still(value)):
                self._returned[id(value)] = _Returned.by(name, value)


def clean_name(name: str) -> str:
    """A module's name without the part that compiling adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def numbered(name: str, again: int) -> str:
    """Name of a layer that has run ``again`` times before."""
    return f"{name}:{again}" if again else name


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is one of torch's quantised layers."""
    return ".quantized." in type(module).__module__ and type(module).__module__.startswith("torch.")
