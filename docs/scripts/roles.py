"""Roles in docstrings, such as :func:`netdyn.diagnose`, become links if the documentation contains the target."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")


def linked(text: str, scope: str) -> str:
    """Replace the roles; names without a dot are looked up in and next to ``scope``, the object with this docstring."""

    def link(found: re.Match[str]) -> str:
        short, target = found.groups()
        shown = target.rpartition(".")[2] if short else target
        if "." in target:
            return _optional(target, f"<code>{shown}</code>")
        inside, beside = f"{scope}.{target}", f"{scope.rpartition('.')[0]}.{target}"
        return _optional(inside, _optional(beside, f"<code>{shown}</code>"))

    return ROLE.sub(link, text)


def _optional(target: str, inner: str) -> str:
    """A link that becomes plain text if no page has this name."""
    return f'<autoref identifier="{target}" optional>{inner}</autoref>'


class Roles(Extension):
    """Called by griffe for every object that it reads from the sources."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = linked(obj.docstring.value, obj.path)
