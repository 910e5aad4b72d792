"""Options that several callables share: written once, and shown in the signature and help of each."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from netdyn._utils.checks import nearest

T = TypeVar("T", bound=Callable[..., Any])

#: An entry of a docstring's "Args": its name, four spaces in.
_ENTRY = re.compile(r"    (\w+): ")


def takes_options_of(source: Callable[..., Any], without: Collection[str] = ()) -> Callable[[T], T]:
    """Let the ``**options`` of a function or class be the parameters of ``source``, except those in ``without``.

    The signature then lists every option with its type and default, which LightningCLI and editors read. The docstring
    describes each option in the words of the source. An unknown option raises an error that names the nearest ones.

    Args:
        source: The function or class whose parameters are the options.
        without: Names of parameters of the source that are not options.

    Returns:
        A decorator.

    Example:
        >>> def draw(colour: str = "red") -> str:
        ...     '''Draw.
        ...
        ...     Args:
        ...         colour: Colour of the line.
        ...     '''
        ...     return colour
        >>> @takes_options_of(draw)
        ... def draw_twice(**options):
        ...     '''Draw twice.
        ...
        ...     Args:
        ...         options: As for draw.
        ...     '''
        ...     return 2 * draw(**options)
        >>> print(inspect.signature(draw_twice), draw_twice())
        (*, colour: str = 'red') redred
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
            return function(*args, **options)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        checked.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
        described = _described(inspect.getdoc(target) or "", inspect.getdoc(source) or "", [p.name for p in shared])
        decorated: Any = target
        if is_class:
            decorated.__init__ = checked
        else:
            decorated = checked
        decorated.__doc__ = described
        return typing.cast(T, decorated)

    return decorate


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """A callable's parameters, with types in place of the names of types."""
    init: Any = function.__init__ if inspect.isclass(function) else function
    types = typing.get_type_hints(init)
    return [p.replace(annotation=types.get(p.name, p.annotation)) for p in inspect.signature(init).parameters.values()]


def _entries(doc: str) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """A docstring's lines up to and with "Args:", the entries there by name, and the lines after them."""
    lines = doc.splitlines()
    first = lines.index("Args:") + 1
    last = next((i for i in range(first, len(lines)) if lines[i] and not lines[i].startswith("    ")), len(lines))
    found: dict[str, list[str]] = {}
    name = ""
    for line in lines[first:last]:
        if entry := _ENTRY.match(line):
            name = entry.group(1)
        if line:
            found.setdefault(name, []).append(line)
    return lines[:first], found, ["", *lines[last:]]


def _described(doc: str, source: str, shared: list[str]) -> str:
    """The docstring, with the source's descriptions of the shared options in place of the entry ``options``."""
    before, own, after = _entries(doc)
    _, others, _ = _entries(source)
    own.pop("options", None)
    entries = [*own.values(), *(others[name] for name in shared)]
    return "\n".join([*before, *(line for entry in entries for line in entry), *after]).rstrip()
