"""A real Trainer on real digits: what is logged where, against the event file read back and `diagnose` by hand."""

import copy
import math
import pickle
import re
import warnings
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from integration.untouched import OURS, ListLogger
from netdyn import DynamicsMonitor, Monitor, budget, diagnose
from netdyn import monitor as monitoring
from netdyn.functional import sample_basin
from netdyn.probes.loaders import read_probe
from netdyn.probes.unpacking import input_and_target
from netdyn.tags import HISTOGRAMS, SCALARS

#: Cheap measurements, where the numbers are not the subject.
QUICK: dict[str, Any] = {"probe_size": 60, "weight_rays": 2, "report": False, "detail": "full"}
MODES: dict[str, Any] = {"probe_size": 60, "measure": ["modes"], "report": False, "detail": "full"}

ALPHA = 0.05


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits, pixels between 0 and 1, the ten classes in turn as long as there are all of them."""
    images, labels = load_digits(return_X_y=True)
    earlier = [int((labels[:i] == label).sum()) for i, label in enumerate(labels)]
    order = np.lexsort((labels, earlier))
    return torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]


def data(start: int = 0, stop: int = 64) -> TensorDataset:
    x, y = digits()
    return TensorDataset(x[start:stop], y[start:stop])


def loader(start: int = 0, stop: int = 64, batch_size: int = 16, **options: Any) -> DataLoader[Any]:
    """By default four batches of 16 digits."""
    return DataLoader(data(start, stop), **{"batch_size": batch_size, "shuffle": True} | options)


def held_out(start: int = 64, stop: int = 96) -> DataLoader[Any]:
    return loader(start, stop, shuffle=False)


def network(width: int = 24, depth: int = 2) -> nn.Sequential:
    sizes = [64] + [width] * depth
    layers = [(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(sizes)]
    return nn.Sequential(*(module for layer in layers for module in layer), nn.Linear(width, 10))


class Digits(L.LightningModule):
    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or network()

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Validated(Digits):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))


def make_trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    usual = {"accelerator": "cpu", "devices": 1, "max_epochs": 3, "logger": False, "log_every_n_steps": 1}
    return L.Trainer(callbacks=list(callbacks), **quiet | usual | options)


@dataclass
class Run:
    """A training that is over."""

    trainer: L.Trainer
    module: L.LightningModule
    monitor: DynamicsMonitor
    lines: list[tuple[int | None, str, float]] = field(default_factory=list)

    def steps(self, tag: str = "probe/accuracy") -> list[int | None]:
        return [step for step, key, _ in self.lines if key == tag]

    def values(self, tag: str) -> list[float]:
        return [value for _, key, value in self.lines if key == tag]

    def tags(self) -> set[str]:
        return {key for _, key, _ in self.lines if key not in ("epoch", "train_loss", "val_loss")}


def fit(
    monitor: DynamicsMonitor,
    *others: L.Callback,
    module: L.LightningModule | None = None,
    train: Any = None,
    val: Any = None,
    seed: int = 1,
    **options: Any,
) -> Run:
    L.seed_everything(seed, verbose=False)
    logger = ListLogger()
    trainer = make_trainer(monitor, *others, **{"logger": logger} | options)
    module = module or (Digits() if val is None else Validated())
    trainer.fit(module, loader() if train is None else train, val)
    return Run(trainer, module, monitor, logger.lines)


def said(work: Any) -> list[str]:
    """The warnings of some work, as they would be shown; those that pytest is told to ignore stay ignored."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always")
        warnings.filterwarnings("ignore", message=r"The '\w+' does not have many workers")
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        work()
    return [str(warning.message) for warning in caught]


# One whole run


class Snapshots(L.Callback):
    """Keeps the weights at the moments of measuring, taken from Lightning's own hooks."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weights[0] = copy.deepcopy(pl_module.state_dict())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weights[trainer.global_step - 1] = copy.deepcopy(pl_module.state_dict())


TRAIN, VAL = (0, 1400), (1400, 1797)
#: The x of the last of 22 batches of each of three epochs, and 0 for the untrained network.
POINTS = [0, 21, 43, 65]


def without_changes(scalars: dict[str, float]) -> dict[str, float]:
    """What `diagnose` finds too: it knows no evaluation before."""
    return {tag: value for tag, value in scalars.items() if "/change" not in tag}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Three epochs with every scalar sent and all else at its default, and the event file that they leave."""
    folder = tmp_path_factory.mktemp("logs")
    L.seed_everything(0, verbose=False)
    module, monitor, snapshots = Validated(network(96, 3)), DynamicsMonitor(detail="full"), Snapshots()
    logger = TensorBoardLogger(folder, name="", version="")
    trainer = make_trainer(monitor, snapshots, logger=logger)
    trainer.fit(module, loader(*TRAIN, batch_size=64), loader(*VAL, batch_size=256, shuffle=False))
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    return SimpleNamespace(
        scalars={t: [(e.step, e.value) for e in events.Scalars(t)] for t in events.Tags()["scalars"]},
        histograms={t: {e.step: e.histogram_value for e in events.Histograms(t)} for t in events.Tags()["histograms"]},
        trainer=trainer,
        monitor=monitor,
        weights=snapshots.weights,
    )


LAYERS = ("net.1", "net.4", "net.7")


def expected_tags(table: Any) -> set[str]:
    """The tags of the table for this network; `<tensor>` and companions are opt-in."""
    names = set()
    for tag in table:
        if tag.name.startswith("companions/"):
            continue
        pieces = {"<layer>": LAYERS, "<k>": map(str, range(10)), "<tensor>": ()}
        varying = next((piece for piece in pieces if piece in tag.name), None)
        names |= {tag.name.replace(varying, v) for v in pieces[varying]} if varying else {tag.name}
    return names


def test_the_event_file_holds_every_scalar_of_the_table_and_no_other(whole):
    assert {tag for tag in whole.scalars if tag.startswith(OURS)} == expected_tags(SCALARS)


def test_the_event_file_holds_every_histogram_of_the_table_and_no_other(whole):
    assert set(whole.histograms) == expected_tags(HISTOGRAMS)


def test_every_curve_has_the_untrained_network_at_zero_and_each_epoch_at_its_last_batch(whole):
    steps = {tag: [step for step, _ in points] for tag, points in whole.scalars.items() if tag.startswith(OURS)}
    # What knows nothing has no depth.
    assert steps.pop("linear/functional_depth") == POINTS[1:]
    # The radii of the classes are found where figures are drawn: at both ends.
    classes = [tag for tag in steps if tag.startswith("basin/sample/class_radius/")]
    assert [steps.pop(tag) for tag in classes] == [[POINTS[0], POINTS[-1]]] * 10
    # A change needs a radius here and at the point before.
    changes = [steps.pop(tag) for tag in list(steps) if "/change" in tag]
    assert len(changes) == 6
    # The untrained network has no basin.
    basins = [f"basin/{space}/{end}" for space in ("sample", "weight") for end in ("radius", "low", "high")]
    assert [steps.pop(tag) for tag in basins] == [POINTS[1:]] * 6
    assert all(found == POINTS[-len(found) :] for found in changes)
    assert steps == dict.fromkeys(steps, POINTS)


def test_our_points_lie_on_the_points_of_the_training_loss(whole):
    assert set(POINTS) <= {step for step, _ in whole.scalars["train_loss"]}
    assert whole.scalars["train_loss"][-1][0] == POINTS[-1]


