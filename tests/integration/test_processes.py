"""Two processes: both get the single process's numbers, training is untouched, and neither waits for ever.

All tests that need the pair are in this file, so that one worker has them all and starts one pair.
"""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from integration import metric_processes, processes, target_processes
from integration.pair import JobFailed, Pair
from integration.processes import assert_as_one, single_process
from integration.scenarios.base import Classifier, dataset
from netdyn import diagnose


def train(pair: Pair, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Train on both processes of the pair; their records."""
    folder.mkdir(parents=True)
    pair.run(processes.train, folder, {"monitored": True} | options)
    return processes.records(folder)


@pytest.mark.parametrize("strategy", ["ddp", processes.FSDP2])
def test_training_is_untouched_and_every_process_has_the_single_processs_numbers(
    strategy: str, pair: Pair, tmp_path: Path
):
    without = train(pair, tmp_path / "without", strategy=strategy, monitored=False)
    with_monitor = train(pair, tmp_path / "with", strategy=strategy, monitor={"strict": True})
    assert_as_one(without, with_monitor)


def test_synchronised_batch_normalisation_is_measured_as_the_plain_one():
    # In eval mode it synchronises nothing. (PyTorch trains it on GPUs only.)
    plain = Classifier().eval()
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    x, y = dataset(40)[:]
    assert diagnose(synchronised, x, y).scalars() == diagnose(plain, x, y).scalars()


def test_a_network_that_is_wrapped_for_training_is_measured_without_waiting_for_the_other_process(pair: Pair):
    first, second = pair.run(metric_processes.wrapped)
    assert first.pop("alone")
    assert first == second


def test_a_process_without_samples_or_rays_does_its_part(pair: Pair, tmp_path: Path):
    size = 1  # the second process gets it; the first one has nothing to do
    settings = {"strict": True, "probe_size": size, "weight_rays": 1, "measure": ["sample_basin", "weight_basin"]}
    records = train(pair, tmp_path / "run", strategy="ddp", monitor=settings)
    assert records[0]["evaluations"] == 5
    assert records[0]["scalars"] == records[1]["scalars"]
    assert "basin/weight/radius" in records[0]["scalars"]


def test_an_error_on_one_process_is_told_on_all_and_training_goes_on(pair: Pair, tmp_path: Path):
    records = train(pair, tmp_path / "run", strategy="ddp", fails_on=1)
    assert [record["skipped"] for record in records] == [4, 4]  # all evaluations but the one at the start
    assert any("ProcessError: Process" in text and "out of paper" in text for text in records[0]["told"])
    assert any("raised RuntimeError: out of paper" in text for text in records[1]["told"])


@pytest.mark.slow
def test_an_error_on_one_process_ends_both_where_asked_for(pair: Pair, tmp_path: Path):
    with pytest.raises(JobFailed) as failed:
        train(pair, tmp_path / "run", strategy="ddp", fails_on=1, monitor={"strict": True})
    assert_both_end(failed.value)


def assert_both_end(failed: JobFailed) -> None:
    """One by its error, the other because it was told; neither because it was left alone or has waited too long."""
    other, own = failed.tracebacks
    assert "raised RuntimeError: out of paper." in own.rstrip().splitlines()[-1]
    assert "Error: Process 1" in other
    assert "out of paper" in other
    for text in failed.tracebacks:
        assert "imeout" not in text
        assert "Connection closed" not in text


def test_a_measure_that_fails_on_one_process_is_missing_on_all_and_the_others_come(pair: Pair, tmp_path: Path):
    records = train(pair, tmp_path / "run", strategy="ddp", fails_on=1, fails_in="maps")
    assert [record["skipped"] for record in records] == [0, 0]
    assert [record["evaluations"] for record in records] == [5, 5]
    assert records[0]["scalars"] == records[1]["scalars"]
    expected = single_process(records[0]["weights"])
    kept = {tag: value for tag, value in expected.items() if not tag.startswith(("modes/", "linear/", "phase/"))}
    assert records[0]["scalars"] == pytest.approx(kept, rel=1e-5, abs=1e-6)
    told = [" ".join(record["told"]) for record in records]
    # Rank 0 knows of it by hearsay; both speak of each measure once.
    assert told[0].count("could not measure") == told[1].count("could not measure") == 2
    assert "could not measure 'modes' and 'linear', and goes on without it: ProcessError: Process" in told[0]
    assert "could not measure 'maps', and goes on without it: ProcessError: Process" in told[0]
    assert "could not measure 'modes' and 'linear', and goes on without it: RuntimeError: " in told[1]
    assert "raised RuntimeError: out of paper" in told[1]


@pytest.mark.parametrize(
    ("breaks", "measure"),
    [("reading", "'modes' and 'linear'"), ("weight basin", "'weight_basin'"), ("coverage", "'coverage'")],
)
def test_a_process_that_fails_once_in_a_measure_stays_in_step(pair: Pair, tmp_path: Path, breaks: str, measure: str):
    """Before the measure has exchanged anything, between two exchanges, or after all: the other process goes on too."""
    records = train(pair, tmp_path / "run", strategy="ddp", breaks=breaks)
    assert [record["evaluations"] for record in records] == [5, 5]
    assert [record["skipped"] for record in records] == [0, 0]
    assert records[0]["scalars"] == records[1]["scalars"]
    expected = single_process(records[0]["weights"])
    assert records[0]["scalars"] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    told = [" ".join(record["told"]) for record in records]
    assert [text.count("could not measure") for text in told] == [1, 1], told
    assert f"could not measure {measure}, and goes on without it: ProcessError: Process" in told[0]
    assert f"could not measure {measure}, and goes on without it: RuntimeError: out of ink" in told[1]


@pytest.mark.parametrize("strategy", ["ddp", processes.FSDP2])
def test_an_evaluation_that_fails_on_one_process_outside_of_a_measure_fails_on_all(
    pair: Pair, tmp_path: Path, strategy: str
):
    records = train(pair, tmp_path / "run", strategy=strategy, breaks="probe check")
    assert [record["evaluations"] for record in records] == [5, 5]
    assert [record["skipped"] for record in records] == [1, 1]
    assert records[0]["scalars"] == records[1]["scalars"]
    said = [" ".join(record["told"]) for record in records]
    assert ["out of ink" in text for text in said] == [True, True]
    assert ["ProcessError" in text for text in said] == [True, False]


@pytest.mark.slow
def test_a_measure_that_fails_on_one_process_ends_both_at_once_where_asked_for(pair: Pair, tmp_path: Path):
    with pytest.raises(JobFailed) as failed:
        train(pair, tmp_path / "run", strategy="ddp", fails_on=1, fails_in="maps", monitor={"strict": True})
    assert_both_end(failed.value)


# Metrics, without Lightning ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process computes of all samples, on one thread like those of the pair."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = metric_processes.computed((0, 60))
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("split", metric_processes.SPLITS)
def test_both_processes_compute_the_single_processs_values(split: str, alone: dict[str, Any], pair: Pair):
    first, second = pair.run(metric_processes.share, split)
    assert first == second
    assert first.keys() == alone.keys()
    for name, value in alone.items():
        assert first[name] == value, name


@pytest.mark.filterwarnings("ignore::netdyn.DynamicsWarning")
@pytest.mark.parametrize("kind", target_processes.KINDS)
def test_targets_of_every_kind_have_the_single_processs_numbers(kind: str, pair: Pair):
    first, second = pair.run(target_processes.measured, kind)
    alone = target_processes.measured(kind, together=False)
    assert first == second
    # Rays on one process go through the network in other batches: rounding may differ.
    assert first == pytest.approx(alone, rel=1e-5)
    assert first["basin/sample/radius"] > 0


# Hugging Face's Trainer ----------------------------------------------------------------------------------------------

HUGGING_FACE = {
    "uneven": {"samples": 45},
    "samples of its own on each": {"apart": True},
    "accumulation": {"gradient_accumulation_steps": 2, "logging_steps": 1, "task": "causal"},
    "evaluation": {"evaluated": True, "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 2},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The probe holds .* classes")
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_faces_trainer_is_left_alone_and_logs_the_single_processs_numbers(
    name: str, pair: Pair, tmp_path: Path
):
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    from integration import trainings_of_huggingface as trainings

    options = HUGGING_FACE[name] | {"report_to": ["tensorboard"]}
    without = pair.run(trainings.on_this_process, tmp_path / "without", False, **options)
    watched = pair.run(trainings.on_this_process, tmp_path / "with", True, **options)
    trainings.assert_as_one(without, watched, options.get("task", "classifier"))
    # The Trainer's trackers write on its first process.
    (folder,) = {file.parent for file in (tmp_path / "with").rglob("events.out*")}
    points = EventAccumulator(str(folder)).Reload().Scalars("train/probe/accuracy")
    ours = watched[0]["ours"]
    assert [(point.step, point.value) for point in points] == [
        (entry["step"], pytest.approx(entry["probe/accuracy"], rel=1e-6)) for entry in ours
    ]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_probe_that_one_process_cannot_read_keeps_hugging_faces_processes_in_step(
    rank: int, pair: Pair, tmp_path: Path
):
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    from integration import trainings_of_huggingface as trainings

    found = pair.run(trainings.on_this_process, tmp_path, True, fails_on=rank)
    if rank == 0:  # which reads for all
        assert ["out of ink" in " ".join(one["told"]) for one in found] == [True, True]
        assert [one["ours"] for one in found] == [[], []]
    else:
        assert [one["told"] for one in found] == [[], []]
        assert len(found[0]["ours"]) == 3
        assert found[0]["ours"] == found[1]["ours"]


# The pair itself -----------------------------------------------------------------------------------------------------


def test_processes_stay_from_job_to_job(pair: Pair):
    assert pair.run(os.getpid) == pair.run(os.getpid)


def test_every_job_finds_the_generators_in_the_same_state(pair: Pair):
    first, second = pair.run(torch.rand, 3), pair.run(torch.rand, 3)
    assert all(torch.equal(first[0], other) for other in (first[1], *second))


@pytest.mark.slow
def test_an_error_comes_with_the_tracebacks_of_both_and_the_next_job_has_a_fresh_pair(pair: Pair):
    before = pair.run(os.getpid)
    with pytest.raises(JobFailed) as failed:
        pair.run(divmod, 1, 0)
    for text in failed.value.tracebacks:
        assert text.startswith("Traceback")
        assert text.splitlines()[-1].startswith("ZeroDivisionError")
    assert not set(before) & set(pair.run(os.getpid))


@pytest.mark.slow
def test_a_process_that_dies_is_told_with_its_exit_code(pair: Pair):
    with pytest.raises(JobFailed) as failed:
        pair.run(os._exit, 3)
    assert failed.value.tracebacks == ["the process ended with exit code 3"] * 2
