"""MkDocs hooks: tables generated from the sources, and a check that pages load nothing from other machines."""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path
from typing import Any

from netdyn import tags

sys.path.insert(0, str(Path(__file__).parent))

from messages import Message, messages

MARK = re.compile(r"<!-- (tags|says|errors)(?: (.+?))? -->")

# What a browser loads together with a page.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\ssrc=["']?(?:https?:)?//"""
    r"""|<link\b(?=[^>]*\srel=["']?(?:stylesheet|preconnect|preload))[^>]*\shref=["']?(?:https?:)?//"""
)


def all_tags() -> list[tuple[str, tags.Tag]]:
    """Every tag of the tables in :mod:`netdyn.tags`, with the name of its table, such as ``scalars``."""
    tables = {name.lower(): value for name, value in vars(tags).items() if name.isupper() and isinstance(value, tuple)}
    return [(name, tag) for name, table in tables.items() for tag in table]


def tag_table(prefix: str) -> str:
    """A table of all tags under a prefix.

    Raises:
        ValueError: If no tag has this prefix.
    """
    rows = [
        f"| `{tag.name}` | {tag.meaning} | {tag.unit} | {kind} | {f'`{tag.detail}`' if kind == 'scalars' else ''} |"
        for kind, tag in all_tags()
        if tag.name.startswith(prefix)
    ]
    if not rows:
        raise ValueError(f"no tag begins with {prefix!r}")
    return "\n".join(
        ["| tag | what it is | unit and range | kind | sent from `detail` |", "|---|---|---|---|---|", *rows]
    )


def check_prefixes(prefixes: list[str]) -> None:
    """Check that tables for these prefixes show every tag exactly once.

    Raises:
        ValueError: If they do not.
    """
    for _, tag in all_tags():
        if (times := sum(tag.name.startswith(prefix) for prefix in prefixes)) != 1:
            raise ValueError(f"{tag.name} is shown {times} times under the prefixes {prefixes}")


def told(beginning: str) -> Message:
    """The one warning or notice that contains these words.

    Raises:
        ValueError: If none or several contain them.
    """
    found = [message for message in messages() if message.kind in ("warning", "notice") and beginning in message.text]
    if len(found) != 1:
        raise ValueError(f"{len(found)} warnings or notices hold the words {beginning!r}: {found}")
    return found[0]


def check_told(beginnings: list[str]) -> None:
    """Check that a page that quotes these words explains every warning and notice.

    Raises:
        ValueError: If one is missing.
    """
    explained = {told(beginning) for beginning in beginnings}
    missing = [m.text for m in messages() if m.kind in ("warning", "notice") and m not in explained]
    if missing:
        raise ValueError(f"messages.md explains nothing of {missing}")


def error_table(room: str) -> str:
    """A table of all errors, or of those of one module."""
    rows = [
        f"| {escape(message.text, quote=False).replace('|', '&#124;')} | `{message.kind}` |"
        for message in messages()
        if message.kind not in ("warning", "notice") and (not room or message.room == room)
    ]
    return "\n".join(["| message | exception |", "|---|---|", *rows])


def filled(markdown: str) -> str:
    """A page with its marks replaced: ``<!-- tags modes/ -->``, ``<!-- says The probe holds -->``, ``<!-- errors -->``.

    Raises:
        ValueError: If a mark matches nothing, or if a page with such marks leaves something out.
    """
    marks = [found.groups(default="") for found in MARK.finditer(markdown)]
    if prefixes := [text for kind, text in marks if kind == "tags"]:
        check_prefixes(prefixes)
    if beginnings := [text for kind, text in marks if kind == "says"]:
        check_told(beginnings)

    def made(found: re.Match[str]) -> str:
        kind, text = found.groups(default="")
        return {"tags": tag_table, "errors": error_table, "says": lambda text: f"> {told(text).text}"}[kind](text)

    return MARK.sub(made, markdown)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page."""
    return filled(markdown)


def on_post_page(output: str, *, page: Any, **_: Any) -> None:
    """Called by MkDocs for each finished page, which may not load anything from another machine.

    Raises:
        ValueError: If it would.
    """
    if found := FETCHED.search(output):
        raise ValueError(f"{page.file.src_uri} loads something from elsewhere: {output[found.start() :][:120]}")
