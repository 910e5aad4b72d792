"""The callback as an object: its arguments, its signature, its state. tests/integration shows it in runs."""

import copy
import inspect
import io
import json
import math
import pickle
import re
import sys
import types
import typing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import netdyn
from clouds import FEATURES, probe
from counting import Kernels
from netdyn import DynamicsMonitor, diagnose
from netdyn.callback import DynamicsMonitor as Home
from netdyn.engine.config import MEASURES
from netdyn.probes.criteria import right_class
from netdyn.probes.unpacking import input_and_target

PARAMETERS = dict(inspect.signature(DynamicsMonitor).parameters)

#: Every argument that a configuration file can hold, with a value other than its default.
IN_A_FILE = {
    "every_n_epochs": 3,
    "on_fit_ends": False,
    "max_overhead": 0.05,
    "probe_size": 256,
    "num_classes": 7,
    "batch_size": 64,
    "measure": ["modes", "weight_basin"],
    "layers": ["encoder.*", "head"],
    "max_units": 100,
    "max_classes": 20,
    "alpha": 0.1,
    "accuracy": 0.8,
    "relative": True,
    "sample_rays": 2,
    "weight_rays": 4,
    "weight_layers": ["encoder.*"],
    "normalization": "global",
    "low": 0.01,
    "high": 5.0,
    "weight_samples": 64,
    "tolerance": 0.25,
    "noise_at": ["embedding"],
    "task": "classes",
    "ignore_index": -1,
    "accuracy_of": "labels",
    "observer_hooks": ["mypackage"],
    "detail": "full",
    "histograms": False,
    "figures": "always",
    "layout": False,
    "report": False,
    "prefix": "mine",
    "seed": 3,
    "strict": True,
}


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"every_n_epochs": 2, "every_n_train_steps": 5}, "every_n_epochs=2 and every_n_train_steps=5"),
        ({"every_n_epochs": 2, "schedule": "log"}, "every_n_epochs=2 and schedule='log'"),
        ({"every_n_train_steps": 5, "schedule": [1, 2]}, "every_n_train_steps=5 and schedule=[1, 2]"),
        (
            {"every_n_epochs": 1, "every_n_train_steps": 1, "schedule": [1]},
            "every_n_epochs=1 and every_n_train_steps=1 and schedule=[1]",
        ),
    ],
)
def test_more_than_one_cadence_is_refused(arguments, shown):
    text = f"Only one of `every_n_epochs`, `every_n_train_steps`, `schedule` can be given, got {shown}."
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        DynamicsMonitor(**arguments)


OUT_OF_RANGE = [
    ("every_n_epochs", 0),
    ("every_n_epochs", -1),
    ("every_n_train_steps", 0),
    ("every_n_train_steps", -10),
    ("schedule", []),
    ("schedule", "linear"),
    ("schedule", [0]),
    ("schedule", [3, -1]),
    ("max_overhead", 0),
    ("max_overhead", 0.0),
    ("max_overhead", -0.1),
    ("max_overhead", math.nan),
    ("max_overhead", math.inf),
    ("max_overhead", 5),
    ("probe_size", 0),
    ("num_classes", 0),
    ("batch_size", 0),
    ("measure", ["mode"]),
    ("measure", ["modes", "sample"]),
    ("max_units", 0),
    ("max_classes", 0),
    ("max_classes", 1),
    ("alpha", 0.0),
    ("alpha", 1.0),
    ("alpha", 1.5),
    ("alpha", math.nan),
    ("accuracy", 0.0),
    ("accuracy", 1.0),
    ("accuracy", 1.5),
    ("accuracy", -0.5),
    ("sample_rays", 0),
    ("weight_rays", 0),
    ("weight_layers", "all"),
    ("normalization", "batch"),
    ("low", 0.0),
    ("low", -1.0),
    ("low", math.nan),
    ("high", 0.0),
    ("high", math.inf),
    ("weight_samples", 0),
    ("weight_samples", -3),
    ("tolerance", 0.0),
    ("tolerance", -1.0),
    ("tolerance", math.nan),
    ("figures", "sometimes"),
    ("figures", True),
    ("seed", -1),
]

