"""A callback for Hugging Face's Trainer, for which the extra ``huggingface`` installs what it needs."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from netdyn._utils import checks
from netdyn._utils.distributed import Processes, is_sharded
from netdyn._utils.options import takes_options_of
from netdyn.isolation.isolated import rng_restored
from netdyn.loggers.huggingface import TrainersLog
from netdyn.monitor import Monitor
from netdyn.probes.unpacking import input_and_next_token, input_and_target
from netdyn.report.results import Report
from netdyn.schedules import only_one

#: Whether the Trainer is about to do what is followed.
FOLLOWED = {"logging": "should_log", "eval": "should_evaluate", "save": "should_save"}


@takes_options_of(Monitor)
class DynamicsCallback(TrainerCallback):
    """Watch a network's neuron modes and attraction basins in Hugging Face's Trainer, without changing the training.

    Add it to the Trainer whose log it writes to: ``trainer.add_callback(DynamicsCallback(trainer))``. It measures the
    untrained network, the network wherever the Trainer logs, and the trained network, on a fixed probe of the training
    data, read with the Trainer's own collator. A causal language model's outputs are compared with the next tokens.

    Training with it is bit-identical to training without it. Its numbers are entries of their own in
    ``trainer.state.log_history``, and the trackers in ``report_to`` get them. Checkpoints hold no state of it: in a
    resumed run the changes since the last evaluation begin anew.

    Args:
        trainer: The Trainer.
        follow: Measure wherever the Trainer logs, evaluates or saves, by its ``logging_strategy``, ``eval_strategy`` or
            ``save_strategy`` and their ``…_steps``, unless another cadence is given.
        every_n_epochs: Measure at the end of every n-th epoch.
        on_fit_ends: Measure at the start of training (the untrained network) and at the end of training too. If the
            Trainer loads its best checkpoint at the end, that network is not measured.
        probe: The samples to measure on: a pair of tensors (inputs, target), a Dataset or a DataLoader. None:
            ``probe_size`` samples of the training data.
        val_probe: The same for held-out data. None: samples of the (first) ``eval_dataset``, if there is one.
        options: As in :class:`netdyn.Monitor`; ``loggers`` are further ones, for histograms and figures.

    Attributes:
        monitor: The :class:`netdyn.Monitor` that measures.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument lies outside its range, or two cadences are given.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        follow: Literal["logging", "eval", "save"] = "logging",
        every_n_epochs: int | None = None,
        on_fit_ends: bool = True,
        probe: Any = None,
        val_probe: Any = None,
        **options: Any,
    ) -> None:
        if not isinstance(trainer, Trainer):
            raise TypeError(f"`trainer` must be a transformers.Trainer, got {type(trainer).__name__}.")
        cadence = only_one(every_n_epochs=every_n_epochs, **options)
        self._flag = FOLLOWED[checks.choice("follow", follow, tuple(FOLLOWED))]
        n = self._every_n_epochs = 0 if every_n_epochs is None else checks.whole("every_n_epochs", every_n_epochs)
        self._follows, self._by_steps = not cadence, bool(cadence) and not n
        self._on_fit_ends, self._trainer, self._measured_step = on_fit_ends, trainer, -1
        self._own_probes = probe, val_probe
        self.monitor = Monitor(probe, val_probe, **options)
        self.monitor.destinations = [TrainersLog(trainer), *self.monitor.destinations]
        if not self._by_steps:
            self.monitor.cadence = f"at the end of every {n} epochs" if n else f"at the Trainer's {follow} steps"

    @property
    def report(self) -> Report | None:
        """The last report; None before the first evaluation."""
        return self.monitor.report

    def on_train_begin(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        """Find the probe, and measure the untrained network."""
        monitor, model, begins = self.monitor, found["model"], state.global_step == 0
        if begins:
            monitor.reset()
        self._measured_step = -1
        lockstep = any(is_sharded(module) for module in model.modules())
        monitor.processes = Processes.world(lockstep) if args.world_size > 1 else Processes()
        monitor.train_batch_size = args.per_device_train_batch_size
        monitor.report_folder = args.output_dir
        if monitor.unpack is input_and_target and _predicts_next_token(model):
            monitor.unpack = input_and_next_token
        monitor.probe = monitor.val_probe = None
        monitor.given_probe, monitor.given_val_probe = self._own_probes
        if monitor.given_probe is None:
            monitor.given_probe = found["train_dataloader"]
        if monitor.given_val_probe is None:
            monitor.guarded(self._find_val_probe)
        monitor.start()
        monitor.due(state.global_step)
        if self._on_fit_ends and begins:
            self._measure(state, model)

    def on_step_end(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        """Measure if a measurement is due at this optimiser step, or if it is the last one."""
        due = self.monitor.due(state.global_step) and self._by_steps
        last = self._on_fit_ends and state.global_step >= state.max_steps
        if due or last or (self._follows and getattr(control, self._flag)):
            self._measure(state, found["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        """Measure if a measurement is due at the end of this epoch."""
        due = self._every_n_epochs and state.epoch % self._every_n_epochs == 0
        if due or (self._follows and getattr(control, self._flag)):
            self._measure(state, found["model"])

    def on_log(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        """Measure the trained network at the Trainer's last entry, after which trackers end their runs."""
        another = args.load_best_model_at_end and state.best_model_checkpoint is not None
        if self._on_fit_ends and "train_runtime" in found["logs"] and not another:
            self._measure(state, found["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        """Draw the last report, and close the files that were opened here."""
        self.monitor.close(found["model"] if self._measured_step == state.global_step else None, state.global_step)

    def _measure(self, state: Any, model: nn.Module) -> None:
        if self._measured_step != state.global_step:
            self._measured_step = state.global_step
            self.monitor.measure(model, state.global_step)

    def _find_val_probe(self) -> None:
        """Take the Trainer's held-out data, the first if there are several."""
        data = self._trainer.eval_dataset
        name = next(iter(data), None) if isinstance(data, dict) else None
        if data is not None and (name is not None or not isinstance(data, dict)):
            with rng_restored():
                self.monitor.given_val_probe = self._trainer.get_eval_dataloader(name)


def _predicts_next_token(model: nn.Module) -> bool:
    """Whether a model, or the one in a wrapper, shifts its labels by one: the rule of the Trainer's label smoothing."""
    names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return any(type(module).__name__ in names for module in model.modules())
