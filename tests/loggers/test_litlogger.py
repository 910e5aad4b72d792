"""The real package, its network taken away: what it would have sent."""

import importlib
import signal
from types import SimpleNamespace

import lightning as L
import matplotlib.figure
import pytest
from lightning.pytorch import loggers

from integration.scenarios.base import Classifier, dataset, loader
from netdyn import DynamicsMonitor
from netdyn.loggers.find import destination
from netdyn.loggers.litlogger import LitLogger

pytest.importorskip("litlogger")
if not hasattr(loggers, "LitLogger"):
    pytest.skip("Lightning has LitLogger from 2.6 on", allow_module_level=True)
#: The package imports a command line and much else.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Cloud:
    """Answers the package's requests, and keeps what it was sent."""

    def __init__(self):
        self.numbers, self.media, self.files = {}, [], {}

    def __getattr__(self, request):
        return lambda **_: SimpleNamespace(summaries_per_name={})  # nothing is there yet

    def lit_logger_service_get_metrics_stream(self, **_):
        from lightning_sdk.lightning_cloud.openapi.rest import ApiException

        raise ApiException(status=404)  # a new experiment

    def lit_logger_service_create_metrics_stream(self, body, **_):
        return SimpleNamespace(id="1", name=body.name, cluster_id="c", cloudspace_id="", tags=[])

    def lit_logger_service_append_logger_metrics(self, body, **_):
        for metric in body.metrics:
            self.numbers.setdefault(metric.name, []).extend((value.step, value.value) for value in metric.values)

    def lit_logger_service_create_lit_logger_media(self, body, **_):
        self.media.append((body.name, body.media_type.rpartition("_")[2], body.step))
        media = SimpleNamespace(id="2", cluster_id="c", storage_path=f"{body.name}/{body.step}")
        return SimpleNamespace(media=media, already_exists=False)

    def upload_file(self, file_path, remote_path, **_):
        with open(file_path, "rb") as file:
            self.files[remote_path] = file.read()


@pytest.fixture
def cloud(monkeypatch):
    experiment = importlib.import_module("litlogger.experiment")  # the package has a variable of this name
    made = Cloud()
    owner = SimpleNamespace(name="me")
    space = SimpleNamespace(id="3", name="mine", owner=owner, _teamspace_api=made, list_models=list)
    monkeypatch.setattr(experiment.AuthApi, "authenticate", lambda self: None)
    monkeypatch.setattr(experiment, "_resolve_teamspace", lambda name: space)
    for module in ("metrics_api", "artifacts_api"):
        monkeypatch.setattr(f"litlogger.api.{module}.LitRestClient", lambda **_: made)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)  # an experiment puts its own in their place


def made(folder):
    # The package's own way to keep what a terminal shows would start the tests once more.
    return loggers.LitLogger(folder, name="run", save_logs=False)


def test_an_experiment_gets_numbers_figures_and_texts_at_their_steps(cloud, tmp_path):
    logger = made(tmp_path)
    there = destination(logger)
    assert type(there) is LitLogger
    assert there.folder == str(tmp_path / "run")
    for step in (0, 7):
        there.scalars({"modes/a/fc:1": step / 2}, step)
        figure = matplotlib.figure.Figure(figsize=(1, 1))
        figure.subplots().plot([0, 1])
        there.figures({"basin/curves": figure}, step)
        there.text("0_netdyn/verdict", ["healthy: all is well.", "Layer α is <b>."], step)
    logger.finalize("success")
    assert cloud.numbers == {"modes/a/fc:1": [(0, 0.0), (7, 3.5)]}
    assert cloud.media == [
        (name, kind, step)
        for step in (0, 7)
        for name, kind in (("basin/curves", "IMAGE"), ("0_netdyn/verdict", "TEXT"))
    ]
    assert cloud.files["basin/curves/7"].startswith(b"\x89PNG")
    assert cloud.files["0_netdyn/verdict/7"].decode() == "healthy: all is well.\n- Layer α is <b>.\n"


def test_a_training_sends_the_reports_numbers_and_the_overview(cloud, tmp_path):
    monitor = DynamicsMonitor(probe_size=48, weight_rays=2, weight_samples=24, strict=True)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", logger=made(tmp_path), callbacks=[monitor], **quiet)
    trainer.fit(Classifier(), loader(dataset(48)), loader(dataset(32, seed=1), shuffle=False))
    assert [step for step, _ in cloud.numbers["probe/accuracy"]] == [0, 2, 5]
    sent = {tag: points[-1] for tag, points in cloud.numbers.items()}
    for tag, value in monitor.report.scalars("layers").items():
        assert sent[tag] == (5, pytest.approx(value, rel=1e-6)), tag
    overviews = [step for name, _, step in cloud.media if name == "0_netdyn/overview"]
    assert overviews == [0, 2, 5]
    assert all(cloud.files[f"0_netdyn/overview/{step}"].startswith(b"\x89PNG") for step in overviews)
    assert list((tmp_path / "run").glob("netdyn_report.html"))