def test_our_points_lie_on_the_points_of_the_validation_loss(whole):
    assert [step for step, _ in whole.scalars["val_loss"]] == POINTS[1:]


@pytest.mark.parametrize("kind", ["modes/order_index", "modes/alignment"])
def test_histograms_have_the_same_points(whole, kind):
    for layer in LAYERS:
        assert list(whole.histograms[f"{kind}/{layer}"]) == POINTS
        assert {int(values.num) for values in whole.histograms[f"{kind}/{layer}"].values()} == {96}


def test_histograms_of_radii_begin_where_there_are_any(whole):
    assert list(whole.histograms["basin/weight/radii"]) == POINTS[1:]
    assert whole.histograms["basin/weight/radii"][POINTS[-1]].num == 16
    # What is right by luck before training is as often right under the highest noise: nothing is lost in between.
    assert list(whole.histograms["basin/sample/radii"]) == POINTS[1:]


def test_an_untrained_network_has_opt_units_like_alpha(whole):
    # 288 units: a binomial share of 0.05 has sd 0.013. The units share samples, so that it may be wider; bound: 5 sd.
    untrained = [whole.scalars[f"modes/opt_fraction/{layer}"][0][1] for layer in LAYERS]
    assert abs(sum(untrained) / 3 - ALPHA) < 5 * math.sqrt(ALPHA * (1 - ALPHA) / 288)


@pytest.mark.parametrize("layer", LAYERS)
def test_training_makes_units_preserve_order(whole, layer):
    curve = [value for _, value in whole.scalars[f"modes/opt_fraction/{layer}"]]
    # Of 96 units 5 by chance, sd 2; at least 29 is 11 sd above.
    assert min(curve[1:]) > 0.3


@pytest.mark.parametrize("layer", LAYERS)
def test_shares_of_the_two_modes_add_up_to_one(whole, layer):
    pairs = zip(whole.scalars[f"modes/opt_fraction/{layer}"], whole.scalars[f"modes/npt_fraction/{layer}"], strict=True)
    assert [opt + npt for (_, opt), (_, npt) in pairs] == pytest.approx([1.0] * 4, abs=1e-6)


@pytest.mark.parametrize("space", ["sample", "weight"])
def test_there_is_no_basin_before_training_and_one_after(whole, space):
    # A radius of 0 before training is not sent.
    steps, curve = zip(*whole.scalars[f"basin/{space}/radius"], strict=True)
    assert steps == tuple(POINTS[1:])
    assert min(curve) > 0.1


@pytest.mark.parametrize("space", ["sample", "weight"])
def test_intervals_enclose_radii(whole, space):
    low, radius, high = ([v for _, v in whole.scalars[f"basin/{space}/{name}"]] for name in ("low", "radius", "high"))
    assert len(radius) == len(POINTS) - 1
    assert all(a < b < c for a, b, c in zip(low, radius, high, strict=True))


@pytest.mark.parametrize("step", POINTS)
def test_what_is_logged_is_what_diagnose_says_of_the_same_weights_and_probe(whole, step):
    module = Digits(network(96, 3))
    module.load_state_dict(whole.weights[step])
    probe = read_probe(loader(*TRAIN), 1024, 0, lambda batch: batch, input_and_target)
    val = data(*VAL).tensors
    report = diagnose(module, probe.inputs, probe.target, val_inputs=val[0], val_target=val[1])
    logged = {
        tag: dict(points)[step]
        for tag, points in whole.scalars.items()
        if tag.startswith(OURS) and step in dict(points)
    }
    logged = without_changes(logged)
    own = {tag: logged.pop(tag) for tag in ("netdyn/seconds", "netdyn/overhead", "netdyn/skipped")}
    expected = {tag: float(np.float32(value)) for tag, value in report.scalars().items()}
    if step not in (POINTS[0], POINTS[-1]):
        expected = {tag: value for tag, value in expected.items() if "class_radius" not in tag}
    if step == POINTS[0]:
        basins = [f"basin/{space}/{end}" for space in ("sample", "weight") for end in ("radius", "low", "high")]
        assert {expected.pop(tag) for tag in basins} == {0.0}
    assert logged == expected
    assert own["netdyn/seconds"] > 0
    assert own["netdyn/overhead"] > 0
    assert own["netdyn/skipped"] == 0
    histograms = report.histograms()
    if step != POINTS[0]:
        # Where the radii of the classes are not asked for, the curve behind this histogram has fewer points.
        basin = sample_basin(module, probe.inputs, probe.target)
        assert basin.radius == report.sample_basin.radius
        histograms["basin/sample/radii"] = basin.spread().log10().float()
    for tag, values in histograms.items():
        shown = whole.histograms[tag][step]
        assert (shown.num, shown.min, shown.max) == (len(values), float(values.min()), float(values.max()))


@pytest.mark.parametrize("step", POINTS)
def test_accuracies_are_those_counted_by_hand(whole, step):
    module = Digits(network(96, 3)).eval()
    module.load_state_dict(whole.weights[step])
    x, y = data(*VAL).tensors
    counted = (module(x).argmax(1) == y).double().mean()
    assert dict(whole.scalars["probe/val_accuracy"])[step] == pytest.approx(float(counted), abs=1e-7)


def test_the_classes_of_the_probe_are_in_proportion(whole):
    probe = read_probe(loader(*TRAIN), 1024, 0, lambda batch: batch, input_and_target)
    expected = torch.bincount(data(*TRAIN).tensors[1]) * 1024 / 1400
    assert (torch.bincount(probe.target) - expected).abs().max() < 1
    assert whole.monitor.report.samples == 1024


def test_callback_metrics_hold_our_last_values(whole):
    metrics = whole.trainer.callback_metrics
    for tag, points in whole.scalars.items():
        if tag.startswith(OURS):
            assert isinstance(metrics[tag], Tensor)
            assert float(metrics[tag]) == points[-1][1]
    assert {"train_loss", "val_loss"} <= set(metrics)


def test_the_last_report_stays_with_the_monitor(whole):
    report = whole.monitor.report
    assert [layer.name for layer in report.layers] == list(LAYERS)
    assert {tag: float(np.float32(value)) for tag, value in report.scalars().items()} == {
        tag: points[-1][1]
        for tag, points in whole.scalars.items()
        if tag.startswith(OURS) and not tag.startswith("netdyn/")
    }
    assert "sample basin: radius" in str(report)


# When


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [0, 3, 7, 11]),
        ({"every_n_epochs": 1, "on_fit_ends": False}, [3, 7, 11]),
        ({"every_n_epochs": 2}, [0, 7, 11]),
        ({"every_n_epochs": 2, "on_fit_ends": False}, [7]),
        ({"every_n_epochs": 10}, [0, 11]),
        ({"every_n_epochs": 10, "on_fit_ends": False}, []),
        ({"every_n_train_steps": 5}, [0, 4, 9, 11]),
        ({"every_n_train_steps": 6}, [0, 5, 11]),
        ({"every_n_train_steps": 5, "on_fit_ends": False}, [4, 9]),
        ({"every_n_train_steps": 100}, [0, 11]),
        ({"schedule": [7, 2, 500]}, [0, 1, 6, 11]),
        ({"schedule": [12]}, [0, 11]),
        ({"schedule": "log"}, [0, 0, 1, 2, 4, 9, 11]),
        ({"schedule": "log", "on_fit_ends": False}, [0, 1, 2, 4, 9]),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "validation",
    [None, {}, {"val_check_interval": 0.5}, {"check_val_every_n_epoch": 2}],
    ids=["no validation", "once an epoch", "twice an epoch", "every other epoch"],
)
def test_points_are_where_the_cadence_says(arguments, expected, validation):
    val = None if validation is None else held_out()
    run = fit(DynamicsMonitor(**MODES, **arguments), val=val, **validation or {})
    assert run.steps() == expected
    assert run.steps("netdyn/seconds") == expected
    assert set(expected) <= set(run.steps("train_loss"))


