"""Which module a tensor is the output of: this names the layers."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

ROOT = "model"  #: name of tensors that are not the output of a submodule


class Origins:
    """The running modules, innermost last, and the tensors that modules have returned."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: clean_name(name) or ROOT for name, module in model.named_modules()}
        self._running: list[str] = []
        #: Name, tensor and its version, by the tensor's id. Once overwritten, it is no longer the module's output.
        self._returned: dict[int, tuple[str, weakref.ref[Tensor], int]] = {}

    @property
    def innermost(self) -> str:
        """Name of the innermost running module."""
        return self._running[-1] if self._running else ROOT

    def name_of(self, tensor: Tensor) -> str:
        """Name of the module that returned a tensor, or of the innermost running module."""
        return self.returned_by(tensor) or self.innermost

    def returned_by(self, tensor: Tensor) -> str | None:
        """Name of the module that returned a tensor; None if none has."""
        name, known, version = self._returned.get(id(tensor), (None, None, 0))
        return name if known is not None and known() is tensor and version == _version(tensor) else None

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
            if isinstance(value, Tensor) and self.returned_by(value) is None:
                self._returned[id(value)] = (name, weakref.ref(value), _version(value))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def clean_name(name: str) -> str:
    """A module's name without the part that compiling adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def numbered(name: str, again: int) -> str:
    """Name of a layer that has run ``again`` times before."""
    return f"{name}:{again}" if again else name


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is one of torch's quantised layers."""
    return ".quantized." in type(module).__module__ and type(module).__module__.startswith("torch.")
