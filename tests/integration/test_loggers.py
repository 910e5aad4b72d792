"""Every logger, both of Lightning's packages, the command line, two monitors, progress bars."""

import contextlib
import csv
import inspect
import io
import math
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import pytorch_lightning
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from integration.untouched import OURS, ListLogger
from netdyn import DynamicsMonitor, diagnose

MEASURED: dict[str, Any] = {"weight_rays": 2, "weight_samples": 32}
#: The same, with every scalar sent.
QUICK: dict[str, Any] = MEASURED | {"detail": "full"}
#: What the clock decides.
CLOCK = ("netdyn/seconds", "netdyn/overhead")


def points() -> tuple[Tensor, Tensor]:
    """Five noisy clusters in six dimensions, 64 points."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 5
    return 3 * torch.eye(6)[labels] + torch.randn(64, 6, generator=generator), labels


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*points()), batch_size=16)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 5))


def classifier(base: type) -> type:
    """The same module, for either package."""

    class Classifier(base):
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.net, self.lr = network(), lr

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    return Classifier


Classifier = classifier(L.LightningModule)


def make_trainer(logger: Any, *callbacks: Any, package: Any = L, **options: Any) -> Any:
    usual = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return package.Trainer(logger=logger, callbacks=list(callbacks), **usual | options)


def fit(logger: Any, *callbacks: Any, module: Any = Classifier, **options: Any) -> Any:
    """Build the module and train it for three epochs, from a fixed seed; the trainer."""
    L.seed_everything(0, verbose=False)
    trainer = make_trainer(logger, *(callbacks or (DynamicsMonitor(**QUICK),)), **options)
    trainer.fit(module(), loader())
    return trainer


def ours(lines: Any) -> list[tuple[int, str, float]]:
    """What a monitor logged, without the clock's part."""
    return [line for line in lines if line[1].startswith(OURS) and line[1] not in CLOCK]


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, str, float]]:
    """What this training logs."""
    logger = ListLogger()
    fit(logger)
    assert {step for step, _, _ in logger.lines} >= {0, 3, 7, 11}
    assert len(ours(logger.lines)) > 100
    return ours(logger.lines)


