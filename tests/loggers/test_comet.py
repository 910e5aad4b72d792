"""An offline experiment of the real package, read back from its archive."""

import json
import zipfile

import matplotlib.figure
import pytest
import torch
from lightning.pytorch.loggers import CometLogger

from netdyn.loggers.comet import Comet
from netdyn.loggers.find import destination

comet_ml = pytest.importorskip("comet_ml")
#: The package collects much about the machine.
pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")
def test_an_archive_holds_numbers_histograms_and_figures(tmp_path):
    logger = CometLogger(online=False)
    # Lightning disables experiments that are not online; the package's own writes them to an archive.
    logger._experiment = comet_ml.OfflineExperiment(
        project_name="p", workspace="w", offline_directory=str(tmp_path), log_code=False, log_git_metadata=False
    )
    there = destination(logger)
    assert type(there) is Comet
    there.scalars({"modes/a": 1.5}, 7)
    there.histograms({"modes/h": torch.arange(4.0)}, 7)
    figure = matplotlib.figure.Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    there.figures({"basin/f": figure}, 7)
    there.text("0_netdyn/verdict", ["healthy: all is well.", "Layer <b>."], 7)
    logger.experiment.end()
    (archive,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(archive) as packed:
        sent = [json.loads(line) for line in packed.read("messages.json").splitlines()]
    numbers = [entry["payload"] for entry in sent if entry["type"] == "metric_msg"]
    assert [
        (number["metric"]["metricValue"], number["metric"]["step"])
        for number in numbers
        if number["metric"]["metricName"] == "modes/a"
    ] == [(1.5, 7)]
    files = [entry["payload"] for entry in sent if entry["type"] == "file_upload"]
    assert [(f["upload_type"], f["additional_params"]["step"]) for f in files] == [
        ("histogram3d", 7),
        ("visualization", 7),
        ("text-sample", 7),
    ]