@pytest.mark.parametrize(
    ("options", "expected", "train_steps"),
    [
        ({"accumulate_grad_batches": 2}, [0, 1, 3, 5], 6),
        ({"accumulate_grad_batches": 3}, [0, 1, 3, 5], 6),  # three batches, then the one that is left
        ({"max_steps": 6, "max_epochs": -1}, [0, 3, 5], 6),
        ({"max_steps": 1, "max_epochs": -1}, [0, 0], 1),
        ({"limit_train_batches": 3}, [0, 2, 5, 8], 9),
        ({"overfit_batches": 2}, [0, 1, 3, 5], 6),
        ({"max_epochs": 1}, [0, 3], 4),
    ],
    ids=str,
)
def test_points_lie_on_the_axis_of_the_training_loss(options, expected, train_steps):
    run = fit(DynamicsMonitor(**MODES), train=loader(shuffle=False), **options)
    assert run.trainer.global_step == train_steps
    assert run.steps() == expected
    assert set(expected) <= set(run.steps("train_loss"))


def test_steps_are_counted_as_modelcheckpoint_counts_them_under_accumulation():
    run = fit(DynamicsMonitor(**MODES, every_n_train_steps=4), accumulate_grad_batches=2)
    assert run.steps() == [0, 3, 5]


def test_nothing_is_measured_before_training_starts():
    seen = []

    class Sanity(L.Callback):
        def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append((monitor.report, dict(trainer.callback_metrics)))

    monitor = DynamicsMonitor(**MODES)
    run = fit(monitor, Sanity(), val=held_out(), num_sanity_val_steps=2)
    ((report, metrics),) = seen
    assert report is None
    assert not [tag for tag in metrics if tag.startswith(OURS)]
    assert run.steps()[0] == 0


@pytest.mark.parametrize("dev_run", [True, 3])
@pytest.mark.parametrize("val", [False, True], ids=["no validation", "validation"])
@pytest.mark.parametrize(
    "cadence", [{}, {"every_n_train_steps": 1}, {"on_fit_ends": False}, {"schedule": "log"}], ids=str
)
def test_a_fast_dev_run_makes_one_evaluation(dev_run, val, cadence):
    run = fit(DynamicsMonitor(**MODES, **cadence), val=held_out() if val else None, fast_dev_run=dev_run)
    assert run.monitor.state_dict()["evaluations"] == 1
    assert run.monitor.report is not None


def test_validate_test_and_predict_make_no_evaluation():
    monitor, logger = DynamicsMonitor(**MODES), ListLogger()
    trainer = make_trainer(monitor, logger=logger)
    for stage in (trainer.validate, trainer.test, trainer.predict):
        stage(Validated(), held_out())
    assert monitor.state_dict()["evaluations"] == 0
    assert monitor.report is None
    assert not [line for line in logger.lines if line[1].startswith(OURS)]


def test_validating_after_a_fit_adds_nothing():
    run = fit(DynamicsMonitor(**MODES), val=held_out())
    logged, report = list(run.lines), run.monitor.report
    run.trainer.validate(run.module, held_out(), verbose=False)
    assert [line for line in run.trainer.logger.lines if line[1].startswith(OURS)] == [
        line for line in logged if line[1].startswith(OURS)
    ]
    assert run.monitor.report is report


# What


def test_only_what_is_asked_for_is_measured():
    tags = fit(DynamicsMonitor(**QUICK, measure=["weight_basin"]), max_epochs=1).tags()
    assert {tag.split("/")[0] for tag in tags} == {"basin", "probe", "netdyn"}
    assert not [tag for tag in tags if tag.startswith("basin/sample")]


def test_only_the_layers_that_are_named_are_measured():
    run = fit(DynamicsMonitor(**MODES, layers=["net.4"]), max_epochs=1)
    layers = {tag.rsplit("/", 1)[1] for tag in run.tags() if tag.startswith("modes/") and tag.count("/") == 2}
    assert layers == {"net.4"}


def test_radii_of_single_tensors_can_be_had():
    run = fit(DynamicsMonitor(**QUICK, measure=["weight_basin"], weight_layers="each", accuracy=0.3))
    assert {tag for tag in run.tags() if "layer_radius" in tag} == {
        f"basin/weight/layer_radius/net.{i}.weight" for i in (0, 3, 6)
    }


def test_a_given_probe_is_measured():
    x, y = data(200, 300).tensors
    run = fit(DynamicsMonitor(measure=["modes"], probe=(x, y), val_probe=data(300, 350)), val=held_out())
    val_x, val_y = data(300, 350).tensors
    report = diagnose(run.module, x, y, val_inputs=val_x, val_target=val_y, measure=["modes"])
    assert run.monitor.report.samples == 100
    assert run.monitor.report.scalars() == report.scalars()


def test_settings_reach_the_measurement():
    x, y = data(200, 300).tensors
    settings = {
        "layers": ["net.4"],
        "alpha": 0.2,
        "max_units": 10,
        "max_classes": 6,
        "accuracy": 0.3,
        "sample_rays": 2,
        "weight_rays": 3,
        "weight_layers": ["net.0.*"],
        "normalization": "global",
        "low": 0.01,
        "high": 5.0,
        "relative": True,
        "weight_samples": 40,
        "seed": 4,
        "batch_size": 30,
        "num_classes": 10,
    }
    # Training batches as large as `diagnose` takes them to be: batch normalisation is looked at with no smaller ones.
    run = fit(DynamicsMonitor(probe=(x, y), **settings), max_epochs=2, train=loader(0, 150, batch_size=128))
    assert without_changes(run.monitor.report.scalars()) == diagnose(run.module, x, y, **settings).scalars()


def test_batches_are_unpacked_by_the_users_function():
    x, y = data(0, 64).tensors
    rows = [{"image": a, "label": b} for a, b in zip(x, y, strict=True)]

    class Dicts(Validated):
        def loss(self, batch: Any) -> Tensor:
            return super().loss((batch["image"], batch["label"]))

    run = fit(
        DynamicsMonitor(**MODES | {"probe_size": 64}, unpack=lambda batch: (batch["image"], batch["label"])),
        module=Dicts(),
        train=DataLoader(rows, batch_size=16),
        val=DataLoader(rows[:16], batch_size=16),
    )
    assert (
        run.monitor.report.scalars()
        == diagnose(run.module, x, y, measure=["modes"], val_inputs=x[:16], val_target=y[:16]).scalars()
    )


def test_the_model_is_called_by_the_users_function():
    class TwoHeads(Digits):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Any:
            logits = self.net(x)
            return {"digit": logits, "other": self.other(logits)}

        def loss(self, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0])["digit"], batch[1])

    def digit(module: TwoHeads, x: Tensor) -> Tensor:
        return module(x)["digit"]

    x, y = data(200, 300).tensors
    run = fit(DynamicsMonitor(probe=(x, y), **QUICK, forward=digit), module=TwoHeads())
    expected = diagnose(run.module, x, y, forward=digit, weight_rays=2)
    assert run.monitor.report.scalars() == expected.scalars()


