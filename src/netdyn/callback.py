"""The callback: when to measure, and where the numbers go. What is measured, :mod:`netdyn.engine.diagnose` says."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.nn.parameter import is_lazy

from netdyn._utils import checks
from netdyn._utils.checks import DynamicsWarning
from netdyn._utils.distributed import Crew
from netdyn._utils.shards import is_sharded
from netdyn.budget import Budget
from netdyn.engine.attempts import raise_it
from netdyn.engine.config import MEASURES, Measure, Settings
from netdyn.engine.evaluate import examine
from netdyn.engine.memory import Memory
from netdyn.isolation.adapter import Adapter
from netdyn.isolation.isolated import isolated, kept
from netdyn.loggers.tensorboard import add_about, add_figures, add_histograms, add_layout, writers
from netdyn.probes.loaders import Collector, can_read, check_given, given_probe, input_and_target, read_probe
from netdyn.probes.outset import TOLERANCE
from netdyn.probes.probe import Probe
from netdyn.report.figures.canvas import available
from netdyn.report.history import History
from netdyn.report.results import Report
from netdyn.schedules import by_steps
from netdyn.tags import FIGURES, HISTOGRAMS, SCALARS


class DynamicsMonitor(Callback):
    """Watch a network's neuron modes and attraction basins while it trains, without touching the training.

    Add it to a trainer: ``Trainer(callbacks=[DynamicsMonitor()])``. By default it measures at the end of every epoch,
    and the untrained and the trained network, on a fixed probe of the training data. Scalars go to every logger and to
    ``trainer.callback_metrics``, histograms to TensorBoard. :mod:`netdyn.tags` lists the tags.

    Training with it is bit-identical to training without: see the README for what is promised, and what is not
    (features that read the clock).

    Args:
        every_n_epochs: Measure at the end of every n-th epoch, as ModelCheckpoint counts them. Default: 1, unless
            another cadence is given.
        every_n_train_steps: Measure every n optimiser steps, as ModelCheckpoint counts them.
        schedule: ``"log"`` for 1, 2, 3, 5, 10, 20, … optimiser steps, or a list of steps.
        on_fit_ends: Measure at the start of training (the untrained network) and at its end too.
        max_overhead: Leave out an evaluation that would bring the time spent measuring over this share of the time
            spent training. The first one is always made. None: no limit.
        probe: The probe: a pair of tensors (inputs, target), a Dataset or a DataLoader. None: ``probe_size`` samples
            of the training data.
        val_probe: The same for held-out data; None: from the validation data, where there are any.
        probe_size: Number of samples in a probe, the classes in proportion.
        num_classes: Number of classes, checked against the model's output.
        unpack: ``unpack(batch)`` → (inputs, target), where batches are no such pairs.
        forward: ``forward(module, inputs)`` → logits, where ``module(inputs)`` is not the model.
        batch_size: Samples a forward pass; None: the whole probe at once.
        measure: What to measure: ``"modes"``, ``"linear"`` (tails and shares), ``"sample_basin"``, ``"weight_basin"``,
            ``"batchnorm"``, ``"maps"`` (characteristic maps, for figures alone).
        layers: Names or globs of the layers to read; None: every local field that an activation reads.
        max_units: Units measured a layer.
        max_classes: Of more classes than this a seeded choice stands for all in modes and ranks.
        alpha: Share of OPT units that an untrained network is allowed to show.
        accuracy: The accuracy that defines a basin's radius; None: 0.5, or 0.75 for two classes.
        sample_rays: Rays a sample.
        weight_rays: Rays in weight space.
        weight_layers: Names or globs of the parameters to disturb, or ``"each"``; None: all with two or more
            dimensions.
        normalization: Whose standard deviation the weights' noise is measured in.
        low: Smallest noise level.
        high: Largest noise level.
        rel_tol: Cells of the search for a radius end no wider than (1 + rel_tol)².
        criterion: ``criterion(outputs, target)`` → bool ``[samples]``; None: right class, or for numbers ``tolerance``.
        tolerance: How far a predicted number may move before it counts as wrong, in standard deviations of its target.
        noise_at: Where the noise of the sample basin falls: names of modules, whose output is disturbed, or of inputs.
            None: on every floating input.
        histograms: Send histograms to TensorBoard.
        figures: Send figures to TensorBoard at both ends of training, at every evaluation, or never; they need the
            extra ``plot``.
        layout: Arrange TensorBoard's custom scalars, and write down there what each tag means.
        prefix: Put before every tag, with a slash.
        seed: Seed of the probe's choice and of all noise.
        strict: Raise when an evaluation fails, instead of warning once and training on.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument lies outside its range, or two cadences are given.

    Example:
        >>> monitor = DynamicsMonitor(every_n_epochs=5)
    """

    def __init__(
        self,
        *,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        schedule: Literal["log"] | list[int] | None = None,
        on_fit_ends: bool = True,
        max_overhead: float | None = None,
        probe: Any = None,
        val_probe: Any = None,
        probe_size: int = 1024,
        num_classes: int | None = None,
        unpack: Callable[[Any], Any] | None = None,
        forward: Callable[[Any, Any], Any] | None = None,
        batch_size: int | None = None,
        measure: Sequence[Measure] = MEASURES,
        layers: list[str] | None = None,
        max_units: int = 4096,
        max_classes: int = 100,
        alpha: float = 0.05,
        accuracy: float | None = None,
        sample_rays: int = 1,
        weight_rays: int = 8,
        weight_layers: Literal["each"] | list[str] | None = None,
        normalization: Literal["layer", "global"] = "layer",
        low: float = 1e-3,
        high: float = 10.0,
        rel_tol: float = 0.05,
        criterion: Callable[[Any, Any], Any] | None = None,
        tolerance: float = TOLERANCE,
        noise_at: list[str] | None = None,
        histograms: bool = True,
        figures: Literal["ends", "always", "never"] = "ends",
        layout: bool = True,
        prefix: str = "",
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        super().__init__()
        cadences = {"every_n_epochs": every_n_epochs, "every_n_train_steps": every_n_train_steps, "schedule": schedule}
        given = {name: value for name, value in cadences.items() if value is not None}
        if len(given) > 1:
            shown = " and ".join(f"{name}={value!r}" for name, value in given.items())
            raise ValueError(f"Only one of {', '.join(f'`{name}`' for name in cadences)} can be given, got {shown}.")
        self._every_n_epochs = 0 if given else 1
        if every_n_epochs is not None:
            self._every_n_epochs = checks.whole("every_n_epochs", every_n_epochs)
        self._steps = by_steps(every_n_train_steps, schedule)
        checks.names("measure", measure)
        checks.function("unpack", unpack)
        checks.function("forward", forward)
        check_given("probe", probe)
        check_given("val_probe", val_probe)
        if not isinstance(prefix, str):
            raise TypeError(f"`prefix` must be a string, got {prefix!r}.")
        if max_overhead is not None:
            checks.positive("max_overhead", max_overhead)
        self._cadence = given
        self._on_fit_ends, self._max_overhead, self._strict = on_fit_ends, max_overhead, strict
        self._given_probe, self._given_val_probe = probe, val_probe
        self._probe_size = checks.whole("probe_size", probe_size)
        self._unpack, self._forward = unpack or input_and_target, forward
        self._histograms, self._prefix, self._seed = histograms, prefix, seed
        self._figures, self._layout = checks.choice("figures", figures, ("ends", "always", "never")), layout
        if figures == "never":
            # Nothing else shows them.
            measure = [name for name in measure if name != "maps"]
        self._settings = Settings(
            measure=tuple(measure),
            layers=layers,
            max_units=max_units,
            max_classes=max_classes,
            alpha=alpha,
            accuracy=accuracy,
            sample_rays=sample_rays,
            weight_rays=weight_rays,
            weight_layers=weight_layers,
            normalization=normalization,
            low=low,
            high=high,
            rel_tol=rel_tol,
            criterion=criterion,
            tolerance=tolerance,
            noise_at=noise_at,
            batch_size=batch_size,
            num_classes=num_classes,
            seed=seed,
            distributions=figures != "never",
        )
        #: The last report; None before the first evaluation.
        self.report: Report | None = None
        self._begin_anew()
        self._warned: set[str] = set()
        self._crew = Crew()
        self._forget_probe()

    def _begin_anew(self) -> None:
        self._seen_step = 0
        self._measured_step = -1
        self._measured_epoch = -1
        self._budget = Budget(self._max_overhead)
        self._evaluations = 0
        self._skipped = 0
        self._left_out = 0
        self._history = History()
        self._drawn_step = -1
        self._memory = Memory()

    def _forget_probe(self) -> None:
        self._probe: Probe | None = None
        self._val_probe: Probe | None = None
        self._collector: Collector | None = None
        self._unusable = self._val_asked = False

    # --- when ---

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get the probe, and measure the untrained network."""
        lockstep = any(is_sharded(module) for module in pl_module.modules())
        self._crew = Crew.world(lockstep) if trainer.world_size > 1 else Crew()
        if trainer.global_step == 0:
            self._begin_anew()
        self._budget.start()
        self._seen_step = trainer.global_step
        self._forget_probe()
        size = getattr(_only_loader(trainer.train_dataloader), "batch_size", None)
        self._settings = replace(self._settings, train_batch_size=size if isinstance(size, int) else None)
        self._arrange(trainer)
        if self._layout and trainer.is_global_zero:
            table = (*SCALARS, *HISTOGRAMS, *FIGURES)
            self._deliver("TensorBoard", "text", lambda: add_about(trainer.loggers, table, self._tag("")))
        self._guarded(lambda: self._get_probes(trainer, pl_module))
        if self._on_fit_ends and trainer.global_step == 0 and not _is_dev_run(trainer):
            self._measure(trainer, pl_module, step=0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Gather the probe from the first batches, where the data set cannot be read."""
        if self._collector is not None:
            collector = self._collector
            with kept(pl_module, trainer.datamodule, self._unpack):  # type: ignore[attr-defined]
                self._guarded(lambda: self._collect(collector, batch, pl_module))
            if self._probe is not None and self._on_fit_ends and not _is_dev_run(trainer) and not self._evaluations:
                self._measure(trainer, pl_module, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure if the count of optimiser steps says so."""
        before, self._seen_step = self._seen_step, trainer.global_step
        if self._steps.due(before, trainer.global_step) and not _is_dev_run(trainer):
            self._measure(trainer, pl_module, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure at the last validation of an epoch, so that callbacks that monitor validation see the new values."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if not self._val_asked and not self._unusable:
            self._guarded(lambda: self._get_val_probe(trainer, pl_module))
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        self._complete_probe(pl_module)
        if self._take_epoch(trainer):
            self._measure(trainer, pl_module, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure at the epoch's end, unless its last validation was the occasion already."""
        self._complete_probe(pl_module)
        if self._take_epoch(trainer):
            self._measure(trainer, pl_module, step=_last_step(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the trained network, unless that has just been done."""
        if (self._on_fit_ends and self._measured_step != trainer.global_step) or _is_dev_run(trainer):
            self._measure(trainer, pl_module, step=_last_step(trainer))
        if self._figures == "ends" and self.report is not None and self._drawn_step != _last_step(trainer):
            self._draw_last(trainer, pl_module, self.report)
        self._arrange(trainer)
        if self._left_out:
            rank_zero_info(
                f"DynamicsMonitor left out {self._left_out} evaluations to keep to max_overhead={self._max_overhead}; "
                "the last values may be of an earlier step."
            )
        self._budget.stop()
        self._forget_probe()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the probe."""
        self._forget_probe()

    def _take_epoch(self, trainer: Trainer) -> bool:
        """Whether this epoch's end is an occasion that has not been taken."""
        if self._every_n_epochs < 1 or _is_dev_run(trainer) or self._measured_epoch == trainer.current_epoch:
            return False
        due = (trainer.current_epoch + 1) % self._every_n_epochs == 0
        self._measured_epoch = trainer.current_epoch if due else self._measured_epoch
        return due

    # --- on what ---

    def _get_probes(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the probes; on several processes the first one reads, and all get what it has read."""
        self._use(
            self._everybodys(
                lambda: self._read(self._given_probe, trainer.train_dataloader, trainer, pl_module), pl_module
            )
        )
        if self._probe is None:
            self._collector = Collector(self._probe_size, self._unpack)
            rank_zero_info(
                "DynamicsMonitor: the training data cannot be read by index; the probe is the first "
                f"{self._probe_size} samples that training sees, and the first point is taken when it is full."
            )
        self._get_val_probe(trainer, pl_module)

    def _get_val_probe(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the held-out probe, once there is something to read it from."""
        self._val_asked = not (self._given_val_probe is None and trainer.val_dataloaders is None)
        stage = trainer.state.stage
        # Hooks that augment batches in training look at this.
        trainer.validating = True
        try:
            self._val_probe = self._everybodys(
                lambda: self._read(self._given_val_probe, trainer.val_dataloaders, trainer, pl_module), pl_module
            )
            if self._val_probe is not None:
                self._val_probe.look(contents=False)
        finally:
            trainer.state.stage = stage

    def _read(self, given: Any, loaders: Any, trainer: Trainer, pl_module: LightningModule) -> Probe | None:
        def transfer(batch: Any) -> Any:
            return _transfer(trainer, pl_module, batch)

        loader = _only_loader(loaders)
        options = (self._probe_size, self._seed, transfer, self._unpack)
        with kept(pl_module, trainer.datamodule), torch.no_grad():  # type: ignore[attr-defined]
            if given is not None:
                return given_probe(given, *options)
            return read_probe(loader, *options) if can_read(loader) else None

    def _everybodys(self, get: Callable[[], Probe | None], pl_module: LightningModule) -> Probe | None:
        """The first process's probe, on this process's device."""
        if self._crew.size == 1:
            return get()
        cpu = torch.device("cpu")
        first = self._crew.share(lambda: None if self._crew.rank or (probe := get()) is None else probe.to(cpu))[0]
        return None if first is None else first.to(pl_module.device)

    def _use(self, probe: Probe | None) -> None:
        """Take a probe as the one that is measured, and look at it, so that no evaluation has to."""
        self._probe = probe
        if probe is not None:
            probe.look(contents="sample_basin" in self._settings.measure)

    def _collect(self, collector: Collector, batch: Any, pl_module: LightningModule) -> None:
        self._use(self._everybodys(lambda: collector.add(batch), pl_module))
        if self._probe is not None:
            self._collector = None

    def _complete_probe(self, pl_module: LightningModule) -> None:
        """At the end of an epoch a stream has shown all it has: what came is the probe."""
        if (collector := self._collector) is not None:
            self._collector = None
            self._guarded(lambda: self._use(self._everybodys(collector.probe, pl_module)))
            self._unusable = self._probe is None

    # --- what, and where to ---

    def _measure(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        """One evaluation, logged at ``step``: the x-axis of Lightning's own curves."""
        probe, val_probe = self._probe, self._val_probe
        if probe is None or self._unusable:
            return
        if any(is_lazy(parameter) for parameter in pl_module.parameters()):
            rank_zero_info(
                "DynamicsMonitor: lazy parameters have no shape yet; measuring begins when they have seen a batch."
            )
            return
        self._measured_step = trainer.global_step
        budget = self._budget
        # The first process's clock counts for all.
        affordable, overhead = self._crew.share(lambda: (budget.affords(budget.last), budget.overhead()))[0]
        if self._evaluations and not affordable:
            self._skipped += 1
            self._left_out += 1
            self._send(trainer, {"netdyn/overhead": overhead, "netdyn/skipped": float(self._skipped)}, step)
            return

        settings = self._settings if self._figures_due() else self._without_maps()
        report, trained = self._examined(trainer, pl_module, settings, probe, val_probe)
        self._evaluations += 1
        self._skipped += report is None
        scalars = {} if report is None else report.scalars()
        scalars |= {
            "netdyn/seconds": budget.last,
            "netdyn/overhead": budget.overhead(trained),
            "netdyn/skipped": float(self._skipped),
        }
        begin = time.monotonic()
        self._send(trainer, scalars, step)
        if report is not None:
            self.report = report
            self._history.add(step, report.layers)
            self._show(trainer, report, step)
        # Sending and drawing are paid for as well. What they took is known only now: the next evaluation logs it.
        budget.spent += time.monotonic() - begin

    def _examined(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        settings: Settings,
        probe: Probe,
        held_out: Probe | None,
    ) -> tuple[Report | None, float]:
        """The report on the network as it is, and the seconds of training before; leaves everything as it was.

        The report is None if it could not be made. What it has cost is spent.
        """
        # Results are kept outside of what is put back: the module may hold this very callback.
        found: list[Report] = []

        def evaluate() -> None:
            with isolated(pl_module), kept(self._forward, settings.criterion):
                self._crew.align(pl_module.buffers())
                network = Adapter(*self._network(pl_module), context=trainer.precision_plugin.forward_context)
                report = examine(
                    network,
                    probe,
                    settings,
                    self._crew,
                    progress=False,
                    held_out=held_out,
                    on_failure=raise_it if self._strict else self._left_undone,
                    memory=self._memory,
                )
                found.append(report)

        done, seconds, trained, spent = self._guarded(evaluate)
        self._budget.last, self._budget.spent = seconds, spent + seconds
        return found[0] if done else None, trained

    def _show(self, trainer: Trainer, report: Report, step: int) -> None:
        """Send TensorBoard what only it can show."""
        if self._histograms and trainer.is_global_zero:
            named = {self._tag(tag): values for tag, values in report.histograms().items()}
            self._deliver("TensorBoard", "histograms", lambda: add_histograms(trainer.loggers, named, step))
        if self._figures == "always" or (self._figures == "ends" and self._evaluations == 1):
            begin = time.monotonic()
            self._draw(trainer, report, step)
            self._budget.drawing = time.monotonic() - begin

    def _figures_due(self) -> bool:
        """Whether the evaluation that comes is one to draw."""
        return self._figures == "always" or (self._figures == "ends" and not self._evaluations)

    def _without_maps(self) -> Settings:
        """Nothing but figures shows the characteristic maps."""
        return replace(self._settings, measure=tuple(name for name in self._settings.measure if name != "maps"))

    def _draw_last(self, trainer: Trainer, pl_module: LightningModule, report: Report) -> None:
        """Draw the trained network, if the budget has room for as much as the first drawing took."""
        with_maps = "maps" in self._settings.measure and report.characteristic_maps is None
        # Finding the maps costs less than an evaluation. Where nobody draws there is nothing to leave out.
        cost = self._budget.drawing + self._budget.last * with_maps
        drawn = trainer.is_global_zero and bool(writers(trainer.loggers)) and available()
        if not self._crew.share(lambda: not drawn or self._budget.affords(cost))[0]:
            rank_zero_info(
                "DynamicsMonitor left out the figures at the end of training to keep to "
                f"max_overhead={self._max_overhead}; `monitor.report.figures()` draws those of the last report."
            )
            return
        self.report = self._with_maps(trainer, pl_module, report) if with_maps else report
        self._draw(trainer, self.report, _last_step(trainer))

    def _with_maps(self, trainer: Trainer, pl_module: LightningModule, report: Report) -> Report:
        """A report with the characteristic maps that it was spared."""
        probe = self._probe
        if probe is None or self._unusable:
            return report
        only = replace(self._settings, measure=("maps",))
        found, _ = self._examined(trainer, pl_module, only, probe, None)
        if found is None:
            return report
        return replace(report, characteristic_maps=found.characteristic_maps, subnetwork=found.subnetwork)

    def _arrange(self, trainer: Trainer) -> None:
        """Arrange TensorBoard's custom scalars; at the end again, for a layout that somebody wrote meanwhile."""
        if self._layout and trainer.is_global_zero:
            before = self._tag("")
            self._deliver("TensorBoard", "layout", lambda: add_layout(trainer.loggers, self._settings.measure, before))

    def _draw(self, trainer: Trainer, report: Report, step: int) -> None:
        # All processes count alike, one draws.
        self._drawn_step = step
        if not trainer.is_global_zero or not writers(trainer.loggers):
            return
        if not available():
            if "figures" not in self._warned:
                self._warned.add("figures")
                rank_zero_info("DynamicsMonitor: figures need matplotlib, which the extra `plot` installs.")
            return

        def send() -> None:
            drawn = {self._tag(tag): figure for tag, figure in (report.figures() | self._history.figures()).items()}
            add_figures(trainer.loggers, drawn, step)

        self._deliver("TensorBoard", "figures", send)

    def _left_undone(self, name: str, error: Exception) -> None:
        """Warn that a measure failed; the others come. Warnings of an evaluation are said once, when it is over."""
        instead = f"Leave {name!r} out of `measure`" if name in MEASURES else "Pass another `val_probe`"
        checks.warn(
            f"DynamicsMonitor could not measure {name!r}, and goes on without: {type(error).__name__}: {error} "
            f"{_advice(error)}{instead}, or pass strict=True to have this raised."
        )

    def _network(self, pl_module: LightningModule) -> tuple[nn.Module, Callable[[Any, Any], Any] | None]:
        """The module to look at and how to call it.

        Raises:
            ValueError: If the LightningModule has no ``forward`` and not exactly one child with parameters.
        """
        if self._forward is not None or type(pl_module).forward.__qualname__ != "LightningModule.forward":
            return pl_module, self._forward
        children = {name: child for name, child in pl_module.named_children() if any(True for _ in child.parameters())}
        if len(children) != 1:
            raise ValueError(
                f"{type(pl_module).__name__} has no `forward`, and the children {sorted(children)} hold parameters. "
                "Pass `forward=`, a function of the module and the inputs that returns the logits."
            )
        return next(iter(children.values())), None

    def _send(self, trainer: Trainer, scalars: dict[str, float], step: int) -> None:
        named = {self._tag(tag): value for tag, value in scalars.items()}
        # The property of this name would compute the user's own metrics on the way; the dict behind it is what it
        # returns.
        trainer._logger_connector._callback_metrics.update(
            {tag: torch.tensor(value, dtype=torch.float32) for tag, value in named.items()}
        )
        for logger in trainer.loggers:
            self._deliver(
                type(logger).__name__, "scalars", functools.partial(logger.log_metrics, metrics=named, step=step)
            )

    def _deliver(self, receiver: str, what: str, send: Callable[[], object]) -> None:
        """Hand something to a logger; one that refuses it is named once, and the others get theirs."""
        try:
            send()
        except Exception as error:
            if self._strict:
                raise
            self._say_once(
                f"{receiver} {what} {error}",
                f"DynamicsMonitor: {receiver} refuses the {what}: {type(error).__name__}: {error}",
            )

    def _tag(self, tag: str) -> str:
        return f"{self._prefix}/{tag}" if self._prefix else tag

    # --- never in the way ---

    def _guarded(self, work: Callable[[], None]) -> tuple[bool, float, float, float]:
        """Run some of our own work; whether it went well, its seconds, those of training, and those spent before.

        The seconds are the first process's. What fails is said once, and the training goes on, on all processes alike.
        """
        begin = time.monotonic()
        caught: list[warnings.WarningMessage] = []

        def seconds() -> tuple[float, float, float]:
            return time.monotonic() - begin, self._budget.trained(begin), self._budget.spent

        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                work()
                return True, *self._crew.share(seconds)[0]
        except Exception as error:
            self._crew.fail(error)
            if self._strict:
                raise
            self._say_once(
                f"{type(error).__name__}: {error}",
                f"DynamicsMonitor could not measure, and training goes on without: {type(error).__name__}: {error} "
                f"{_advice(error)}Pass strict=True to have this raised.",
            )
            self._unusable = self._unusable or (self._probe is None and self._collector is None)
            return False, *seconds()
        finally:
            for warning in (entry for entry in caught if issubclass(entry.category, DynamicsWarning)):
                self._say_once(str(warning.message), str(warning.message), warning.category)

    def _say_once(self, key: str, text: str, category: type[Warning] = UserWarning) -> None:
        # Numbers change from one evaluation to the next; what is said does not.
        key = "".join(character for character in key if not character.isdigit())
        if key not in self._warned:
            self._warned.add(key)
            rank_zero_warn(text, category=category)

    # --- checkpoints ---

    @property
    def state_key(self) -> str:
        """Tells this monitor's state in a checkpoint from that of another one in the same trainer."""
        own = {"measure": self._settings.measure, "layers": self._settings.layers}
        return self._generate_state_key(prefix=self._prefix, seed=self._seed, **own, **self._cadence)

    def state_dict(self) -> dict[str, Any]:
        """Counters that a resumed run continues, as plain numbers."""
        return {
            "measured_step": self._measured_step,
            "measured_epoch": self._measured_epoch,
            "evaluations": self._evaluations,
            "skipped": self._skipped,
            **self._budget.state_dict(),
            "history": self._history.state(),
            "brackets": self._memory.brackets.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counters of an earlier run."""
        self._measured_step = state_dict["measured_step"]
        self._measured_epoch = state_dict["measured_epoch"]
        self._evaluations = state_dict["evaluations"]
        self._skipped = state_dict["skipped"]
        self._budget.load_state_dict(state_dict)
        self._history.load(state_dict["history"])
        self._memory.brackets.load_state_dict(state_dict["brackets"])


def _is_dev_run(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _last_step(trainer: Trainer) -> int:
    """Where Lightning puts an epoch's own curves: the x of the last batch."""
    return max(trainer.fit_loop.epoch_loop._batches_that_stepped - 1, 0)


def _only_loader(loaders: Any) -> Any:
    """The loader, where there is exactly one."""
    if isinstance(loaders, list | tuple):
        return loaders[0] if len(loaders) == 1 else None
    return loaders


def _transfer(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
    """Take a batch the way that training takes it: precision, the module's transfer hooks, device."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _advice(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower():
        return "Pass a smaller `batch_size` or `probe_size`. "
    return ""
