"""The Lightning callback: it decides when to measure and on which samples; :mod:`netdyn.monitor` measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from netdyn._utils import checks
from netdyn._utils.distributed import Processes, is_sharded
from netdyn._utils.options import offering, takes_options_of
from netdyn.isolation.adapter import Adapter
from netdyn.isolation.isolated import shadowed
from netdyn.loggers.find import destination
from netdyn.monitor import Monitor
from netdyn.probes.loaders import Collector, can_read, given_probe, read_probe
from netdyn.probes.probe import Probe
from netdyn.probes.unpacking import first_of, input_and_target
from netdyn.report.results import Report
from netdyn.schedules import only_one
from netdyn.trainers import callback_class, derive_from_all

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback = callback_class()

#: An evaluation that takes more than this share of an epoch is reported.
EXPENSIVE = 0.1
#: What is said of a probe where there are several loaders.
FIRST = "the first loader"


@takes_options_of(Monitor, without=["loggers"])
class DynamicsMonitor(Callback):
    """Watch a network's neuron modes and attraction basins while it trains, without changing the training.

    Add it to a trainer: ``Trainer(callbacks=[DynamicsMonitor()])``. By default it measures the untrained network, the
    network at the end of every epoch, and the trained network, on a fixed probe of the training data. Scalars go to
    every logger and to ``trainer.callback_metrics``, histograms and figures to those that show them. The tags are
    listed in :mod:`netdyn.tags`.

    Training with it is bit-identical to training without it. docs/guarantees.md lists what is guaranteed, and the
    exceptions (features that read the clock).

    Args:
        every_n_epochs: Measure at the end of every n-th epoch, as ModelCheckpoint counts them. Default: 1, unless
            another cadence is given.
        on_fit_ends: Measure at the start of training (the untrained network) and at the end of training too.
        probe: The samples to measure on: a pair of tensors (inputs, target), a Dataset or a DataLoader. None:
            ``probe_size`` samples of the training data.
        val_probe: The same for held-out data. None: samples of the validation data, if there are any.
        options: As in :class:`netdyn.Monitor`.

    Attributes:
        monitor: The :class:`netdyn.Monitor` that measures.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument lies outside its range, or two cadences are given.

    Examples:
        >>> monitor = DynamicsMonitor(every_n_epochs=5)
    """

    def __init__(
        self,
        *,
        every_n_epochs: int | None = None,
        on_fit_ends: bool = True,
        probe: Any = None,
        val_probe: Any = None,
        **options: Any,
    ) -> None:
        derive_from_all(DynamicsMonitor)
        super().__init__()
        self._cadence = only_one(every_n_epochs=every_n_epochs, **options)
        self._every_n_epochs = 0 if self._cadence else 1
        if every_n_epochs is not None:
            self._every_n_epochs = checks.whole("every_n_epochs", every_n_epochs)
        self._on_fit_ends = checks.flag("on_fit_ends", on_fit_ends)
        self.monitor = Monitor(probe, val_probe, **options)
        self.monitor.inform = rank_zero_info
        if n := self._every_n_epochs:
            self.monitor.cadence = "at the end of every epoch" if n == 1 else f"at the end of every {n} epochs"
        self._begin_anew()
        self._forget_probe()

    @property
    def report(self) -> Report | None:
        """The last report; None before the first evaluation."""
        return self.monitor.report

    def _begin_anew(self) -> None:
        self._measured_step = self._measured_epoch = -1
        self._measured = False
        self.monitor.reset()

    def _forget_probe(self) -> None:
        self.monitor.probe = self.monitor.val_probe = None
        self._collector: Collector | None = None
        self._unusable = self._val_asked = False

    # --- when ---

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew, before a checkpoint is loaded: nothing of an earlier run is left."""
        if stage == "fit" and trainer.global_step == 0:
            self._begin_anew()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the probe, and measure the untrained network."""
        monitor = self.monitor
        lockstep = any(is_sharded(module) for module in pl_module.modules())
        monitor.processes = Processes.world(lockstep) if trainer.world_size > 1 else Processes()
        self._forget_probe()
        size = getattr(first_of(trainer.train_dataloader)[0], "batch_size", None)
        monitor.train_batch_size = size if isinstance(size, int) else None
        monitor.destinations = [destination(logger) for logger in trainer.loggers]
        monitor.report_folder = None if _is_dev_run(trainer) else trainer.default_root_dir
        monitor.start()
        monitor.due(trainer.global_step)
        self._guarded(lambda: self._get_probes(trainer, pl_module))
        if self._on_fit_ends and trainer.global_step == 0 and not _is_dev_run(trainer):
            self._measure(trainer, pl_module, step=0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Collect the probe from the first batches, if the data set cannot be read."""
        if self._collector is not None:
            collector = self._collector
            with shadowed(self.monitor.unpack) as (collector.unpack,):
                if not self._guarded(lambda: self._collect(collector, batch, pl_module)):
                    self._collector, self._unusable = None, True
            first = self.monitor.probe is not None and not self.monitor.evaluations
            if first and self._on_fit_ends and not _is_dev_run(trainer):
                self._measure(trainer, pl_module, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure if a measurement is due at this optimiser step."""
        due = self.monitor.due(trainer.global_step) and not self._every_n_epochs
        if due and not _is_dev_run(trainer):
            self._measure(trainer, pl_module, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure at the last validation of an epoch: callbacks that monitor validation then see the new values."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if not self._val_asked and not self._unusable:
            self._guarded(lambda: self._get_val_probe(trainer, pl_module))
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        self._complete_probe(pl_module)
        if self._take_epoch(trainer):
            self._measure(trainer, pl_module, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure at the end of an epoch, unless that was done at its last validation."""
        trained = self.monitor.budget.trained()
        self._complete_probe(pl_module)
        if self._take_epoch(trainer):
            self._measure(trainer, pl_module, step=_last_step(trainer))
        if trainer.current_epoch == 0 and self.monitor.report is not None:
            self._report_cost(trained)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the trained network, unless that has just been done, and draw it."""
        # Callbacks that average or prune weights may have changed them since.
        new = self._on_fit_ends and (
            self._measured_step != trainer.global_step or (self._measured and self.monitor.changed(pl_module))
        )
        if new or _is_dev_run(trainer):
            self._measure(trainer, pl_module, step=_last_step(trainer))
        model = None if self._unusable or self.monitor.probe is None else pl_module
        self.monitor.close(model, _last_step(trainer), network=partial(self._network, trainer))
        self._publish(trainer)
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the probe."""
        self._release()

    def _release(self) -> None:
        self._forget_probe()
        self.monitor.destinations = ()

    def _report_cost(self, epoch: float) -> None:
        """Report once how long an evaluation takes, if that is a large share of an epoch."""
        share = self.monitor.budget.last / max(epoch, 1e-9)
        if share > EXPENSIVE:
            rank_zero_info(
                f"DynamicsMonitor: one evaluation takes {100 * share:.0f} % of the time of the first epoch. "
                "Measure less often, or set `max_overhead=0.1`, to lower the cost."
            )

    def _take_epoch(self, trainer: Trainer) -> bool:
        """Whether to measure at the end of this epoch, once per epoch."""
        if self._every_n_epochs < 1 or _is_dev_run(trainer) or self._measured_epoch == trainer.current_epoch:
            return False
        due = (trainer.current_epoch + 1) % self._every_n_epochs == 0
        self._measured_epoch = trainer.current_epoch if due else self._measured_epoch
        return due

    def _measure(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        """One evaluation, logged at ``step``: the x-axis of Lightning's own curves."""
        if self.monitor.probe is None or self._unusable:
            return
        self._measured_step = trainer.global_step
        report = self.monitor.measure(pl_module, step, network=partial(self._network, trainer))
        self._measured = report is not None
        self._publish(trainer)

    def _publish(self, trainer: Trainer) -> None:
        """Put the last numbers where other callbacks look for them."""
        # The property of this name would compute the user's own metrics; this is the dict that it returns.
        trainer._logger_connector._callback_metrics.update(
            {tag: torch.tensor(value, dtype=torch.float32) for tag, value in self.monitor.scalars.items()}
        )

    # --- on what ---

    def _network(self, trainer: Trainer, pl_module: LightningModule) -> nn.Module:
        """The module to measure, called as training calls it.

        Raises:
            ValueError: If the LightningModule has no ``forward`` and not exactly one child with parameters.
        """
        module: nn.Module = pl_module
        if self.monitor.config.forward is None and type(pl_module).forward.__qualname__ == "LightningModule.forward":
            module = _only_child(pl_module)
        return Adapter(module, context=trainer.precision_plugin.forward_context)

    def _get_probes(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the probes; of several processes the first one reads, and sends what it has read to the others."""
        monitor = self.monitor
        given = monitor.given_probe
        monitor.probe = monitor.shared(
            lambda: self._read(given, trainer.train_dataloader, trainer, pl_module), pl_module.device
        )
        if monitor.probe is None:
            self._collector = Collector(monitor.probe_size, monitor.unpack)
            if self._unpacks():  # a function of the user's takes the whole batch, as training does
                _, path, others = first_of(trainer.train_dataloader)
                self._collector = Collector(monitor.probe_size, monitor.unpack, path, FIRST * others)
            rank_zero_info(
                "DynamicsMonitor: the training data cannot be read by index; the probe is the first "
                f"{monitor.probe_size} samples that training sees, and the first point is taken when it is full."
            )
        self._get_val_probe(trainer, pl_module)

    def _get_val_probe(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the held-out probe, if there are validation data."""
        given, loaders = self.monitor.given_val_probe, trainer.val_dataloaders
        self._val_asked = not (given is None and loaders is None)
        stage = trainer.state.stage
        # Hooks that augment training batches read this flag.
        trainer.validating = True
        try:
            self.monitor.val_probe = self.monitor.shared(
                lambda: self._read(given, loaders, trainer, pl_module), pl_module.device
            )
        finally:
            trainer.state.stage = stage

    def _read(self, given: Any, loaders: Any, trainer: Trainer, pl_module: LightningModule) -> Probe | None:
        monitor = self.monitor
        loader, _, others = first_of(loaders)
        hooks = _transfer_hooks(trainer)
        copies = shadowed(pl_module, *hooks.values(), monitor.unpack, quiet=True)
        with offering(Monitor), copies as (_, *own, unpack), torch.no_grad():
            options = (monitor.probe_size, monitor.config.seed, partial(_transfer, trainer, own), unpack)
            if given is not None:
                return given_probe(given, *options)
            together = loaders is trainer.train_dataloader and (others or isinstance(loaders, Mapping))
            if not can_read(loader) or (together and not self._unpacks()):
                return None
            # `limit_train_batches` and `overfit_batches`; a limit of 0 trains nothing.
            most = (trainer.num_training_batches or math.inf) if loaders is trainer.train_dataloader else math.inf
            return read_probe(loader, *options, FIRST * others, most)

    def _unpacks(self) -> bool:
        """Whether batches are unpacked here, and not by a function of the user's, which takes those of all loaders."""
        return self.monitor.unpack is input_and_target

    def _collect(self, collector: Collector, batch: Any, pl_module: LightningModule) -> None:
        self.monitor.probe = self.monitor.shared(lambda: collector.add(batch), pl_module.device)
        if self.monitor.probe is not None:
            self._collector = None

    def _complete_probe(self, pl_module: LightningModule) -> None:
        """At the end of an epoch a stream has been read completely: the samples collected so far are the probe."""
        if (collector := self._collector) is not None:
            self._collector = None
            monitor = self.monitor
            self._guarded(lambda: setattr(monitor, "probe", monitor.shared(collector.probe, pl_module.device)))
            self._unusable = self.monitor.probe is None

    def _guarded(self, work: Callable[[], None]) -> bool:
        """Read or collect a probe; a failure is reported once. Without any probe, nothing can be measured."""
        done, seconds, *_ = self.monitor.guarded(work)
        self.monitor.budget.spent += seconds
        self._unusable |= not done and self.monitor.probe is None and self._collector is None
        return done

    # --- checkpoints ---

    @cached_property  # Lightning asks for it with every hook that it calls
    def state_key(self) -> str:
        """The key of the state in a checkpoint, which distinguishes several monitors in one trainer."""
        config = self.monitor.config
        own = {"measure": config.measure, "layers": config.layers, "seed": config.seed, "prefix": self.monitor.prefix}
        return self._generate_state_key(**own, **self._cadence)

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run continues, as plain numbers, lists and dicts."""
        own = {"measured_step": self._measured_step, "measured_epoch": self._measured_epoch}
        return own | self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue an earlier run."""
        self._measured_step, self._measured_epoch = state_dict["measured_step"], state_dict["measured_epoch"]
        self.monitor.load_state_dict(state_dict)


def _is_dev_run(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _last_step(trainer: Trainer) -> int:
    """The step at which Lightning logs an epoch's values: that of its last batch."""
    return max(trainer.fit_loop.epoch_loop._batches_that_stepped - 1, 0)


def _only_child(pl_module: LightningModule) -> nn.Module:
    children = {name: child for name, child in pl_module.named_children() if any(True for _ in child.parameters())}
    if len(children) != 1:
        raise ValueError(
            f"{type(pl_module).__name__} has no `forward`, and the children {sorted(children)} hold parameters. "
            "Pass `forward=`, a function of the module and the inputs that returns the logits."
        )
    return next(iter(children.values()))


def _transfer_hooks(trainer: Trainer) -> dict[str, Callable[..., Any]]:
    """The hooks of the module, or of the data module, through which training's batches pass."""
    owners = trainer._data_connector._datahook_selector
    assert owners is not None
    names = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    return {name: getattr(owners.get_instance(name), name) for name in names}


def _transfer(trainer: Trainer, hooks: Sequence[Callable[..., Any]], batch: Any) -> Any:
    """Convert a batch as training does: precision, the transfer hooks, device."""
    before, transfer, after = hooks
    batch = before(trainer.precision_plugin.convert_input(batch), 0)
    return after(transfer(batch, trainer.strategy.root_device, 0), 0)
