"""Runs in a real store, SQLite, read back through MLflow's own client."""

import matplotlib.figure
import pytest
from lightning.pytorch.loggers import MLFlowLogger

from netdyn.loggers.find import destination
from netdyn.loggers.mlflow import MLflow

mlflow = pytest.importorskip("mlflow")
#: The package takes long to import, and makes its tables anew.
pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_store_holds_the_numbers_at_their_steps_and_the_figures(tmp_path):
    logger = MLFlowLogger(
        "e", tracking_uri=f"sqlite:///{tmp_path}/runs.db", artifact_location=(tmp_path / "files").as_uri()
    )
    there = destination(logger)
    assert type(there) is MLflow
    for step in (0, 7):
        there.scalars({"modes/a/fc:1": step / 2, "basin/sample/radius": 1.0}, step)
    figure = matplotlib.figure.Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    there.figures({"basin/curves": figure}, 7)
    for step in (0, 7):
        there.text("0_netdyn/verdict", ["healthy: all is well.", "Layer <b>."], step)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs.db")
    history = client.get_metric_history(logger.run_id, "modes/a/fc-1")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.0), (7, 3.5)]
    assert set(client.get_run(logger.run_id).data.metrics) == {"modes/a/fc-1", "basin/sample/radius"}
    (text,) = (tmp_path / "files").rglob("*.txt")
    assert text.parts[-3:] == ("netdyn", "0_netdyn", "verdict.txt")
    assert text.read_text() == "step 7: healthy: all is well.\n- Layer <b>.\n"
    (file,) = (tmp_path / "files").rglob("*.png")
    assert file.parts[-4:] == ("netdyn", "basin", "curves", "step_00000007.png")
    assert file.read_bytes().startswith(b"\x89PNG")
