"""Write the results of the scripts into `docs/reproduction.md`, between the marks for them.

    python examples/reproduce/page.py --keep      # the results shown now become those of "before"
    python examples/reproduce/all.py --mnist DIR --out docs/reproduction
    python examples/reproduce/page.py

The rest of that page is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RESULTS = DOCS / "reproduction.md", DOCS / "reproduction"
BEFORE = RESULTS / "before.json"
ORDER = (
    *("shallow", "phases", "first_layer", "linear_tail"),
    *("depth_width", "classes", "grokking_shallow", "grokking_deep"),
)
MARK = re.compile(r"(<!-- (verdicts|changes|(?:table|results) (\w+)) -->\n)(?:.*?\n)??(<!-- end -->)", re.S)
Found = dict[str, dict[str, Any]]


def results() -> Found:
    """The results of each script, in the order of the page."""
    return {script: json.loads((RESULTS / f"{script}.json").read_text(encoding="utf-8")) for script in ORDER}


def kept(found: Found) -> Found:
    """The verdicts and numbers of every claim, beside which other results will stand."""
    return {
        claim["name"]: {
            "verdict": claim["verdict"],
            "statements": {part["statement"]: [part["text"], part["verdict"]] for part in _parts(claim)},
        }
        for _, claim in _claims(found)
    }


def verdicts(found: Found, before: Found) -> list[str]:
    """One row per claim."""
    rows = [
        [
            f"[{claim['name']}](#{script})",
            claim["source"],
            claim["says"],
            _was(before, claim),
            f"**{claim['verdict']}**",
        ]
        for script, claim in _claims(found)
    ]
    whole = sum(told["minutes"] for told in found.values())
    return [
        *_table(["claim", "paper", "what the paper says", "before", "verdict"], rows),
        *("", f"All scripts together took {whole:.0f} minutes of one core; `all.py` runs two at a time."),
    ]


def changes(found: Found, before: Found) -> list[str]:
    """The claims, statements and readings with another verdict than before."""
    rows = []
    for _, claim in _claims(found):
        if claim["name"] in before and _was(before, claim) != claim["verdict"]:
            rows.append([claim["name"], "**the claim**", _was(before, claim), claim["verdict"]])
        rows += [
            [claim["name"], part["statement"], *_cells(before, claim, part)]
            for part in _parts(claim)
            if _earlier(before, claim, part)[1:] not in ([], [part["verdict"]])
        ]
    return _table(["claim", "statement or reading", "before", "now"], rows)


def table(name: str, found: Found) -> list[str]:
    """The numbers that have a place in one of the page's tables."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for script, claim in _claims(found):
        for part in _parts(claim):
            if part.get("place") and part["place"][0] == name:
                _, row, column = part["place"]
                own = rows.setdefault((f"[{claim['name']}](#{script})", row), {})
                own[column] = part["text"] if name == "l_map" else f"{part['text']}, {part['verdict']}"
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[*at, *(row.get(column, "") for column in columns)] for at, row in rows.items()]
    return _table(["claim", "", *columns], cells)


def results_of(told: dict[str, Any], before: Found) -> list[str]:
    """Everything about the claims of one script: setting, numbers, figure, command."""
    lines = []
    for claim in told["claims"]:
        lines += [f"**{claim['name']}** ({claim['source']}): *{claim['verdict']}* (before: {_was(before, claim)})", ""]
        lines += [f"{claim['says']}", "", f"Setting: {claim['setting']}"]
        for kind, title in (("parts", ""), ("readings", "Other readings, which do not affect the verdict:")):
            rows = [[part["statement"], *_cells(before, claim, part)] for part in claim[kind]]
            lines += ["", *([title, ""] if title and rows else []), *_table(["statement", "before", "now"], rows)]
        lines += ["", *([claim["note"], ""] if claim["note"] else [])]
    versions = "".join(f", {name} {version}" for name, version in told.get("versions", {}).items())
    script = told["script"]
    return [
        *lines,
        *(f"![{told['claims'][0]['name']}](reproduction/{script}.png)", ""),
        f"`{told['command']}` on {told['data']}{versions}: {told['seeds']} seeds, mean ± standard deviation, "
        f"{told['minutes']:g} minutes of one core; [all numbers](reproduction/{script}.csv).",
    ]


def _claims(found: Found) -> list[tuple[str, dict[str, Any]]]:
    return [(script, claim) for script, told in found.items() for claim in told["claims"]]


def _parts(claim: dict[str, Any]) -> list[dict[str, Any]]:
    return [*claim["parts"], *claim["readings"]]


def _was(before: Found, claim: dict[str, Any]) -> str:
    return str(before.get(claim["name"], {}).get("verdict", "–"))


def _earlier(before: Found, claim: dict[str, Any], part: dict[str, Any]) -> list[str]:
    """Numbers and verdict of a statement before; empty if it is new."""
    return list(before.get(claim["name"], {}).get("statements", {}).get(part["statement"], []))


def _cells(before: Found, claim: dict[str, Any], part: dict[str, Any]) -> list[str]:
    """What was measured before and now, each with its verdict."""
    return [", ".join(_earlier(before, claim, part)) or "–", f"{part['text']}, {part['verdict']}"]


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows] if rows else []
    return [f"| {' | '.join(cells)} |" for cells in lines]


def written(page: str, found: Found, before: Found) -> str:
    """The page with its results."""

    def filled(match: re.Match[str]) -> str:
        mark, name = match[2], match[3]
        if mark == "verdicts":
            lines = verdicts(found, before)
        elif mark == "changes":
            lines = changes(found, before)
        else:
            lines = table(name, found) if mark.startswith("table") else results_of(found[name], before)
        return "\n".join([match[1].rstrip("\n"), "", *lines, "", match[4]])

    return MARK.sub(filled, page)


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description="Write the results into the page.")
    parser.add_argument("--keep", action="store_true", help='make the results shown now those of "before"')
    if parser.parse_args().keep:
        BEFORE.write_text(json.dumps(kept(results()), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    before = json.loads(BEFORE.read_text(encoding="utf-8"))
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), results(), before), encoding="utf-8")


if __name__ == "__main__":
    main()