WRONG_TYPE = [
    ("every_n_epochs", 1.5),
    ("every_n_epochs", "2"),
    ("every_n_epochs", True),
    ("every_n_train_steps", 2.0),
    ("schedule", 5),
    ("schedule", [1.5]),
    ("schedule", ["log"]),
    ("probe", 5),
    ("probe", "train"),
    ("probe", np.zeros((4, 2))),
    ("val_probe", 5),
    ("probe_size", 10.0),
    ("probe_size", None),
    ("num_classes", 10.0),
    ("unpack", 3),
    ("unpack", "first"),
    ("forward", 3),
    ("batch_size", 1.5),
    ("measure", "modes"),
    ("measure", 5),
    ("layers", "net.0"),
    ("layers", 3),
    ("layers", [3]),
    ("max_units", 4096.0),
    ("max_classes", 10.0),
    ("alpha", "0.05"),
    ("accuracy", "half"),
    ("sample_rays", 1.0),
    ("weight_rays", 8.0),
    ("weight_layers", 3),
    ("weight_layers", [3]),
    ("low", "small"),
    ("high", None),
    ("weight_samples", 64.0),
    ("weight_samples", "half"),
    ("tolerance", "half"),
    ("noise_at", "embedding"),
    ("noise_at", [3]),
    ("criterion", "argmax"),
    ("prefix", 5),
    ("prefix", None),
    ("seed", 1.5),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE, ids=[f"{n}={v!r}" for n, v in OUT_OF_RANGE])
def test_a_value_out_of_range_is_refused_with_its_name_and_the_value(name, value):
    with pytest.raises(ValueError, match=rf"`{name}`") as error:
        DynamicsMonitor(**{name: value})
    bad = value[-1] if isinstance(value, list) and value else value
    assert ("empty" if bad == [] else f"{bad:g}" if isinstance(bad, float) else repr(bad)) in str(error.value)


@pytest.mark.parametrize(("name", "value"), WRONG_TYPE, ids=[f"{n}={type(v).__name__} {v}" for n, v in WRONG_TYPE])
def test_a_value_of_the_wrong_type_is_refused_with_its_name_and_what_came(name, value):
    with pytest.raises((TypeError, ValueError), match=rf"`{name}`") as error:
        DynamicsMonitor(**{name: value})
    bad = value[-1] if isinstance(value, list) else value
    assert repr(bad) in str(error.value) or type(bad).__name__ in str(error.value)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 0.5), (10.0, 1e-3), (20.0, 10.0)])
def test_a_lowest_noise_above_the_highest_is_refused(low, high):
    with pytest.raises(ValueError, match=f"^`low` must be smaller than `high`, got low={low:g} and high={high:g}\\.$"):
        DynamicsMonitor(low=low, high=high)


def test_a_lowest_noise_above_the_default_highest_is_refused():
    with pytest.raises(ValueError, match="got low=20 and high=10"):
        DynamicsMonitor(low=20.0)


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="every_n_epoch"):
        DynamicsMonitor(every_n_epoch=3)


def test_arguments_are_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        DynamicsMonitor(3)


SOUND = [
    {},
    {"every_n_epochs": 5},
    {"every_n_train_steps": 100},
    {"schedule": "log"},
    {"schedule": [1, 10, 100]},
    {"max_overhead": 0.05},
    {"max_overhead": 1},
    {"measure": ["modes"]},
    {"measure": ("sample_basin",)},
    {"measure": MEASURES, "figures": "never"},
    {"layout": False},
    {"max_classes": 2},
    {"weight_layers": "each"},
    {"weight_layers": ["*.weight"]},
    {"accuracy": 0.9},
    {"num_classes": 2},
    {"low": 1, "high": 2},
    {"probe": (torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))},
    IN_A_FILE,
]


