"""Hugging Face's Trainer with the callback, and without: small random models, real trainings, no network."""

import copy

import pytest
import torch

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from integration.trainings_of_huggingface import (  # noqa: E402
    CLOCK,
    QUICK,
    SAMPLES,
    TASKS,
    Samples,
    differences,
    entries,
    everything,
    steps,
    texts,
    trainer_of,
    watched,
)
from netdyn import diagnose  # noqa: E402
from netdyn.huggingface import DynamicsCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:The probe holds .* classes:UserWarning", "ignore:`accuracy` is:UserWarning"
)

# Training is left alone

SCENARIOS = {
    "plain": {},
    "causal": {"task": "causal"},
    "a collator that draws": {"task": "masked"},
    "images": {"task": "images"},
    "accumulation": {"gradient_accumulation_steps": 4, "logging_steps": 1},
    "evaluation": {"evaluated": True, "eval_strategy": "steps", "eval_steps": 3, "logging_steps": 3},
    "epochs": {"evaluated": True, "eval_strategy": "epoch", "logging_strategy": "epoch", "logging_first_step": True},
    "mixed precision": {"bf16": True, "max_grad_norm": 0.5},
    "checkpoints": {"save_strategy": "steps", "save_steps": 5},
    "the best checkpoint": {
        "evaluated": True,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
        "load_best_model_at_end": True,
    },
    "a worker": {"dataloader_num_workers": 1, "max_steps": 5},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 4},
}


FAST = ("plain", "causal", "accumulation", "evaluation")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SCENARIOS]
)
def test_training_is_bit_for_bit_the_same(name, tmp_path):
    found = []
    for watch in (False, True):
        trainer = trainer_of(tmp_path / f"{watch}", **SCENARIOS[name])
        callback = watched(trainer) if watch else None
        trainer.train()
        found.append(everything(trainer))
    assert differences(*found) == []
    assert callback.monitor.evaluations >= 2
    assert callback.monitor.skipped == 0
    assert len(entries(trainer)[0]) == callback.monitor.evaluations


def test_a_resumed_training_is_the_same_and_measures_the_same(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 6, "max_steps": 10, "logging_steps": 2}
    whole, resumed, plain = (trainer_of(tmp_path / "whole", **saved) for _ in range(3))
    watched(whole)
    whole.train()
    found = []
    for trainer, watch in ((plain, False), (resumed, True)):
        if watch:
            watched(trainer)
        trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
        found.append(everything(trainer))
    assert differences(*found) == []
    assert steps(resumed) == steps(whole) == [0, 2, 4, 6, 8, 10]
    for one, other in zip(entries(whole)[0], entries(resumed)[0], strict=True):
        assert one.keys() - other.keys() == (
            {name for name in one if "/change" in name} if other["step"] == 8 else set()
        )
        assert {name: one[name] for name in other if name not in CLOCK} == {
            name: value for name, value in other.items() if name not in CLOCK
        }


# What is measured


def right_by_hand(model, inputs, target):
    """Share of right answers, over the labels that count."""
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(**inputs).logits
    return (logits.argmax(-1) == target)[target != -100].double().mean().item()


class Keeper(transformers.TrainerCallback):
    """Keeps the network of every step."""

    def __init__(self):
        self.networks = {}

    def on_train_begin(self, args, state, control, model, **_):
        self.networks[state.global_step] = copy.deepcopy(model)

    on_step_end = on_train_begin


