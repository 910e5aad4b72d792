"""Measure one network on one probe: what is measured, in which order, and what happens where something fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from netdyn._utils import checks
from netdyn._utils.distributed import Processes
from netdyn._utils.trees import blocks, has_floating
from netdyn.basins.coverage import Covered, measure_coverage
from netdyn.basins.result import BasinResult
from netdyn.basins.sample_basin import measure_sample_basin
from netdyn.basins.target import chance
from netdyn.basins.weight_basin import measure_weight_basin
from netdyn.engine.config import Config
from netdyn.engine.layers import Reading, nonfinite, read_layers, warn_of_nonfinite
from netdyn.linear.characteristic import Subnetwork, find_subnetwork, input_maps
from netdyn.linear.tails import functional_depth
from netdyn.probes.batchnorm import measure_gap
from netdyn.probes.criteria import apply_criterion
from netdyn.probes.evaluator import Evaluator
from netdyn.probes.probe import Probe
from netdyn.probes.tasks import prepare
from netdyn.report.results import Report
from netdyn.tracing.fields import Choice, choose
from netdyn.tracing.survey import discover

T = TypeVar("T")
OnFailure = Callable[[str, Exception], None]

#: Training batch size that is assumed where it is not known.
USUAL_BATCH = 128
#: Classes and units of the first layer that are shown as a subnetwork.
SUBNETWORK = (10, 4)
#: Attempts of one evaluation: the validation probe, the layers, both basins, coverage, batch normalisation, maps.
ATTEMPTS = 7


def raise_it(name: str, error: Exception) -> None:
    """Let a failure end the evaluation."""
    raise error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device or the host has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower()


@contextmanager
def progress_bar(wanted: bool | None) -> Iterator[Callable[[], object]]:
    """A bar that appears after two seconds; tqdm's ``disable=None`` leaves it out where the output is no terminal."""
    disable = None if wanted is None else not wanted
    with tqdm(total=ATTEMPTS, desc="netdyn", delay=2, leave=False, disable=disable) as bar:
        yield lambda: bar.update(1)


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
) -> Report:
    """The report on a network that is isolated already; see :func:`netdyn.diagnose`.

    Args:
        network: The network.
        probe: The samples that it is measured on.
        config: What to measure and how.
        val_probe: Held-out samples.
        processes: The processes that share the work; None: this one alone.
        on_failure: Called with the name of a measure that failed, and the error; the other measures still come.
        progress: Show a progress bar; None: where it takes long and the output is a terminal.
        train_batch_size: Least number of samples that batch normalisation sees at once where the probe does not fit
            into one batch.
        distributions: Make the rank probability distributions too, which figures alone show.
        per_class: Find the radii of the classes too.
        on_smaller_batches: Called with the new number of samples per forward pass where memory ran out.
    """
    processes = processes or Processes()
    evaluation = _Evaluation(network, probe, config, processes, train_batch_size, distributions, per_class)
    evaluation.on_failure, evaluation.on_smaller_batches = on_failure, on_smaller_batches
    # From here on a failure costs one measure, and no process leaves; one that could not even begin is met here.
    processes.gather(lambda: None)
    with progress_bar(progress) as evaluation.step:
        return evaluation.report(val_probe)