@pytest.mark.parametrize("arguments", SOUND, ids=[" ".join(a)[:40] or "none" for a in SOUND])
def test_sound_arguments_are_taken(arguments):
    assert DynamicsMonitor(**arguments).report is None


# The signature


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_is_annotated_and_has_a_default_and_a_name(name):
    parameter = PARAMETERS[name]
    assert parameter.annotation is not inspect.Parameter.empty
    assert parameter.default is not inspect.Parameter.empty
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


def described():
    """The arguments that the docstring's section "Args" names, with their descriptions."""
    section = inspect.getdoc(DynamicsMonitor).split("\nArgs:\n")[1].split("\n\n")[0]
    return dict(re.findall(r"^    (\w+): (.+)$", section, re.MULTILINE))


def test_the_docstring_names_every_parameter_in_order():
    assert list(described()) == list(PARAMETERS)


def test_every_description_is_a_sentence():
    assert all(text[0].isupper() or text[0] == "`" for text in described().values())


def test_annotations_can_be_resolved():
    hints = typing.get_type_hints(DynamicsMonitor.__init__)
    assert set(PARAMETERS) <= set(hints)
    assert hints["every_n_epochs"] == int | None


def test_the_defaults_are_the_documented_ones():
    defaults = {name: parameter.default for name, parameter in PARAMETERS.items()}
    assert defaults == {
        "every_n_epochs": None,
        "every_n_train_steps": None,
        "schedule": None,
        "on_fit_ends": True,
        "max_overhead": None,
        "probe": None,
        "val_probe": None,
        "probe_size": 1024,
        "num_classes": None,
        "unpack": None,
        "forward": None,
        "observer_hooks": None,
        "batch_size": None,
        "task": "auto",
        "ignore_index": -100,
        "accuracy_of": "samples",
        "measure": MEASURES,
        "layers": None,
        "max_units": 4096,
        "max_classes": 100,
        "alpha": 0.05,
        "accuracy": None,
        "relative": False,
        "sample_rays": 1,
        "weight_rays": 16,
        "weight_samples": 128,
        "weight_layers": None,
        "normalization": "layer",
        "low": 1e-3,
        "high": 10.0,
        "criterion": None,
        "tolerance": 0.5,
        "noise_at": None,
        "detail": "layers",
        "histograms": True,
        "figures": "ends",
        "layout": True,
        "report": True,
        "prefix": "",
        "seed": 0,
        "strict": False,
    }


def test_the_callback_is_no_thicker_than_the_report():
    """What is measured is described by diagnose's own parameters: same names, same defaults."""
    measured = inspect.signature(netdyn.diagnose).parameters
    shared = set(measured) & set(PARAMETERS)
    assert {"measure", "layers", "accuracy", "weight_rays", "weight_samples"} <= shared
    assert {name: measured[name].default for name in shared} == {name: PARAMETERS[name].default for name in shared}


def test_nothing_of_lightnings_own_is_overwritten():
    """Lightning sets `log` and `log_dict` on callbacks."""
    assert not {"log", "log_dict"} & set(dir(DynamicsMonitor))


def test_the_package_gives_the_callback():
    assert netdyn.DynamicsMonitor is Home


# Configuration files


@pytest.fixture(autouse=True)
def _old_names_of_jsonargparse_are_no_subject(monkeypatch):
    """The method that its older versions have too warns in newer ones."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def built(given):
    """The monitor that jsonargparse builds from a mapping, as LightningCLI does."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Callback, "callback")
    config = parser.parse_object({"callback": {"class_path": "netdyn.DynamicsMonitor", "init_args": given}})
    return parser.instantiate_classes(config).callback


