"""The notebook, run from top to bottom by a kernel of its own, and the example for Hugging Face's Trainer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The notebook after all of its cells have run, in an empty folder."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "netdyn.ipynb", as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.km = client.create_kernel_manager()
    client.km.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    return client.execute(env=os.environ | {"OMP_NUM_THREADS": "1"})


def outputs(notebook, kind):
    return [
        output["data"][kind]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if kind in output.get("data", {})
    ]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(run):
    code = [cell for cell in run.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]


@pytest.mark.slow
def test_the_notebook_shows_reports_and_figures(run):
    untrained, trained = [text for text in outputs(run, "text/html") if "probe" in text]
    assert "untrained" in untrained
    assert "512 samples, 10 classes" in trained
    assert len(outputs(run, "image/png")) == 2
    printed = "".join(output.text for cell in run.cells for output in cell.get("outputs", ()) if "text" in output)
    assert "Training is bit for bit the same with the monitor and without (10 steps" in printed


def test_the_notebook_is_kept_without_outputs():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "netdyn.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.slow
def test_the_example_for_hugging_faces_trainer_runs_offline(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "huggingface.py")],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^step +(\d+): accuracy (\S+), held-out", done.stdout, re.MULTILINE)
    assert [int(step) for step, _ in lines] == [44 * epoch for epoch in range(6)]
    assert float(lines[0][1]) < 0.3 < 0.5 < float(lines[-1][1])
    assert "probe: 200 samples, 10 classes" in done.stdout
    files = {file.parent.name for file in tmp_path.rglob("events.out*")}
    assert "netdyn" in files
    assert len(files) == 2