class _Evaluation:
    """One evaluation: each measure in turn."""

    def __init__(
        self,
        network: nn.Module,
        probe: Probe,
        config: Config,
        processes: Processes,
        train_batch_size: int | None,
        distributions: bool,
        per_class: bool,
    ) -> None:
        self.network, self.probe, self.config, self.processes = network, probe, config, processes
        self.train_batch_size, self.distributions, self.per_class = train_batch_size, distributions, per_class
        self.evaluator = self._evaluator(probe, processes)
        self.held_out: Evaluator | None = None
        self.on_failure: OnFailure = raise_it
        self.on_smaller_batches: Callable[[int], object] = lambda size: None
        self.step: Callable[[], object] = lambda: None
        _check_classes(self.evaluator, config)

    def _evaluator(self, probe: Probe, processes: Processes) -> Evaluator:
        config = self.config
        found = prepare(self.network, probe.inputs, probe.target, config.criterion, config.batch_size, config.tolerance)
        found.processes = processes
        return found

    def attempt(
        self, name: str, work: Callable[[], T], *, wanted: bool = True, instead: Callable[[], T] | None = None
    ) -> T | None:
        """What the work of a measure gives; where it fails what comes ``instead``, and the other measures still come.

        It fails on all processes alike. Where memory runs out it is repeated with half as many samples per pass.
        """
        try:
            return self._attempted(name, work, instead) if wanted else None
        finally:
            self.step()

    def _attempted(self, name: str, work: Callable[[], T], instead: Callable[[], T] | None) -> T | None:
        try:
            return self._repeated(work)
        except Exception as caught:
            error = caught
        replaced = None if instead is None else self._repeated(instead)
        self.on_failure(name, error)
        return replaced

    def _repeated(self, work: Callable[[], T]) -> T:
        """What some work gives; where memory runs out it is repeated with half as many samples per pass."""
        size = self.config.batch_size
        while True:
            try:
                result = work()
                # A process that failed outside of shared work is met here at the latest.
                self.processes.gather(lambda: None)
            except Exception as caught:
                self.processes.fail(caught)
                full = any(self.processes.gather(partial(is_out_of_memory, caught)))
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
        """Measure everything that is asked for."""
        evaluator, config, attempt = self.evaluator, self.config, self.attempt
        classes, wanted = evaluator.num_classes > 1, set(config.measure)
        held_out = attempt("val_probe", lambda: self._held_out(val_probe), wanted=val_probe is not None)
        layers = next((name for name in ("modes", "linear") if name in wanted), None)
        reading = attempt(layers or "", self._read, wanted=layers is not None, instead=self._reading_without_layers)
        reading = reading or self._repeated(self._reading_without_layers)
        right = reading.right
        sample_basin = attempt("sample_basin", lambda: self._sample_basin(right), wanted="sample_basin" in wanted)
        covered = attempt(
            "coverage",
            lambda: self._coverage(held_out),
            wanted="sample_basin" in wanted and held_out is not None and self._has_distances(),
        )
        weight_basin = attempt("weight_basin", lambda: self._weight_basin(right), wanted="weight_basin" in wanted)
        on_gap = evaluator if val_probe is None else None if held_out is None else held_out[0]
        gap = attempt("batchnorm", lambda: self._gap(on_gap), wanted="batchnorm" in wanted and classes)
        maps = attempt("maps", lambda: self._maps(reading), wanted="maps" in wanted and self._has_map())
        accuracy = _accuracy(evaluator, right)
        accuracy = math.nan if accuracy is None else accuracy
        tails = {layer.name: layer.tail_accuracy for layer in reading.layers}
        return Report(
            layers=reading.layers,
            sample_basin=sample_basin,
            weight_basin=weight_basin,
            accuracy=accuracy,
            val_accuracy=None if held_out is None else _accuracy(*held_out),
            samples=evaluator.samples,
            num_classes=evaluator.num_classes,
            alpha=config.alpha,
            functional_depth=functional_depth(tails, accuracy, self._chance()),
            batchnorm_gap=math.nan if gap is None else gap,
            coverage=covered,
            characteristic_maps=None if maps is None else maps[0],
            subnetwork=None if maps is None else maps[1],
        )

    def _held_out(self, probe: Probe | None) -> tuple[Evaluator, Tensor]:
        """The validation probe, and which of its samples are right; every process asks all of it."""
        assert probe is not None
        self.held_out = self._evaluator(probe, Processes())
        return self.held_out, self.held_out.all_right()

    def _read(self) -> Reading:
        return read_layers(self.evaluator, self.config, self.distributions)

    def _reading_without_layers(self) -> Reading:
        """Which samples are right, where the layers could not be read, or were not asked for."""
        evaluator = self.evaluator
        right = torch.empty(evaluator.samples, dtype=torch.bool, device=evaluator.target.device)
        lost = 0
        for part in blocks(evaluator.samples, evaluator.batch_size):
            inputs, target = evaluator.batch(part)
            outputs = evaluator.outputs(inputs)
            right[part] = apply_criterion(evaluator.criterion, outputs, target)
            lost += nonfinite(outputs)
        warn_of_nonfinite(evaluator, lost)
        if evaluator.processes.size > 1:
            right = evaluator.processes.gather(right.cpu)[0].to(right.device)
        return Reading((), right)

    def _with_contents(self) -> Evaluator:
        """The evaluator, with what seeds its noise: that is found once for a probe."""
        self.evaluator.contents = self.probe.contents
        return self.evaluator

    def _sample_basin(self, right: Tensor) -> BasinResult:
        evaluator, config = self._with_contents(), self.config
        labels = evaluator.labels
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
            # A probe with a single class has been warned of already.
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

    def _gap(self, evaluator: Evaluator | None) -> float:
        if evaluator is None or evaluator.samples < 2:
            return math.nan  # a validation probe that failed has been reported; one sample has no statistics
        size = self.config.batch_size
        if size is not None:
            # Statistics of smaller batches than training's would be others.
            size = max(size, self.train_batch_size or USUAL_BATCH)
        return measure_gap(evaluator, size, self.config.seed)

    def _has_distances(self) -> bool:
        """Whether there are classes, and noise on the inputs, between which there are distances too."""
        evaluator = self.evaluator
        return evaluator.num_classes > 1 and self.config.noise_at is None and has_floating(evaluator.inputs)

    def _coverage(self, held_out: tuple[Evaluator, Tensor] | None) -> Covered:
        assert held_out is not None
        return measure_coverage(self._with_contents(), held_out[0].inputs, held_out[0].target, self.config.seed)

    def _has_map(self) -> bool:
        """Whether there is a single input for a map of it; tokens and several inputs have none."""
        inputs = self.evaluator.inputs
        return isinstance(inputs, Tensor) and inputs.is_floating_point()

    def _maps(self, reading: Reading) -> tuple[Tensor, Subnetwork | None] | None:
        evaluator = self.evaluator
        if evaluator.num_classes > self.config.max_classes or (
            evaluator.num_classes == 1 and evaluator.numbers is None
        ):
            return None
        model, inputs = evaluator.model, evaluator.inputs
        survey = reading.survey or discover(model, inputs)
        maps = input_maps(model, inputs, Choice(axes=survey.axes)).cpu()
        if not survey.found or evaluator.processes.lockstep:
            # Weights that are spread over processes come together only for gradients that begin at the output.
            return maps, None
        name = next(iter(survey.found))
        classes, most = SUBNETWORK
        first = choose(model, survey, [name])
        return maps, find_subnetwork(
            model, inputs, first, most, classes, reading.pathways.get(name), evaluator.batch_size
        )

    def _chance(self) -> float:
        """What guessing gives: the largest class is guessed at least as well as any."""
        evaluator = self.evaluator
        if evaluator.num_classes < 2:
            return 0.0
        largest = float(torch.bincount(evaluator.labels.cpu()).max()) / evaluator.samples
        return max(chance(evaluator.num_classes), largest)


