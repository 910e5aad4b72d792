"""What the package says of itself: its version, the Pythons and the versions of other packages that it takes."""

import re
from pathlib import Path

import pytest

import matrix
import netdyn

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def pins(name):
    """Package → version, of a file of constraints."""
    lines = [line for line in read(name).splitlines() if line and not line.startswith("#")]
    return {canonical(package): version for package, _, version in (line.partition("==") for line in lines)}


def canonical(package):
    return re.sub(r"[-_.]+", "-", package).lower()


PROJECT = tomllib.loads(read("pyproject.toml"))["project"]
REQUIREMENTS = PROJECT["dependencies"] + [
    each for name, listed in PROJECT["optional-dependencies"].items() if name != "docs" for each in listed
]
#: Tools of developers, which run on the newest version alone.
TOOLS = {"mutmut", "pillow", "pytest", "selenium"}


def test_the_version_is_the_same_everywhere():
    assert PROJECT["version"] == netdyn.__version__
    assert re.search(r"^version: (.*)$", read("CITATION.cff"), re.MULTILINE)[1] == netdyn.__version__


def test_the_changelog_begins_with_this_version_and_its_date():
    first = re.search(r"^## (.*)$", read("CHANGELOG.md"), re.MULTILINE)[1]
    assert re.fullmatch(rf"{re.escape(netdyn.__version__)} – \d{{4}}-\d\d-\d\d", first)


def test_the_pythons_are_the_same_everywhere():
    named = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert set(re.findall(r'"(3\.\d+)"', read(".github/workflows/tests.yml"))) == set(named)
    assert f"Python {named[0]}" in read("README.md")


@pytest.mark.parametrize("requirement", [each for each in REQUIREMENTS if ">=" in each.partition(";")[0]])
def test_each_lower_bound_is_the_version_that_is_tested(requirement):
    name, bound = re.match(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", requirement).groups()
    if name in TOOLS:
        return
    lowest = pins("constraints-lowest.txt")[canonical(name)]
    assert lowest == bound or lowest == f"{bound}.0"


def test_there_are_no_upper_bounds():
    assert not [each for each in REQUIREMENTS if re.search(r"<|~=|==", each.partition(",!=")[0])]


def test_releases_with_malware_are_left_out():
    (lightning,) = (each for each in PROJECT["dependencies"] if each.startswith("lightning"))
    assert {"!=2.6.2", "!=2.6.3"} <= set(lightning.split(","))
    assert "GHSA-w37p-236h-pfx3" in read("pyproject.toml")


def test_everything_that_developers_need_is_pinned():
    pinned = pins("constraints.txt")
    names = {canonical(re.match(r"[\w.-]+", each)[0]) for each in REQUIREMENTS} - {"netdyn"}
    assert names <= set(pinned)


# The matrix


def test_the_matrix_has_a_row_for_each_set_and_only_pythons_that_are_named():
    page = read("docs/guarantees.md")
    rows = {name: f"| {name} | changed |" for name in matrix.SETS}
    assert [line for line in matrix.written(page, rows).splitlines() if line.endswith("| changed |")] == list(
        rows.values()
    )
    named = {each.rpartition(" ")[2] for each in PROJECT["classifiers"]}
    assert {each.python.removeprefix("python") for each in matrix.SETS.values()} <= named
    assert all((ROOT / each.constraints).exists() for each in matrix.SETS.values() if each.constraints)


def test_a_set_without_a_row_is_noticed():
    with pytest.raises(ValueError, match="no row for the set lowest"):
        matrix.written("| middle | 1 |\n", {"lowest": "| lowest | 2 |"})


# Workflows

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_pins_what_it_uses_and_may_only_read_but_for_single_jobs(path):
    text = path.read_text(encoding="utf-8")
    used = re.findall(r"uses: (.*)", text)
    assert used
    assert [each for each in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each)] == []
    assert re.search(r"^permissions:\n  contents: read\n\n", text, re.MULTILINE)
    assert set(re.findall(r"(\w[\w-]*): write", text)) <= {"id-token", "pages"}


def test_publishing_needs_no_password():
    text = read(".github/workflows/publish.yml")
    assert "id-token: write" in text
    assert "secrets." not in text
    assert "password" not in text.replace("there is no password", "")
