"""What a data set refers to that cannot be put back after reading: it is named before it is used."""

from __future__ import annotations

import array
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
    """Warn of what reading in this process may change and netdyn cannot put back."""
    if found := list(_found(things, lambda value: _of_the_system(value) or _in_this_process(value))):
        checks.warn(
            f"The probe is read in this process, and netdyn cannot put back: {_listed(found)}. If reading a sample "
            "changes it, training goes on from there. Give the DataLoader a worker (num_workers=1). Otherwise: "
            f"{instead_of_reading()}"
        )


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
        # Methods of the user's own classes may hold variables around them.
        methods = (item for base in type(value).__mro__ if _is_own(base) for item in vars(base).items())
        yield from ((f".{name}", f) for name, f in methods if isinstance(f, types.FunctionType))
        yield from ((f".{name}", member) for name, member in getattr(value, "__dict__", {}).items())
        yield from ((f".{name}", getattr(value, name, None)) for name in _slots(type(value)))


def _is_built_in(kind: Any) -> bool:
    """Whether a class or function is of Python, or of a library that netdyn itself uses."""
    return (kind.__module__ or "").partition(".")[0] in _BUILT_IN


def _is_own(kind: Any) -> bool:
    """Whether a class or function is of the user's own code, and not of an installed library."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return not _is_built_in(kind) and "site-packages" not in file and "dist-packages" not in file


def _slots(kind: type) -> list[str]:
    named = (vars(base).get("__slots__", ()) for base in kind.__mro__ if _is_own(base))
    names = (name for slots in named for name in ([slots] if isinstance(slots, str) else slots))
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _of_the_system(value: Any) -> str:
    """A word for what belongs to the system and not to one process; empty for anything else."""
    if isinstance(value, io.IOBase):
        return "" if value.closed or isinstance(value, io.BytesIO | io.StringIO) else "the position of an open file"
    if isinstance(value, socket.socket):
        return "a connection"
    return "shared memory" if isinstance(value, _SHARED) else ""


def _in_this_process(value: Any) -> str:
    """A word for what reading may change and a snapshot does not hold; empty for anything else."""
    if isinstance(value, bytearray | array.array | torch.quasirandom.SobolEngine):
        return f"a {type(value).__name__}"
    if isinstance(value, types.FunctionType):
        return _what_code_changes(value.__code__) if _is_own(value) else ""
    if isinstance(value, Iterator) and _is_built_in(type(value)):
        return "an iterator"
    if not _is_own(type(value)):
        return ""
    if _slots(type(value)) and not getattr(getattr(type(value), "__dataclass_params__", None), "frozen", False):
        return "an object with __slots__"
    methods = (f for base in type(value).__mro__ if _is_own(base) for f in vars(base).values())
    codes = [f.__code__ for f in methods if isinstance(f, types.FunctionType)]
    return "attributes of its class" if any(_sets_attribute_of(type(value), code) for code in codes) else ""


def _what_code_changes(code: types.CodeType) -> str:
    """A word for the variables around a function that it writes to, and for the generators that it makes."""
    for step in dis.get_instructions(code):
        if step.opname == "STORE_DEREF" and step.argval in code.co_freevars:
            return f"the variable {step.argval!r} around it"
        if step.opname == "STORE_GLOBAL":
            return f"the global variable {step.argval!r}"
    return "generators that spawn others" if "spawn" in code.co_names else ""


def _sets_attribute_of(kind: type, code: types.CodeType) -> bool:
    """Whether a method writes to an attribute that its class has, by way of the class."""
    of_class = {name for base in kind.__mro__ if _is_own(base) for name in vars(base) if not name.startswith("__")}
    mentioned = {*code.co_names, *code.co_freevars, *code.co_varnames}
    if "super" in code.co_names:
        mentioned.discard("__class__")
    by_class = mentioned & {"__class__", "type", "cls", *(base.__name__ for base in kind.__mro__ if _is_own(base))}
    stores = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_ATTR"}
    return bool(by_class and stores & of_class)
