"""Run the tests of PyTorch Lightning with netdyn's callback in every trainer, to find what it disturbs.

The tests run twice, with one more callback in every trainer: one that logs a scalar and reads the clock, which
any callback may do, and DynamicsMonitor. Printed are the tests that pass with the first and fail with the second. Tests
that count callbacks or calls, or that replace the clock, may fail with either; such tests say nothing of us.

Nothing is fetched. Check out Lightning's repository at the installed version's tag, install pytest-rerunfailures, which
some of its tests need, and pass the path:

    OMP_NUM_THREADS=1 python benchmarks/others_tests.py path/to/pytorch-lightning [--tests trainer loops -k fit]

All tests take about an hour on two cores. docs/guarantees.md says what came out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from netdyn import DynamicsMonitor

#: Parts of Lightning's tests in which trainers train on a CPU.
TESTS = ("trainer", "loops", "callbacks", "checkpointing", "models/test_hooks.py")
#: The variable that tells a run of the tests which callback it has.
WHICH = "OTHERS_TESTS_CALLBACK"


class Plain(Callback):
    """What any callback may do: it logs a scalar and reads the clock."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log the time at the end of a batch."""
        for logger in trainer.loggers:
            logger.log_metrics({"clock": time.monotonic()}, step=trainer.global_step)


def monitor() -> Callback:
    """The callback at a small size, measuring often."""
    return DynamicsMonitor(every_n_train_steps=2, probe_size=16, weight_rays=2, weight_samples=16, figures="never")


CALLBACKS = {"plain": Plain, "netdyn": monitor}


def pytest_configure(config: pytest.Config) -> None:
    """Add the callback to every trainer, where Lightning adds those of installed packages."""
    from lightning.pytorch.trainer.connectors import callback_connector

    load, make = callback_connector._load_external_callbacks, CALLBACKS[os.environ[WHICH]]
    callback_connector._load_external_callbacks = lambda group: [*load(group), make()]
    # Lightning's own settings make every warning an error; ours say that a test's network cannot be measured.
    warnings.filterwarnings("ignore", category=UserWarning, module="netdyn")
    config.addinivalue_line("filterwarnings", "ignore::netdyn.DynamicsWarning")
    config.addinivalue_line("filterwarnings", "ignore:netdyn:UserWarning")


def outcomes(which: str, folder: Path, arguments: list[str]) -> dict[str, str]:
    """Name of each test → "passed", "failed" or "skipped", with one of the callbacks in every trainer."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "tests.xml"
        here = Path(__file__).parent
        paths = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "pytest", "-q", "-p", Path(__file__).stem, f"--junitxml={file}", *arguments]
        subprocess.run(command, cwd=folder, env=os.environ | {WHICH: which, "PYTHONPATH": paths}, check=False)
        if not file.exists():
            raise SystemExit(f"pytest did not run the tests in {folder}.")
        found = {}
        for case in ElementTree.parse(file).iter("testcase"):
            kinds = {child.tag for child in case}
            name = f"{case.get('classname')}::{case.get('name')}"
            found[name] = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        return found


def main() -> None:
    """Run the tests twice and print the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="Lightning's repository at the installed version's tag")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files and folders in tests/tests_pytorch")
    options, rest = parser.parse_known_args()
    folder = options.checkout.resolve() / "tests" / "tests_pytorch"
    if not folder.is_dir():
        raise SystemExit(f"`checkout` must be a checkout of Lightning's repository, got {options.checkout}.")
    with_plain, with_us = (outcomes(which, folder, [*options.tests, *rest]) for which in CALLBACKS)
    ours = sorted(name for name, end in with_plain.items() if end == "passed" and with_us.get(name) != "passed")
    passed = sum(end == "passed" for end in with_plain.values())
    print(f"{passed} tests pass with a plain callback; {len(ours)} of them fail with DynamicsMonitor:")
    print("\n".join(ours))


if __name__ == "__main__":
    main()
