"""Checks of arguments. Each error names the argument, what was expected and what was given."""

from __future__ import annotations

import difflib
import fnmatch
import math
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class DynamicsWarning(UserWarning):
    """Something in the input or the result that the user should know about.

    Warnings of one ``kind`` say the same of other layers, samples or numbers; a monitor gives one kind once.
    """

    kind: str = ""


def warn(text: str, kind: str | None = None) -> None:
    """Raise a :class:`DynamicsWarning` that points to the line outside of netdyn that called it.

    The warnings of one line of netdyn's code are of one ``kind``, if none is given.
    """
    package = os.path.dirname(os.path.dirname(__file__))
    frame, level = sys._getframe(1), 2
    warning = DynamicsWarning(text)
    warning.kind = kind or f"{frame.f_code.co_filename}:{frame.f_lineno}"
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(warning, stacklevel=level)


def whole(name: str, value: object, minimum: int = 1) -> int:
    """Return ``value`` if it is a whole number of at least ``minimum``; booleans are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be a whole number, got {value!r} of type {type(value).__name__}.")
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")
    return value


def flag(name: str, value: bool) -> bool:
    """Return ``value`` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {value!r}.")
    return value


def fraction(name: str, value: float) -> float:
    """Return ``value`` if it lies strictly between 0 and 1."""
    if not (isinstance(value, int | float) and 0.0 < value < 1.0):
        raise ValueError(f"`{name}` must lie strictly between 0 and 1, got {value!r}.")
    return float(value)


def positive(name: str, value: float) -> float:
    """Return ``value`` if it is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise ValueError(f"`{name}` must be a positive, finite number, got {value!r}.")
    return float(value)


def share(name: str, value: float, of: str) -> float:
    """Return ``value`` if it is a share: above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value <= 1.0:
        raise ValueError(f"`{name}` must be a share of {of}, above 0 and at most 1 (0.05 is 5 %), got {value!r}.")
    return float(value)


def noise_range(low: float, high: float) -> tuple[float, float]:
    """Return the noise levels ``low`` and ``high`` if they are positive and in order."""
    low, high = positive("low", low), positive("high", high)
    if low >= high:
        raise ValueError(f"`low` must be smaller than `high`, got low={low:g} and high={high:g}.")
    return low, high


def choice(name: str, value: str, options: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``options``."""
    if value not in options:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, options))}, got {value!r}.")
    return value


def names(name: str, value: Any, words: Sequence[str] = (), of: str = "names or globs") -> None:
    """Check that ``value`` is None, one of ``words``, or a list of strings."""
    if isinstance(value, str) and words:
        choice(name, value, words)
        return
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    if value is not None and not (listed and all(isinstance(item, str) for item in value)):
        extra = f" (or {', '.join(map(repr, words))})" if words else ""
        write = f" Write {name}=[{value!r}]." if isinstance(value, str) else ""
        raise TypeError(f"`{name}` must be a list of {of}{extra}, got {value!r}.{write}")


def split_patterns(patterns: Sequence[str] | None) -> tuple[list[str] | None, list[str]]:
    """The patterns that choose (None: everything), and those that exclude, without the ``!`` that marks them.

    >>> split_patterns(["encoder.*", "!encoder.0"]), split_patterns(["!head"])
    ((['encoder.*'], ['encoder.0']), (None, ['head']))
    """
    excluding = [pattern[1:] for pattern in patterns or () if pattern.startswith("!")]
    choosing = [pattern for pattern in patterns or () if not pattern.startswith("!")]
    return (None if patterns is None or (excluding and not choosing) else choosing), excluding


def without(name: str, chosen: Sequence[str], excluding: Sequence[str], known: Iterable[str], what: str) -> list[str]:
    """Those of the ``chosen`` names that no pattern excludes; each pattern must match one of the ``known`` names."""
    known = list(known)
    for pattern in excluding:
        if not fnmatch.filter(known, pattern):
            raise ValueError(f"`{name}` excludes {pattern!r}, which matches no {what}. {nearest(pattern, known)}")
    left = [each for each in chosen if not any(fnmatch.fnmatchcase(each, pattern) for pattern in excluding)]
    if chosen and not left:
        raise ValueError(f"`{name}` must leave a {what}, but {['!' + p for p in excluding]} exclude all of them.")
    return left


def function(name: str, value: Any) -> None:
    """Check that ``value`` is None or can be called."""
    if value is not None and not callable(value):
        raise TypeError(f"`{name}` must be a function, got {value!r} of type {type(value).__name__}.")


def hooks(name: str, value: Any) -> None:
    """Check that ``value`` is None, or a list of functions and of names."""
    listed = isinstance(value, list | tuple)
    if value is not None and not (listed and all(isinstance(item, str) or callable(item) for item in value)):
        raise TypeError(f"`{name}` must be a list of hooks, or of names of packages, got {value!r}.")


def class_labels(target: Tensor, num_classes: int, samples: int | None = None, name: str = "target") -> Tensor:
    """Return class labels as int64 ``[samples]``."""
    whole("num_classes", num_classes)
    if not isinstance(target, Tensor):
        raise TypeError(f"`{name}` must be a tensor of class labels, got {type(target).__name__}.")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(
            f"`{name}` must hold whole class labels (an integer dtype), got dtype {target.dtype}. "
            f"Convert one-hot or probability targets with `{name}.argmax(1)`."
        )
    if target.ndim != 1:
        raise ValueError(f"`{name}` must have one label per sample, shape [samples], got shape {list(target.shape)}.")
    if samples is not None and len(target) != samples:
        raise ValueError(f"`{name}` must have one label for each of the {samples} samples, got {len(target)}.")
    low, high = map(int, target.aminmax()) if len(target) else (0, 0)
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise ValueError(f"`{name}` must lie in [0, num_classes) = [0, {num_classes}), got the label {wrong}.")
    return target.long()


def entries(name: str, value: Any, samples: int) -> None:
    """Check that ``value`` is a tensor with one entry for each of the samples."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"`{name}` must be a tensor with one entry per sample, got {type(value).__name__}. Convert it with "
            "`torch.as_tensor`, names of classes to numbers first."
        )
    if value.ndim == 0 or len(value) != samples:
        number = len(value) if value.ndim else "a single number"
        raise ValueError(f"`{name}` must have one entry for each of the {samples} samples, got {number}.")


def matrix(name: str, value: Tensor, layout: str) -> Tensor:
    """Return ``value``, detached, if it is a two-dimensional tensor; ``layout`` names its axes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a tensor of shape {layout}, got {type(value).__name__}.")
    if value.ndim != 2:
        raise ValueError(f"`{name}` must have shape {layout}, got shape {list(value.shape)}.")
    return value.detach()


def same_units(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Check that two arrays ``[..., units]`` have the same number of units."""
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"`{first}` and `{second}` must have the same units, got {a.shape[-1]} units in `{first}` and "
            f"{b.shape[-1]} in `{second}`."
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names nearest to ``name``, as the end of an error message."""
    known = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:5]
    return f"The nearest are {', '.join(map(repr, close))}." if close else "There are none."
