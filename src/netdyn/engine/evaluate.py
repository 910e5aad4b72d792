"""Measure one network on one probe: the measures in order, and what happens if one of them fails."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from netdyn._utils import checks
from netdyn._utils.distributed import Processes
from netdyn._utils.options import offering
from netdyn._utils.random import Contents, Kept
from netdyn._utils.trees import blocks, has_floating
from netdyn._utils.user_code import is_out_of_memory
from netdyn.basins.coverage import Covered, Neighbours, measure_coverage, neighbours
from netdyn.basins.interval import mean_of
from netdyn.basins.result import BasinResult
from netdyn.basins.sample_basin import measure_sample_basin
from netdyn.basins.weight_basin import measure_weight_basin
from netdyn.companions.result import Companions
from netdyn.engine.companions import CompanionReader
from netdyn.engine.config import Config
from netdyn.engine.layers import (
    Reading,
    chosen_outputs,
    logits_of,
    mean_logits,
    read_layers,
    summed_up,
    tally,
)
from netdyn.linear.characteristic import Subnetwork, find_subnetwork, input_maps
from netdyn.linear.tails import functional_depth
from netdyn.probes.batchnorm import USUAL_BATCH, measure_gap
from netdyn.probes.criteria import apply_criterion
from netdyn.probes.evaluator import Evaluator
from netdyn.probes.guessing import guessing, is_guessed
from netdyn.probes.probe import Probe
from netdyn.probes.tasks import prepare
from netdyn.report.results import Report
from netdyn.tracing.fields import Choice, choose, discover
from netdyn.tracing.rows import RowMemory
from netdyn.tracing.survey import Survey, survey

VERSION = version("netdyn")

T = TypeVar("T")
OnFailure = Callable[[str, Exception], None]

#: Most classes, and units of the first layer, in a subnetwork.
SUBNETWORK = (10, 4)
#: Most samples of each probe on which batch statistics are tried: half a pass shows what the accuracy differs by.
GAP_SAMPLES = 512
#: Attempts of one evaluation: validation probe, layers, both basins, coverage, batch normalisation, maps, companions.
ATTEMPTS = 8


@dataclass
class Memory:
    """What the evaluations of one network share: what holds however far it is trained."""

    rows: RowMemory = field(default_factory=RowMemory)
    drawn: Kept = field(default_factory=Kept)
    _nearest: Neighbours | None = None
    _data: tuple[Tensor, ...] = ()

    def neighbours(self, probe: Evaluator, val_probe: Evaluator) -> Neighbours:
        """The training samples near the validation samples, which are found once for the same data."""
        data = (probe.contents.digests, probe.target, val_probe.contents.digests, val_probe.target)
        if self._nearest is None or not all(map(_same, data, self._data)):
            both = [(own.inputs, own.target, own.contents) for own in (probe, val_probe)]
            self._nearest, self._data = neighbours(*both[0], *both[1]), data
        return self._nearest


def raise_it(name: str, error: Exception) -> None:
    """Let the failure of a measure end the evaluation."""
    raise error


def evaluate(
    network: nn.Module,
    probe: Probe,
    config: Config,
    *,
    val_probe: Probe | None = None,
    processes: Processes | None = None,
    on_failure: OnFailure = raise_it,
    progress: bool | None = False,
    train_batch_size: int | None = None,
    distributions: bool = True,
    per_class: bool = True,
    on_smaller_batches: Callable[[int], object] = lambda size: None,
    memory: Memory | None = None,
) -> Report:
    """The report on a network that is already isolated, see :func:`netdyn.diagnose`.

    ``on_failure`` gets the name of a measure that failed, and the error; the other measures still come. Where the probe
    does not fit into one batch, batch normalisation sees at least ``train_batch_size`` samples at once. Figures alone
    show ``distributions`` and ``per_class`` radii. ``on_smaller_batches`` gets the new batch size when memory ran out.
    ``memory`` is what evaluations of the same network share.
    """
    begin = time.monotonic()
    processes = processes or Processes()
    with offering(Config):
        found = _evaluator(network, probe, config, processes)
        if memory is not None:
            found.drawn = memory.drawn
        config = _measurable(found, config)
        _check_classes(found, config)
        # From here on a failure costs one measure, and no process leaves; one that could not even begin is met here.
        processes.gather(lambda: None)
        # Where `disable` is None, tqdm leaves the bar out if the output is no terminal.
        disable = None if progress is None else not progress
        with tqdm(total=ATTEMPTS, desc="netdyn", delay=2, leave=False, disable=disable) as bar:
            evaluation = _Evaluation(
                found,
                probe,
                config,
                train_batch_size,
                distributions,
                per_class,
                on_failure,
                on_smaller_batches,
                bar.update,
                memory or Memory(),
            )
            report = evaluation.report(val_probe)
    return replace(report, measured=report.measured | {"seconds": f"{time.monotonic() - begin:.2f}"})


def _evaluator(network: nn.Module, probe: Probe, config: Config, processes: Processes) -> Evaluator:
    options = (config.criterion, config.batch_size, config.tolerance, config.targets)
    found = prepare(network, probe.inputs, probe.target, *options)
    found.processes = processes
    return found


@dataclass
class _Evaluation:
    """One evaluation: each measure in turn."""

    evaluator: Evaluator
    probe: Probe
    config: Config
    train_batch_size: int | None
    distributions: bool
    per_class: bool
    on_failure: OnFailure
    on_smaller_batches: Callable[[int], object]
    step: Callable[[], object]
    memory: Memory
    held_out: Evaluator | None = None
    companions: CompanionReader | None = None

    def attempt(
        self, name: str, work: Callable[[], T], *, wanted: bool = True, instead: Callable[[], T] | None = None
    ) -> T | None:
        """What the work of a measure gives, or what comes ``instead`` where it fails, on all processes alike."""
        try:
            return self._repeated(work) if wanted else None
        except Exception as error:
            replaced = None if instead is None else self._repeated(instead)
            self.on_failure(name, error)
            return replaced
        finally:
            self.step()

    def _repeated(self, work: Callable[[], T]) -> T:
        """What some work gives; where memory runs out it is repeated with half as many samples per pass."""
        size, processes = self.config.batch_size, self.evaluator.processes
        while True:
            try:
                result = work()
                # A process that failed outside of shared work is met here at the latest.
                processes.gather(lambda: None)
            except Exception as caught:
                processes.fail(caught)
                full = any(processes.gather(partial(is_out_of_memory, caught)))
                # Without what the failed attempt had in memory.
                error = caught.with_traceback(None) if full else caught
            else:
                if self.config.batch_size not in (None, size):
                    self.on_smaller_batches(self.config.batch_size)
                return result
            passed = self.config.batch_size or self.evaluator.samples
            if not full or passed == 1:
                self._set_batch_size(size)
                raise error
            self._set_batch_size(passed // 2)

    def _set_batch_size(self, size: int | None) -> None:
        self.config = replace(self.config, batch_size=size)
        for evaluator in (self.evaluator, self.held_out):
            if evaluator is not None:
                evaluator.batch_size = size

    def report(self, val_probe: Probe | None) -> Report:
        """Make every measure that is asked for."""
        evaluator, config, attempt = self.evaluator, self.config, self.attempt
        classes, wanted, inputs = evaluator.num_classes > 1, set(config.measure), evaluator.inputs
        # Noise on the inputs, between which there are distances too.
        distances = classes and config.noise_at is None and has_floating(inputs)
        # A single input, of which there is a map; tokens and several inputs have none.
        image = isinstance(inputs, Tensor) and inputs.is_floating_point()
        if "companions" in wanted:
            self.companions = CompanionReader(evaluator, config)
        held_out = attempt("val_probe", lambda: self._held_out(val_probe), wanted=val_probe is not None)
        layers = [name for name in ("modes", "linear") if name in wanted]
        reading = attempt(
            ", ".join(layers),
            lambda: read_layers(
                self._with_contents(), self.config, self.distributions, self.memory.rows, self.companions
            ),
            wanted=bool(layers),
            instead=self._reading_without_layers,
        )
        reading = reading or self._repeated(self._reading_without_layers)
        right = reading.right
        sample_basin = attempt("sample_basin", lambda: self._sample_basin(right), wanted="sample_basin" in wanted)
        covered = attempt(
            "coverage",
            lambda: self._coverage(held_out),
            wanted="sample_basin" in wanted and held_out is not None and distances,
        )
        weight_basin = attempt("weight_basin", lambda: self._weight_basin(right), wanted="weight_basin" in wanted)
        on_held_out = val_probe is not None
        gaps = attempt(
            "batchnorm",
            lambda: self._gaps(right, held_out, on_held_out),
            wanted="batchnorm" in wanted and evaluator.labelled,
        )
        gap, train_gap = gaps or (math.nan, math.nan)
        maps = attempt("maps", lambda: self._maps(reading), wanted="maps" in wanted and image)
        companions = attempt(
            "companions",
            lambda: self._companions(None if maps is None else maps[0]),
            wanted="companions" in wanted,
        )
        accuracy = _accuracy(evaluator, right)
        accuracy = math.nan if accuracy is None else accuracy
        tails = {layer.name: layer.tail_accuracy for layer in reading.layers}
        guess = guessing(evaluator.class_sizes().tolist())
        return Report(
            layers=reading.layers,
            sample_basin=sample_basin,
            weight_basin=weight_basin,
            accuracy=accuracy,
            val_accuracy=None if held_out is None else _accuracy(*held_out),
            samples=evaluator.samples,
            num_classes=evaluator.classes,
            notes=evaluator.notes,
            alpha=config.alpha,
            max_classes=config.max_classes,
            guess=guess,
            functional_depth=functional_depth(
                tails, accuracy, untrained=is_guessed(accuracy, guess, evaluator.classes, evaluator.samples)
            ),
            batchnorm_gap=gap,
            batchnorm_train_gap=train_gap,
            coverage=covered,
            characteristic_maps=None if maps is None else maps[0],
            subnetwork=None if maps is None else maps[1],
            companions=companions,
            finite=reading.finite,
            loss=reading.loss,
            measured=self._measured(held_out),
            val_samples=0 if held_out is None else held_out[0].samples,
        )

    def _measured(self, held_out: tuple[Evaluator, Tensor] | None) -> dict[str, str]:
        """How the report is made, in words."""
        probes = {"probe": f"{self.evaluator.samples} samples"}
        if held_out is not None:
            probes["held-out probe"] = f"{held_out[0].samples} samples"
        versions = {"netdyn": VERSION, "torch": f"{torch.__version__}"}
        return versions | probes | {"measures": ", ".join(self.config.measure), "seed": f"{self.config.seed}"}

    def _held_out(self, probe: Probe | None) -> tuple[Evaluator, Tensor]:
        """The validation probe, and which of its samples are right, on every process."""
        assert probe is not None
        try:
            self.held_out = _evaluator(self.evaluator.model, probe, self.config, Processes())
        except (TypeError, ValueError) as error:
            raise ValueError(f"In the held-out probe: {error}") from error
        self.held_out.contents = _contents(probe, self.held_out)
        return self.held_out, self.held_out.all_right()

    def _reading_without_layers(self) -> Reading:
        """Which samples are right, if the layers could not be read, or were not asked for."""
        evaluator = self.evaluator
        answers, tallies = [], []
        if self.companions is not None:
            self.companions.begin()
        for part in blocks(evaluator.samples, evaluator.batch_size):
            inputs, target = evaluator.batch(part)
            if self.companions is None:
                outputs = evaluator.outputs(inputs)
            else:
                outputs = self.companions.run(inputs)
                evaluator.passed += len(target)
            answers.append(apply_criterion(evaluator.criterion, outputs, target))
            tallies.append(tally(evaluator, outputs, logits_of(evaluator, outputs), target))
        right = torch.cat(answers)
        share, loss = summed_up(evaluator, tallies)
        if evaluator.processes.size > 1:
            right = evaluator.processes.gather(right.cpu)[0].to(right.device)
        return Reading((), right, finite=share, loss=loss)

    def _with_contents(self) -> Evaluator:
        """The evaluator, with what seeds its noise, which is found once for a probe."""
        self.evaluator.contents = _contents(self.probe, self.evaluator)
        return self.evaluator

    def _sample_basin(self, right: Tensor) -> BasinResult:
        evaluator, config, labels = self._with_contents(), self.config, self.evaluator.labels
        return measure_sample_basin(
            evaluator,
            config.low,
            config.high,
            accuracy=config.accuracy,
            relative=config.relative,
            rays=config.sample_rays,
            per_class=self.per_class,
            seed=config.seed,
            noise_at=config.noise_at,
            clean=right,
            # There has been a warning already if the probe holds a single class.
            quiet=evaluator.num_classes > 1 and bool((labels == labels[0]).all()),
        )

    def _weight_basin(self, right: Tensor) -> BasinResult:
        config = self.config
        return measure_weight_basin(
            self._with_contents(),
            config.low,
            config.high,
            accuracy=config.accuracy,
            relative=config.relative,
            rays=config.weight_rays,
            samples=config.weight_samples,
            normalization=config.normalization,
            layers=config.weight_layers,
            seed=config.seed,
            clean=right,
        )

    def _gaps(self, right: Tensor, held_out: tuple[Evaluator, Tensor] | None, on_held_out: bool) -> tuple[float, float]:
        """The batch-norm gap on the validation probe, if there should be one, and on the training probe."""
        train_gap = self._gap(self.evaluator, right)
        if not on_held_out or (math.isnan(train_gap) and self.evaluator.samples > 1):
            return train_gap, train_gap
        # A validation probe that failed has been reported.
        return (math.nan if held_out is None else self._gap(*held_out)), train_gap

    def _gap(self, probe: Evaluator, right: Tensor) -> float:
        if probe.samples < 2:
            return math.nan  # one sample has no statistics
        if probe.samples > GAP_SAMPLES:
            chosen = probe.contents.first(GAP_SAMPLES)
            probe, right = probe.only(chosen), right[chosen.to(right.device)]
        # Statistics of smaller batches than training's would be others.
        size = self.config.batch_size and max(self.config.batch_size, self.train_batch_size or USUAL_BATCH)
        return measure_gap(probe, size, self.config.seed, right)

    def _coverage(self, held_out: tuple[Evaluator, Tensor] | None) -> Covered:
        assert held_out is not None
        own = self._with_contents()
        return measure_coverage(own, self.memory.neighbours(own, held_out[0]), self.config.seed)

    def _surveyed(self) -> Survey:
        """A survey where the layers were not read; an earlier evaluation may know which local fields cannot be."""
        evaluator = self.evaluator
        found = survey(evaluator.model, evaluator.inputs)
        if (known := self.memory.rows.recall(found.signature)) is not None:
            return found.without(known.refused)
        return discover(evaluator.model, evaluator.inputs, batch_size=self.config.batch_size)

    def _companions(self, maps: Tensor | None) -> Companions:
        assert self.companions is not None
        found = self.companions.finish(maps)
        for name, error in self.companions.failures.items():
            self.on_failure(f"companions/{name}", error)
        return found

    def _maps(self, reading: Reading) -> tuple[Tensor, Subnetwork | None] | None:
        evaluator = self.evaluator
        model, inputs = evaluator.model, evaluator.inputs
        columns = chosen_outputs(evaluator, self.config)
        if (not evaluator.labelled and evaluator.numbers is None) or (columns is not None and evaluator.labelled):
            return None
        known = reading.survey or self._surveyed()
        head = partial(mean_logits, evaluator, columns)
        maps = input_maps(model, inputs, Choice(axes=known.axes), head).cpu()
        if not known.found or evaluator.processes.lockstep or columns is not None or evaluator.positions is not None:
            # Sharded weights are gathered only for gradients that start at the output.
            return maps, None
        name = next(iter(known.found))
        shown, most = SUBNETWORK
        first, pathway = choose(model, known, [name]), reading.pathways.get(name)
        return maps, find_subnetwork(model, inputs, first, most, shown, pathway, evaluator.batch_size, head)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, on the same device."""
    return a.device == b.device and torch.equal(a, b)


