"""Lightning, which people have under two names: ``lightning``, and ``pytorch_lightning``, with or without it."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

NAMES = ("lightning.pytorch", "pytorch_lightning")


def packages() -> list[ModuleType]:
    """The packages that this process has imported already, which its trainers come from; else the one that is there."""
    if found := [module for name in NAMES if (module := sys.modules.get(name)) is not None]:
        return found
    for name in NAMES:
        try:
            return [import_module(name)]
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
                raise
    raise ModuleNotFoundError(
        "netdyn's callback needs Lightning, and neither `lightning` nor `pytorch_lightning` is there."
    )


def package_of(module: object) -> ModuleType | None:
    """The package whose LightningModule an object is; None if it is none."""
    return next((package for package in packages() if isinstance(module, package.LightningModule)), None)


def callback_class() -> Any:
    """A class that is a callback for all of these packages."""
    bases = tuple(package.Callback for package in packages())
    return bases[0] if len(bases) == 1 else type("Callback", bases, {})


def derive_from_all(callback: type) -> None:
    """Make a class a callback of the packages too that have been imported since it was made."""
    later = tuple(package.Callback for package in packages() if not issubclass(callback, package.Callback))
    callback.__bases__ += later
