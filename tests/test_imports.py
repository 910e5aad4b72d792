"""Importing netdyn is light, its public names are there, and its packages import in one direction."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import netdyn

HEAVY = ["lightning", "pytorch_lightning", "tensorboard", "matplotlib", "torchmetrics", "transformers"]
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


def test_importing_netdyn_loads_little_besides_itself():
    """A count in place of a time: what is new in a process that has torch already."""
    code = "import sys, torch; old = set(sys.modules); import netdyn; print(*sorted(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "netdyn" in done.stdout.split()
    assert [name for name in done.stdout.split() if name.partition(".")[0] != "netdyn"] == []
    assert len(done.stdout.split()) < 5


def test_the_callback_loads_no_logger_and_no_drawing_beside_what_lightning_loads():
    loggers = ["wandb", "mlflow", "comet_ml", "litlogger", "tensorboard"]
    unwanted = [*loggers, "matplotlib", "transformers", "accelerate", "sklearn"]
    steps = [
        "import sys, lightning.pytorch; old = set(sys.modules)",
        "import netdyn.callback, netdyn.monitor, netdyn.trial",
        f"print(*(set({unwanted}) & (set(sys.modules) - old)))",
        "print('netdyn.callback' in sys.modules)",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    code = "\n".join(steps)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == ["", "True"]


def test_every_public_name_is_found():
    assert set(netdyn.__all__) <= set(dir(netdyn))
    assert all(getattr(netdyn, name) is not None for name in netdyn.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError) as error:
        netdyn.Nothing  # noqa: B018
    assert str(error.value) == "module 'netdyn' has no attribute 'Nothing'"


#: Packages and modules in the order of their imports: each may import itself and those on earlier lines.
ORDER = [
    ["tags"],
    ["_utils"],
    ["modes", "isolation", "schedules", "budget"],
    ["tracing"],
    ["probes"],
    ["linear", "basins", "companions", "loggers"],
    ["report", "functional"],
    ["engine"],
    ["metrics"],
    ["monitor", "trainers"],
    ["callback", "huggingface"],
    ["trial"],
]
PLACE = {name: place for place, names in enumerate(ORDER) for name in names}
#: Third-party packages that only some may import.
ONLY = {
    "lightning": ["callback", "trial"],
    "pytorch_lightning": [],
    "torchmetrics": ["metrics"],
    "matplotlib": ["_utils", "report", "metrics"],
    "tensorboard": ["loggers"],
    "transformers": ["huggingface"],
    "accelerate": [],
}
SOURCES = Path(netdyn.__file__).parent
FILES = {
    str(path.relative_to(SOURCES)): path
    for path in SOURCES.rglob("*.py")
    if path.parent != SOURCES or path.stem != "__init__"
}


def imported(source):
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


def package_of(file):
    return Path(file).parts[0].removesuffix(".py")


def forbidden(package, source):
    """The imports that no rule allows a package."""
    names = imported(source)
    own = {name.split(".")[1] for name in names if name.startswith("netdyn.")} & set(PLACE)
    others = {name.split(".")[0] for name in names} & set(ONLY)
    wrong = {other for other in own if other != package and PLACE[other] >= PLACE[package]}
    return wrong | {other for other in others if package not in ONLY[other]}


def test_every_package_has_its_place():
    assert {package_of(file) for file in FILES} == set(PLACE)


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_package_imports_only_earlier_ones(file):
    assert forbidden(package_of(file), FILES[file].read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("package", "source", "wrong"),
    [
        ("modes", "from netdyn.tracing.survey import survey", {"tracing"}),
        ("modes", "from netdyn import _utils, report", {"report"}),
        ("linear", "import netdyn.basins.result", {"basins"}),
        ("basins", "def later():\n    from netdyn.functional import midranks", {"functional"}),
        ("probes", "from ..engine import evaluate", {"engine"}),
        ("report", "from netdyn.engine.layers import read_layers", {"engine"}),
        ("metrics", "from lightning.pytorch import Callback", {"lightning"}),
        ("engine", "import torchmetrics.functional as tm", {"torchmetrics"}),
        ("monitor", "from lightning.pytorch import Trainer", {"lightning"}),
        (
            "basins",
            "import torch\nfrom netdyn.probes import evaluator\nfrom netdyn.basins.curve import Grid",
            set(),
        ),
        ("callback", "import lightning\nfrom netdyn.functional import midranks\nfrom netdyn import monitor", set()),
    ],
)
def test_a_forbidden_import_would_be_noticed(package, source, wrong):
    assert forbidden(package, source) == wrong
