"""Every error, warning and notice in netdyn's sources, read from their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import netdyn

SOURCES = Path(netdyn.__file__).parent
KINDS = {"warn": "warning", "say_once": "warning", "inform": "notice", "rank_zero_info": "notice"}


@dataclass(frozen=True)
class Message:
    """One sentence of the sources; ``…`` stands for the parts that vary.

    Attributes:
        kind: ``"warning"``, ``"notice"``, or the name of the exception.
        text: The sentence.
        room: The module that contains it.
    """

    kind: str
    text: str
    room: str


@cache
def messages(folder: Path = SOURCES) -> tuple[Message, ...]:
    """All messages, by module and in the order of the source, except texts that are only passed on."""
    return tuple(message for path in sorted(folder.rglob("*.py")) for message in _of(path, room(path, folder)))


def room(path: Path, folder: Path = SOURCES) -> str:
    """A module's name below its package, with dots."""
    return ".".join(path.relative_to(folder).with_suffix("").parts)


def _of(path: Path, room: str) -> Iterator[Message]:
    seen = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            # A function that makes an error has its text itself.
            kind, texts = ast.unparse(node.exc.func), node.exc.args[:1]
            kind = kind if kind.rpartition(".")[2][:1].isupper() else ""
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            kind, texts = KINDS.get(name, ""), node.args[:1]
        else:
            continue
        message = Message(kind, "".join(map(template, texts)), room)
        # An error that begins in lower case is a reason that another message carries, or Python's own sentence.
        reason = kind not in ("warning", "notice") and message.text[:1].islower()
        if kind and message.text.strip("… ") and not reason and message not in seen:
            seen.add(message)
            yield message


def template(node: ast.expr) -> str:
    """The text of an expression, with ``…`` for parts that are known only at run time."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(template, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left) + template(right)
        case _:
            return "…"