class Headless(L.LightningModule):
    """A LightningModule that calls its parts in `training_step` and has no `forward`."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        for part in self.children():
            x = part(x) if part is not self.criterion else x
        return self.criterion(x, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def test_without_forward_the_only_child_with_parameters_is_the_model():
    x, y = data(200, 300).tensors
    # Of the networks of seeds 0 to 11 the first alone has a ray that comes back, which moves a class's radius by 0.2.
    torch.manual_seed(1)
    run = fit(DynamicsMonitor(probe=(x, y), **QUICK), module=Headless(net=network()))
    assert without_changes(run.monitor.report.scalars()) == diagnose(run.module.net, x, y, weight_rays=2).scalars()
    assert run.steps() == [0, 3, 7, 11]


# Where to


def test_a_prefix_stands_before_every_tag(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    run = fit(DynamicsMonitor(**QUICK, prefix="mine"), logger=logger, max_epochs=1, val=held_out())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = {tag for tag in events.Tags()["scalars"] if tag not in ("train_loss", "val_loss", "epoch")}
    plain = {*run.monitor.report.scalars(), "netdyn/seconds", "netdyn/overhead", "netdyn/skipped"}
    assert scalars == {f"mine/{tag}" for tag in plain}
    assert set(events.Tags()["histograms"]) >= {f"mine/{tag}" for tag in run.monitor.report.histograms()}
    assert all(tag.startswith("mine/") for tag in events.Tags()["histograms"])
    assert {tag for tag in run.trainer.callback_metrics if "/" in tag} == scalars


def test_histograms_can_be_left_out(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(DynamicsMonitor(**MODES, histograms=False), logger=logger, max_epochs=1)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["histograms"] == []
    assert "probe/accuracy" in events.Tags()["scalars"]


def test_only_finite_values_are_sent():
    """With so little noise the network is right at every level: radii are infinite, and shown as the highest level."""
    runs = []
    said(lambda: runs.append(fit(DynamicsMonitor(**QUICK, low=1e-9, high=1e-8), train=loader(0, 640))))
    run = runs[0]
    assert math.isinf(run.monitor.report.sample_basin.radius)
    assert run.values("basin/sample/radius")[-1] == 1e-8
    assert all(math.isfinite(value) for _, tag, value in run.lines if tag.startswith(OURS))


def test_layers_without_a_rule_log_no_share():
    """Three classes and too few units for a rule: the share is unknown, and an unknown number is not sent."""
    x, y = digits()
    x, y = x[y < 3][:64], y[y < 3][:64]
    net = nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3))
    run = fit(DynamicsMonitor(**MODES), module=Digits(net), train=DataLoader(TensorDataset(x, y), batch_size=16))
    assert "modes/rpd_gradient/net.0" in run.tags()
    assert "modes/opt_fraction/net.0" not in run.tags()


# How much


def test_an_evaluation_beyond_the_budget_is_left_out_counted_and_logged():
    run = fit(DynamicsMonitor(**MODES, max_overhead=1e-9))
    assert run.steps("probe/accuracy") == [0]
    assert run.steps("netdyn/skipped") == [0, 3, 7, 11]
    assert run.values("netdyn/skipped") == [0, 1, 2, 3]
    assert float(run.trainer.callback_metrics["netdyn/skipped"]) == 3


@pytest.mark.parametrize(
    ("options", "shuffled", "batches"),
    [
        ({"overfit_batches": 2}, True, 2),
        ({"limit_train_batches": 3}, False, 3),
        ({"limit_train_batches": 3}, True, None),
        ({}, False, None),
    ],
)
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_the_probe_is_of_the_samples_that_training_sees(options, shuffled, batches):
    x = torch.arange(400.0)[:, None].expand(-1, 64)
    data = TensorDataset(x, torch.arange(400) % 10)
    watch, seen = DynamicsMonitor(**MODES | {"probe_size": 400}), []

    class Looks(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(watch.monitor.probe.inputs[:, 0])

    fit(watch, Looks(), train=DataLoader(data, 25, shuffle=shuffled), max_epochs=1, **options)
    assert len(seen[0]) == (400 if batches is None else 25 * batches)
    assert seen[0].max() == len(seen[0]) - 1


class ZeroAtTheEnd(L.Callback):
    """Stands for callbacks that average or prune the weights when training is over."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.zero_()


def test_weights_that_change_after_the_last_evaluation_are_measured():
    last = DynamicsMonitor(**MODES)
    run = fit(last, max_epochs=2)
    assert run.steps("probe/accuracy") == [0, 3, 7]
    changed = DynamicsMonitor(**MODES)
    trainer = make_trainer(ZeroAtTheEnd(), changed, max_epochs=2)
    trainer.fit(Digits(), loader())
    assert changed.monitor.evaluations == 4
    assert changed.report.accuracy < last.report.accuracy
    assert changed.report.layers[0].constant_fraction == 1


def test_overhead_is_time_measuring_over_time_training():
    run = fit(DynamicsMonitor(**MODES))
    seconds, overhead = run.values("netdyn/seconds"), run.values("netdyn/overhead")
    training = [sum(seconds[: i + 1]) / share for i, share in enumerate(overhead)]
    assert all(0 < earlier < later for earlier, later in pairwise(training))


