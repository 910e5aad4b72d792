"""Modules that wrap a network, whose own forward pass must not run: it exchanges tensors, or compiles."""

from __future__ import annotations

from typing import Any

from torch import nn

#: The attribute that has the module inside, by the name of the wrapper's class, since some take long to import.
WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "_FabricModule": "_original_module",
}


def inside_of(module: nn.Module) -> str | None:
    """The attribute of a wrapper that has the module inside; None for other modules."""
    names = [WRAPPERS[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in WRAPPERS]
    return next((name for name in names if module._modules.get(name) is not None), None)


def unwrapped(model: nn.Module) -> tuple[nn.Module, Any]:
    """The network inside of all wrappers, and the precision plugin that Fabric runs it with, or None."""
    precision = None
    while (name := inside_of(model)) is not None:
        if name == "_original_module":
            precision = getattr(model.__dict__.get("_strategy"), "precision", None)
        inside = model._modules[name]
        assert inside is not None
        model = inside
    return model, precision
