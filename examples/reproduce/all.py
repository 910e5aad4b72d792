"""Run the scripts of this folder in parallel, and report how long they took.

    python examples/reproduce/all.py [--jobs 2] [--only shallow classes] [--quick, --mnist DIR … as for each of them]

Each script has one thread. A script that was stopped resumes where it stopped. If one script fails, the others still
run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = (
    *("grokking_shallow", "depth_width", "phases", "shallow"),  # the longest first
    *("first_layer", "grokking_deep", "linear_tail", "classes"),
)


def run(script: str, arguments: list[str]) -> tuple[str, float, int]:
    """Run one script; return its name, the minutes it took and its exit status."""
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, str(HERE / f"{script}.py"), *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    return script, (time.monotonic() - started) / 60, ended.returncode


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(description="Run every script of this folder.")
    parser.add_argument("--jobs", type=int, default=2, help="scripts at a time, each with one thread (default: 2)")
    parser.add_argument(
        "--only", nargs="+", default=SCRIPTS, choices=SCRIPTS, metavar="SCRIPT", help="only these scripts"
    )
    options, arguments = parser.parse_known_args()
    started = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        ended = list(pool.map(lambda script: run(script, arguments), options.only))
    print(f"\nAll together: {(time.monotonic() - started) / 60:.1f} minutes, {options.jobs} at a time")
    for script, minutes, code in ended:
        print(f"  {script:18s}{minutes:6.1f} minutes" + (f"   FAILED ({code})" if code else ""))
    sys.exit(any(code for *_, code in ended))


if __name__ == "__main__":
    main()
