"""Measure a network while it trains, in any training loop; keep the history, send it to loggers, limit the cost."""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from netdyn._utils import checks
from netdyn._utils.checks import DynamicsWarning
from netdyn._utils.distributed import Processes, local_tensor
from netdyn._utils.drawing import available, without_collector
from netdyn._utils.options import offering, takes_options_of
from netdyn._utils.trees import numbers
from netdyn._utils.user_code import is_out_of_memory, reason
from netdyn.basins.change import Influences, sample_change, weight_change
from netdyn.budget import DRAWING, Budget
from netdyn.engine.config import Config
from netdyn.engine.evaluate import Memory, evaluate, raise_it
from netdyn.isolation.adapter import isolated_task
from netdyn.isolation.isolated import name_shared, shadowed
from netdyn.loggers.base import Destination
from netdyn.loggers.find import destination
from netdyn.probes.loaders import check_given, given_probe, on_device_of
from netdyn.probes.probe import Probe, device_of
from netdyn.probes.unpacking import input_and_target
from netdyn.report.history import History
from netdyn.report.page import write as write_page
from netdyn.report.results import Report
from netdyn.schedules import by_steps
from netdyn.tags import FIGURES, HISTOGRAMS, OVERVIEW, SCALARS, TEXTS, VERDICT, Detail, is_sent

#: The part of a model to run, as a function of the model.
Part = Callable[[nn.Module], nn.Module]


