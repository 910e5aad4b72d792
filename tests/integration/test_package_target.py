"""`make package`: what an index would get is built, checked, and works in an empty environment."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import netdyn

ROOT = Path(__file__).parents[2]
LEFT = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "mutants", "runs", "logs", "__pycache__", ".*_cache")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it installs torch
def test_the_package_is_built_and_its_quickstart_runs_in_an_empty_environment(tmp_path):
    pytest.importorskip("build")
    pytest.importorskip("twine")
    if shutil.which("make") is None:
        pytest.skip("needs make")
    folder = tmp_path / "copy"
    shutil.copytree(ROOT, folder, ignore=LEFT)
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # The development environment is the one that runs this test, so it counts as made (-o).
    command = [
        "make",
        "-o",
        ".venv/.stamp-dev",
        "package",
        f"BIN={Path(sys.executable).parent}",
        f"PYTHON={sys.executable}",
    ]
    done = subprocess.run(
        command, cwd=folder, env=own | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("PASSED") == 2
    version, file = re.search(r"^(\S+) (\S+netdyn/__init__\.py)$", done.stdout, re.MULTILINE).groups()
    assert version == netdyn.__version__
    assert Path(file).is_relative_to(folder / "build" / "package")
    assert "Training is bit for bit the same with the monitor and without" in done.stdout
    wheel, source = (next((folder / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    assert f"-{netdyn.__version__}" in wheel.name
    assert f"-{netdyn.__version__}" in source.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "netdyn/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"netdyn", f"netdyn-{netdyn.__version__}.dist-info"}
