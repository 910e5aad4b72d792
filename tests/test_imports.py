"""Importing netdyn is light, and its public names are there."""

import json
import os
import subprocess
import sys

import pytest

import netdyn

HEAVY = ["lightning", "pytorch_lightning", "tensorboard", "matplotlib", "torchmetrics"]
STEPS = ["import netdyn", "import netdyn.functional", "netdyn.NeuronModes"]


@pytest.fixture(scope="module")
def loaded():
    """After each step of one fresh process, the heavy packages that are loaded."""
    lines = ["import json, sys", "found = {}"]
    for step in STEPS:
        lines += [step, f"found[{step!r}] = [name for name in {HEAVY} if name in sys.modules]"]
    code = "\n".join([*lines, "print(json.dumps(found))"])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("package", HEAVY)
def test_importing_netdyn_does_not_load(loaded, package):
    assert package not in loaded["import netdyn"]


@pytest.mark.parametrize("package", HEAVY)
def test_importing_the_functions_does_not_load(loaded, package):
    assert package not in loaded["import netdyn.functional"]


def test_the_fresh_process_would_notice_a_heavy_import(loaded):
    assert "torchmetrics" in loaded["netdyn.NeuronModes"]


def test_every_public_name_is_found():
    assert set(netdyn.__all__) <= set(dir(netdyn))
    assert all(getattr(netdyn, name) is not None for name in netdyn.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError) as error:
        netdyn.Nothing  # noqa: B018
    assert str(error.value) == "module 'netdyn' has no attribute 'Nothing'"
