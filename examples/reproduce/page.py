"""Write the results of the scripts into `docs/reproduction.md`, between the marks for them.

    python examples/reproduce/all.py --mnist DIR --out docs/reproduction
    python examples/reproduce/page.py

The rest of that page is written by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RESULTS = DOCS / "reproduction.md", DOCS / "reproduction"
ORDER = (
    *("shallow", "phases", "first_layer", "linear_tail"),
    *("depth_width", "classes", "grokking_shallow", "grokking_deep"),
)
MARK = re.compile(r"(<!-- (verdicts|results (\w+)) -->\n)(?:.*?\n)??(<!-- end -->)", re.S)


def results() -> dict[str, dict[str, Any]]:
    """The results of each script, in the order of the page."""
    return {script: json.loads((RESULTS / f"{script}.json").read_text(encoding="utf-8")) for script in ORDER}


def verdicts(found: dict[str, dict[str, Any]]) -> str:
    """One row per claim."""
    rows = [
        f"| [{claim['name']}](#{script}) | {claim['source']} | {claim['says']} | **{claim['verdict']}** |"
        for script, told in found.items()
        for claim in told["claims"]
    ]
    whole = sum(told["minutes"] for told in found.values())
    return "\n".join(
        [
            *("", "| claim | paper | what the paper says | verdict |", "|---|---|---|---|", *rows, ""),
            f"All scripts together took {whole:.0f} minutes on one core; `all.py` runs two at a time.",
            "",
        ]
    )


def results_of(told: dict[str, Any]) -> str:
    """Everything about the claims of one script: setting, numbers, figure, command."""
    lines = []
    for claim in told["claims"]:
        lines += ["", f"**{claim['name']}** ({claim['source']}): *{claim['verdict']}*", ""]
        lines += [f"{claim['says']}", "", f"Setting: {claim['setting']}", ""]
        lines += ["| statement | measured | verdict |", "|---|---:|---|"]
        lines += [f"| {part['statement']} | {part['text']} | {part['verdict']} |" for part in claim["parts"]]
        if claim["readings"]:
            lines += ["", "Other readings, which do not affect the verdict:", ""]
            lines += ["| statement | measured | verdict |", "|---|---:|---|"]
            lines += [f"| {part['statement']} | {part['text']} | {part['verdict']} |" for part in claim["readings"]]
        if claim["note"]:
            lines += ["", claim["note"]]
    script = told["script"]
    lines += ["", f"![{told['claims'][0]['name']}](reproduction/{script}.png)", ""]
    lines += [
        f"`{told['command']}` on {told['data']}: {told['seeds']} seeds, mean ± standard deviation, "
        f"{told['minutes']:g} minutes on one core; [all numbers](reproduction/{script}.csv).",
        "",
    ]
    return "\n".join(lines)


def written(page: str, found: dict[str, dict[str, Any]]) -> str:
    """The page with its results."""

    def filled(match: re.Match[str]) -> str:
        content = verdicts(found) if match[3] is None else results_of(found[match[3]])
        return f"{match[1]}{content}\n{match[4]}"

    return MARK.sub(filled, page)


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), results()), encoding="utf-8")


if __name__ == "__main__":
    main()
