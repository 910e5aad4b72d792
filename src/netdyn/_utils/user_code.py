"""Errors of the user's own code: each names what was called, and ends with what to write instead."""

from __future__ import annotations

import linecache
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

#: Errors of Python's own that keep their type; others (a KeyError shows its text in quotes) become a RuntimeError.
KEPT = (TypeError, ValueError, RuntimeError, NotImplementedError)
#: Most characters of an error's own text: some of torch's list all its back ends.
LONGEST = 400

#: Where an error of a type of the user's own keeps the text that explains it.
_EXPLANATION = "_explained_by_netdyn"

_PACKAGE = os.path.dirname(os.path.dirname(__file__))


@contextmanager
def explained(message: Callable[[str], str]) -> Iterator[None]:
    """Inside, the user's code runs; ``message`` makes the text of an error from the reason that the code gives.

    The code's own error is the cause of the new one. One of a type of the user's own, which calling code may
    catch, gets the text as a note. An error that netdyn raised says already what to do, and passes through, as does one
    for a lack of memory, after which netdyn tries smaller batches.

    >>> with explained(lambda reason: f"`unpack` raised {reason} It must return (inputs, target)."):
    ...     inputs, target = 3
    Traceback (most recent call last):
    TypeError: `unpack` raised TypeError: cannot unpack non-iterable int object. It must return (inputs, target).
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) or _is_own(error) or _EXPLANATION in error.__dict__:
            raise
        text = message(reason(error))
        if type(error).__module__ != "builtins":
            error.__dict__[_EXPLANATION] = text
            add_note(error, text)
            raise
        kind = type(error) if type(error) in KEPT else RuntimeError
        raise kind(text) from error


def reason(error: Exception) -> str:
    """An error's type and the beginning of its text, as the end of a sentence; or the text that explains it."""
    if explanation := error.__dict__.get(_EXPLANATION):
        return str(explanation)
    text = f"{type(error).__name__}: {error}".rstrip(" :\n")
    if len(text) > LONGEST:
        text = f"{text[:LONGEST].rsplit(' ', 1)[0]} …"
    return text if text[-1] in ".!?" else f"{text}."


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an error; before Python 3.11, tracebacks do not show it."""
    error.__notes__ = [*getattr(error, "__notes__", ()), text]  # type: ignore[attr-defined]


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that a device or the host has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower()


def _is_own(error: Exception) -> bool:
    """Whether a ``raise`` of netdyn's made an error; its calls of torch's functions stand in tracebacks too."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    file = frame.f_code.co_filename
    return file.startswith(_PACKAGE) and linecache.getline(file, line).lstrip().startswith("raise ")
