"""Run the tests with the lowest, a middle and the newest set of versions, and write what ran into docs/guarantees.md.

    python tests/matrix.py [--sets lowest middle newest] [--python lowest=PATH …] [--environments FOLDER]

Each set has an environment of its own. torch from the package index comes with gigabytes of CUDA.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guarantees.md"
#: The packages in the table.
SHOWN = ("torch", "lightning", "torchmetrics", "numpy", "tensorboard", "transformers")
ASK = (
    "import importlib.metadata as m, json, platform, sys; "
    "print(json.dumps([platform.python_version(), *map(m.version, sys.argv[1:])]))"
)


@dataclass(frozen=True)
class Set:
    """A set of versions: which Python, which constraints, and which tests."""

    python: str
    constraints: str | None
    tests: tuple[str, ...]
    described: str


FAST = ("-m", "not slow")
SMALL = ("tests/test_callback.py", "tests/test_monitor.py", "tests/test_trial.py", "tests/isolation", "tests/engine")
SETS = {
    "lowest": Set("python3.10", "constraints-lowest.txt", FAST, "all fast ones"),
    "middle": Set("python3.12", "constraints-middle.txt", (*FAST, *SMALL), "callback, monitor, isolation, engine"),
    "newest": Set("python3.13", None, FAST, "all fast ones"),
}


def install(chosen: Set, python: str, folder: Path) -> Path:
    """The Python of an environment with the package, what its tests need, and the versions of the set."""
    own = folder / "bin" / "python"
    if not own.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    limits = ["-c", chosen.constraints] if chosen.constraints else ["--upgrade", "--upgrade-strategy", "eager"]
    subprocess.run([own, "-m", "pip", "install", "--quiet", *limits, "-e", ".[test]"], cwd=ROOT, check=True)
    return own


def run(chosen: Set, own: Path, workers: str, results: Path) -> str:
    """Run the tests, and count them. Other releases may warn of other things, so here a warning is no error."""
    options = ["-W", "default", "-n", workers, "--dist", "loadfile", f"--junitxml={results}", *chosen.tests]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    results.unlink(missing_ok=True)  # of an earlier run, which must not stand for one that ends early
    subprocess.run([own, "-m", "pytest", "-q", *options], cwd=ROOT, env=environment, check=False)
    return counted(results.read_text(encoding="utf-8"))


def counted(results: str) -> str:
    """The numbers of tests in a JUnit file, in words.

    >>> counted('<testsuites><testsuite tests="7" skipped="2" failures="1" errors="0"/></testsuites>')
    '4 passed, 2 skipped, 1 failed'
    """
    numbers = next(ET.fromstring(results).iter("testsuite")).attrib
    total, skipped = int(numbers["tests"]), int(numbers["skipped"])
    failed = int(numbers["failures"]) + int(numbers["errors"])
    return f"{total - skipped - failed} passed, {skipped} skipped, {failed} failed"


def row(name: str, chosen: Set, own: Path, outcome: str) -> str:
    """A row of the table."""
    found = subprocess.run([own, "-c", ASK, *SHOWN], capture_output=True, text=True, check=True).stdout
    cells = [name, *json.loads(found), chosen.described, outcome, f"{datetime.date.today():%Y-%m-%d}"]
    return f"| {' | '.join(cells)} |"


def written(page: str, rows: dict[str, str]) -> str:
    """The page with the rows of some sets exchanged.

    >>> written("text\\n| lowest | 1 |\\n| newest | 2 |\\n", {"lowest": "| lowest | 3 |"})
    'text\\n| lowest | 3 |\\n| newest | 2 |\\n'
    """
    for name, new in rows.items():
        page, n = re.subn(rf"^\| {name} \|.*$", lambda _, new=new: new, page, count=1, flags=re.MULTILINE)  # type: ignore[misc]
        if n != 1:
            raise ValueError(f"{PAGE} has no row for the set {name}.")
    return page


def main() -> None:
    """Run the sets that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--python", nargs="+", default=[], metavar="SET=PATH")
    parser.add_argument("--environments", type=Path, default=ROOT / ".venv-matrix")
    parser.add_argument("--workers", default="2")
    options = parser.parse_args()
    pythons = dict(each.split("=", 1) for each in options.python)
    rows = {}
    for name in options.sets:
        chosen, folder = SETS[name], options.environments / name
        own = install(chosen, pythons.get(name, chosen.python), folder)
        rows[name] = row(name, chosen, own, run(chosen, own, options.workers, folder / "results.xml"))
        print(rows[name], flush=True)
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
    if any(not each.split(" | ")[-2].endswith(" 0 failed") for each in rows.values()):
        raise SystemExit("Some tests failed.")


if __name__ == "__main__":
    main()
