"""Options that several callables share: written once, and shown in the signature and help of each."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import re
import typing
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from netdyn._utils.checks import nearest

T = TypeVar("T", bound=Callable[..., Any])

_offered: ContextVar[frozenset[str]] = ContextVar("offered", default=frozenset())


@contextmanager
def offering(source: Callable[..., Any]) -> Iterator[None]:
    """Inside, what the user called takes the options of ``source`` too, so that messages may recommend them."""
    token = _offered.set(_offered.get() | frozenset(inspect.signature(source).parameters))
    try:
        yield
    finally:
        _offered.reset(token)


def instead(option: str, where_offered: str, else_: str) -> str:
    """The part of a message that recommends an option, or what replaces it in a function without the option.

    >>> instead("forward", "Pass `forward=`.", "Wrap the model.")
    'Wrap the model.'
    """
    return where_offered if option in _offered.get() else else_


def takes_options_of(source: Callable[..., Any], without: Collection[str] = ()) -> Callable[[T], T]:
    """Let the ``**options`` of a function or class be the parameters of ``source``, except those in ``without``.

    The signature, which LightningCLI and editors read, and the docstring then list every option as the source does. An
    unknown option raises an error that names the nearest ones. The ``repr`` of a class's objects shows what was set.
    """

    def decorate(target: T) -> T:
        is_class = inspect.isclass(target)
        function: Any = target.__init__ if is_class else target
        own = [p for p in _parameters(function) if p.kind is not p.VAR_KEYWORD]
        shared = [
            parameter.replace(kind=parameter.KEYWORD_ONLY)
            for parameter in _parameters(source)
            if parameter.name not in {"self", *without, *(p.name for p in own)}
        ]
        signature = inspect.signature(function).replace(parameters=[*own, *shared])

        @functools.wraps(function)
        def checked(*args: Any, **options: Any) -> Any:
            known = [name for name in signature.parameters if name != "self"]
            for name in options:
                if name not in known:
                    raise TypeError(
                        f"{target.__name__}() got an unexpected keyword argument {name!r}. {nearest(name, known)}"
                    )
            result = function(*args, **options)
            if is_class:
                args[0]._given = {
                    name: value
                    for name, value in signature.bind(*args, **options).arguments.items()
                    if name != "self" and _differs(value, signature.parameters[name].default)
                }
            return result

        checked.__signature__ = signature  # type: ignore[attr-defined]
        checked.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
        before, entries, after = _entries(target)
        _, others, _ = _entries(source)
        entries.pop("options", None)
        described = [*entries.values(), *(others[p.name] for p in shared)]
        decorated: Any = checked
        if is_class:
            decorated = target
            decorated.__init__ = checked
            decorated.__repr__ = _representation
        decorated.__doc__ = "\n".join([*before, *itertools.chain(*described), *after]).rstrip()
        return typing.cast(T, decorated)

    return decorate


def _differs(value: Any, default: Any) -> bool:
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return list(value) != list(default)
    return value is not default and (type(value) is not type(default) or bool(value != default))


def _representation(self: Any) -> str:
    """The options that were given other values than their defaults."""
    return f"{type(self).__name__}({', '.join(f'{name}={_brief(value)}' for name, value in self._given.items())})"


def _brief(value: Any) -> str:
    """A value as it is written, a function by its name, and any other object by its type.

    >>> _brief([1, "fc*", len, object()])
    "[1, 'fc*', len, <object>]"
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_brief, value))}]" if isinstance(value, list) else f"({', '.join(map(_brief, value))})"
    if value is None or isinstance(value, str | int | float | os.PathLike):
        return repr(value)
    return getattr(value, "__qualname__", f"<{type(value).__name__}>")


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """A callable's parameters, with types in place of the names of types."""
    init: Any = function.__init__ if inspect.isclass(function) else function
    types = typing.get_type_hints(init)
    return [p.replace(annotation=types.get(p.name, p.annotation)) for p in inspect.signature(init).parameters.values()]


def _entries(documented: Any) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """A docstring's lines up to and with "Args:", the entries there by name, and the lines after them."""
    lines = (inspect.getdoc(documented) or "").splitlines()
    first = lines.index("Args:") + 1
    last = next((i for i in range(first, len(lines)) if lines[i] and not lines[i].startswith("    ")), len(lines))
    found: dict[str, list[str]] = {}
    name = ""
    for line in lines[first:last]:
        if entry := re.match(r"    (\w+): ", line):
            name = entry.group(1)
        if line:
            found.setdefault(name, []).append(line)
    return lines[:first], found, ["", *lines[last:]]
