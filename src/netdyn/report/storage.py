"""A report as JSON and back: every number exactly, tensors with their dtype. A file is checked field by field."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netdyn.report.results import Report

#: What a file calls itself, and the version of its fields; a file of a later version is refused.
FORMAT, VERSION = "netdyn report", 1
#: JSON has no such numbers: they are written as these words.
WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
PLAIN = {str: "a text", bool: "true or false", int: "a whole number"}


def save(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report; see :meth:`netdyn.Report.save`."""
    content = {"format": FORMAT, "version": VERSION, "report": encoded(report)}
    Path(path).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def load(path: str | os.PathLike[str]) -> Report:
    """Read a report; see :meth:`netdyn.Report.load`."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, as `Report.save` writes it: {error}.") from error
    try:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise _wrong("format", repr(FORMAT), content.get("format") if isinstance(content, dict) else content)
        version = decoded(int, content.get("version"), "version")
        if not 1 <= version <= VERSION:
            raise _wrong("version", f"{VERSION} or less (a later netdyn reads later ones)", version)
        return typing.cast(Report, decoded(Report, content.get("report"), "report"))
    except ValueError as error:
        raise ValueError(f"{path} is no report that can be read: {error}") from error


def encoded(value: Any) -> Any:
    """A value of a report as what JSON can hold."""
    if isinstance(value, Tensor):
        flat = torch.view_as_real(value.detach().resolve_conj()) if value.is_complex() else value.detach()
        dtype = str(value.dtype).removeprefix("torch.")
        return {"dtype": dtype, "shape": list(value.shape), "values": encoded(flat.flatten().tolist())}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if dataclasses.is_dataclass(value):
        return {field.name: encoded(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: encoded(item) for name, item in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    if isinstance(value, dict):
        return {str(name): encoded(item) for name, item in value.items()}
    return value


def decoded(kind: Any, value: Any, place: str) -> Any:
    """The value of type ``kind`` that stands at ``place`` of a file; a ValueError that names the place."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (kind,) = (part for part in parts if part is not types.NoneType)
        return None if value is None else decoded(kind, value, place)
    if kind in PLAIN:
        if type(value) is not kind:
            raise _wrong(place, PLAIN[kind], value)
        return value
    if kind is float:
        return _number(value, place)
    if kind is Tensor:
        return _tensor(value, place)
    if origin is tuple:
        return _tuple(parts, value, place)
    entries = _entries(value, place)
    if origin is dict:
        return {name: decoded(parts[1], item, f"{place}.{name}") for name, item in entries.items()}
    return _object(kind, entries, place)


def _number(value: Any, place: str) -> float:
    if isinstance(value, str) and value in WORDS:
        return WORDS[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(place, f"a number, or one of {', '.join(map(repr, WORDS))}", value)
    if isinstance(value, int) and abs(value) >= 2**1023:
        return math.inf if value > 0 else -math.inf
    return float(value)


def _tensor(value: Any, place: str) -> Tensor:
    """A tensor, on the CPU."""
    entries = _entries(value, place)
    dtype = getattr(torch, decoded(str, entries.get("dtype"), f"{place}.dtype"), None)
    if not isinstance(dtype, torch.dtype):
        raise _wrong(f"{place}.dtype", "the name of a dtype such as 'float64'", entries["dtype"])
    shape = decoded(tuple[int, ...], entries.get("shape"), f"{place}.shape")
    if min(shape, default=0) < 0:
        raise _wrong(f"{place}.shape", "a list of sizes", list(shape))
    kind = bool if dtype == torch.bool else float if dtype.is_floating_point or dtype.is_complex else int
    values = _tuple((kind, ...), entries.get("values"), f"{place}.values")
    flat = (*shape, 2) if dtype.is_complex else shape
    if len(values) != math.prod(flat):
        raise _wrong(f"{place}.values", f"{math.prod(flat)} numbers, as many as the shape has", len(values))
    try:
        made = torch.tensor(values, dtype=dtype.to_real() if dtype.is_complex else dtype).reshape(flat)
    except (RuntimeError, OverflowError, ValueError) as error:
        raise _wrong(f"{place}.values", f"numbers that fit into {entries['dtype']}", "larger ones") from error
    return torch.view_as_complex(made) if dtype.is_complex else made


def _tuple(parts: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    """A tuple of equal items, or of one item for each of the types."""
    if not isinstance(value, list):
        raise _wrong(place, "a list", value)
    kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
    if len(kinds) != len(value):
        raise _wrong(place, f"a list of {len(kinds)}", value)
    return tuple(decoded(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _object(kind: Callable[..., Any], entries: dict[str, Any], place: str) -> Any:
    """A data class or named tuple, from its fields by name; a field with a default may be missing."""
    kinds = typing.get_type_hints(kind)
    known = list(kinds)
    if unknown := [name for name in entries if name not in known]:
        raise ValueError(f"`{place}` has no field {unknown[0]!r}.")
    found = {name: decoded(kinds[name], item, f"{place}.{name}") for name, item in entries.items()}
    try:
        return kind(**found)
    except TypeError as error:
        missing = next(name for name in known if name not in found and f"'{name}'" in str(error))
        raise ValueError(f"`{place}.{missing}` is missing.") from error


def _entries(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(place, "an object", value)
    return value


def _wrong(place: str, expected: str, got: Any) -> ValueError:
    shown = repr(got)
    return ValueError(f"`{place}` must be {expected}, got {shown if len(shown) <= 60 else f'{shown[:57]}...'}.")
