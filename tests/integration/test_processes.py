"""Several processes: all get the single process's numbers, training is untouched, and nobody waits for ever."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from integration.scenarios.base import Classifier, dataset
from integration.untouched import differences
from netdyn import diagnose
from netdyn.probes.loaders import input_and_target, read_probe

SCRIPT = Path(__file__).with_name("processes.py")


def train(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Run the script; the records of all processes. Its process groups give up after 40 seconds of waiting."""
    folder.mkdir(parents=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
    if options.get("may_fail"):
        return [{"returncode": done.returncode, "stderr": done.stderr}]
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(options.get("devices", 2))]


TRAINING = ("weights", "steps", "optimizers", "generators", "modes", "hooks")


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    kept = {name: record[name] for name in TRAINING}
    kept["weights"] = {name: value.tolist() for name, value in record["weights"].items()}
    return kept


STRATEGIES = {
    "ddp": {"strategy": "ddp"},
    "ddp_spawn": {"strategy": "ddp_spawn"},
    "ddp_fork": {"strategy": "ddp_fork"},
    "FSDP2": {"strategy": "fsdp2"},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_training_is_untouched_and_every_process_has_the_single_processs_numbers(name: str, tmp_path: Path):
    without = train(tmp_path / "without", monitored=False, **STRATEGIES[name])
    with_monitor = train(tmp_path / "with", monitored=True, **STRATEGIES[name], monitor={"strict": True})
    for rank, (plain, watched) in enumerate(zip(without, with_monitor, strict=True)):
        found = differences(comparable(plain), comparable(watched))
        assert not found, f"training was changed on process {rank}:\n" + "\n".join(found[:10])
        assert watched["evaluations"] == 5
        assert watched["skipped"] == 0
    assert with_monitor[0]["scalars"] == with_monitor[1]["scalars"]
    assert with_monitor[0]["callback metrics"] == with_monitor[1]["callback metrics"]

    expected = single_process(with_monitor[0]["weights"])
    assert with_monitor[0]["scalars"].keys() == expected.keys()
    for tag, value in expected.items():
        # Another batch size may round a last digit of a logit, and of what is computed from it.
        assert with_monitor[0]["scalars"][tag] == pytest.approx(value, rel=1e-5, abs=1e-6), tag


def single_process(weights: dict[str, torch.Tensor], size: int = 49) -> dict[str, float]:
    """What one process alone measures of a network with these weights, on the probe that the monitor picks."""
    module = Classifier()
    module.load_state_dict(weights)
    probes = [
        read_probe(torch.utils.data.DataLoader(data), size, 0, lambda batch: batch, input_and_target)
        for data in (dataset(70), dataset(20, seed=1))
    ]
    report = diagnose(
        module,
        probes[0].inputs,
        probes[0].target,
        val_inputs=probes[1].inputs,
        val_target=probes[1].target,
        sample_rays=2,
        weight_rays=3,
        rel_tol=0.2,
    )
    return report.scalars()


def test_synchronised_batch_normalisation_is_measured_as_the_plain_one():
    # In eval mode it synchronises nothing. (PyTorch trains it on GPUs only.)
    plain = Classifier().eval()
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    x, y = dataset(40)[:]
    assert diagnose(synchronised, x, y).scalars() == diagnose(plain, x, y).scalars()


def test_a_process_without_samples_or_rays_does_its_part(tmp_path: Path):
    size = 1  # the second process gets it; the first one has nothing to do
    records = train(
        tmp_path / "run",
        strategy="ddp",
        monitored=True,
        monitor={"strict": True, "probe_size": size, "weight_rays": 1, "measure": ["sample_basin", "weight_basin"]},
    )
    assert records[0]["evaluations"] == 5
    assert records[0]["scalars"] == records[1]["scalars"]
    assert "basin/weight/radius" in records[0]["scalars"]


def test_an_error_on_one_process_is_told_on_all_and_training_goes_on(tmp_path: Path):
    records = train(tmp_path / "run", strategy="ddp", monitored=True, fails_on=1)
    assert [record["skipped"] for record in records] == [4, 4]  # all evaluations but the one at the start
    assert any("ProcessError: Process" in text and "out of paper" in text for text in records[0]["told"])
    assert any("RuntimeError: out of paper" in text for text in records[1]["told"])


def test_an_error_on_one_process_ends_all_where_asked_for(tmp_path: Path):
    outcome = train(
        tmp_path / "run", strategy="ddp", monitored=True, fails_on=1, may_fail=True, monitor={"strict": True}
    )[0]
    assert outcome["returncode"] != 0
    assert "out of paper" in outcome["stderr"]


def test_a_measure_that_fails_on_one_process_is_missing_on_all_and_the_others_come(tmp_path: Path):
    records = train(tmp_path / "run", strategy="ddp", monitored=True, fails_on=1, fails_in="maps")
    assert [record["skipped"] for record in records] == [0, 0]
    assert [record["evaluations"] for record in records] == [5, 5]
    assert records[0]["scalars"] == records[1]["scalars"]
    expected = single_process(records[0]["weights"])
    kept = {tag: value for tag, value in expected.items() if not tag.startswith(("modes/", "linear/", "phase/"))}
    assert records[0]["scalars"] == pytest.approx(kept, rel=1e-5, abs=1e-6)
    told = [" ".join(record["told"]) for record in records]
    # Rank 0 knows of it by hearsay; both speak of each measure once.
    assert told[0].count("could not measure") == told[1].count("could not measure") == 2
    assert "could not measure 'modes', and goes on without: ProcessError: Process" in told[0]
    assert "could not measure 'maps', and goes on without: ProcessError: Process" in told[0]
    assert "could not measure 'modes', and goes on without: RuntimeError: out of paper" in told[1]


@pytest.mark.parametrize(("breaks", "measure"), [("reading", "modes"), ("remembering", "sample_basin")])
def test_a_process_that_fails_when_all_is_exchanged_stays_in_step(tmp_path: Path, breaks: str, measure: str):
    """The other one has read the layers, or remembers where rays were lost, and this one has not, and does not."""
    records = train(tmp_path / "run", strategy="ddp", monitored=True, breaks=breaks)
    assert [record["evaluations"] for record in records] == [5, 5]
    assert [record["skipped"] for record in records] == [0, 0]
    assert records[0]["scalars"] == records[1]["scalars"]
    expected = single_process(records[0]["weights"])
    assert records[0]["scalars"] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    told = [" ".join(record["told"]) for record in records]
    assert [text.count("could not measure") for text in told] == [1, 1], told
    assert f"could not measure {measure!r}, and goes on without: ProcessError: Process" in told[0]
    assert f"could not measure {measure!r}, and goes on without: RuntimeError: out of ink" in told[1]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_layers_are_read_anew_on_all_processes_where_one_finds_them_changed(tmp_path: Path, strategy: str):
    records = train(tmp_path / "run", strategy=strategy, monitored=True, mistrust=True, monitor={"strict": True})
    assert [record["evaluations"] for record in records] == [5, 5]
    assert records[0]["scalars"] == records[1]["scalars"]
    assert records[0]["scalars"] == pytest.approx(single_process(records[0]["weights"]), rel=1e-5, abs=1e-6)


def test_an_evaluation_that_fails_on_one_process_outside_of_a_measure_fails_on_all(tmp_path: Path):
    records = train(tmp_path / "run", strategy="ddp", monitored=True, misjudge=True)
    assert [record["skipped"] for record in records] == [1, 1]
    assert records[0]["scalars"] == records[1]["scalars"]
    said = [" ".join(record["told"]) for record in records]
    assert ["out of light" in text for text in said] == [True, True]
    assert ["ProcessError" in text for text in said] == [True, False]


def test_a_measure_that_fails_on_one_process_ends_all_at_once_where_asked_for(tmp_path: Path):
    # Nobody waits for the other: a process group would complain in the end.
    outcome = train(
        tmp_path / "run",
        strategy="ddp",
        monitored=True,
        fails_on=1,
        fails_in="maps",
        may_fail=True,
        monitor={"strict": True},
    )[0]
    assert outcome["returncode"] != 0
    assert "out of paper" in outcome["stderr"]
    assert "imeout" not in outcome["stderr"]
