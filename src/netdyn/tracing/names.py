"""Which module made a tensor: layers are called after it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

ROOT = "model"
"""Name of what no submodule made."""


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


class Makers:
    """The modules that are running, innermost last, and what those that have run returned."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: clean_name(name) or ROOT for name, module in model.named_modules()}
        self._running: list[str] = []
        self._made: dict[int, _Made] = {}

    @property
    def innermost(self) -> str:
        """Name of the innermost module running."""
        return self._running[-1] if self._running else ROOT

    def of(self, tensor: Tensor) -> str:
        """Name of the module that returned a tensor, else of the innermost one running."""
        made = self._made.get(id(tensor))
        return made.name if made is not None and made.is_still(tensor) else self.innermost

    def enter(self, module: nn.Module) -> str:
        """A module begins; its name."""
        self._running.append(self.names[module])
        return self._running[-1]

    def leave(self) -> str:
        """The innermost module ends; its name."""
        return self._running.pop()

    def returned(self, name: str, values: Iterable[Any]) -> None:
        """A module has returned these; a tensor that was handed through stays its first maker's."""
        for value in values:
            known = self._made.get(id(value))
            if isinstance(value, Tensor) and (known is None or not known.is_still(value)):
                self._made[id(value)] = _Made.by(name, value)


def clean_name(name: str) -> str:
    """A module's name without what compiling put into it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def numbered(name: str, again: int) -> str:
    """Name of a layer that was there ``again`` times before."""
    return f"{name}:{again}" if again else name


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is one of torch's quantised layers."""
    return ".quantized." in type(module).__module__ and type(module).__module__.startswith("torch.")