@pytest.mark.parametrize("task", TASKS)
def test_the_numbers_are_diagnoses_on_the_same_probe_at_the_same_step(task, tmp_path):
    trainer, keeper = trainer_of(tmp_path, task, evaluated=True, max_steps=3, logging_steps=3), Keeper()
    callback = watched(trainer, detail="full")
    trainer.add_callback(keeper)
    trainer.train()
    probe, val = callback.monitor.probe, callback.monitor.val_probe
    assert len(probe.target) == len(val.target) == SAMPLES
    assert steps(trainer) == [0, 3]
    held_out = {"val_inputs": val.inputs, "val_target": val.target}
    for entry in entries(trainer)[0]:
        network = keeper.networks[entry["step"]]
        expected = diagnose(network, probe.inputs, probe.target, **held_out, measure=QUICK["measure"]).scalars()
        logged = {name: entry[name] for name in expected if name in entry}
        assert logged == {name: expected[name] for name in logged}
        # A basin without a radius is not sent.
        assert {name for name in expected if name not in logged and not name.startswith("basin/")} == set()
        assert {"probe/accuracy", "probe/val_accuracy", "modes/opt_mean", "modes/dead_max"} <= set(logged)
        right = right_by_hand(network, probe.inputs, probe.target)
        assert entry["probe/accuracy"] == pytest.approx(right, abs=1e-12)


def test_a_causal_models_answer_is_the_next_token(tmp_path):
    trainer = trainer_of(tmp_path, "causal", max_steps=1)
    callback = watched(trainer)
    trainer.train()
    probe = callback.monitor.probe
    assert torch.equal(probe.target[:, :-1], probe.inputs["input_ids"][:, 1:])
    assert (probe.target[:, -1] == -100).all()


def test_the_probe_is_the_trainers_own_data(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1)
    trainer.eval_dataset = {"first": Samples(**{n: c[:7] for n, c in texts().columns.items()}), "second": texts()}
    callback = watched(trainer, probe_size=20)
    trainer.train()
    columns, probe, val = trainer.train_dataset.columns, callback.monitor.probe, callback.monitor.val_probe
    assert set(probe.inputs) == {"input_ids", "attention_mask"}
    rows = {tuple(row.tolist()): label for row, label in zip(columns["input_ids"], columns["labels"], strict=True)}
    for row, label in zip(probe.inputs["input_ids"], probe.target, strict=True):
        assert rows.pop(tuple(row.tolist())) == label
    assert len(rows) == SAMPLES - 20
    assert torch.equal(val.inputs["input_ids"], columns["input_ids"][:7])


def test_a_probe_that_is_given_is_taken(tmp_path):
    trainer = trainer_of(tmp_path, evaluated=True, max_steps=1)
    data = texts().columns
    few, others = ({name: column[part] for name, column in data.items()} for part in (slice(9), slice(9, 20)))
    callback = watched(trainer, probe=few, val_probe=Samples(**others))
    trainer.train()
    assert torch.equal(callback.monitor.probe.inputs["input_ids"], few["input_ids"])
    assert torch.equal(callback.monitor.val_probe.target, others["labels"])


# When


@pytest.mark.parametrize(
    ("own", "options", "expected"),
    [
        ({}, {}, [0, 4, 8, 12]),
        ({"logging_steps": 5}, {}, [0, 5, 10, 12]),
        ({"logging_steps": 0.25}, {}, [0, 3, 6, 9, 12]),
        ({"logging_strategy": "epoch"}, {}, [0, 6, 12]),
        ({"logging_strategy": "no"}, {}, [0, 12]),
        ({"logging_first_step": True}, {"on_fit_ends": False}, [1, 4, 8, 12]),
        ({"save_strategy": "steps", "save_steps": 5}, {"follow": "save", "on_fit_ends": False}, [5, 10, 12]),
        ({"evaluated": True, "eval_strategy": "epoch"}, {"follow": "eval"}, [0, 6, 12]),
        ({}, {"every_n_train_steps": 7}, [0, 7, 12]),
        ({}, {"every_n_epochs": 2, "on_fit_ends": False}, [12]),
        ({"max_steps": 9}, {"every_n_epochs": 1}, [0, 6, 9]),
        ({}, {"schedule": [2, 3]}, [0, 2, 3, 12]),
        ({}, {"schedule": "log", "on_fit_ends": False}, [1, 2, 3, 5, 10]),
    ],
    ids=str,
)
def test_it_measures_when_the_trainer_does_or_as_asked(own, options, expected, tmp_path):
    trainer = trainer_of(tmp_path, **own)
    callback = watched(trainer, **options, measure=["sample_basin"], probe=few_texts())
    trainer.train()
    assert steps(trainer) == expected == list(callback.monitor.history.steps)