def in_tensorboard(folder: Path, prefix: str = "") -> list[tuple[int, str, float]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found = [(e.step, tag, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
    return ours([(step, tag.removeprefix(prefix), value) for step, tag, value in found])


def in_csv(folder: Path, prefix: str = "") -> list[tuple[int, str, float]]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = [
        (int(row["step"]), tag, float(value)) for row in rows for tag, value in row.items() if value and tag != "step"
    ]
    return ours([(step, tag.removeprefix(prefix), value) for step, tag, value in cells])


def assert_same(found: list[tuple[int, str, float]], expected: list[tuple[int, str, float]]) -> None:
    """Equal up to the float32 of files."""
    assert sorted(line[:2] for line in found) == sorted(line[:2] for line in expected)
    by_name = {line[:2]: line[2] for line in expected}
    assert all(value == pytest.approx(by_name[step, tag], rel=1e-6, abs=1e-7) for step, tag, value in found)


# One logger, none, several


def test_without_a_logger_numbers_are_in_callback_metrics_and_in_the_report(expected):
    monitor = DynamicsMonitor(**QUICK)
    trainer = fit(False, monitor)
    last = {tag: value for step, tag, value in expected if step == 11}
    found = {tag: float(value) for tag, value in trainer.callback_metrics.items() if tag in last}
    assert found == pytest.approx(last, rel=1e-6)
    assert monitor.report.scalars() == pytest.approx({k: v for k, v in last.items() if k != "netdyn/skipped"})


def test_tensorboard(expected, tmp_path):
    fit(TensorBoardLogger(tmp_path, name="", version=""))
    assert_same(in_tensorboard(tmp_path), expected)


def test_csv(expected, tmp_path):
    fit(CSVLogger(tmp_path, name="", version=""))
    assert_same(in_csv(tmp_path), expected)


def test_csv_has_a_column_a_tag_and_the_training_loss_beside_it(tmp_path):
    fit(CSVLogger(tmp_path, name="", version=""))
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [int(row["step"]) for row in rows if row["train_loss"]]
    assert losses == list(range(12))
    assert [int(row["step"]) for row in rows if row["probe/accuracy"]] == [0, 3, 7, 11]
    # The untrained network has no basin.
    assert [int(row["step"]) for row in rows if row["basin/sample/radius"]] == [3, 7, 11]


def test_several_loggers_get_the_same(expected, tmp_path):
    memory = ListLogger()
    loggers = [TensorBoardLogger(tmp_path / "tb", "", ""), CSVLogger(tmp_path / "csv", "", ""), memory]
    fit(loggers)
    assert ours(memory.lines) == expected
    assert_same(in_tensorboard(tmp_path / "tb"), expected)
    assert_same(in_csv(tmp_path / "csv"), expected)


@pytest.mark.slow
def test_two_tensorboards_get_histograms_both(tmp_path):
    fit([TensorBoardLogger(tmp_path / name, "", "") for name in "ab"])
    found = []
    for name in "ab":
        events = EventAccumulator(str(tmp_path / name))
        events.Reload()
        found.append(sorted(events.Tags()["histograms"]))
    assert found[0] == found[1]
    assert "modes/order_index/net.0" in found[0]


def test_a_prefix_of_a_logger_is_the_loggers_affair(expected, tmp_path):
    fit([TensorBoardLogger(tmp_path / "tb", "", "", prefix="mine"), CSVLogger(tmp_path / "csv", "", "", prefix="mine")])
    assert_same(in_tensorboard(tmp_path / "tb", "mine-"), expected)
    assert_same(in_csv(tmp_path / "csv", "mine-"), expected)


@pytest.mark.parametrize("logger", [DummyLogger(), [DummyLogger(), DummyLogger()]], ids=["one", "two"])
def test_a_dummy_logger(logger):
    monitor = DynamicsMonitor(**QUICK)
    trainer = fit(logger, monitor)
    assert monitor.report is not None
    assert "basin/sample/radius" in trainer.callback_metrics


class Folders(Logger):
    """Writes a file a tag, its slashes making folders: no tag may be the folder of another one."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    @property
    def name(self) -> str:
        return "folders"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for tag, value in metrics.items():
            path = self.root / tag
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(f"{step} {value}\n")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_a_logger_of_files_and_folders(expected, tmp_path):
    fit(Folders(tmp_path))
    found = [
        (int(line.split()[0]), str(path.relative_to(tmp_path)), float(line.split()[1]))
        for path in tmp_path.rglob("*")
        if path.is_file()
        for line in path.read_text().splitlines()
    ]
    assert_same(ours(found), expected)


def test_two_monitors_and_everything_switched_on_keep_files_and_folders_apart(tmp_path):
    monitors = [
        DynamicsMonitor(**QUICK, weight_layers="each"),
        DynamicsMonitor(**QUICK, weight_layers="each", prefix="second"),
    ]
    fit(Folders(tmp_path), *monitors)
    assert (tmp_path / "probe/accuracy").read_text() == (tmp_path / "second/probe/accuracy").read_text()


class Fussy(ListLogger):
    """Takes no tag with a slash."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any("/" in tag for tag in metrics):
            raise ValueError(f"a tag must not have a slash: {next(tag for tag in metrics if '/' in tag)!r}")
        super().log_metrics(metrics, step)


def test_a_logger_that_refuses_our_tags_costs_a_warning_and_not_the_training(expected):
    fussy, good = Fussy(), ListLogger()
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=".*slash")
        trainer = fit([fussy, good])
    assert len([warning for warning in caught if "slash" in str(warning.message)]) == 1
    assert trainer.global_step == 12
    assert len([line for line in fussy.lines if line[1] == "train_loss"]) == 12
    assert ours(good.lines) == expected
    assert "basin/sample/radius" in trainer.callback_metrics


def test_strict_raises_what_a_logger_refuses():
    with pytest.raises(ValueError, match="a tag must not have a slash"):
        fit(Fussy(), DynamicsMonitor(**QUICK, strict=True))


# Both packages


@pytest.mark.slow
@pytest.mark.parametrize("package", [L, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def test_both_packages_log_the_same(package, expected, tmp_path):
    logger = package.pytorch.loggers.TensorBoardLogger if package is L else pytorch_lightning.loggers.TensorBoardLogger
    memory = ListLogger()
    trainer = fit([logger(tmp_path, "", ""), memory], module=classifier(package.LightningModule), package=package)
    assert ours(memory.lines) == expected
    assert_same(in_tensorboard(tmp_path), expected)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "modes/order_index/net.0" in events.Tags()["histograms"]
    assert "basin/sample/radius" in trainer.callback_metrics


@pytest.mark.parametrize("val", [False, True], ids=["no validation", "validation"])
def test_pytorch_lightnings_callbacks_can_watch_our_numbers(val, tmp_path):
    base = classifier(pytorch_lightning.LightningModule)
    module = type("Validated", (base,), {"validation_step": lambda self, batch, batch_idx: None})() if val else base()
    stop = pytorch_lightning.callbacks.EarlyStopping("basin/sample/radius", mode="max", patience=1, min_delta=1e3)
    keep = pytorch_lightning.callbacks.ModelCheckpoint(tmp_path, monitor="basin/sample/radius", mode="max")
    monitor, logger = DynamicsMonitor(**QUICK), ListLogger()
    L.seed_everything(0, verbose=False)
    trainer = make_trainer(logger, monitor, stop, keep, package=pytorch_lightning, enable_checkpointing=True)
    trainer.fit(module, loader(), loader() if val else None)
    assert trainer.current_epoch == 2
    assert [step for step, tag, _ in logger.lines if tag == "probe/accuracy"] == [0, 3, 7]
    radii = [value for step, tag, value in logger.lines if tag == "basin/sample/radius" and step]
    assert float(keep.best_model_score) == pytest.approx(max(radii), rel=1e-6)


def test_a_pytorch_lightning_module_without_forward_is_known_as_one():
    class Headless(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    monitor = DynamicsMonitor(**QUICK)
    trainer = fit(False, monitor, module=Headless, package=pytorch_lightning)
    expected = diagnose(trainer.lightning_module.net, *points(), **MEASURED)
    found = {tag: value for tag, value in monitor.report.scalars().items() if "/change" not in tag}
    assert found == expected.scalars()


def test_a_fast_dev_run_of_pytorch_lightning_makes_one_evaluation():
    monitor = DynamicsMonitor(**QUICK)
    fit(
        ListLogger(),
        monitor,
        module=classifier(pytorch_lightning.LightningModule),
        package=pytorch_lightning,
        fast_dev_run=True,
    )
    assert monitor.state_dict()["evaluations"] == 1


# The command line


class Points(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return loader()


class ForTheLine(Classifier):
    """At the top of a module, where a command line can name it."""


@pytest.fixture
def cli(monkeypatch, tmp_path):
    """Runs a command line in this process, in a folder of its own; what it prints."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setattr("sys.argv", ["train"])
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[LightningCLI | None, str]:
        out = io.StringIO()
        made = None
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            made = LightningCLI(
                ForTheLine, Points, args=list(args), seed_everything_default=0, save_config_kwargs={"overwrite": True}
            )
        return made, out.getvalue()

    return run


LINE = (
    "fit",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
    "--trainer.logger.save_dir=logs",
    "--trainer.logger.name=",
    "--trainer.logger.version=",
    "--trainer.callbacks+=netdyn.DynamicsMonitor",
    "--trainer.callbacks.weight_rays=2",
    "--trainer.callbacks.weight_samples=32",
)


def printed(cli: Any, *more: str) -> tuple[str, dict[str, Any]]:
    """The configuration that a command line prints, and the monitor's part of it."""
    _, text = cli(*LINE, *more, "--print_config")
    (callback,) = yaml.safe_load(text)["trainer"]["callbacks"]
    return text, callback


def test_the_command_line_prints_every_argument_and_its_default(cli):
    _, callback = printed(cli)
    assert callback["class_path"].endswith("DynamicsMonitor")
    defaults = {name: p.default for name, p in inspect.signature(DynamicsMonitor).parameters.items()}
    shown = defaults | MEASURED | {"measure": list(defaults["measure"])}
    assert callback["init_args"] | {"measure": list(callback["init_args"]["measure"])} == shown


def test_a_printed_configuration_runs_and_gives_the_same_numbers(cli, tmp_path):
    text, _ = printed(cli)
    (tmp_path / "run.yaml").write_text(text)
    made, _ = cli("fit", "--config", "run.yaml")
    assert made.trainer.global_step == 12
    (monitor,) = (callback for callback in made.trainer.callbacks if isinstance(callback, DynamicsMonitor))
    rows = in_csv(tmp_path / "logs")
    assert [step for step, tag, _ in rows if tag == "probe/accuracy"] == [0, 3, 7, 11]
    again = {tag: value for step, tag, value in rows if step == 11 and tag != "netdyn/skipped"}
    assert again == pytest.approx(monitor.report.scalars("layers"), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "shown"),
    [
        (("--trainer.callbacks.schedule=log",), {"schedule": "log"}),
        (("--trainer.callbacks.schedule=[1,5,9]",), {"schedule": [1, 5, 9]}),
        (("--trainer.callbacks.every_n_train_steps=4",), {"every_n_train_steps": 4}),
        (
            ("--trainer.callbacks.measure=[modes]", "--trainer.callbacks.layers=[net.0]"),
            {"measure": ["modes"], "layers": ["net.0"]},
        ),
        (("--trainer.callbacks.weight_layers=each",), {"weight_layers": "each"}),
        (("--trainer.callbacks.weight_layers=[net.0.weight]",), {"weight_layers": ["net.0.weight"]}),
        (("--trainer.callbacks.prefix=mine", "--trainer.callbacks.strict=true"), {"prefix": "mine", "strict": True}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_arguments_on_the_command_line_survive_the_round_trip(cli, tmp_path, more, shown):
    text, first = printed(cli, *more)
    assert {name: first["init_args"][name] for name in shown} == shown
    (tmp_path / "run.yaml").write_text(text)
    _, again = cli("fit", "--config", "run.yaml", "--print_config")
    assert yaml.safe_load(again)["trainer"]["callbacks"] == [first]


@pytest.mark.parametrize(
    "wrong", ["schedule=linear", "measure=[mode]", "probe_size=0", "normalization=batch", "accuracy=1.5"]
)
def test_a_wrong_argument_on_the_command_line_ends_it_with_its_name(cli, capsys, wrong):
    try:
        made, _ = cli(*LINE, f"--trainer.callbacks.{wrong}")
        told = capsys.readouterr().err
    except ValueError as error:
        made, told = None, str(error)
    assert made is None
    assert wrong.split("=")[0] in told


# Two monitors


def test_two_monitors_do_not_disturb_each_other(expected):
    logger = ListLogger()
    second = DynamicsMonitor(measure=["modes"], every_n_train_steps=5, prefix="second")
    fit(logger, DynamicsMonitor(**QUICK), second)
    assert ours(logger.lines) == expected
    assert [step for step, tag, _ in logger.lines if tag == "second/probe/accuracy"] == [0, 4, 9, 11]


def test_two_monitors_keep_their_state_apart_in_a_checkpoint(tmp_path):
    def monitors() -> list[DynamicsMonitor]:
        often = DynamicsMonitor(measure=["modes"], every_n_train_steps=2, prefix="often")
        return [DynamicsMonitor(measure=["modes"], prefix="seldom"), often]

    first = monitors()
    trainer = fit(False, *first, max_epochs=2)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    states = torch.load(path, weights_only=True)["callbacks"]
    assert [states[monitor.state_key]["evaluations"] for monitor in first] == [3, 5]

    logger, again = ListLogger(), monitors()
    resumed = make_trainer(logger, *again, max_epochs=3)
    resumed.fit(Classifier(), loader(), ckpt_path=path)
    assert [monitor.state_dict()["evaluations"] for monitor in again] == [4, 7]
    steps = {name: [s for s, tag, _ in logger.lines if tag == f"{name}/probe/accuracy"] for name in ("seldom", "often")}
    assert steps == {"seldom": [11], "often": [9, 11]}


def test_two_monitors_of_one_kind_are_refused_by_lightning():
    """They would write the same tags; Lightning says which state would be lost."""
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `DynamicsMonitor`"):
        make_trainer(False, DynamicsMonitor(), DynamicsMonitor())


# Other ways in


class WithMonitor(Classifier):
    def configure_callbacks(self) -> list[L.Callback]:
        return [DynamicsMonitor(**QUICK)]


def test_the_module_can_bring_its_monitor(expected):
    logger = ListLogger()
    L.seed_everything(0, verbose=False)
    trainer = make_trainer(logger)
    trainer.fit(WithMonitor(), loader())
    assert ours(logger.lines) == expected


def test_the_modules_monitor_takes_the_place_of_the_trainers(expected):
    logger = ListLogger()
    fit(logger, DynamicsMonitor(measure=["modes"], every_n_train_steps=1), module=WithMonitor)
    assert ours(logger.lines) == expected


def test_the_modules_monitor_can_be_watched(expected):
    class Stopping(Classifier):
        def configure_callbacks(self) -> list[L.Callback]:
            stop = EarlyStopping("basin/sample/radius", mode="max", patience=1, min_delta=1e3)
            return [DynamicsMonitor(**QUICK), stop]

    trainer = make_trainer(False, max_epochs=9)
    trainer.fit(Stopping(), loader())
    assert trainer.current_epoch == 2


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
@pytest.mark.parametrize("place", ["before", "after"])
def test_progress_bars_go_on(bar, place, expected, capsys):
    logger, monitor = ListLogger(), DynamicsMonitor(**QUICK)
    callbacks = [bar(), monitor] if place == "before" else [monitor, bar()]
    trainer = fit(logger, *callbacks, enable_progress_bar=True)
    shown = capsys.readouterr()
    assert "Epoch 2" in shown.out + shown.err
    assert ours(logger.lines) == expected
    assert math.isfinite(float(trainer.progress_bar_metrics.get("train_loss", 0.0)))
    assert not [name for name in trainer.progress_bar_metrics if name.startswith(OURS)]