def test_every_parameter_but_data_and_functions_can_stand_in_a_file():
    assert set(PARAMETERS) - set(IN_A_FILE) == {
        *("every_n_train_steps", "schedule"),  # one cadence at a time
        *("probe", "val_probe", "unpack", "forward", "criterion"),
    }


@pytest.mark.parametrize(
    "cadence", [{"every_n_epochs": 3}, {"every_n_train_steps": 50}, {"schedule": "log"}, {"schedule": [1, 10]}, {}]
)
def test_a_file_builds_the_monitor_that_the_call_builds(cadence):
    given = {name: value for name, value in IN_A_FILE.items() if name != "every_n_epochs"} | cadence
    read = yaml.safe_load(yaml.safe_dump(given))
    assert same_state(built(read), DynamicsMonitor(**given))


def test_a_file_can_name_functions():
    monitor = built(
        {"unpack": "netdyn.probes.unpacking.input_and_target", "criterion": "netdyn.probes.criteria.right_class"}
    )
    assert same_state(monitor, DynamicsMonitor(unpack=input_and_target, criterion=right_class))


def test_weight_layers_and_the_word_each_are_told_apart():
    assert same_state(built({"weight_layers": "each"}), DynamicsMonitor(weight_layers="each"))
    assert not same_state(built({"weight_layers": ["each"]}), DynamicsMonitor(weight_layers="each"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "linear"},
        {"schedule": 2.5},
        {"measure": ["mode"]},
        {"normalization": "batch"},
        {"figures": "sometimes"},
        {"noise_at": 3},
        {"probe_size": "many"},
        {"every_n_epochs": 1.5},
        {"layers": 3},
        {"on_fit_ends": "perhaps"},
        {"no_such_argument": 1},
    ],
)
def test_a_file_with_a_wrong_value_is_refused_before_anything_runs(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        built(wrong)


# State


def plain(value):
    """Whether a value is made of plain numbers, strings and their lists and dicts."""
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    return type(value) in (int, float, str, bool, type(None)) or (type(value) is list and all(map(plain, value)))


def same_state(a, b):
    """Equal attributes of both the callback and its monitor."""
    return shown(a) == shown(b)


def shown(callback):
    own, monitor = dict(vars(callback)), dict(vars(callback.monitor))
    assert own.pop("monitor") is callback.monitor
    monitor["budget"] = monitor["budget"].state_dict()
    return {name: repr(value) for name, value in (own | monitor).items()}


@pytest.mark.parametrize("arguments", [{}, IN_A_FILE, {"schedule": "log"}], ids=["defaults", "all", "log"])
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_monitor_can_be_copied_and_pickled(arguments, again):
    monitor = DynamicsMonitor(**arguments)
    assert same_state(again(monitor), monitor)


def test_the_state_is_plain_and_survives_json():
    state = DynamicsMonitor().state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == state
    assert plain(state)
    assert json.loads(json.dumps(state)) == state


def test_the_state_is_taken_up():
    state = DynamicsMonitor().state_dict()
    history = {
        "steps": [0, 3],
        "rows": [{"probe/accuracy": 0.5}, {"probe/accuracy": 0.75}],
        "moments": [[0, 0.5, 0.5, 0.1, 0.1, 1.5, 0.0], [3, 0.75, 0.5, 0.1, 0.1, 1.0, 0.0]],
        "layers": ["net.0"],
    }
    assert state.pop("history") == {"steps": [], "rows": [], "moments": [], "layers": []}
    assert state.pop("before") == {}
    changed = {name: (value or 0) + 3 for name, value in state.items()} | {"history": history, "before": {}}
    monitor = DynamicsMonitor()
    monitor.load_state_dict(changed)
    assert monitor.state_dict() == changed


def test_equal_monitors_have_equal_keys():
    assert DynamicsMonitor(prefix="a").state_key == DynamicsMonitor(prefix="a").state_key


def test_different_monitors_have_different_keys():
    different = [
        {},
        {"prefix": "a"},
        {"prefix": "b"},
        {"seed": 1},
        {"every_n_epochs": 2},
        {"every_n_train_steps": 2},
        {"schedule": "log"},
        {"schedule": [1, 2]},
        {"schedule": [1, 3]},
    ]
    assert len({DynamicsMonitor(**arguments).state_key for arguments in different}) == len(different)


def test_a_monitor_holds_no_lambda():
    """One would keep it from being sent to processes that are spawned."""
    callback = DynamicsMonitor()
    held = [*vars(callback).values(), *vars(callback.monitor).values()]
    assert not [value for value in held if isinstance(value, types.FunctionType) and value.__name__ == "<lambda>"]


# A training step


@pytest.mark.parametrize("options", [{}, {"every_n_train_steps": 100}, {"schedule": "log"}, {"every_n_epochs": 3}])
def test_a_step_without_an_evaluation_asks_torch_nothing(options):
    callback = DynamicsMonitor(**options)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=7))
    trainer = SimpleNamespace(global_step=7, fast_dev_run=False, fit_loop=loop)
    callback.monitor.due(6)
    calls = []
    with Kernels() as kernels:
        sys.setprofile(lambda frame, event, argument: calls.append(event) if event.endswith("call") else None)
        try:
            callback.on_train_batch_start(trainer, None, None, 0)
            callback.on_train_batch_end(trainer, None, None, None, 0)
        finally:
            sys.setprofile(None)
    assert not kernels.calls
    # A call takes about a tenth of a microsecond.
    assert len(calls) <= 25


