"""One training on several processes; every process leaves a record of what it saw in a folder.

A job of a pair (``pair.py``), which is there already, or a script, which lets Lightning start the processes:
python processes.py FOLDER '{"strategy": "ddp", "monitored": true, ...}'
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from integration.pair import PATIENCE
from integration.scenarios.base import Classifier, dataset, loader
from integration.untouched import OURS, Recorder, differences, digest, generators
from netdyn import DynamicsMonitor, diagnose
from netdyn.basins import coverage
from netdyn.engine import evaluate
from netdyn.engine.config import MEASURES
from netdyn.probes.loaders import read_probe
from netdyn.probes.unpacking import input_and_target

#: For tests that are made under FSDP2 too, which torch has on the CPU from 2.7 on.
FSDP2 = pytest.param(
    "fsdp2",
    marks=pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="torch 2.6 shards on GPUs alone"),
)
#: What monitors measure here, if nothing else is said, and what a single process measures.
SETTINGS: dict[str, Any] = {"weight_rays": 3, "sample_rays": 2, "report": False, "measure": [*MEASURES, "companions"]}


class Net(Classifier):
    """A classifier that can be sharded, and can fail on one process while it is measured."""

    def __init__(self, sharded: bool, fails_on: int | None, fails_in: str | None) -> None:
        super().__init__()
        self.sharded, self.fails_on, self.fails_in = sharded, fails_on, fails_in

    def configure_model(self) -> None:
        if self.sharded:
            from torch.distributed.fsdp import fully_shard

            mesh = self.device_mesh["data_parallel"]
            for layer in (self.net[0], self.net[4], self.net[6]):
                fully_shard(layer, mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    def forward(self, x: Tensor) -> Tensor:
        measured = "log" in self.__dict__  # while it is measured, logging is shadowed
        fails = measured and self.fails_on == self.global_rank and self.trainer.global_step > 2
        # Maps alone take gradients.
        if fails and (self.fails_in is None or torch.is_grad_enabled()):
            raise RuntimeError("out of paper")
        return super().forward(x)


#: Work of ours that can be made to fail once: where it is looked up, its name, and whether it fails when it has been
#: done, after all that it has exchanged with other processes.
PLACES: dict[str, tuple[Any, str, bool]] = {
    "reading": (evaluate, "read_layers", True),
    "weight basin": (evaluate, "measure_weight_basin", False),
    "coverage": (coverage, "_right_at_distance", True),
    "probe check": (evaluate, "prepare", True),
}


def fail_once(patch: pytest.MonkeyPatch, place: str) -> None:
    """Let some work of ours raise the first time."""
    owner, name, done = PLACES[place]
    real, calls = getattr(owner, name), []

    def work(*args: Any, **options: Any) -> Any:
        calls.append(name)
        found = real(*args, **options) if done or len(calls) > 1 else None
        if len(calls) == 1:
            raise RuntimeError("out of ink")
        return found

    patch.setattr(owner, name, work)


class Keeper(Callback):
    """Writes the record at the end of training."""

    def __init__(self, folder: Path, monitor: DynamicsMonitor | None, recorder: Recorder) -> None:
        self.folder, self.monitor, self.recorder = folder, monitor, recorder
        self.told: list[str] = []

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def whole(value: Any) -> Any:
            return value.full_tensor() if hasattr(value, "full_tensor") else value

        weights = {name: whole(value).cpu().clone() for name, value in pl_module.state_dict().items()}
        record: dict[str, Any] = {
            "weights": weights,
            "steps": self.recorder.steps,
            "optimizers": [
                digest([[whole(v) for v in state.values()] for state in o.state.values()]) for o in trainer.optimizers
            ],
            "generators": generators(),
            "modes": [module.training for module in pl_module.modules()],
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pl_module.modules()],
        }
        if self.monitor is not None:
            report = self.monitor.report
            record |= {
                "scalars": None if report is None else report.scalars(),
                "radii": None if report is None or report.weight_basin is None else report.weight_basin.radii,
                "evaluations": self.monitor.monitor.evaluations,
                "skipped": self.monitor.monitor.skipped,
                "told": sorted(self.monitor.monitor._said.values()),
                "callback metrics": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(OURS)},
            }
        torch.save(record, self.folder / f"{trainer.global_rank}.pt")


def train(folder: Path, options: dict[str, Any]) -> None:
    """Train on as many processes as there are or Lightning starts."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    strategy: Any = options["strategy"]
    if strategy == "ddp":
        strategy = DDPStrategy(timeout=PATIENCE)
    elif strategy == "fsdp2":
        strategy = ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            timeout=PATIENCE,
            save_distributed_checkpoint=False,
        )
    L.seed_everything(3, workers=True, verbose=False)
    settings = {"probe_size": 49} | SETTINGS | options.get("monitor", {})
    monitor = DynamicsMonitor(**settings) if options["monitored"] else None
    recorder = Recorder()
    callbacks = [*([monitor] if monitor else []), recorder, Keeper(folder, monitor, recorder)]
    trainer = L.Trainer(
        max_epochs=4,
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        logger=False,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    module = Net(options["strategy"] == "fsdp2", options.get("fails_on"), options.get("fails_in"))
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("LOCAL_RANK") == "1" and "breaks" in options:
            fail_once(patch, options["breaks"])
        trainer.fit(module, loader(dataset(70)), loader(dataset(20, seed=1), shuffle=False))


def records(folder: Path) -> list[dict[str, Any]]:
    """What the two processes have left there."""
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


# What holds of the records -------------------------------------------------------------------------------------------

TRAINING = ("weights", "steps", "optimizers", "generators", "modes", "hooks")


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    kept = {name: record[name] for name in TRAINING}
    kept["weights"] = {name: value.tolist() for name, value in record["weights"].items()}
    return kept


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
        **{name: value for name, value in SETTINGS.items() if name != "report"},  # a monitor's alone
    )
    # Maps are measured where figures are drawn: the monitor has none of their companion.
    return {tag: value for tag, value in report.scalars().items() if tag != "companions/map_localisation"}


def assert_as_one(without: list[dict[str, Any]], with_monitor: list[dict[str, Any]]) -> None:
    """Training is untouched by the monitor, and every process has the numbers that one alone would have."""
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


if __name__ == "__main__":
    train(Path(sys.argv[1]), json.loads(sys.argv[2]))
