"""What the pages get when they are built: tables made from the sources, and a look at what they would load."""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

from netdyn import tags

sys.path.insert(0, str(Path(__file__).parent))

from messages import messages

# What a browser fetches without being asked.
FETCHED = re.compile(r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*\srel=["']?(?:stylesheet|preconnect)
                     ["']?[^>]*\shref=["']?(?:https?:)?//""", re.VERBOSE)


def all_tags() -> dict[str, tuple[tags.Tag, ...]]:
    """Kind → tags: every table of :mod:`netdyn.tags`."""
    return {
        name.lower(): value
        for name, value in vars(tags).items()
        if isinstance(value, tuple) and value and all(isinstance(tag, tags.Tag) for tag in value)
    }


def tag_table(prefix: str) -> str:
    """The rows of all tags under a prefix."""
    rows = [
        f"| `{tag.name}` | {tag.meaning} | {tag.unit} | {kind.removesuffix('s')} |"
        for kind, table in all_tags().items()
        for tag in table
        if tag.name.startswith(prefix)
    ]
    return "\n".join(["| tag | what it is | unit | shown as |", "|---|---|---|---|", *rows]) if rows else ""


def message_table(kinds: str) -> str:
    """The rows of all messages of a kind: ``error``, ``warning`` or ``notice``."""
    chosen = [m for m in messages() if m.kind == kinds or (kinds == "error" and m.kind not in ("warning", "notice"))]
    rows = [f"| {escape(m.text).replace('|', '&#124;')} | `{m.kind}` | `{m.room}` |" for m in chosen]
    return "\n".join(["| it says | it is a | from |", "|---|---|---|", *rows])


MADE = {"tags": tag_table, "messages": message_table}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Put tables where a page says ``<!-- tags modes/ -->`` or ``<!-- messages error -->``."""

    def table(found: re.Match[str]) -> str:
        made = MADE[found[1]](found[2])
        if not made:
            raise PluginError(f"{page.file.src_uri}: nothing begins with {found[2]!r}")
        return made

    if page.file.src_uri == "tags.md":
        _check_that_all_tags_are_there(re.findall(r"<!-- tags (\S+) -->", markdown))
    return re.sub(r"<!-- (tags|messages) (\S+) -->", table, markdown)


def _check_that_all_tags_are_there(prefixes: list[str]) -> None:
    for tag in (tag for table in all_tags().values() for tag in table):
        places = [prefix for prefix in prefixes if tag.name.startswith(prefix)]
        if len(places) != 1:
            raise PluginError(f"tags.md must show {tag.name} once, its prefixes do so {len(places)} times: {prefixes}")


def on_post_page(output: str, *, page: Any, **_: Any) -> None:
    """Refuse a page that would load something from another machine."""
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {output[found.start():][:120]}")