# A run


class Classifier(LightningModule):
    """A network with batch normalisation that learns clouds of points."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Linear(FEATURES, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)
            )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"every_n_train_steps": 1}, [0, *range(12)]),
        ({}, [0, 3, 7, 11]),
        ({"schedule": [5], "batch_size": 50, "weight_layers": "each", "seed": 3}, [0, 4, 11]),
    ],
    ids=["every step", "every epoch", "a list"],
)
def test_every_evaluation_of_a_run_gives_the_numbers_of_diagnose(options, steps):
    """Exactly, on a copy of the module as it is at that moment, with the same probe."""
    x, target = probe()
    others = probe(samples=60, seed=5)
    callback = DynamicsMonitor(weight_rays=2, **options)
    measured = {name: value for name, value in options.items() if name not in ("every_n_train_steps", "schedule")}
    measure, seen = callback.monitor.measure, []

    def watched(model, step, **given):
        weights = copy.deepcopy(model.state_dict())
        report = measure(model, step, **given)
        seen.append((step, weights, dict(callback.monitor.scalars), callback.monitor.probe, callback.monitor.val_probe))
        return report

    callback.monitor.measure = watched
    generator = torch.Generator().manual_seed(0)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(
        Classifier(),
        DataLoader(TensorDataset(x, target), batch_size=50, shuffle=True, generator=generator),
        DataLoader(TensorDataset(*others), batch_size=30),
    )
    assert [step for step, *_ in seen] == steps
    for place, (step, weights, logged, own, val) in enumerate(seen):
        module = Classifier()
        module.load_state_dict(weights)
        held_out = {"val_inputs": val.inputs, "val_target": val.target}
        report = diagnose(module, own.inputs, own.target, weight_rays=2, **held_out, **measured)
        # Only a run knows its cost, earlier evaluations and, for the gap in batches, the batches of its training.
        own_tags = ("netdyn/", "/change", "batchnorm/train_gap")
        numbers = {tag: value for tag, value in logged.items() if not any(own in tag for own in own_tags)}
        # The radii of the classes are found only where figures are drawn, at the first evaluation.
        expected = {tag: v for tag, v in report.scalars().items() if not place or "class_radius" not in tag}
        expected.pop("batchnorm/train_gap")
        assert numbers == expected, step
        assert {"batchnorm/gap", "coverage/own", "probe/val_accuracy", "basin/weight/radius"} <= set(numbers)
