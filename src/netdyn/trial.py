"""A proof on the user's own model: a few steps of training with the monitor and without."""

from __future__ import annotations

import copy
import hashlib
import random
import statistics
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from netdyn._utils import checks
from netdyn.callback import DynamicsMonitor
from netdyn.isolation.isolated import rng_restored
from netdyn.isolation.shadow import Shadows
from netdyn.trainers import callback_class, derive_from_all, package_of

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback = callback_class()


@dataclass(frozen=True)
class Trial:
    """What :func:`trial_run` has found; ``print`` shows it in two lines.

    Attributes:
        identical: Whether training with the monitor was bit for bit that without it; None if two trainings without it
            differ too, so that nothing can be said.
        differs_from: The first batch after which weights, buffers, gradients, loss, optimisers, modes or random
            generators differ between training with the monitor and without (between the two without it, if they
            differ); one more than there are batches, if they differ at the end only; None if they do not.
        steps: Number of training steps.
        evaluations: Number of evaluations in the training with the monitor.
        step_seconds: Median time of a training step.
        evaluation_seconds: Time of the last evaluation.
        shared: What the model holds and cannot be copied, so that the trainings may have shared it: where → its type.
    """

    identical: bool | None
    differs_from: int | None
    steps: int
    evaluations: int
    step_seconds: float
    evaluation_seconds: float
    shared: Mapping[str, str]

    @property
    def steps_per_evaluation(self) -> float:
        """How many steps of this training take as long as one evaluation."""
        return self.evaluation_seconds / max(self.step_seconds, 1e-9)

    def __str__(self) -> str:
        made = f"{self.steps} steps, {self.evaluations} evaluation{'s' * (self.evaluations != 1)}"
        if self.identical is None:
            said = (
                f"Two trainings without the monitor differ from batch {self.differs_from} on: this training cannot be "
                "repeated, so nothing can be said. Try deterministic=True, or fewer worker processes."
            )
        elif self.identical:
            said = f"Training is bit for bit the same with the monitor and without ({made})."
        else:
            said = (
                f"Training with the monitor differs from training without from batch {self.differs_from} on ({made})."
            )
        if self.shared:
            named = ", ".join(f"{where} ({kind})" for where, kind in self.shared.items())
            said += f" The trainings have shared what cannot be copied: {named}."
        return (
            f"{said}\nAn evaluation takes {self.evaluation_seconds:.2g} s, as long as "
            f"{self.steps_per_evaluation:.3g} of these training steps."
        )


