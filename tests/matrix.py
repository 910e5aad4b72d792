"""Run the tests with the lowest, a middle and the newest set of versions, and write what ran into docs/guarantees.md.

    python tests/matrix.py [--sets lowest middle newest] [--python lowest=PATH …] [--environments FOLDER] [--failed]

Each set has an environment of its own. torch from the package index comes with gigabytes of CUDA. With --failed, only
the files in which tests have failed are run again, and the others are counted as they were.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
EVERYTHING: tuple[str, ...] = ()
SMALL = ("tests/test_callback.py", "tests/test_monitor.py", "tests/test_trial.py", "tests/isolation", "tests/engine")
SETS = {
    "lowest": Set("python3.10", "constraints-lowest.txt", EVERYTHING, "all fast ones"),
    "middle": Set("python3.12", "constraints-middle.txt", SMALL, "callback, monitor, isolation, engine"),
    "newest": Set("python3.13", None, EVERYTHING, "all fast ones"),
}


def install(chosen: Set, python: str, folder: Path) -> Path:
    """The Python of an environment with the package, what its tests need, and the versions of the set."""
    own = folder / "bin" / "python"
    if not own.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    limits = ["-c", chosen.constraints] if chosen.constraints else ["--upgrade", "--upgrade-strategy", "eager"]
    subprocess.run([own, "-m", "pip", "install", "--quiet", *limits, "-e", ".[test]"], cwd=ROOT, check=True)
    return own


def run(own: Path, workers: str, results: Path, tests: Sequence[str]) -> ET.Element:
    """Run tests, and return what JUnit's file says. Other releases may warn of other things: here that is no error."""
    options = ["-W", "default", "-n", workers, "--dist", "loadfile", f"--junitxml={results}", *FAST, *tests]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    results.unlink(missing_ok=True)  # of an earlier run, which must not stand for one that ends early
    subprocess.run([own, "-m", "pytest", "-q", *options], cwd=ROOT, env=environment, check=False)
    return ET.parse(results).getroot()


def outcome(test: ET.Element) -> str:
    """What became of a test."""
    kinds = {child.tag for child in test}
    return "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


def file_of(test: ET.Element) -> str:
    """The file of a test, below the root: JUnit names it with dots, and the class in it.

    >>> file_of(ET.fromstring("<testcase classname='' name='tests.reference'/>"))  # a file that was skipped as a whole
    'tests/reference.py'
    """
    names = (test.attrib["classname"] or test.attrib["name"]).split(".")
    found = (Path(*names[:n]).with_suffix(".py") for n in range(len(names), 0, -1))
    return next((path.as_posix() for path in found if (ROOT / path).exists()), ".".join(names))


def again(before: ET.Element, rerun: Callable[[Sequence[str]], ET.Element]) -> ET.Element:
    """The results with those of the files in which tests failed exchanged for the ones of another run of these.

    >>> text = "<s><testcase classname='tests.matrix'>{}</testcase><testcase classname='tests.reference'/></s>"
    >>> both = again(ET.fromstring(text.format("<failure/>")), lambda files: ET.fromstring(text.format("")))
    >>> [(file_of(test), outcome(test)) for test in both]
    [('tests/reference.py', 'passed'), ('tests/matrix.py', 'passed')]
    """
    files = {file_of(test) for test in before.iter("testcase") if outcome(test) == "failed"}
    both = ET.Element("testsuite")
    both.extend(test for test in before.iter("testcase") if file_of(test) not in files)
    if files:
        both.extend(test for test in rerun(sorted(files)).iter("testcase") if file_of(test) in files)
    return both


def counted(results: ET.Element) -> str:
    """The numbers of tests, in words.

    >>> counted(ET.fromstring("<s><testcase/><testcase><skipped/></testcase><testcase><error/></testcase></s>"))
    '1 passed, 1 skipped, 1 failed'
    """
    numbers = Counter(outcome(test) for test in results.iter("testcase"))
    return ", ".join(f"{numbers[kind]} {kind}" for kind in ("passed", "skipped", "failed"))


def row(name: str, chosen: Set, own: Path, counts: str) -> str:
    """A row of the table."""
    found = subprocess.run([own, "-c", ASK, *SHOWN], capture_output=True, text=True, check=True).stdout
    cells = [name, *json.loads(found), chosen.described, counts, f"{datetime.date.today():%Y-%m-%d}"]
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
    parser.add_argument("--failed", action="store_true")
    options = parser.parse_args()
    pythons = dict(each.split("=", 1) for each in options.python)
    rows = {}
    for name in options.sets:
        chosen, folder = SETS[name], options.environments / name
        own, results = install(chosen, pythons.get(name, chosen.python), folder), folder / "results.xml"
        if options.failed:
            rerun = partial(run, own, options.workers, folder / "again.xml")
            found = again(ET.parse(results).getroot(), rerun)
            ET.ElementTree(found).write(results)
        else:
            found = run(own, options.workers, results, chosen.tests)
        rows[name] = row(name, chosen, own, counted(found))
        print(rows[name], flush=True)
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
    if any(not each.split(" | ")[-2].endswith(" 0 failed") for each in rows.values()):
        raise SystemExit("Some tests failed.")


if __name__ == "__main__":
    main()