class Clock(L.Callback):
    """Seconds that pass in nothing but a training step (1), an evaluation (7) and the drawing of figures (5).

    An overview alone takes one.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.measuring, self.budgets = 0.0, 0.0, []
        for module in (budget, monitoring):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(monitoring, "evaluate", self.slowly(monitoring.evaluate, 7))
        monkeypatch.setattr(Monitor, "_draw_report", self.slowly(Monitor._draw_report, 5))
        monkeypatch.setattr(Monitor, "_draw_overview", self.slowly(Monitor._draw_overview, 1))

    def slowly(self, work: Any, seconds: float) -> Any:
        def slow(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            self.measuring += seconds
            return work(*args, **kwargs)

        return slow

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 1
        self.budgets.append((self.measuring, self.now - self.measuring))


@pytest.mark.parametrize(("share", "figures"), [(0.05, "never"), (0.3, "never"), (0.3, "always"), (1.0, "always")])
def test_evaluations_keep_to_their_share_but_for_one(share, figures, monkeypatch):
    """400 steps of a second each, an evaluation wanted after every fourth of them."""
    clock = Clock(monkeypatch)
    one = 7 + 5 * (figures == "always")
    options = {"figures": figures, "max_overhead": share, "on_fit_ends": False}
    run = fit(DynamicsMonitor(**MODES, **options), clock, max_epochs=100)
    assert all(measuring <= share * training + one for measuring, training in clock.budgets)
    # As many as the budget pays for, the first and what no more can be had for left aside.
    made = len(run.steps("probe/accuracy"))
    assert made >= min(100, 400 * share / one - 2)
    assert (made < 100) == (share * 4 < one)


def test_the_overhead_is_logged_where_an_evaluation_is_left_out(monkeypatch):
    """After 4, 8, … steps of a second each: 7 seconds of measuring, 5 of drawing, which the second time knows of."""
    clock = Clock(monkeypatch)
    run = fit(DynamicsMonitor(**MODES, figures="always", max_overhead=1.0, on_fit_ends=False), clock, max_epochs=5)
    assert run.values("netdyn/seconds") == [7, 7]
    assert run.values("netdyn/overhead") == pytest.approx([7 / 4, 12 / 8, 12 / 12, 12 / 16, 19 / 20])
    assert run.values("netdyn/skipped") == [0, 1, 2, 3, 3]


def test_a_wide_budget_leaves_nothing_out(monkeypatch):
    """Evaluations of 7 seconds after every 20 steps of a second each; figures take 5 more."""
    run = fit(DynamicsMonitor(**MODES, max_overhead=1.0, every_n_epochs=5), Clock(monkeypatch), max_epochs=10)
    assert run.steps("probe/accuracy") == [0, 19, 39]
    assert run.values("netdyn/skipped") == [0, 0, 0]


@pytest.mark.parametrize(("share", "drawn"), [(None, 2), (0.35, 1), (0.24, 0)])
def test_figures_keep_to_the_budget_too(share, drawn, monkeypatch, tmp_path):
    """60 steps of a second each; evaluations of 7 at both ends, and figures that are expected to take 1 at first.

    At the beginning nothing has been trained, so that a budget has no room for figures.
    """
    clock, notices = Clock(monkeypatch), []
    logger = TensorBoardLogger(tmp_path, name="", version="")
    monitor = DynamicsMonitor(**MODES, max_overhead=share, every_n_epochs=99)
    monitor.monitor.inform = notices.append
    run = fit(monitor, clock, logger=logger, max_epochs=15)
    assert run.monitor.monitor.evaluations == 2
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    images = events.Tags()["images"]
    assert (len(events.Images("modes/rpd")) if "modes/rpd" in images else 0) == drawn
    left_out = [text for text in notices if "left out the figures" in text]
    assert [f"max_overhead={share}" in text for text in left_out] == [True] * (not drawn)


# Callbacks that watch our numbers

VALIDATION = pytest.mark.parametrize(
    "validation",
    [None, {}, {"val_check_interval": 0.5}],
    ids=["no validation", "once an epoch", "twice an epoch"],
)


@VALIDATION
def test_early_stopping_can_watch_a_basin(validation):
    stop = EarlyStopping("basin/sample/radius", mode="max", patience=2, min_delta=1e3)
    run = fit(
        DynamicsMonitor(**QUICK),
        stop,
        val=None if validation is None else held_out(),
        max_epochs=9,
        **validation or {},
    )
    # The first value is the best so far, whatever comes: two more values, and it stops.
    assert len(run.steps()) == 1 + run.trainer.current_epoch
    checks = 1.5 if validation and "val_check_interval" in validation else 3
    assert run.trainer.current_epoch == math.ceil(checks)
    assert float(stop.best_score) in [float(np.float32(value)) for value in run.values("basin/sample/radius")]


def test_early_stopping_is_not_frightened_by_an_infinite_radius():
    stop = EarlyStopping("basin/sample/radius", mode="max", patience=9, check_finite=True)
    runs = []
    said(lambda: runs.append(fit(DynamicsMonitor(**QUICK, low=1e-9, high=1e-8), stop, train=loader(0, 640))))
    assert math.isinf(runs[0].monitor.report.sample_basin.radius)
    assert stop.stopped_epoch == 0
    assert runs[0].trainer.current_epoch == 3


@VALIDATION
def test_a_checkpoint_can_be_chosen_by_a_basin(validation, tmp_path):
    keep = ModelCheckpoint(tmp_path, monitor="basin/sample/radius", mode="max", save_top_k=1)
    x, y = data(200, 300).tensors
    run = fit(
        DynamicsMonitor(probe=(x, y), **QUICK, measure=["sample_basin"]),
        keep,
        train=loader(0, 256, 64),
        val=None if validation is None else held_out(),
        max_epochs=4,
        enable_checkpointing=True,
        **validation or {},
    )
    # The untrained network is measured before any checkpoint is written.
    best = max(run.values("basin/sample/radius")[1:])
    assert best > 0
    assert float(keep.best_model_score) == float(np.float32(best))
    saved = Digits()
    saved.load_state_dict(torch.load(keep.best_model_path, weights_only=True)["state_dict"])
    again = diagnose(saved, x, y, measure=["sample_basin"], weight_rays=2)
    assert float(np.float32(again.sample_basin.radius)) == float(np.float32(best))


def test_a_checkpoint_by_steps_sees_the_number_of_its_step(tmp_path):
    keep = ModelCheckpoint(tmp_path, monitor="probe/accuracy", mode="max", save_top_k=-1, every_n_train_steps=3)
    run = fit(DynamicsMonitor(**MODES, every_n_train_steps=3, on_fit_ends=False), keep, enable_checkpointing=True)
    assert sorted(map(float, keep.best_k_models.values())) == sorted(
        float(np.float32(value)) for value in run.values("probe/accuracy")
    )
    assert len(keep.best_k_models) == 4


# Never in the way


def other_loss(module: Digits) -> Digits:
    """A module whose output is no matter of its loss."""

    def loss(batch: Any) -> Tensor:
        output = module(batch[0])
        return (output if isinstance(output, Tensor) else output["scores"]).square().mean()

    module.loss = loss
    return module


class Dicts(Digits):
    def loss(self, batch: Any) -> Tensor:
        return super().loss((batch["pixels"], batch["digit"]))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Any:
        return {"scores": self.net(x), "input": x}


class Hungry(nn.Module):
    """Runs out of memory with more samples than it has room for, where it does not train."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.net, self.room = network(), room

    def forward(self, x: Tensor) -> Any:
        if not self.training and len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.net(x)