def _accuracy(evaluator: Evaluator, right: Tensor) -> float | None:
    """Share of right answers; None where numbers are predicted, which are all right without noise."""
    return float(right.cpu().double().mean()) if evaluator.numbers is None else None


def _check_classes(evaluator: Evaluator, config: Config) -> None:
    num_classes = config.num_classes
    named = [name for name in ("modes", "linear") if name in config.measure]
    if evaluator.num_classes == 1 and evaluator.numbers is None and named:
        raise ValueError(
            f"`measure` asks for {named[0]!r}, which need class labels and one logit a class, or one output for each "
            f"number, got targets of dtype {evaluator.target.dtype} and a criterion. Leave "
            f"{' and '.join(map(repr, named))} out to measure the basins alone."
        )
    if num_classes is not None and evaluator.num_classes not in (num_classes, 1):
        raise ValueError(
            f"`num_classes` must be what the model puts out, {evaluator.num_classes} classes, got {num_classes}."
        )
    if evaluator.num_classes > 1:
        size = torch.bincount(evaluator.labels.cpu(), minlength=evaluator.num_classes)
        if absent := (size == 0).nonzero()[:, 0].tolist():
            held = evaluator.num_classes - len(absent)
            shown = f"{absent}" if len(absent) <= 20 else f"{absent[:20]} and {len(absent) - 20} more"
            checks.warn(
                f"The probe holds {held} of {evaluator.num_classes} classes; {shown} are missing and left out of every "
                "mean. Give it at least one sample of each."
            )
