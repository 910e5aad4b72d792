"""What a data set refers to that cannot be put back after reading: it is named before it is used."""

from __future__ import annotations

import ctypes
import dis
import functools
import inspect
import io
import multiprocessing.managers
import multiprocessing.queues
import multiprocessing.shared_memory
import multiprocessing.sharedctypes
import socket
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from netdyn._utils import checks
from netdyn._utils.options import instead

#: Members of longer containers are data, and are not looked at; so many finds are named.
LONGEST, NAMED = 10_000, 5
_SHARED = (
    *(multiprocessing.sharedctypes.SynchronizedBase, ctypes._SimpleCData, ctypes.Array, ctypes.Structure),
    *(multiprocessing.managers.BaseProxy, multiprocessing.queues.Queue, multiprocessing.shared_memory.SharedMemory),
)

_BUILT_IN = {*sys.stdlib_module_names, "torch", "numpy", "lightning"} - {"__main__"}


def warn_of_shared(**things: Any) -> None:
    """Warn of what processes share, and a worker therefore moves."""
    if found := list(_found(things, _of_the_system)):
        checks.warn(
            f"The probe is read in a worker process, which moves what processes share: {_listed(found)}. If training "
            f"depends on it: {instead_of_reading()}"
        )


def warn_of_unrestorable(**things: Any) -> None:
    """Warn of what reading in this process may change, and netdyn can neither copy nor put back."""
    if found := list(_found(things, lambda value: _of_the_system(value) or _in_this_process(value))):
        checks.warn(
            f"The probe is read in this process, and netdyn cannot put back: {_listed(found)}. If reading a sample "
            "changes it, training goes on from there. Give the DataLoader a worker (num_workers=1). Otherwise: "
            f"{instead_of_reading()}"
        )


def around_methods(**things: Any) -> list[Any]:
    """What the variables around methods hold: a copy of an object has the same methods."""
    owners = _found(things, lambda value: "methods" * bool(_methods(type(value))))
    methods = {method for _, _, owner in owners for method in _methods(type(owner))}
    return [value for method in methods for value in inspect.getclosurevars(method).nonlocals.values()]


def instead_of_reading() -> str:
    """What to write where a data set should not, or cannot, be read."""
    probe = "Pass `probe=`, the samples to measure on, as a pair of tensors (inputs, target)."
    return instead("probe", probe, "Pass tensors, `inputs` and `target`.")


def shared_tensors(**things: Any) -> list[torch.Tensor]:
    """Tensors to which a worker may write, since processes share their memory."""

    def look(value: Any) -> str:
        tensor = isinstance(value, torch.Tensor) and value.device.type == "cpu"
        return "shared memory" * (tensor and value.is_shared())

    return [value for _, _, value in _found(things, look)]


def _listed(found: list[tuple[str, str, Any]]) -> str:
    shown = ", ".join(f"`{path}` ({what})" for path, what, _ in found[:NAMED])
    return shown + f" and {len(found) - NAMED} more" * (len(found) > NAMED)


def _found(things: dict[str, Any], look: Callable[[Any], str]) -> Iterator[tuple[str, str, Any]]:
    """The path to each object that ``look`` has a word for, the word, and the object."""
    todo = list(reversed(things.items()))
    seen: dict[int, Any] = {}
    while todo:
        path, value = todo.pop()
        if value is None or issubclass(type(value), str | bytes | int | float) or id(value) in seen:
            continue
        seen[id(value)] = value
        try:
            what, members = look(value), list(_members(value))
        except Exception:  # whatever a foreign object may do when it is looked at
            continue
        if what:
            yield path, what, value
        todo += [(f"{path}{name if name[:1] in '.[' else f'.{name}'}", member) for name, member in reversed(members)]


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value leads to, each with its part of the path."""
    if isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield "", value.__func__
    elif isinstance(value, types.FunctionType):
        yield from inspect.getclosurevars(value).nonlocals.items()
        yield from _members(value.__defaults__ or ())
    elif isinstance(value, functools.partial):
        yield from (("", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, dict):
        if dict.__len__(value) < LONGEST:
            yield from ((f"[{key!r}]", member) for key, member in value.items())
    elif isinstance(value, list | tuple | deque | set):
        if len(value) < LONGEST:
            yield from ((f"[{place}]", member) for place, member in enumerate(value))
    elif not _is_built_in(type(value)) or isinstance(value, torch.utils.data.Dataset):
        yield from ((f".{method.__name__}", method) for method in _methods(type(value)))
        yield from ((f".{name}", member) for name, member in getattr(value, "__dict__", {}).items())
        slots = (item for base in type(value).__mro__ for item in vars(base).items())
        yield from ((f".{name}", s.__get__(value)) for name, s in slots if isinstance(s, types.MemberDescriptorType))


def _methods(kind: type) -> list[types.FunctionType]:
    """The methods of a class of the user's own."""
    return [f for base in kind.__mro__ if _is_own(base) for f in vars(base).values() if type(f) is types.FunctionType]


def _is_built_in(kind: Any) -> bool:
    """Whether a class or function is of Python, or of a library that netdyn itself uses."""
    return (kind.__module__ or "").partition(".")[0] in _BUILT_IN


def _is_own(kind: Any) -> bool:
    """Whether a class or function is of the user's own code, and not of an installed library."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return not _is_built_in(kind) and "site-packages" not in file and "dist-packages" not in file


def _of_the_system(value: Any) -> str:
    """A word for what belongs to the system and not to one process; empty for anything else."""
    if isinstance(value, io.IOBase):
        return "" if value.closed or isinstance(value, io.BytesIO | io.StringIO) else "the position of an open file"
    if isinstance(value, socket.socket):
        return "a connection"
    return "shared memory" if isinstance(value, _SHARED) else ""


def _in_this_process(value: Any) -> str:
    """A word for what changes where a copy of the data set is read in this process; empty for anything else."""
    if isinstance(value, types.GeneratorType):
        return "an iterator that cannot be copied"
    if isinstance(value, types.FunctionType):
        stores = [step for step in dis.get_instructions(value) if step.opname == "STORE_GLOBAL"] * _is_own(value)
        return f"the global variable {stores[0].argval!r}" if stores else ""
    for method in _methods(type(value)):
        # Functions that are part of an object are copied with the variables around them; methods are not.
        for step in dis.get_instructions(method):
            if step.opname == "STORE_DEREF" and step.argval in method.__code__.co_freevars:
                return f"the variable {step.argval!r} around its method {method.__name__!r}"
    return ""