class OnlyTraining(nn.Module):
    """Fails wherever it does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Any:
        if not self.training:
            raise KeyError("no such mode")
        return self.net(x)


def rows() -> DataLoader[Any]:
    x, y = data().tensors
    return DataLoader([{"pixels": a, "digit": b} for a, b in zip(x, y, strict=True)], batch_size=16)


def of_classes(*classes: int, samples: int = 64) -> DataLoader[Any]:
    x, y = digits()
    kept = torch.isin(y, torch.tensor(classes))
    return DataLoader(TensorDataset(x[kept][:samples], y[kept][:samples]), batch_size=16)


def a_probe(target: Any = None, change: Any = None) -> tuple[Tensor, Tensor]:
    x, y = (tensor.clone() for tensor in data(200, 260).tensors)
    if change is not None:
        change(x, y)
    return x, (y if target is None else target(y))


def write(where: Any, value: Any) -> Any:
    def change(x: Tensor, y: Tensor) -> None:
        where(x, y)[...] = value

    return change


def spoiled(value: float = math.nan) -> Digits:
    module = Digits()
    with torch.no_grad():
        module.net[3].weight[0, 0] = value
    return module


@dataclass
class Fault:
    """Something that cannot be measured: how to build it, and what has to be said, once."""

    said: str
    error: type[Exception] | None = None
    module: Any = Digits
    train: Any = loader
    monitor: Any = dict


#: `error`: what strict=True raises; without one it is a matter for a warning only.
FAULTS = {
    "two children and no forward": Fault(
        r"no `forward`.*\['body', 'head'\].*`forward=`",
        ValueError,
        lambda: Headless(body=nn.Sequential(nn.Linear(64, 24), nn.ReLU()), head=nn.Linear(24, 10)),
    ),
    "no child with parameters and no forward": Fault(
        r"no `forward`.*\[\].*`forward=`",
        ValueError,
        lambda: type(
            "Bare",
            (Headless,),
            {"training_step": lambda self, batch, _: (batch[0] @ self.weight).square().mean()},
        )(),
    ),
    "batches that are mappings": Fault(r"got \{.*'digit': int64.*\}.*`unpack=`", TypeError, Dicts, rows),
    "outputs of three dimensions": Fault(
        r"\[samples, classes\].*got shape \[2, 5, 2\]",
        ValueError,
        lambda: other_loss(Digits(nn.Sequential(network(), nn.Unflatten(1, (5, 2))))),
    ),
    "outputs that are a mapping": Fault(r"got dict.*`forward=`", TypeError, lambda: other_loss(Digits(Pair()))),
    "another number of classes": Fault(
        "`num_classes` must be that of the model's output, 10 classes, got 7",
        ValueError,
        monitor=lambda: {"num_classes": 7},
    ),
    "layers that match nothing": Fault(
        r"'nett\.1', which matches nothing.*'net\.1'", ValueError, monitor=lambda: {"layers": ["nett.1"]}
    ),
    "weights that match nothing": Fault(
        r"'nett\.0\.weight'.*'net\.0\.weight'",
        ValueError,
        monitor=lambda: {"measure": ["weight_basin"], "weight_layers": ["nett.0.weight"]},
    ),
    "out of memory": Fault(
        "out of memory.*smaller `batch_size` or `probe_size`", torch.OutOfMemoryError, lambda: Digits(Hungry(0))
    ),
    "a forward that fails": Fault("KeyError.*no such mode", RuntimeError, lambda: Digits(OnlyTraining())),
    "labels that are floats": Fault(
        "`target` must hold whole class labels.*float32",
        TypeError,
        monitor=lambda: {"probe": a_probe(lambda y: y.float() + 0.25)},
    ),
    "a negative label": Fault(
        "got the label -1", ValueError, monitor=lambda: {"probe": a_probe(change=write(lambda x, y: y[3:4], -1))}
    ),
    "a label beyond the classes": Fault(
        "got the label 10", ValueError, monitor=lambda: {"probe": a_probe(change=write(lambda x, y: y[3:4], 10))}
    ),
    "too few labels": Fault(
        r"60 samples, got shape \[50\]", ValueError, monitor=lambda: {"probe": a_probe(lambda y: y[:50])}
    ),
    "inputs of another width": Fault(
        "RuntimeError", RuntimeError, monitor=lambda: {"probe": (torch.zeros(60, 63), torch.arange(60) % 10)}
    ),
    "an empty probe": Fault(
        "at least one sample|must hold samples",
        ValueError,
        monitor=lambda: {"probe": (torch.zeros(0, 64), torch.zeros(0, dtype=torch.int64))},
    ),
    "missing classes": Fault(
        r"holds 8 of 10 classes; \[3, 7\] are missing", None, train=lambda: of_classes(0, 1, 2, 4, 5, 6, 8, 9)
    ),
    "one class": Fault(r"holds 1 of 10 classes", None, train=lambda: of_classes(4)),
    "NaN in inputs": Fault(
        "`inputs` holds NaN", None, monitor=lambda: {"probe": a_probe(change=write(lambda x, y: x[7, 5], math.nan))}
    ),
    "infinity in inputs": Fault(
        "`inputs` holds NaN or inf",
        None,
        monitor=lambda: {"probe": a_probe(change=write(lambda x, y: x[7, 5], math.inf))},
    ),
    "NaN in weights": Fault("NaN or inf for 60 of 60 samples", None, spoiled),
    "infinity in weights": Fault("NaN or inf for 60 of 60 samples", None, lambda: spoiled(math.inf)),
}
EVERY_FAULT = pytest.mark.parametrize("name", FAULTS)


def built(fault: Fault) -> L.LightningModule:
    L.seed_everything(0, verbose=False)
    module = fault.module()
    if not list(module.parameters()):
        module.weight = nn.Parameter(torch.ones(64, 10))
    return module


def run_of(fault: Fault, module: L.LightningModule | None = None, **arguments: Any) -> Run:
    monitor = DynamicsMonitor(**QUICK | arguments | fault.monitor())
    return fit(monitor, module=module or built(fault), train=fault.train(), max_epochs=2)


@EVERY_FAULT
def test_what_cannot_be_measured_is_said_once_and_training_goes_on(name):
    runs = []
    messages = said(lambda: runs.append(run_of(FAULTS[name])))
    assert len(messages) == 1, messages
    assert re.search(FAULTS[name].said, messages[0]), messages[0]
    assert runs[0].trainer.global_step == 8
    if FAULTS[name].error is not None:
        assert re.search("goes on without it|training continues", messages[0])
        assert "strict=True" in messages[0]


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.error is not None])
def test_strict_raises_what_cannot_be_measured_and_leaves_no_trace(name):
    module = built(FAULTS[name])
    before = {part: sorted(vars(child)) for part, child in module.named_modules() if part}
    with pytest.raises(FAULTS[name].error):
        run_of(FAULTS[name], module, strict=True)
    assert {part: sorted(vars(child)) for part, child in module.named_modules() if part} == before
    assert not {"log", "log_dict"} & set(vars(module))
    assert (
        sum(len(held) for child in module.modules() for key, held in vars(child).items() if key.endswith("_hooks")) == 0
    )


@pytest.mark.parametrize("name", ["missing classes", "one class", "NaN in inputs"])
def test_strict_does_not_raise_what_is_only_a_warning(name):
    runs = []
    assert said(lambda: runs.append(run_of(FAULTS[name], strict=True)))
    assert runs[0].steps("probe/accuracy") == [0, 3, 7]


@pytest.mark.parametrize("name", ["a forward that fails", "outputs that are a mapping", "another number of classes"])
def test_failed_evaluations_are_counted_and_logged(name):
    runs = []
    said(lambda: runs.append(run_of(FAULTS[name])))
    assert runs[0].values("netdyn/skipped") == [1, 2, 3]
    assert "probe/accuracy" not in runs[0].tags()


@pytest.mark.parametrize("name", ["missing classes", "one class", "NaN in inputs", "NaN in weights"])
def test_what_can_be_measured_nevertheless_is_measured(name):
    runs = []
    said(lambda: runs.append(run_of(FAULTS[name])))
    assert runs[0].steps("probe/accuracy") == [0, 3, 7]
    assert all(math.isfinite(value) for _, tag, value in runs[0].lines if tag.startswith(OURS))


@pytest.mark.parametrize("measure", [["modes"], ["sample_basin", "weight_basin"]], ids=" and ".join)
@pytest.mark.parametrize("strict", [False, True])
def test_where_memory_runs_out_smaller_batches_are_measured_from_then_on(measure, strict):
    """Of 200 samples, then 100, then 50; the linear maps of the layers always take 64."""
    runs, train = [], loader(0, 320, 80)
    options = QUICK | {"probe_size": 200, "measure": measure, "strict": strict}
    messages = said(lambda: runs.append(fit(DynamicsMonitor(**options), module=Digits(Hungry(64)), train=train)))
    assert messages == ["netdyn: out of memory; from here on 50 samples per forward pass. Set `batch_size=50`."]
    assert runs[0].steps() == [0, 3, 7, 11]
    assert runs[0].values("netdyn/skipped") == [0, 0, 0, 0]
    runs[0].module.net.room = 200
    probe = read_probe(train, 200, 0, lambda batch: batch, input_and_target)
    expected = diagnose(runs[0].module, probe.inputs, probe.target, measure=measure, weight_rays=2)
    found = without_changes(runs[0].monitor.report.scalars())
    assert found == pytest.approx(expected.scalars(), rel=1e-5, abs=1e-6)


def test_lazy_parameters_are_waited_for(info):
    net = nn.Sequential(nn.LazyLinear(24), nn.ReLU(), nn.Linear(24, 10))
    run = fit(DynamicsMonitor(**MODES), module=Digits(net))
    assert run.steps() == [3, 7, 11]
    assert len([line for line in info if "lazy parameters" in line]) == 1


def test_a_failing_evaluation_that_recovers_is_measured_again():
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.bad = network(), True

        def forward(self, x: Tensor) -> Any:
            if self.bad and not self.training:
                raise RuntimeError("not now")
            return self.net(x)

    class Recover(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            pl_module.net.bad = trainer.current_epoch < 1

    runs = []
    messages = said(lambda: runs.append(fit(DynamicsMonitor(**MODES), Recover(), module=Digits(Moody()))))
    assert len(messages) == 1
    assert runs[0].steps("probe/accuracy") == [7, 11]
    assert runs[0].values("netdyn/skipped") == [1, 2, 2, 2]


@pytest.mark.parametrize("train", [loader, lambda: DataLoader(Stream(), batch_size=16)], ids=["read", "gathered"])
def test_validation_data_that_cannot_be_read_cost_only_their_own_number(train):
    runs = []

    class Both(Digits):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", super().loss((batch["pixels"], batch["digit"])))

    arguments = MODES | {"probe_size": 16}
    messages = said(lambda: runs.append(fit(DynamicsMonitor(**arguments), module=Both(), train=train(), val=rows())))
    assert len(messages) == 1
    assert "`unpack=`" in messages[0]
    assert runs[0].steps("probe/accuracy") == [0, 3, 7, 11]
    assert "probe/val_accuracy" not in runs[0].tags()


@pytest.mark.parametrize(
    ("sanity", "every", "expected"),
    [(2, 1, [0, 3, 7, 11]), (0, 1, [0, 3, 7, 11]), (2, 2, [0, 3, 7, 11]), (0, 2, [7, 11])],
)
def test_validation_accuracy_is_measured_as_soon_as_lightning_has_loaded_the_data(sanity, every, expected):
    options = {"num_sanity_val_steps": sanity, "check_val_every_n_epoch": every}
    run = fit(DynamicsMonitor(**MODES), val=held_out(), **options)
    assert run.steps("probe/accuracy") == [0, 3, 7, 11]
    assert run.steps("probe/val_accuracy") == expected


@pytest.mark.parametrize("loaders", [1, 2])
def test_the_first_validation_loader_gives_the_validation_probe(info, loaders):
    class Several(Digits):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.loss(batch)

    run = fit(DynamicsMonitor(**MODES), module=Several(), val=[held_out(), held_out(0, 16)][:loaders])
    x, y = data(64, 96).tensors
    assert run.steps("probe/val_accuracy") == [0, 3, 7, 11]
    assert run.values("probe/val_accuracy")[-1] == float((run.module.eval()(x).argmax(1) == y).float().mean())
    told = [line for line in info if line.startswith("netdyn measures")]
    assert ("32 held-out ones (the first loader)" in told[0]) == (loaders == 2)


def test_several_training_loaders_at_once_are_probed_from_the_batches():
    class Two(Digits):
        def loss(self, batch: Any) -> Tensor:
            return super().loss(batch["a"]) + super().loss(batch["b"])

    def first(batch: Any) -> Any:
        return batch["a"]

    train = {"a": loader(shuffle=False), "b": loader(64, 128)}
    run = fit(DynamicsMonitor(**MODES | {"probe_size": 40}, unpack=first), module=Two(), train=train)
    x, y = data(0, 40).tensors
    assert run.steps() == [2, 3, 7, 11]
    assert run.monitor.report.scalars() == diagnose(run.module, x, y, measure=["modes"]).scalars()


#: Outside of the function that unpacks: what is around it is copied.
READ: list[int] = []


def test_validation_data_that_cannot_be_read_are_not_read_again_at_every_epoch():
    READ.clear()

    def unpack(batch: Any) -> Any:
        READ.append(len(batch[1]))
        if len(batch[1]) == 32:
            raise KeyError("no such sample")
        return batch

    messages = said(lambda: fit(DynamicsMonitor(**MODES, unpack=unpack), val=held_out()))
    assert len(messages) == 1
    assert "no such sample" in messages[0]
    assert READ == [60, 32]


def test_a_validation_probe_that_the_model_does_not_fit_costs_only_its_own_number():
    val_probe = (torch.zeros(20, 63), torch.arange(20) % 10)
    runs = []
    messages = said(lambda: runs.append(fit(DynamicsMonitor(**MODES, val_probe=val_probe))))
    assert len(messages) == 1
    assert runs[0].steps("probe/accuracy") == [0, 3, 7, 11]


# Nothing is left behind


def traces(module: nn.Module) -> dict[str, Any]:
    """Attributes, hooks and modes of every submodule."""
    return {
        name: (
            sorted(vars(part)),
            {key: len(value) for key, value in vars(part).items() if key.endswith("_hooks")},
            part.training,
            [parameter.requires_grad for parameter in part.parameters()],
        )
        for name, part in module.named_modules()
    }


@pytest.fixture(scope="module")
def unmonitored() -> L.LightningModule:
    L.seed_everything(1, verbose=False)
    module = Digits()
    make_trainer().fit(module, loader())
    return module


@pytest.mark.parametrize("arguments", [{}, {"every_n_train_steps": 1}, {"weight_layers": "each"}], ids=str)
def test_nothing_is_left_on_the_model(unmonitored, arguments):
    run = fit(DynamicsMonitor(**QUICK, **arguments))
    assert traces(run.module) == traces(unmonitored)
    for a, b in zip(run.module.state_dict().values(), unmonitored.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["a forward that fails", "another number of classes", "layers that match nothing"])
def test_nothing_is_left_on_the_model_where_measuring_failed(name):
    L.seed_everything(0, verbose=False)
    clean = FAULTS[name].module()
    make_trainer(max_epochs=2).fit(clean, loader())
    runs = []
    said(lambda: runs.append(run_of(FAULTS[name])))
    assert traces(runs[0].module) == traces(clean)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["copy", "pickle"]
)
def test_the_model_can_be_copied_and_pickled_after_training(again):
    run = fit(DynamicsMonitor(**QUICK), max_epochs=1)
    x = data(200, 210).tensors[0]
    assert torch.equal(again(run.module).eval()(x), run.module.eval()(x))


def test_the_monitor_can_be_copied_and_pickled_after_training():
    run = fit(DynamicsMonitor(**QUICK), max_epochs=1)
    for twin in (copy.deepcopy(run.monitor), pickle.loads(pickle.dumps(run.monitor))):
        assert twin.report.scalars() == run.monitor.report.scalars()


def test_the_probe_is_let_go_after_training():
    run = fit(DynamicsMonitor(**QUICK), max_epochs=1)
    for thing in (run.monitor, run.monitor.monitor):
        held = [value for value in vars(thing).values() if isinstance(value, Tensor) or hasattr(value, "inputs")]
        assert held == []


# Same seed, same numbers


def numbers(run: Run) -> list[tuple[int | None, str, float]]:
    """What was logged, without what the clock says."""
    return [line for line in run.lines if line[1] not in ("netdyn/seconds", "netdyn/overhead")]


def test_one_seed_gives_the_same_numbers_in_two_runs():
    first, second = (fit(DynamicsMonitor(**QUICK), train=loader(0, 320, 64), val=held_out(400, 500)) for _ in range(2))
    assert len(numbers(first)) > 100
    assert numbers(first) == numbers(second)


def test_the_monitors_seed_changes_its_numbers_and_not_the_training():
    first, second = (fit(DynamicsMonitor(**QUICK, seed=seed), train=loader(0, 320, 64)) for seed in (0, 1))
    assert first.values("train_loss") == second.values("train_loss")
    assert first.values("basin/sample/radius")[-1] != second.values("basin/sample/radius")[-1]


def test_a_second_fit_goes_on_with_new_points():
    run = fit(DynamicsMonitor(**MODES), max_epochs=1)
    run.trainer.fit_loop.max_epochs = 2
    run.trainer.fit(run.module, loader())
    assert [step for step, tag, _ in run.trainer.logger.lines if tag == "probe/accuracy"] == [0, 3, 7]


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_monitor_in_a_second_trainer_begins_anew(first):
    monitor = DynamicsMonitor(**MODES)
    fit(monitor, max_epochs=first)
    assert fit(monitor, max_epochs=3).steps() == [0, 3, 7, 11]


def test_a_monitor_in_a_second_trainer_probes_the_second_ones_data():
    monitor = DynamicsMonitor(**MODES | {"probe_size": 16})
    for _ in range(2):
        run = fit(monitor, train=DataLoader(Stream(), batch_size=16))
        assert run.steps() == [0, 3, 7, 11]


# Data that cannot be read by their index


class Stream(IterableDataset):
    """Digits in their order, one after the other."""

    def __init__(self, n: int = 64, width: Any = None) -> None:
        self.n, self.width = n, width

    def __iter__(self) -> Any:
        x, y = data(0, self.n).tensors
        return zip(x, y, strict=True)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (16, [0, 3, 7, 11]),  # full at the first batch: the untrained network
        (40, [2, 3, 7, 11]),  # full when the third batch comes
        (64, [3, 3, 7, 11]),
        (100, [3, 7, 11]),  # more than an epoch has: what the first one had, at its end
        (1000, [3, 7, 11]),
    ],
)
def test_a_stream_is_probed_by_its_first_samples_when_they_have_come(info, size, expected):
    run = fit(DynamicsMonitor(**MODES | {"probe_size": size}), train=DataLoader(Stream(), batch_size=16))
    assert run.steps() == expected
    about = [line for line in info if "cannot be read by index" in line]
    assert len(about) == 1
    assert f"the first {size} samples that training sees" in about[0]
    assert run.monitor.report.samples == min(size, 64)


def test_the_probe_of_a_stream_is_its_first_samples():
    run = fit(DynamicsMonitor(**MODES | {"probe_size": 40}), train=DataLoader(Stream(), batch_size=16))
    x, y = data(0, 40).tensors
    assert run.monitor.report.scalars() == diagnose(run.module, x, y, measure=["modes"]).scalars()


def test_readable_data_are_probed_without_a_word(info):
    fit(DynamicsMonitor(**MODES), max_epochs=1)
    assert not [line for line in info if "cannot be read by index" in line]


def test_a_stream_without_ends_is_measured_where_the_cadence_says():
    run = fit(
        DynamicsMonitor(**MODES | {"probe_size": 40}, every_n_train_steps=5, on_fit_ends=False),
        train=DataLoader(Stream(), batch_size=16),
    )
    assert run.steps() == [4, 9]


def test_a_stream_of_mappings_that_is_not_unpacked_is_said_once():
    x, y = data().tensors

    class Mappings(IterableDataset):
        def __iter__(self) -> Any:
            return iter([{"pixels": a, "digit": b} for a, b in zip(x, y, strict=True)])

    runs = []
    messages = said(
        lambda: runs.append(fit(DynamicsMonitor(**MODES), module=Dicts(), train=DataLoader(Mappings(), batch_size=16)))
    )
    assert len(messages) == 1
    assert "`unpack=`" in messages[0]
    assert runs[0].trainer.global_step == 12


def test_a_stream_whose_batches_do_not_fit_together_is_said_once():
    """Sequences of another length in every batch, and fewer of them than the probe wants."""

    class Ragged(IterableDataset):
        def __iter__(self) -> Any:
            y = data().tensors[1]
            return iter([(torch.rand(16, 3 + i), y[16 * i : 16 * i + 16]) for i in range(4)])

    class Mean(Digits):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.Linear(1, 12), nn.ReLU(), nn.Linear(12, 10)))

        def forward(self, x: Tensor) -> Any:
            return self.net(x.mean(1, keepdim=True))

    runs = []
    messages = said(
        lambda: runs.append(
            fit(
                DynamicsMonitor(**MODES | {"probe_size": 1000}),
                module=Mean(),
                train=DataLoader(Ragged(), batch_size=None),
            )
        )
    )
    assert len(messages) == 1, messages
    assert runs[0].trainer.global_step == 12


# Corners that training itself does not show --------------------------------------------------------------------------


class Holder(Digits):
    """A module that keeps its monitor, to hand it out in ``configure_callbacks``."""

    def __init__(self) -> None:
        super().__init__()
        self.monitor = DynamicsMonitor(**MODES)

    def configure_callbacks(self) -> list[L.Callback]:
        return [self.monitor]


def test_a_monitor_that_the_module_holds_keeps_its_report():
    L.seed_everything(1, verbose=False)
    module, logger = Holder(), ListLogger()
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader())
    assert module.monitor.report is not None
    assert "modes/opt_fraction/net.1" in {key for _, key, _ in logger.lines}


def test_a_sampler_of_some_samples_keeps_the_others_out_of_the_probe():
    whole = data(0, 96)
    split = {"train": range(64), "val": range(64, 96)}
    loaders = {
        name: DataLoader(whole, batch_size=16, sampler=SubsetRandomSampler(list(part))) for name, part in split.items()
    }
    for name, part in split.items():
        probe = read_probe(loaders[name], 1000, 0, lambda batch: batch, input_and_target)
        assert torch.equal(probe.inputs, whole.tensors[0][part.start : part.stop])


def test_histograms_that_cannot_be_written_cost_a_warning_and_not_the_training(tmp_path, monkeypatch):
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    logger = TensorBoardLogger(tmp_path)
    monkeypatch.setattr(type(logger.experiment), "add_histogram", full)
    with pytest.warns(UserWarning, match="TensorBoard refused the histograms: OSError: disk full") as caught:
        run = fit(DynamicsMonitor(**MODES), logger=logger)
    assert len([warning for warning in caught if "refused" in str(warning.message)]) == 1
    assert run.trainer.current_epoch == run.trainer.max_epochs


def test_monitors_of_other_quantities_have_other_states():
    keys = {DynamicsMonitor(measure=[what]).state_key for what in ("modes", "sample_basin")}
    assert len(keys | {DynamicsMonitor(layers=["a"]).state_key}) == 3


@pytest.mark.filterwarnings("ignore:`accuracy` is 0.05, but noise alone")
@pytest.mark.filterwarnings("ignore:The largest noise level, `high` = 10, leaves an accuracy of")
def test_the_cost_of_each_basin_is_its_own():
    net, (x, y) = network(), data(0, 64).tensors
    alone = diagnose(net, x, y, measure=["weight_basin"], accuracy=0.05)
    both = diagnose(net, x, y, measure=["sample_basin", "weight_basin"], accuracy=0.05)
    assert alone.weight_basin is not None
    assert both.weight_basin is not None
    # Three levels on each of 16 rays, three more on the first, and more on rays that noise has not taken below the
    # target, which is below guessing here.
    assert 16 * 3 < alone.weight_basin.forwards == both.weight_basin.forwards < 16 * 6
