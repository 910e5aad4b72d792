"""Change the numeric files in one place at a time, and count the changes that their own tests notice; see mutants.md.

python tests/mutants.py                    a twelfth of the changes, drawn at random
python tests/mutants.py --all              all changes
python tests/mutants.py --again            those of the drawn ones that no test noticed, or that ran out of time
python tests/mutants.py modes/shares.py    the drawn ones of one file
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("modes", "linear", "basins")
#: Tests of a file beside those in the file of its name.
MORE_TESTS = {
    "basins/input_noise.py": ["tests/basins/test_noise_on_inputs.py"],
    "basins/weight_basin.py": ["tests/basins/test_rays_of_weights.py"],
    "linear/substitution.py": ["tests/linear/test_families.py"],
    "modes/order.py": ["tests/modes/test_shares.py"],
}
#: Changes of a file that are drawn at least.
FEWEST = 15
#: What became of a change, by the exit code of its tests. One whose tests do not end, or crash, is noticed as well.
SURVIVED, UNTESTED, UNKNOWN, NOTICED = "survived", "without a test", "not run", "noticed"
OUTCOMES = {0: SURVIVED, 5: UNTESTED, 33: UNTESTED, None: UNKNOWN, 1: NOTICED, 3: NOTICED}
OUT_OF_TIME = "out of time"


class Place:
    """The folder in which mutmut changes one file, and runs the tests of that file alone."""

    def __init__(self, file: str) -> None:
        self.file, self.folder = file, ROOT / "mutants" / file.removesuffix(".py")

    def prepare(self) -> None:
        """Make all changes, and let mutmut note which tests call which function and how long they take."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("src", "tests"):
            if not (self.folder / name).exists():
                (self.folder / name).symlink_to(ROOT / name)
        package, name = self.file.split("/")
        tests = [f"tests/{package}/test_{name}", *MORE_TESTS.get(self.file, [])]
        text = (ROOT / "pyproject.toml").read_text()
        text = re.sub(r"(?m)^only_mutate = .*", f'only_mutate = ["src/netdyn/{self.file}"]', text)
        text = re.sub(r"(?m)^(pytest_add_cli_args_test_selection) = .*", rf"\1 = {json.dumps(tests)}", text)
        (self.folder / "pyproject.toml").write_text(text)
        # It stops where it finds no change of this name.
        self.mutmut("run", "--max-children", "1", "nothing")
        if not (self.folder / "mutants" / "mutmut-stats.json").exists():
            raise RuntimeError(f"The tests of {self.file} fail without any change: see {self.folder / 'log.txt'}.")

    def mutmut(self, *arguments: str) -> None:
        """Run mutmut; what it prints goes to a file."""
        program = Path(sys.executable).with_name("mutmut")
        with (self.folder / "log.txt").open("a") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run([program, *arguments], cwd=self.folder, env=environment, stdout=log, stderr=log, check=False)

    def outcomes(self) -> dict[str, str]:
        """What became of each change."""
        meta = self.folder / "mutants" / "src" / "netdyn" / f"{self.file}.meta"
        codes = json.loads(meta.read_text())["exit_code_by_key"]
        return {name: OUTCOMES.get(code, OUT_OF_TIME) for name, code in codes.items()}

    def run(self, names: Iterable[str], again: bool) -> None:
        """Run what has not run yet, or what no test has noticed or may have run out of time on a busy machine."""
        known, wanted = self.outcomes(), {SURVIVED, UNTESTED, UNKNOWN, OUT_OF_TIME} if again else {UNKNOWN}
        if names := [name for name in names if known[name] in wanted]:
            self.mutmut("run", "--max-children", "1", *names)
            found = self.outcomes()
            if any(found[name] == UNKNOWN for name in names):
                text = f"Not all drawn changes of {self.file} have run: see {self.folder / 'log.txt'}."
                raise RuntimeError(f"{text} If nothing has run, remove this folder: it is made anew.")


def drawn(names: Sequence[str], share: float, seed: int) -> list[str]:
    """A random choice of a share of a file's changes, and of fifteen at least.

    >>> [len(drawn([str(i) for i in range(made)], 0.1, seed=0)) for made in (10, 100, 1000)]
    [10, 15, 100]
    """
    return random.Random(seed).sample(names, min(len(names), max(FEWEST, round(share * len(names)))))


def wilson(part: int, whole: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    >>> [round(end, 3) for end in wilson(90, 100)]
    [0.826, 0.945]
    """
    z = 1.96
    centre, half = part + z * z / 2, z * (part * (whole - part) / whole + z * z / 4) ** 0.5
    return (centre - half) / (whole + z * z), (centre + half) / (whole + z * z)


def report(files: dict[str, dict[str, str]]) -> None:
    """Print the share of the changes that were noticed, by file, and the names of the others."""
    print(f"{'':26}{'run':>5}{'noticed':>9}{'of these out of time':>22}   share, 95 % interval")
    everything = Counter(outcome for found in files.values() for outcome in found.values())
    for file, count in [*((file, Counter(found.values())) for file, found in files.items()), ("all", everything)]:
        run = count.total() - count[UNKNOWN]
        noticed = count[NOTICED] + count[OUT_OF_TIME]
        share = "{:8.3f}, {:.3f} to {:.3f}".format(noticed / run, *wilson(noticed, run)) if run else ""
        print(f"{file:26}{run:5}{noticed:9}{count[OUT_OF_TIME]:22}{share}")
    for found in files.values():
        for name, outcome in found.items():
            if outcome in (SURVIVED, UNTESTED, OUT_OF_TIME):
                print(f"{outcome}: {name}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw changes, run those that have not run yet, and print what became of them."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("files", nargs="*", help="modes/shares.py, and so on; all files if none is named")
    options.add_argument("--all", action="store_true", help="run every change: many hours")
    options.add_argument("--again", action="store_true", help="run what no test noticed or ran out of time")
    options.add_argument("--share", type=float, default=1 / 12, help="the share of each file's changes that is drawn")
    options.add_argument("--seed", type=int, default=0, help="seed of the draw")
    options.add_argument("--workers", type=int, default=2, help="files at a time, each in a process of its own")
    given = options.parse_args(arguments)
    source = ROOT / "src" / "netdyn"
    every = [f"{package}/{p.name}" for package in PACKAGES for p in sorted((source / package).glob("[!_]*.py"))]
    places = [Place(file) for file in every if file in (given.files or every)]
    with ThreadPoolExecutor(given.workers) as pool:
        list(pool.map(Place.prepare, places))
        share = 1.0 if given.all else given.share
        chosen = {place.file: drawn(list(place.outcomes()), share, given.seed) for place in places}
        list(pool.map(lambda place: place.run(chosen[place.file], given.again), places))
    report({place.file: {n: o for n, o in place.outcomes().items() if n in chosen[place.file]} for place in places})


if __name__ == "__main__":
    main()