def _contents(probe: Probe, evaluator: Evaluator) -> Contents:
    """The contents of those samples of a probe that are measured; they are found once for a probe."""
    return probe.contents if evaluator.kept is None else probe.contents.chosen(evaluator.kept)


def _accuracy(evaluator: Evaluator, right: Tensor) -> float | None:
    """Share of right answers; None if the network predicts numbers, which are all right without noise."""
    return mean_of(right.cpu(), evaluator.weight) if evaluator.numbers is None else None


def _measurable(evaluator: Evaluator, config: Config) -> Config:
    """The options without measures that targets and criterion do not allow; a warning says why."""
    named = [name for name in ("modes", "linear") if name in config.measure]
    if evaluator.labelled or evaluator.numbers is not None or not named:
        return config
    text = (
        f"{' and '.join(map(repr, named))} need class labels and one logit per class, or one output for each number to "
        f"be predicted, and a `criterion` alone does not say which; got targets of dtype {evaluator.target.dtype}."
    )
    rest = tuple(name for name in config.measure if name not in named)
    if not rest:
        raise ValueError(f"`measure` asks for {named}. {text} Ask for the basins.")
    checks.warn(f"netdyn leaves out what the criterion does not allow: {text}")
    return replace(config, measure=rest)


def _check_classes(evaluator: Evaluator, config: Config) -> None:
    classes, asked = evaluator.classes, config.num_classes
    if asked is not None and classes not in (asked, 1):
        raise ValueError(f"`num_classes` must be that of the model's output, {classes} classes, got {asked}.")
    # Of a vocabulary, most words are in no probe.
    counted = evaluator.num_classes > 1 or 1 < classes <= config.max_classes
    absent = (evaluator.class_sizes() == 0).nonzero()[:, 0].tolist() if counted else []
    if absent:
        shown = f"{absent}" if len(absent) <= 20 else f"{absent[:20]} and {len(absent) - 20} more"
        checks.warn(
            f"The probe holds {classes - len(absent)} of {classes} classes; {shown} are missing and left out of "
            "every mean. Give it at least one sample of each."
        )