@takes_options_of(Config)
class Monitor:
    """Watch a network's neuron modes and attraction basins in a training loop of your own.

    Ask :meth:`due` at every optimiser step, call :meth:`measure` if it is True, and :meth:`close` at the end. A
    measurement sends its numbers to the loggers, and leaves the network, its data and every random generator as it
    found them. It never ends the training: a failure is reported once, as a warning.

    Args:
        probe: The samples to measure on: a pair of tensors (inputs, target), a Dataset or a DataLoader.
        val_probe: The same for held-out data.
        loggers: One destination of the numbers or a list of them: Lightning loggers, TensorBoard ``SummaryWriter``s,
            W&B runs, or folders for TensorBoard's event files.
        every_n_train_steps: Measure every n optimiser steps, as ModelCheckpoint counts them.
        schedule: ``"log"`` for 1, 2, 3, 5, 10, 20, … optimiser steps, or a list of steps.
        max_overhead: Skip an evaluation that would bring the time spent measuring over this share of the time spent
            training. The first one is never skipped, but has figures only if there is time. None: no limit.
        probe_size: Number of samples in a probe that is read from a data set, with the classes in proportion.
        unpack: ``unpack(batch)`` → (inputs, target), for batches that are not such pairs.
        detail: Which scalars are sent to the loggers: a ``"summary"`` of the network, four curves per layer beside it
            (``"layers"``), or all (``"full"``). :attr:`scalars` and ``trainer.callback_metrics`` always hold all.
        histograms: Send histograms to the loggers that can show them.
        figures: Send figures at both ends of training (of an untrained network a few), at every evaluation, or never;
            they need the extra ``plot``.
        layout: Arrange TensorBoard's custom scalars, and write a table of the tags.
        report: Write ``netdyn_report.html`` at the end of training, into the folder of the first logger that has one.
        prefix: Prefix of every tag, followed by a slash.
        strict: Raise an error if a measurement fails, instead of warning once.
        options: What to measure and how, see :class:`netdyn.Config`.

    Attributes:
        report: The last report; None before the first evaluation.
        writes_report: Whether ``netdyn_report.html`` is written.
        report_folder: Where ``netdyn_report.html`` is written if no logger has a folder; None: it is not.
        report_path: The file that has been written at the end of training; None before.
        scalars: All scalars of the last evaluation, by tag.
        evaluations: Number of evaluations so far.
        skipped: Number of evaluations skipped, to keep to ``max_overhead`` or because they failed.
        history: The main numbers at every step so far.
        budget: The time that evaluations have taken so far.
        processes: The processes that share the work; all of them must make the same calls.
        cadence: When it measures, in words.
        inform: Function that takes notices; by default they go to the logger ``netdyn`` at level INFO.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument lies outside its range.

    Examples:
        >>> net = nn.Linear(4, 2)
        >>> monitor = Monitor(
        ...     (torch.eye(4).repeat(25, 1), torch.tensor([0, 0, 1, 1]).repeat(25)), measure=["sample_basin"]
        ... )
        >>> monitor.due(0), monitor.measure(net, step=0).samples
        (True, 100)
        >>> monitor.close()
    """

    def __init__(
        self,
        probe: Any,
        val_probe: Any = None,
        *,
        loggers: Any = (),
        every_n_train_steps: int | None = None,
        schedule: Literal["log"] | list[int] | None = None,
        max_overhead: float | None = None,
        probe_size: int = 1024,
        unpack: Callable[[Any], Any] | None = None,
        detail: Detail = "layers",
        histograms: bool = True,
        figures: Literal["ends", "always", "never"] = "ends",
        layout: bool = True,
        report: bool = True,
        prefix: str = "",
        strict: bool = False,
        **options: Any,
    ) -> None:
        if every_n_train_steps is not None and schedule is not None:
            raise ValueError(
                "Only one of `every_n_train_steps` and `schedule` can be given, got "
                f"every_n_train_steps={every_n_train_steps!r} and schedule={schedule!r}."
            )
        self.schedule = by_steps(every_n_train_steps, schedule)
        self.cadence = f"{self.schedule}"
        checks.function("unpack", unpack)
        check_given("probe", probe)
        check_given("val_probe", val_probe)
        if not isinstance(prefix, str):
            raise TypeError(f"`prefix` must be a string, got {prefix!r}.")
        if max_overhead is not None:
            checks.share("max_overhead", max_overhead, of="the training time")
        self.given_probe, self.given_val_probe = probe, val_probe
        self.probe_size = checks.whole("probe_size", probe_size)
        self.unpack = unpack or input_and_target
        self.max_overhead, self.prefix = max_overhead, prefix
        self.strict = checks.flag("strict", strict)
        self._histograms, self._layout = checks.flag("histograms", histograms), checks.flag("layout", layout)
        self.writes_report = checks.flag("report", report)
        checks.choice("detail", detail, get_args(Detail))
        self._detail: Detail = detail
        self._figures = checks.choice("figures", figures, ("ends", "always", "never"))
        self.config = Config(**options)
        if figures == "never":
            # Only figures show the characteristic maps.
            self.config = self._without_maps()
        several = isinstance(loggers, Sequence) and not isinstance(loggers, str | os.PathLike)
        self.destinations: Sequence[Destination] = [destination(each) for each in (loggers if several else [loggers])]
        self.processes = Processes()
        self.inform: Callable[[str], object] = logging.getLogger("netdyn").info
        self.train_batch_size: int | None = None
        self.report_folder: str | None = None
        self.probe: Probe | None = None
        self.val_probe: Probe | None = None
        self._asked = self.config
        self.reset()

    def reset(self) -> None:
        """Begin a new run: no evaluations, no history, nothing spent, nothing said."""
        self.config = self._asked
        self._said: dict[str, str] = {}  # by kind
        self.budget = Budget(self.max_overhead)
        self.report: Report | None = None
        self.report_path: Path | None = None
        self._before: dict[str, Influences | None] = {}  # what the basins of the next evaluation are compared with
        self.history = History()
        self._memory = Memory()
        self.scalars: dict[str, float] = {}
        self.evaluations = self.skipped = 0
        self._too_expensive = 0
        self._seen_step = self._last_step = -1
        # Whether the figures of the last report have been drawn, and the network that it is of.
        self._drawn, self._measured = True, ""
        self._overview_drawn, self._overview_seconds = True, DRAWING / 4
        self._started = self._unreadable = False

    # --- when ---

    def due(self, step: int) -> bool:
        """Whether to measure after ``step`` optimiser steps: at step 0, and at the steps of the schedule."""
        before, self._seen_step = self._seen_step, step
        return step > before and (step == 0 or self.schedule.due(max(before, 0), step))

    def start(self) -> None:
        """Start the clock of the training; :meth:`measure` does this if it has not been done."""
        self._started = True
        self.budget.start()
        self._arrange()
        if self._layout:
            sent = [tag for tag in SCALARS if is_sent(tag.name, self._detail)]
            table = (*sent, *HISTOGRAMS, *FIGURES, *TEXTS)
            self._send("text", lambda receiver: receiver.about(table, self._tag("")))

    # --- what ---

    def measure(self, model: nn.Module, step: int, *, network: Part | None = None) -> Report | None:
        """Measure a network, and send the results to the loggers.

        Args:
            model: The network; it is left as it was found.
            step: The step to log the results at.
            network: ``network(model)`` → the module to run, if that is not ``model`` itself but a part of it. It gets a
                copy of ``model``.

        Returns:
            The report; None if the evaluation was skipped to keep to ``max_overhead``, or failed.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"`model` must be a torch.nn.Module, got {type(model).__name__}. The order is (model, step)."
            )
        if any(is_lazy(parameter) for parameter in model.parameters()):
            self.inform("netdyn: lazy parameters have no shape yet; measuring begins when they have seen a batch.")
            return None
        if not self._started:
            self.start()
        if self.probe is None:
            if not self._unreadable:
                done, seconds, *_ = self.guarded(lambda: self._read_probes(model))
                self._unreadable, self.budget.spent = not done, self.budget.spent + seconds
            if self._unreadable:
                return None
        budget = self.budget
        # The clock of the first process decides for all.
        affordable, overhead, figures = self.processes.gather(
            lambda: (budget.affords(budget.last), budget.overhead(), budget.affords(budget.last + budget.figures))
        )[0]
        if self.evaluations and not affordable:
            self.skipped += 1
            self._too_expensive += 1
            self._send_scalars({"netdyn/overhead": overhead, "netdyn/skipped": float(self.skipped)}, step)
            return None
        draw = self._figures == "always" or (self._figures == "ends" and budget.drawing is None and figures)
        # So rarely that drawing never takes much of a long run.
        overview = self._figures != "never" and self.evaluations & (self.evaluations + 1) == 0
        config = self.config if draw else self._without_maps()
        report, trained = self._evaluated(model, network, config, draw, self.val_probe)
        self.evaluations += 1
        self.skipped += report is None
        report = None if report is None else self._compared(report, step)
        scalars = {} if report is None else report.scalars()
        scalars |= {
            "netdyn/seconds": budget.last,
            "netdyn/overhead": budget.overhead(trained),
            "netdyn/skipped": float(self.skipped),
        }
        begin = time.monotonic()
        self._send_scalars(scalars, step)
        if report is not None:
            if self.report is None:
                self._introduce(report)
            self.report, self._last_step, self._drawn = report, step, False
            self._measured = _sums(model)
            self.history.add(step, report)
            self._show(report, step, draw, draw or overview)
        # Sending and drawing take time too, which the next evaluation logs.
        budget.spent += time.monotonic() - begin
        return report

    def _compared(self, report: Report, step: int) -> Report:
        """The report with its step, its run so far and the changes of its basins, for which it is kept."""
        sample, weight = report.sample_basin, report.weight_basin
        now = {
            "sample": None if sample is None else sample.influences,
            "weight": None if weight is None else weight.influences,
        }
        before, self._before = self._before, now
        probes = {"probe": self.probe, "held-out probe": self.val_probe}
        counted = {name: _counted(probe, "samples") for name, probe in probes.items() if probe is not None}
        own = {"cadence": self.cadence, "evaluation": f"number {self.evaluations}", "step": f"{step}"}
        return replace(
            report,
            step=step,
            measured=report.measured | counted | own,
            trend=self.history.before(step),
            sample_change=sample_change(now["sample"], before.get("sample")),
            weight_change=weight_change(now["weight"], before.get("weight")),
        )

    def close(self, model: nn.Module | None = None, step: int | None = None, *, network: Part | None = None) -> None:
        """End of training: draw the last report, at its own step, and close the files that were opened here.

        Args:
            model: The trained network, which characteristic maps and the curves of the classes need. None: without
                these.
            step: The step to log these at, if the network has been trained since the last report. None: without these.
            network: As in :meth:`measure`.
        """
        drawn: dict[str, Any] = {}
        if self._figures == "ends" and self.report is not None:
            drawn = self._draw_last(self.report, model, self._last_step if step is None else step, network)
        self._arrange()
        if self._too_expensive:
            self.inform(
                f"netdyn skipped {self._too_expensive} evaluations to keep to max_overhead={self.max_overhead}; the "
                "last values may be of an earlier step."
            )
        self.budget.stop()
        if self.report is not None:
            if self.writes_report and self.processes.rank == 0:
                self._write_report(self.report, drawn)
            self._conclude(self.report)
        self._send("end of the run", lambda receiver: receiver.close(), everywhere=True)

    # --- how ---

    def _read_probes(self, model: nn.Module) -> None:
        """Read the probes, onto the device of the network."""
        if self.given_probe is None:
            raise ValueError("`probe` must be a pair of tensors, a Dataset or a DataLoader, got None.")
        device = device_of(model) or torch.device("cpu")
        with offering(Monitor), shadowed(self.unpack) as (unpack,), torch.no_grad():
            options = (self.probe_size, self.config.seed, on_device_of(model), unpack)

            def read(given: Any) -> Probe | None:
                return None if given is None else given_probe(given, *options)

            self.probe = self.shared(lambda: read(self.given_probe), device)
            self.val_probe = self.shared(lambda: read(self.given_val_probe), device)

    def shared(self, read: Callable[[], Probe | None], device: torch.device) -> Probe | None:
        """The probe that the first process reads, on a device of this one: another process may have other samples."""
        processes = self.processes
        if processes.size == 1:
            return read()
        cpu = torch.device("cpu")
        first = processes.gather(lambda: None if processes.rank or (probe := read()) is None else probe.to(cpu))[0]
        return None if first is None else first.to(device)

    def _evaluated(
        self, model: nn.Module, network: Part | None, config: Config, per_class: bool, held_out: Probe | None
    ) -> tuple[Report | None, float]:
        """The report on the network, None if it failed, and the seconds of training before; its time counts either way.

        The network and everything that it refers to are left as they were.
        """
        # A local list is not restored afterwards; attributes of a monitor that the model refers to are.
        found: list[Report] = []
        probe, criterion = self.probe, config.criterion
        assert probe is not None
        task: dict[str, Any] = {"forward": config.forward, "observer_hooks": config.observer_hooks or ()}

        def work() -> None:
            with offering(Monitor), isolated_task(model, criterion, part=network, **task) as (own, own_criterion):
                self.processes.align(own.buffers())
                found.append(
                    evaluate(
                        own,
                        probe,
                        replace(config, criterion=own_criterion),
                        val_probe=held_out,
                        processes=self.processes,
                        on_failure=raise_it if self.strict else self._warn_of_failure,
                        train_batch_size=self.train_batch_size,
                        distributions=self._figures != "never",
                        per_class=per_class,
                        on_smaller_batches=self._remember_batch_size,
                        memory=self._memory,
                    )
                )

        if not self.evaluations:
            # What cannot be copied is named before it is used: `guarded` warns at its end.
            self.guarded(lambda: name_shared(model, config.forward, criterion))
        done, seconds, trained, spent = self.guarded(work)
        self.budget.last, self.budget.spent = seconds, spent + seconds
        return found[0] if done else None, trained

    def _remember_batch_size(self, size: int) -> None:
        """Memory ran out: later evaluations start with the batch size that fitted."""
        self.config = replace(self.config, batch_size=size)
        checks.warn(f"netdyn: out of memory; from here on {size} samples per forward pass. Set `batch_size={size}`.")

    def _warn_of_failure(self, name: str, error: Exception) -> None:
        """Warn that a measure failed, after the evaluation; the other measures are still made."""
        named = " and ".join(map(repr, name.split(", ")))
        measures = " and ".join(dict.fromkeys(repr(part.partition("/")[0]) for part in name.split(", ")))
        instead = f"Leave {measures} out of `measure`" if name != "val_probe" else "Pass another `val_probe`"
        instead = "Correct `layers`" if "`layers`" in f"{error}" else instead
        checks.warn(
            f"netdyn could not measure {named}, and goes on without it: {reason(error)} {_advice(error)}{instead}, "
            "or pass strict=True to have this raised.",
            kind=f"{name}: {_kind(error)}",
        )

    def _without_maps(self) -> Config:
        """The options without the characteristic maps, which only figures show."""
        return replace(self.config, measure=tuple(name for name in self.config.measure if name != "maps"))

    def _introduce(self, report: Report) -> None:
        """Report once what is measured, on what, and how long it took."""
        layers = [f"{len(report.layers)} layer{'s' * (len(report.layers) != 1)}"] * bool(report.layers)
        basins = {"the sample basin": report.sample_basin, "the weight basin": report.weight_basin}
        basins = {} if layers else {name: basin for name, basin in basins.items() if basin is not None}
        what = " and ".join([*layers, *basins]) or "the accuracy"
        assert self.probe is not None
        held_out = "" if self.val_probe is None else f" and {_counted(self.val_probe, 'held-out ones')}"
        basin, notes = report.sample_basin, "".join(f" Note: {note}." for note in report.notes)
        noise = f" (noise on the output of {', '.join(basin.noise_at)})" if basin is not None and basin.noise_at else ""
        self.inform(
            f"netdyn measures {what} on {_counted(self.probe, 'samples')}{held_out}{noise}, {self.cadence}; the first "
            f"evaluation took {_seconds(self.budget.last)}.{notes}"
        )

    def _conclude(self, report: Report) -> None:
        """Report at the end how the training stands, and where to look."""
        page = [] if self.report_path is None else [f"{self.report_path}"]
        look = dict.fromkeys([*page, *(receiver.page for receiver in self.destinations if receiver.page)])
        where = f" Look at: {', '.join(look)}" if look else ""
        self.inform(f"netdyn's verdict at step {self._last_step}: {report.verdict}{where}")

    # --- where to ---

    def _tag(self, tag: str) -> str:
        return f"{self.prefix}/{tag}" if self.prefix else tag

    def _send_scalars(self, scalars: dict[str, float], step: int) -> None:
        """Send scalars, from every process, as Lightning does."""
        self.scalars = {self._tag(tag): value for tag, value in scalars.items()}
        # An untrained network has no basin: the zero would pull down the band that the loggers draw.
        none = {
            f"basin/{space}/{end}"
            for space in ("sample", "weight")
            if step == 0 and scalars.get(f"basin/{space}/radius") == 0
            for end in ("radius", "low", "high")
        }
        sent = {
            self._tag(tag): value for tag, value in scalars.items() if tag not in none and is_sent(tag, self._detail)
        }
        self._send("scalars", lambda receiver: receiver.scalars(sent, step), everywhere=True)

    def _send(self, what: str, send: Callable[[Destination], object], everywhere: bool = False) -> None:
        """Send something to every logger; one that raises is reported once, and the others get theirs."""
        for receiver in self.destinations if everywhere or self.processes.rank == 0 else ():
            try:
                send(receiver)
            except Exception as error:
                if self.strict:
                    raise
                kind = f"{receiver.name}, {what}, {type(error).__name__}"
                self.say_once(f"netdyn: {receiver.name} refused the {what}: {reason(error)}", kind)

    def _show(self, report: Report, step: int, draw: bool, overview: bool) -> None:
        """Send the verdict, histograms and figures."""
        lines = [f"{report.verdict}", *report.findings()]
        self._send("text", lambda receiver: receiver.text(self._tag(VERDICT), lines, step))
        if self._histograms:
            named = {self._tag(tag): values for tag, values in report.histograms().items()}
            self._send("histograms", lambda receiver: receiver.histograms(named, step))
        begin = time.monotonic()
        if draw:
            self._draw_report(report, overview)
            self.budget.drawing = time.monotonic() - begin
        elif overview and self.budget.affords(self._overview_seconds):
            self._draw_overview(report)
            self._overview_seconds = time.monotonic() - begin
        else:
            overview = False
        self._overview_drawn = overview

    def _arrange(self) -> None:
        """Arrange the pages of the loggers; again at the end, in case the user has written a layout since."""
        if self._layout:
            self._send("layout", lambda receiver: receiver.arrange(self.config.measure, self._tag("")))

    def _draws(self) -> bool:
        """Whether this process has a logger that shows figures."""
        return self.processes.rank == 0 and any(receiver.shows_figures for receiver in self.destinations)

    def _draw(self, figures: Callable[[], dict[str, Any]], step: int) -> dict[str, Any]:
        """Draw figures once, and send them to every logger that shows some."""
        if not self._draws():
            return {}
        if not available():
            if "figures" not in self._said:
                self._said["figures"] = "figures need matplotlib"
                self.inform("netdyn: figures need matplotlib, which the extra `plot` installs.")
            return {}

        drawn: dict[str, Any] = {}

        def send(receiver: Destination) -> None:
            if receiver.shows_figures:
                if not drawn:
                    drawn.update(figures())
                receiver.figures({self._tag(tag): figure for tag, figure in drawn.items()}, step)

        with without_collector():
            self._send("figures", send)
        return drawn

    def _draw_report(self, report: Report, overview: bool) -> dict[str, Any]:
        # Only the first process draws, but all keep the same state.
        self._drawn = True
        first = partial(self._overview, report) if overview else dict
        return self._draw(lambda: first() | report.figures() | self.history.figures(), self._last_step)

    def _draw_overview(self, report: Report) -> None:
        self._draw(partial(self._overview, report), self._last_step)

    def _overview(self, report: Report) -> dict[str, Any]:
        return {OVERVIEW: self.history.overview(report.verdict)}

    def _draw_last(self, report: Report, model: nn.Module | None, step: int, network: Part | None) -> dict[str, Any]:
        """Draw the last report and the trained network, if the time that the first drawing took fits into the budget.

        Each is drawn at the step that it belongs to. The figures of the report are returned.
        """
        only = tuple(name for name in self.config.measure if name in ("sample_basin", "maps"))
        again = model is not None and self.probe is not None and bool(only)
        # The network of the last report, or a later one?
        same = not self.changed(model)
        again = again and (not self._drawn if same else step > self._last_step)
        if self._drawn and not again:
            return {}
        # Maps and the basins of the classes take less time than a whole evaluation. Without drawing there is nothing to
        # leave out.
        cost = self.budget.figures + self.budget.last * again
        drawn = self._draws() and available()
        if not self.processes.gather(lambda: not drawn or self.budget.affords(cost))[0]:
            self.inform(
                "netdyn left out the figures at the end of training to keep to "
                f"max_overhead={self.max_overhead}; `report.figures()` draws those of the last report."
            )
            return {}
        found = None
        if again and model is not None:
            found, _ = self._evaluated(model, network, replace(self.config, measure=only), True, None)
        if found is not None and same:
            before, sent = report.scalars(), self.scalars
            self.report = report = replace(
                report,
                characteristic_maps=found.characteristic_maps,
                subnetwork=found.subnetwork,
                sample_basin=found.sample_basin or report.sample_basin,
            )
            if new := {tag: value for tag, value in report.scalars().items() if tag not in before}:
                self._send_scalars(new, self._last_step)
                self.scalars = sent | self.scalars
        last: dict[str, Any] = {}
        if not self._drawn:
            last = self._draw_report(report, overview=not self._overview_drawn)
        elif not self._overview_drawn:
            self._draw_overview(report)
        if found is not None and not same:
            self._draw(found.figures, step)
        return last

    def _write_report(self, report: Report, drawn: dict[str, Any]) -> None:
        """Write the report as a page beside the logs, with its figures: drawn already, or if there is time for them."""
        folder = next((found for receiver in self.destinations if (found := receiver.folder)), self.report_folder)
        if folder is None:
            return
        own = "_".join(["netdyn_report", *filter(None, [re.sub(r"\W+", "_", self.prefix)])])
        path = Path(folder) / f"{own}.html"
        draws = self._figures != "never" and available() and (bool(drawn) or self.budget.affords(self.budget.figures))
        try:
            if "://" in folder:
                raise OSError(f"{folder} is no folder of this machine.")
            path.parent.mkdir(parents=True, exist_ok=True)
            tags = {tag for row in self.history.rows for tag in row}
            curves = {tag: self.history.curve(tag) for tag in tags}
            with without_collector():
                write_page(report, path, self._figures_of_run(report, drawn) if draws else {}, curves)
            self.report_path = path
        except Exception as error:
            if self.strict:
                raise
            self.say_once(
                f"netdyn could not write the report {path.name}: {reason(error)} `report.to_html(path)` writes it "
                "elsewhere; report=False leaves it out.",
                f"report, {type(error).__name__}",
            )

    def _figures_of_run(self, report: Report, drawn: dict[str, Any]) -> dict[str, Any]:
        """The figures of the page, of which some may be drawn already; none if they cannot be drawn."""
        try:
            first = {} if OVERVIEW in drawn else self._overview(report)
            return first | (drawn or report.figures() | self.history.figures())
        except Exception as error:
            if self.strict:
                raise
            self.say_once(
                f"netdyn's report has no figures: {reason(error)} report=False leaves the report out.",
                f"report's figures, {type(error).__name__}",
            )
            return {}

    def changed(self, model: nn.Module | None) -> bool:
        """Whether the weights of a network are others than at the last report, or not known, on any process."""
        return any(self.processes.gather(lambda: model is None or _sums(model) != self._measured))

    # --- never in the way ---

    def guarded(self, work: Callable[[], None]) -> tuple[bool, float, float, float]:
        """Run netdyn's own work: whether it succeeded, its seconds, those of training, and those spent before.

        The seconds are those of the first process. A failure is reported once, and the training goes on, on all
        processes alike.
        """
        begin = time.monotonic()
        caught: list[warnings.WarningMessage] = []

        def seconds() -> tuple[float, float, float]:
            return time.monotonic() - begin, self.budget.trained(begin), self.budget.spent

        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                work()
                return True, *self.processes.gather(seconds)[0]
        except Exception as error:
            self.processes.fail(error)
            if self.strict:
                raise
            self.say_once(
                f"netdyn: measurement failed and was skipped; training continues: {reason(error)} {_advice(error)}"
                "Pass strict=True to have this raised.",
                _kind(error),
            )
            return False, *seconds()
        finally:
            found = [entry.message for entry in caught if isinstance(entry.message, DynamicsWarning)]
            said = set(self._said)  # one evaluation may say the same of several layers
            for warning in {str(warning): warning for warning in found}.values():
                if warning.kind not in said:
                    self._say(warning, warning.kind)

    def say_once(self, text: str, kind: str) -> None:
        """Warn, unless a warning of this kind has been issued before."""
        if kind not in self._said:
            self._say(UserWarning(text), kind)

    def _say(self, warning: Warning, kind: str) -> None:
        """Issue a warning, on the first process."""
        self._said.setdefault(kind, str(warning))
        if self.processes.rank == 0:
            warnings.warn(warning, stacklevel=3)

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run continues, as plain numbers, texts, tensors, lists and dicts."""
        return {
            "evaluations": self.evaluations,
            "skipped": self.skipped,
            "history": self.history.state(),
            "before": {space: found.state() for space, found in self._before.items() if found is not None},
            **self.budget.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue an earlier run."""
        self.evaluations, self.skipped = state_dict["evaluations"], state_dict["skipped"]
        self.history.load(state_dict["history"])
        self._before = {space: Influences(**state) for space, state in state_dict["before"].items()}
        self._seen_step = max(self.history.steps, default=-1)
        self.budget.load_state_dict(state_dict)


def _kind(error: Exception) -> str:
    """The kind of an error: its type, and the line that raised it. Its text may name another layer each time."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = "" if place is None else f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
    return f"{type(error).__name__}{where}"


def _sums(model: nn.Module) -> str:
    """What the weights add up to on this process: with a step of training it is another."""
    weights = [local_tensor(weight.detach()) for weight in model.parameters() if weight.is_floating_point()]
    return repr(numbers([weight.float().abs().sum() for weight in weights]))


def _counted(probe: Probe, what: str) -> str:
    """The number of a probe's samples, and from which part of the data they are."""
    return f"{len(probe.target)} {what}" + f" ({probe.taken})" * bool(probe.taken)


def _seconds(seconds: float) -> str:
    """Seconds in two or three digits, never with an exponent.

    >>> [_seconds(value) for value in (0.004, 0.25, 3.21, 123.4)]
    ['less than 0.01 s', '0.25 s', '3.2 s', '123 s']
    """
    if seconds < 0.01:
        return "less than 0.01 s"
    return f"{seconds:.{2 if seconds < 1 else 1 if seconds < 10 else 0}f} s"


def _advice(error: Exception) -> str:
    return "Pass a smaller `batch_size` or `probe_size`. " if is_out_of_memory(error) else ""
