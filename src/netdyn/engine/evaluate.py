"""Measure one network on one probe: what is measured, in which order, and what happens where something fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.distributed import Crew
from netdyn._utils.transit import Coming
from netdyn._utils.trees import has_floating
from netdyn.basins.result import BasinResult
from netdyn.basins.sample_basin import begin_sample_basin
from netdyn.basins.target import chance
from netdyn.basins.weight_basin import begin_weight_basin
from netdyn.engine.attempts import Attempts, OnFailure, progress_bar, raise_it
from netdyn.engine.config import Measure, Settings
from netdyn.engine.memory import Memory
from netdyn.engine.reading import Reading
from netdyn.functional import check_basin, coverage
from netdyn.linear.characteristic import Subnetwork, find_subnetwork, input_maps
from netdyn.linear.tails import functional_depth
from netdyn.probes.batchnorm import right_answers_gained
from netdyn.probes.evaluator import Walk
from netdyn.probes.outset import begin_walk, explained, warn_of_unsound
from netdyn.probes.probe import Probe
from netdyn.report.results import Report
from netdyn.tracing.survey import Choice, choose, discover

#: Taken for the training batch size where nobody has told it.
USUAL_BATCH = 128
#: Classes and units of the first layer that are shown as a subnetwork.
SUBNETWORK = (10, 4)


def examine(
    network: nn.Module,
    probe: Probe,
    settings: Settings,
    crew: Crew,
    progress: bool | None,
    *,
    held_out: Probe | None = None,
    on_failure: OnFailure = raise_it,
    memory: Memory | None = None,
) -> Report:
    """The report on a network that is isolated already; see :func:`netdyn.diagnose`.

    Args:
        network: The network.
        probe: The samples that it is measured on.
        settings: What to measure and how.
        crew: The processes that share the work.
        progress: Show a progress bar; None: where it takes long and a person is watching.
        held_out: A held-out probe.
        on_failure: Called with the name of a measure that failed, and the error; the other measures still come.
        memory: What the last evaluation has found, where this one begins; it takes what this one finds.
    """
    memory = Memory() if memory is None else memory
    probe.look(contents="sample_basin" in settings.measure)
    if held_out is not None:
        held_out.look(contents=False)
    examination = _Examination(network, probe, settings, crew, memory)
    # From here on a failure costs one measure, and nobody leaves; who could not even begin is met here. What the first
    # process remembers counts: one that has failed meanwhile remembers something else.
    memory.answers, memory.rays_walked = crew.share(lambda: (memory.answers, memory.rays_walked))[0]
    with progress_bar(examination.attempts(held_out), progress) as step:
        return examination.report(Attempts(crew, on_failure, step), held_out)


@dataclass
class _Begun:
    """What the earlier parts of an evaluation leave for the later ones.

    Attributes:
        coming: Who is right without noise.
        other: The held-out probe, or the probe itself where there is none; None where it has failed.
        val_right: Who is right on the held-out probe.
        gap: The rest of the measure of batch normalisation; None where it failed or is not asked for.
        basins: The rests of the basins; None where one has failed.
    """

    coming: Coming
    other: Walk | None
    val_right: Tensor | None
    gap: Callable[[], float] | None
    basins: dict[str, Callable[[], BasinResult] | None] = field(default_factory=dict)


class _Examination:
    """One evaluation, in three parts, so that a device is not kept waiting by questions.

    The first gives the network's device all work that depends on no answer, or, as it was last time, on an expected
    one. The second looks at one answer, who is right without noise, and begins the searches that depend on it. The
    third reads what all that has come to, and asks what depends on it.
    """

    def __init__(self, network: nn.Module, probe: Probe, settings: Settings, crew: Crew, memory: Memory) -> None:
        self.network, self.probe, self.settings, self.memory = network, probe, settings, memory
        self.grid = check_basin(
            settings.accuracy, settings.sample_rays, settings.low, settings.high, settings.rel_tol, settings.seed
        )
        self.walk = self._walk(probe, crew)
        _check_classes(self.walk, settings)
        self.reading = Reading(self.walk, settings, memory)

    def attempts(self, held_out: Probe | None) -> int:
        """How many measures :meth:`report` attempts."""
        wanted = set(self.settings.measure)
        other = (
            self._layers() is not None,
            "maps" in wanted and self._has_map(),
            held_out is not None,
            held_out is not None and "sample_basin" in wanted and self._has_coverage(),
        )
        return len(wanted & {"sample_basin", "weight_basin"}) + sum(other) + ("batchnorm" in wanted and self._has_gap())

    def report(self, attempt: Attempts, held_out: Probe | None) -> Report:
        """Measure everything that is asked for."""
        with explained(self.walk.sound):
            begun = self._begin(attempt, held_out)
            self._search(attempt, begun)
        return self._finish(attempt, begun, held_out)

    def _begin(self, attempt: Attempts, held_out: Probe | None) -> _Begun:
        """Ask what can be asked without knowing an answer."""
        held: tuple[Walk, Tensor] | None = None
        if held_out is not None:
            held = attempt("val_probe", lambda: self._look_at(held_out))
        layers, instead = self._layers(), self.reading.instead
        right = instead() if layers is None else attempt(layers, self.reading.begin, instead=instead)
        assert right is not None  # what comes instead of a failed reading fails, or says who is right
        coming = Coming(right)
        other = self.walk if held_out is None else None if held is None else held[0]
        wanted = "batchnorm" in self.settings.measure and self._has_gap()
        gap = attempt("batchnorm", lambda: self._begin_gap(other)) if wanted else None
        begun = _Begun(coming, other, None if held is None else held[1], gap)
        if "weight_basin" in self.settings.measure and self.memory.rays_walked:
            begun.basins["weight_basin"] = attempt("weight_basin", lambda: self._begin_weight_basin(coming, True))
        return begun

    def _search(self, attempt: Attempts, begun: _Begun) -> None:
        """Begin the searches: where nobody is right there is no basin, and one would be for nothing."""
        clean, wanted = self.walk.crew.in_step(begun.coming.arrived), self.settings.measure
        if "sample_basin" in wanted:
            begun.basins["sample_basin"] = attempt("sample_basin", lambda: self._begin_sample_basin(clean))
        if "weight_basin" in wanted and "weight_basin" not in begun.basins:
            begin = partial(self._begin_weight_basin, begun.coming, False)
            begun.basins["weight_basin"] = attempt("weight_basin", begin)

    def _finish(self, attempt: Attempts, begun: _Begun, held_out: Probe | None) -> Report:
        """Read the answers, and ask what depends on them."""
        walk, measure = self.walk, self.settings.measure
        walk.crew.in_step(lambda: self._warn_of_samples(begun.other))
        name = self._layers()
        layers = (attempt.part(name, self.reading.finish) if name else None) or []
        # Each is let go of with what it holds.
        basins = {name: attempt.part(name, begun.basins.pop(name)) for name in list(begun.basins)}
        if "weight_basin" in measure:
            weights = basins["weight_basin"]
            self.memory.rays_walked = weights is not None and weights.clean > weights.accuracy
        gap = attempt.part("batchnorm", begun.gap) if "batchnorm" in measure and self._has_gap() else None
        maps = attempt("maps", self._maps) if "maps" in measure and self._has_map() else None
        within, basin, other = None, basins.get("sample_basin"), begun.other
        if held_out is not None and other is not None and basin is not None and self._has_coverage():
            within = attempt("coverage", lambda: coverage(basin, walk.inputs, walk.target, other.inputs, other.target))
        accuracy = _accuracy(walk, begun.coming.arrived())
        accuracy = math.nan if accuracy is None else accuracy
        tails = {layer.name: layer.tail_accuracy for layer in layers}
        return Report(
            layers=tuple(layers),
            sample_basin=basin,
            weight_basin=basins.get("weight_basin"),
            accuracy=accuracy,
            val_accuracy=None if other is None or begun.val_right is None else _accuracy(other, begun.val_right),
            samples=walk.samples,
            num_classes=walk.num_classes,
            alpha=self.settings.alpha,
            functional_depth=functional_depth(tails, accuracy, self._chance()),
            batchnorm_gap=math.nan if gap is None else gap,
            coverage=math.nan if within is None else within.share,
            coverage_distance=math.nan if within is None else within.distance,
            characteristic_maps=None if maps is None else maps[0],
            subnetwork=None if maps is None else maps[1],
        )

    def _layers(self) -> Measure | None:
        """The measure that asks for the layers to be read."""
        return next((name for name in ("modes", "linear") if name in self.settings.measure), None)

    def _walk(self, probe: Probe, crew: Crew) -> Walk:
        settings = self.settings
        walk = begin_walk(self.network, probe, settings.criterion, settings.batch_size, settings.tolerance)
        return replace(walk, crew=crew)

    def _look_at(self, probe: Probe) -> tuple[Walk, Tensor]:
        """The held-out probe, and which of its samples are right."""
        walk = self._walk(probe, Crew())
        with explained(walk.sound):
            return walk, walk.all_right()

    def _warn_of_samples(self, other: Walk | None) -> None:
        """Say what was found to be wrong with the probes, and what came of it."""
        warn_of_unsound(self.walk.sound)
        if other is not None and other is not self.walk:
            warn_of_unsound(other.sound)
        self.reading.warn_of_lost()

    def _begin_sample_basin(self, clean: Tensor) -> Callable[[], BasinResult]:
        walk, settings = self.walk, self.settings
        walk.digests = self.probe.digests
        labels = walk.known_labels
        return begin_sample_basin(
            walk,
            self.grid,
            accuracy=settings.accuracy,
            rays=settings.sample_rays,
            seed=settings.seed,
            noise_at=settings.noise_at,
            clean=clean,
            memory=self.memory.brackets,
            # Of a probe with a single class it has been said that classes are missing.
            quiet=walk.num_classes > 1 and bool((labels == labels[0]).all()),
        )

    def _begin_weight_basin(self, coming: Coming, expected: bool) -> Callable[[], BasinResult]:
        settings = self.settings
        return begin_weight_basin(
            self.walk,
            self.grid,
            accuracy=settings.accuracy,
            rays=settings.weight_rays,
            normalization=settings.normalization,
            layers=settings.weight_layers,
            seed=settings.seed,
            coming=coming,
            expected=expected,
        )

    def _has_gap(self) -> bool:
        return self.walk.num_classes > 1

    def _begin_gap(self, walk: Walk | None) -> Callable[[], float]:
        if walk is None or walk.samples < 2:
            return lambda: math.nan  # a held-out probe that failed has been spoken of; one sample has no statistics
        size = self.settings.batch_size
        if size is not None:
            # Statistics of smaller batches than training's would be others.
            size = max(size, self.settings.train_batch_size or USUAL_BATCH)
        gained, samples = right_answers_gained(walk, size, self.settings.seed), walk.samples
        return lambda: math.nan if gained is None else int(gained) / samples

    def _has_coverage(self) -> bool:
        """Whether there are classes, and noise on the inputs, between which there are distances too."""
        return self.walk.num_classes > 1 and self.settings.noise_at is None and has_floating(self.walk.inputs)

    def _has_map(self) -> bool:
        """Whether there is a single input for a map of it; tokens and several inputs have none."""
        return isinstance(self.walk.inputs, Tensor) and self.walk.inputs.is_floating_point()

    def _maps(self) -> tuple[Tensor, Subnetwork | None] | None:
        walk = self.walk
        if walk.num_classes > self.settings.max_classes or (walk.num_classes == 1 and walk.numbers is None):
            return None
        reader = self.reading.reader
        survey = discover(walk.model, walk.inputs) if reader is None else reader.survey
        maps = input_maps(walk.model, walk.inputs, Choice(layouts=survey.layouts)).cpu()
        if not survey.found or walk.crew.lockstep:
            # Weights that are spread over processes come together only for gradients that begin at the output.
            return maps, None
        name = next(iter(survey.found))
        first = choose(walk.model, survey, [name])
        pathway = None if reader is None else reader.whole_pathway(name)
        classes, most = SUBNETWORK
        return maps, find_subnetwork(walk.model, walk.inputs, first, most, classes, pathway)

    def _chance(self) -> float:
        """What guessing gives: the largest class is guessed at least as well as any."""
        walk = self.walk
        if walk.num_classes < 2:
            return 0.0
        largest = float(torch.bincount(walk.known_labels).max()) / walk.samples
        return max(chance(walk.num_classes), largest)


def _accuracy(walk: Walk, right: Tensor) -> float | None:
    """Share of right answers; None where numbers are predicted, which are all right without noise."""
    return float(right.cpu().double().mean()) if walk.numbers is None else None


def _check_classes(walk: Walk, settings: Settings) -> None:
    num_classes = settings.num_classes
    told = [name for name in ("modes", "linear") if name in settings.measure]
    if walk.num_classes == 1 and walk.numbers is None and told:
        raise ValueError(
            f"`measure` asks for {told[0]!r}, which need class labels and one logit a class, or one output for each "
            f"number, got targets of dtype {walk.target.dtype} and a criterion. Leave {' and '.join(map(repr, told))} "
            "out to measure the basins alone."
        )
    if num_classes is not None and walk.num_classes not in (num_classes, 1):
        raise ValueError(
            f"`num_classes` must be what the model puts out, {walk.num_classes} classes, got {num_classes}."
        )
    if walk.num_classes > 1:
        size = torch.bincount(walk.known_labels, minlength=walk.num_classes)
        if absent := (size == 0).nonzero()[:, 0].tolist():
            held = walk.num_classes - len(absent)
            shown = f"{absent}" if len(absent) <= 20 else f"{absent[:20]} and {len(absent) - 20} more"
            checks.warn(
                f"The probe holds {held} of {walk.num_classes} classes; {shown} are missing and left out of every "
                "mean. Give it at least one sample of each."
            )
