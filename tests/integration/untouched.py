"""Run a training with and without the monitor, and write down everything that a monitor could have changed.

A scenario builds one training from scratch: module, data, trainer arguments. It is run twice from the same seeds, and
the two records must be equal, exactly: no tolerance anywhere.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn

from netdyn import DynamicsMonitor


@dataclass
class Training:
    """One training, freshly built.

    Attributes:
        module: The LightningModule.
        train: What ``fit`` gets as training data (a loader, several, or a LightningDataModule).
        val: Validation data, or None.
        trainer: Arguments for the Trainer beside those that the harness sets.
        callbacks: The user's other callbacks.
        monitor: Arguments for the monitor.
        watched: Name → function returning something else that must not differ (a loader's generator, a counter).
        stages: What is done with the trainer; None: one ``fit``.
        evaluations: The fewest evaluations that must have taken place.
    """

    module: L.LightningModule
    train: Any = None
    val: Any = None
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: list[Callback] = field(default_factory=list)
    monitor: dict[str, Any] = field(default_factory=dict)
    watched: dict[str, Callable[[], Any]] = field(default_factory=dict)
    stages: Callable[[L.Trainer, Training], None] | None = None
    evaluations: int = 2


def digest(value: Any) -> str:
    """A digest of tensors, arrays and plain values, through any nesting; equal content gives equal digests."""
    total = hashlib.blake2b(digest_size=12)
    _feed(total, value, set())
    return total.hexdigest()


def _feed(total: Any, value: Any, path: set[int]) -> None:
    if id(value) in path:
        return
    path = path | {id(value)}
    total.update(type(value).__name__.encode())
    if isinstance(value, Tensor):
        total.update(f"{value.dtype}{tuple(value.shape)}{value.requires_grad}".encode())
        own = value.to_local() if hasattr(value, "to_local") else value  # a shard: what this process holds
        content = own.detach().cpu().contiguous()
        total.update(content.reshape(-1).view(torch.uint8).numpy().tobytes() if content.numel() else b"")
    elif isinstance(value, np.ndarray):
        total.update(value.tobytes())
    elif isinstance(value, torch.Generator):
        _feed(total, value.get_state(), path)
    elif isinstance(value, np.random.Generator):
        total.update(repr(value.bit_generator.state).encode())
    elif isinstance(value, np.random.RandomState):
        total.update(repr(value.get_state(legacy=False)).encode())
    elif isinstance(value, random.Random):
        total.update(repr(value.getstate()).encode())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            total.update(repr(key).encode())
            _feed(total, item, path)
    elif isinstance(value, set | frozenset):
        total.update(repr(sorted(map(repr, value))).encode())
    elif is_dataclass(value) and not isinstance(value, type):
        _feed(total, vars(value), path)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in value:
            _feed(total, item, path)
    elif isinstance(value, str | bytes | int | float | bool | complex | type(None) | torch.dtype | torch.device):
        total.update(repr(value).encode())


def generators() -> dict[str, Any]:
    """States of the global random generators."""
    states: dict[str, Any] = {
        "torch": digest(torch.get_rng_state()),
        "numpy": digest(np.random.get_state(legacy=False)),  # noqa: NPY002
        "python": digest(random.getstate()),
    }
    if torch.cuda.is_available():
        states["cuda"] = [digest(state) for state in torch.cuda.get_rng_state_all()]
    return states


_LIGHTNINGS_OWN = {"_trainer", "_fabric", "_current_fx_name", "trainer", "_jit_is_scripting", "_compiler_ctx"}
_RUNNING_NUMBERS = {"_torchdynamo_wrapper_id"}


def module_state(module: nn.Module) -> dict[str, Any]:
    """Weights, all buffers, modes, hooks, gradients and plain attributes of every submodule."""
    state: dict[str, Any] = {}
    for name, child in module.named_modules():
        plain = {k: v for k, v in vars(child).items() if k not in _LIGHTNINGS_OWN | _RUNNING_NUMBERS}
        state[name] = {
            "training": child.training,
            "attributes": sorted(plain),
            "content": {k: digest(v) for k, v in plain.items() if not k.endswith("_hooks") and k != "_modules"},
            "hooks": {k: len(v) for k, v in plain.items() if k.endswith("_hooks") and isinstance(v, dict)},
            "gradients": [None if p.grad is None else digest(p.grad) for p in child.parameters(recurse=False)],
            "requires_grad": [p.requires_grad for p in child.parameters(recurse=False)],
        }
    return state


class ListLogger(Logger):
    """Keeps every metric and step that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, str, float]] = []

    @property
    def name(self) -> str:
        return "list"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.lines += [(step, key, float(value)) for key, value in metrics.items()]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Recorder(Callback):
    """Stands behind the monitor and writes down what training sees at every batch."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def _note(self, what: str, trainer: L.Trainer, module: L.LightningModule, batch: Any = None) -> None:
        modes = [child.training for child in module.modules()]
        gradients = [None if p.grad is None else digest(p.grad) for p in module.parameters()]
        progress = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.steps.append(
            (what, trainer.global_step, trainer.current_epoch, progress, digest(batch), modes, gradients, generators())
        )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._note("batch start", trainer, pl_module, batch)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._note("batch end", trainer, pl_module, [outputs, batch])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note("validation start", trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note("validation end", trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note("epoch start", trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note("epoch end", trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note("end", trainer, pl_module)


OURS = ("modes/", "basin/", "coverage/", "linear/", "probe/", "netdyn/", "phase/", "batchnorm/")


def run(
    build: Callable[[], Training], monitored: bool, tmp_path: Any, accelerator: str = "cpu", **overrides: Any
) -> dict[str, Any]:
    """Build and run a training from fixed seeds; everything that must not depend on ``monitored``."""
    L.seed_everything(7, workers=True, verbose=False)
    training = build()
    small: dict[str, Any] = {"strict": True, "probe_size": 48, "weight_rays": 2, "weight_samples": 24, "report": False}
    monitor = DynamicsMonitor(**small | training.monitor | overrides)
    recorder, logger = Recorder(), ListLogger()
    trainer = L.Trainer(
        **{
            "max_epochs": 2,
            "accelerator": accelerator,
            "devices": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 1,
            "log_every_n_steps": 1,
            "default_root_dir": str(tmp_path / ("with" if monitored else "without")),
        }
        | training.trainer,
        logger=logger,
        callbacks=[*([monitor] if monitored else []), *training.callbacks, recorder],
    )
    if training.stages is None:
        trainer.fit(training.module, training.train, training.val)
    else:
        training.stages(trainer, training)
    if monitored:
        assert monitor.report is not None, "the monitor measured nothing"
        assert monitor.monitor.skipped == 0, "an evaluation failed"
        made = monitor.monitor.evaluations
        assert made >= training.evaluations, f"only {made} evaluations took place"
    optimizers = trainer.optimizers
    return {
        "steps": recorder.steps,
        "logged": [line for line in logger.lines if not line[1].startswith(OURS)],
        "callback metrics": {
            key: digest(value) for key, value in trainer.callback_metrics.items() if not key.startswith(OURS)
        },
        "module": module_state(training.module),
        "optimizers": [digest(optimizer.state_dict()) for optimizer in optimizers],
        "schedulers": [digest(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
        "generators": generators(),
        "watched": {name: digest(look()) for name, look in training.watched.items()},
        "progress": (trainer.global_step, trainer.current_epoch),
    }


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two records differ, the first few places."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{path}: keys {sorted(map(str, a.keys() ^ b.keys()))}"] if a.keys() != b.keys() else []
        return found + [line for key in a.keys() & b.keys() for line in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        found = [f"{path}: {len(a)} against {len(b)} entries"] if len(a) != len(b) else []
        pairs = enumerate(zip(a, b, strict=False))
        return found + [line for i, (x, y) in pairs for line in differences(x, y, f"{path}[{i}]")]
    same = a == b or (a != a and b != b)  # NaN equals NaN
    return [] if same else [f"{path}: {a!r} against {b!r}"]


def assert_untouched(build: Callable[[], Training], tmp_path: Any, accelerator: str = "cpu", **overrides: Any) -> None:
    """The training leaves the same record with and without the monitor."""
    without = run(build, False, tmp_path, accelerator)
    again = run(build, True, tmp_path, accelerator, **overrides)
    found = differences(without, again)
    assert not found, "training was changed:\n" + "\n".join(found[:12])
