"""Importing netdyn is light, and its rooms import downstairs only."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import netdyn

SOURCE = Path(netdyn.__file__).parent
ROOMS = {path.stem: path for path in SOURCE.glob("*.py") if path.stem != "__init__"}

HEAVY = ["lightning", "pytorch_lightning", "tensorboard", "matplotlib", "torchmetrics"]
STEPS = ["import netdyn", "import netdyn.functional", "netdyn.NeuronModes"]

FLOORS = [
    "_checks schedules tags draws transit",
    "sorting ranks modes transfer phases radii criteria batches isolation activations adapter crew shards snapshot "
    "measured basin_findings findings printed layouts naming recurrent tasks canvas reentry search brackets coverage "
    "targets attempts doubts memory probe budget",
    "watch sites linearize tails characteristic wiring noise supply walk outset rays weight_noise weight_rays "
    "batchnorm radiographs figures functional",
    "settings layer_reader reading results history examine "
    "report metric_state mode_metrics basin_metrics network_metrics metrics",
    "loaders tensorboard callback",
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}

# Doors between neighbours; `functional` gathers its whole floor.
DOORS = {
    "schedules": {"_checks"},
    "ranks": {"sorting"},
    "modes": {"ranks"},
    "transfer": {"ranks", "sorting"},
    "adapter": {"batches"},
    "attempts": {"crew"},
    "measured": {"phases", "radii"},
    "basin_findings": {"measured", "radii"},
    "findings": {"measured", "basin_findings"},
    "printed": {"findings", "measured", "radii"},
    "tasks": {"criteria", "ranks"},
    "isolation": {"shards", "snapshot"},
    "snapshot": {"shards"},
    "sites": {"watch"},
    "linearize": {"sites", "watch"},
    "tails": {"linearize", "sites", "watch"},
    "wiring": {"linearize", "sites", "tails", "characteristic"},
    "characteristic": {"linearize", "sites", "watch"},
    "reentry": {"radii"},
    "coverage": {"radii"},
    "search": {"radii"},
    "targets": {"radii"},
    "brackets": {"search"},
    "memory": {"brackets", "doubts"},
    "probe": {"batches"},
    "supply": {"noise"},
    "walk": {"noise", "supply"},
    "outset": {"sites", "walk"},
    "rays": {"noise", "supply", "walk"},
    "weight_rays": {"walk", "weight_noise"},
    "batchnorm": {"walk"},
    "figures": {"radiographs"},
    "functional": {"sites", "linearize", "tails", "wiring", "outset", "rays", "weight_rays", "batchnorm"},
    "mode_metrics": {"metric_state"},
    "basin_metrics": {"metric_state"},
    "network_metrics": {"metric_state"},
    "metrics": {"mode_metrics", "basin_metrics", "network_metrics"},
    "layer_reader": {"settings"},
    "results": {"layer_reader"},
    "history": {"layer_reader"},
    "reading": {"settings", "layer_reader"},
    "examine": {"settings", "reading", "results"},
    "report": {"examine", "settings", "results", "layer_reader"},
    "callback": {"loaders", "tensorboard"},
}
# Rooms that only these may enter.
ENTRANCES = {
    "functional": {"basin_metrics", "network_metrics", "settings", "layer_reader", "examine", "report", "callback"}
}
# Packages that only these rooms may import.
PACKAGES = {
    "lightning": {"callback"},
    "pytorch_lightning": set(),
    "torchmetrics": {"metric_state", "mode_metrics", "basin_metrics", "network_metrics"},
    "matplotlib": {"results", "history", "canvas", "radiographs", "figures", "mode_metrics", "network_metrics"},
}


def imports(source):
    """Dotted names that a source imports, anywhere in it; of `from a import b` both `a` and `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = "netdyn" if node.level else ""
            module = ".".join(part for part in (package, node.module) if part)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def forbidden(room, source):
    """The imports of a room that no rule allows."""
    names = imports(source)
    wrong = set()
    for other in {name.split(".")[1] for name in names if name.startswith("netdyn.")} & set(FLOOR):
        downstairs = FLOOR[other] < FLOOR[room]
        welcome = room in ENTRANCES.get(other, {room})
        if not (welcome and (downstairs or other in DOORS.get(room, ()))):
            wrong.add(other)
    for package in {name.split(".")[0] for name in names} & set(PACKAGES):
        if room not in PACKAGES[package]:
            wrong.add(package)
    return wrong


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


def test_every_room_has_a_floor():
    assert set(ROOMS) <= set(FLOOR)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_downstairs_or_through_a_door(room):
    assert forbidden(room, ROOMS[room].read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("ranks", "from netdyn.sites import run", {"sites"}),
        ("ranks", "from netdyn import _checks, report", {"report"}),
        ("sites", "import netdyn.linearize", {"linearize"}),
        ("radii", "def later():\n    from netdyn.ranks import midranks", {"ranks"}),
        ("rays", "from .weight_rays import Trail", {"weight_rays"}),
        ("rays", "from . import metrics", {"metrics"}),
        ("probe", "from netdyn.functional import local_fields", {"functional"}),
        ("metrics", "from netdyn.report import diagnose", {"report"}),
        ("metrics", "from lightning.pytorch import Callback", {"lightning"}),
        ("report", "import torchmetrics.functional as tm", {"torchmetrics"}),
        ("modes", "import torch\nfrom netdyn._checks import share\nfrom netdyn.ranks import midranks", set()),
        ("callback", "import lightning\nfrom netdyn.functional import midranks\nfrom netdyn import loaders", set()),
    ],
)
def test_a_forbidden_import_would_be_noticed(room, source, wrong):
    assert forbidden(room, source) == wrong