def trial_run(
    module: LightningModule,
    train_dataloaders: Any = None,
    *,
    monitor: DynamicsMonitor | None = None,
    max_steps: int = 20,
    **trainer_arguments: Any,
) -> Trial:
    """Train a few steps without the monitor, with it, and without it again, and compare the three exactly.

    All three start from the same weights, data and random generators. Copies are trained: the module, its data and the
    random generators are left as they are.

    Args:
        module: The LightningModule.
        train_dataloaders: Training data, as for ``Trainer.fit``: a loader, several, or a LightningDataModule. None: the
            module's own.
        monitor: The monitor to try, of which a copy is used. None: one with the default options, which measures before
            the first step, in the middle and at the end.
        max_steps: Number of optimiser steps, at least 2.
        trainer_arguments: Arguments of the ``Trainer``. By default it uses one device, and neither logs nor saves.

    Returns:
        Whether training is the same, and what an evaluation costs in steps of this training; see :class:`Trial`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If ``max_steps`` lies outside its range.

    Examples:
        >>> import lightning as L
        >>> class Model(L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Sequential(torch.nn.Linear(4, 30), torch.nn.ReLU(), torch.nn.Linear(30, 2))
        ...
        ...     def forward(self, x):
        ...         return self.net(x)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> _ = torch.manual_seed(0)
        >>> points = torch.utils.data.TensorDataset(torch.rand(40, 4), torch.arange(40) % 2)
        >>> trial = trial_run(Model(), torch.utils.data.DataLoader(points, 10, shuffle=True), max_steps=4)
        >>> trial.identical, trial.evaluations
        (True, 3)
    """
    if (package := package_of(module)) is None:
        raise TypeError(f"`module` must be a LightningModule, got {type(module).__name__}.")
    if monitor is not None and not isinstance(monitor, DynamicsMonitor):
        raise TypeError(f"`monitor` must be a DynamicsMonitor, got {type(monitor).__name__}.")
    checks.whole("max_steps", max_steps, minimum=2)
    derive_from_all(DynamicsMonitor)
    derive_from_all(_Record)
    if monitor is None:
        monitor = DynamicsMonitor(every_n_train_steps=-(-max_steps // 2))
    records: list[_Record] = []
    shared: dict[str, str] = {}
    for watching in (None, copy.deepcopy(monitor), None):
        with rng_restored(), warnings.catch_warnings():
            copies, record = Shadows(), _Record()
            given = {**trainer_arguments, "callbacks": copy.deepcopy(trainer_arguments.get("callbacks") or [])}
            others = given["callbacks"] if isinstance(given["callbacks"], list) else [given["callbacks"]]
            if watching is not None:
                watching.monitor.writes_report = False
            given["callbacks"] = [*([watching] if watching else []), *others, record]
            trainer = package.Trainer(**_DEFAULTS | {"max_steps": max_steps} | given)
            # Advice that `fit` will give too.
            advice = import_module(f"{package.__name__}.utilities.warnings").PossibleUserWarning
            warnings.filterwarnings("ignore", category=advice)
            trainer.fit(copies.of(module), _fresh(train_dataloaders, copies))
            record.note(trainer, trainer.lightning_module)
            records.append(record)
            shared |= copies.named
        if watching is not None:
            tried = watching.monitor
    differences = [_first_difference(records[0], other) for other in records[1:]]
    repeatable = differences[1] is None
    return Trial(
        identical=differences[0] is None if repeatable else None,
        differs_from=differences[0] if repeatable else differences[1],
        steps=trainer.global_step,
        evaluations=tried.evaluations,
        step_seconds=statistics.median(records[0].seconds + records[2].seconds),
        evaluation_seconds=tried.budget.last,
        shared=shared,
    )


_DEFAULTS: dict[str, Any] = {
    "devices": 1,
    "max_epochs": -1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def _fresh(data: Any, copies: Shadows) -> Any:
    """Copies of loaders, with their data sets, samplers and generators in the state in which they are now."""
    if isinstance(data, list | tuple):
        return [_fresh(each, copies) for each in data]
    if isinstance(data, Mapping):
        return {name: _fresh(each, copies) for name, each in data.items()}
    if not isinstance(data, DataLoader):
        return copies.of(data, "train_dataloaders")
    twin = copy.copy(data)
    parts = ("dataset", "sampler", "batch_sampler", "generator", "collate_fn", "worker_init_fn")
    twin.__dict__.update({name: copies.of(data.__dict__[name], name) for name in parts if name in data.__dict__})
    twin.__dict__["_iterator"] = None  # workers that persist belong to the original
    return twin


class _Record(Callback):
    """The state after each batch, as a digest, and the time that each took."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """The callback stands behind the monitor, which may measure here."""
        self._began = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Write down everything that the next step depends on, and the loss."""
        self.seconds.append(time.monotonic() - self._began)
        self.note(trainer, pl_module, outputs)

    def note(self, trainer: Trainer, pl_module: LightningModule, outputs: Any = None) -> None:
        """Write down a digest of the whole state."""
        generators: list[Any] = [torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()]  # noqa: NPY002
        if torch.cuda.is_available():
            generators += torch.cuda.get_rng_state_all()
        modes = [(each.training, [p.requires_grad for p in each.parameters()]) for each in pl_module.modules()]
        gradients = [p.grad for p in pl_module.parameters()]
        optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
        buffers = list(pl_module.buffers())
        total = hashlib.blake2b()
        _feed(total, [pl_module.state_dict(), buffers, gradients, modes, optimizers, outputs, generators])
        self.states.append(total.hexdigest())


def _feed(total: Any, value: Any) -> None:
    """Add what a value holds to a digest."""
    if isinstance(value, Tensor):
        total.update(f"{value.dtype}{tuple(value.shape)}".encode())
        if value.numel():
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        total.update(value.tobytes())
    elif isinstance(value, Mapping):
        for name, each in value.items():
            total.update(str(name).encode())
            _feed(total, each)
    elif isinstance(value, list | tuple):
        for each in value:
            _feed(total, each)
    elif isinstance(value, bool | int | float | str | type(None)):
        total.update(repr(value).encode())


def _first_difference(one: _Record, other: _Record) -> int | None:
    """The number of the first batch after which two trainings differ, from 1."""
    pairs = zip(one.states, other.states, strict=False)
    found = next((i for i, (a, b) in enumerate(pairs, start=1) if a != b), None)
    return found or (None if len(one.states) == len(other.states) else min(len(one.states), len(other.states)) + 1)