def few_texts():
    return {name: column[:8] for name, column in texts().columns.items()}


class Stopper(transformers.TrainerCallback):
    """Ends the training after an evaluation, as early stopping does."""

    def on_evaluate(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= 3


@pytest.mark.parametrize("best", [False, True])
def test_a_training_that_stops_early_is_measured_where_it_stops_unless_another_network_is_loaded(best, tmp_path):
    kept = {"save_strategy": "steps", "save_steps": 3, "load_best_model_at_end": True} if best else {}
    trainer = trainer_of(tmp_path, evaluated=True, eval_strategy="steps", eval_steps=3, logging_steps=2, **kept)
    callback = watched(trainer, measure=["sample_basin"], val_probe=few_texts(), probe=few_texts())
    trainer.add_callback(Stopper())
    trainer.train()
    assert steps(trainer) == list(callback.monitor.history.steps) == ([0, 2] if best else [0, 2, 3])
    assert set(entries(trainer)[0][-1]) >= {"probe/accuracy"}


def test_a_second_training_begins_anew(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=4)
    callback = watched(trainer, measure=["sample_basin"])
    trainer.train()
    trainer.train()
    assert steps(trainer) == list(callback.monitor.history.steps) == [0, 4]


def test_two_cadences_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"Only one of .* got every_n_epochs=2 and every_n_train_steps=3"):
        DynamicsCallback(trainer_of(tmp_path), every_n_epochs=2, every_n_train_steps=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"follow": "steps"}, "`follow` must be"),
        ({"every_n_epochs": 0}, "`every_n_epochs` must be"),
        ({"probe_size": 0}, "`probe_size` must be"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_with_its_name(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        DynamicsCallback(trainer_of(tmp_path), **options)


def test_something_else_than_a_trainer_is_refused():
    with pytest.raises(TypeError, match=r"`trainer` must be a transformers.Trainer, got NoneType"):
        DynamicsCallback(None)


def test_an_unknown_option_names_the_nearest(tmp_path):
    with pytest.raises(TypeError, match="probe_size"):
        DynamicsCallback(trainer_of(tmp_path), probes_size=3)


# Where to


def test_the_trainers_trackers_get_the_numbers_at_their_steps(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = trainer_of(tmp_path, report_to=["tensorboard"])
    watched(trainer, loggers=tmp_path / "own", histograms=True)
    trainer.train()
    (folder,) = {file.parent for file in tmp_path.rglob("events.out*") if "own" not in file.parts}
    theirs, ours = (accumulator.EventAccumulator(str(each)).Reload() for each in (folder, tmp_path / "own"))
    for found, tag in ((theirs, "train/probe/accuracy"), (ours, "probe/accuracy")):
        assert [point.step for point in found.Scalars(tag)] == [0, 4, 8, 12]
    assert [point.step for point in theirs.Scalars("train/loss")] == [4, 8, 12]
    assert len(list(folder.iterdir())) == 1
    assert [tag for tag in ours.Tags()["histograms"] if tag.startswith("modes/order_index/")]


def test_the_report_is_written_into_the_trainers_folder(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=2)
    callback = watched(trainer)
    trainer.train()
    assert callback.monitor.report_path == tmp_path / "netdyn_report.html"
    assert callback.report.accuracy == entries(trainer)[0][-1]["probe/accuracy"]


def test_a_failure_is_told_once_and_the_training_goes_on(tmp_path):
    trainer = trainer_of(tmp_path)
    watched(trainer, unpack=lambda batch: batch)
    with pytest.warns(UserWarning, match="`unpack`") as told:
        trainer.train()
    assert trainer.state.global_step == 12
    assert len(told) == 1
    assert entries(trainer)[0] == []


def test_strict_raises_it(tmp_path):
    trainer = trainer_of(tmp_path)
    watched(trainer, unpack=lambda batch: batch, strict=True)
    with pytest.raises(TypeError, match="`unpack`"):
        trainer.train()
