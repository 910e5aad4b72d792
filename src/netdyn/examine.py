"""Measure one network on one probe: what is measured, in which order, and what happens where something fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from netdyn import _checks, weight_rays
from netdyn import rays as sample_rays
from netdyn.attempts import Attempts, OnFailure, progress_bar, raise_it
from netdyn.batches import Inputs, blocks, finite, has_floating
from netdyn.batchnorm import right_answers_gained
from netdyn.brackets import Brackets
from netdyn.characteristic import Subnetwork, find_subnetwork, input_maps
from netdyn.crew import Crew
from netdyn.criteria import checked
from netdyn.functional import check_basin, coverage, prepare_walk
from netdyn.layer_reader import LayerReader, nonfinite, warn_of_nonfinite
from netdyn.radii import BasinResult
from netdyn.results import Report
from netdyn.settings import Measure, Settings
from netdyn.sites import Choice, choose, discover
from netdyn.tails import functional_depth
from netdyn.targets import chance
from netdyn.transit import Coming
from netdyn.walk import Walk

#: Taken for the training batch size where nobody has told it.
USUAL_BATCH = 128
#: Classes and units of the first layer that are shown as a subnetwork.
SUBNETWORK = (10, 4)
Given = tuple[Inputs, Tensor]


def examine(
    network: nn.Module,
    probe: Given,
    settings: Settings,
    crew: Crew,
    progress: bool | None,
    *,
    held_out: Given | None = None,
    on_failure: OnFailure = raise_it,
    memory: Brackets | None = None,
    digests: Callable[[], list[bytes]] | None = None,
) -> Report:
    """The report on a network that is isolated already; see :func:`netdyn.diagnose`.

    Args:
        network: The network.
        probe: Inputs and targets.
        settings: What to measure and how.
        crew: The processes that share the work.
        progress: Show a progress bar; None: where it takes long and a person is watching.
        held_out: Inputs and targets of a held-out probe.
        on_failure: Called with the name of a measure that failed, and the error; the other measures still come.
        memory: Where rays were lost in the last evaluation; this one begins there.
        digests: Gives those of the probe's samples, to whoever has kept them.
    """
    examination = _Examination(network, probe, settings, crew, memory, digests)
    # From here on a failure costs one measure, and nobody leaves; who could not even begin is met before.
    crew.share(lambda: None)
    with progress_bar(examination.attempts(held_out), progress) as step:
        return examination.report(Attempts(crew, on_failure, step), held_out)


@dataclass(frozen=True)
class _Begun:
    """What the first part of an evaluation leaves for the second.

    Attributes:
        clean: Who is right without noise, on the host.
        other: The held-out probe, or the probe itself where there is none; None where it has failed.
        val_right: Who is right on the held-out probe.
        gap: The rest of the measure of batch normalisation; None where it failed or is not asked for.
        basins: The rests of the basins; None where one has failed.
    """

    clean: Tensor
    other: Walk | None
    val_right: Tensor | None
    gap: Callable[[], float] | None
    basins: dict[str, Callable[[], BasinResult] | None]


class _Examination:
    """One evaluation, in two parts: what can be asked without knowing an answer, and all that comes after.

    The first part looks at the probes and finds the layers; from then on it only gives the network's device work. The
    second reads what that has come to, and asks what depends on it. So the device is not kept waiting by questions.
    """

    def __init__(
        self,
        network: nn.Module,
        probe: Given,
        settings: Settings,
        crew: Crew,
        memory: Brackets | None,
        digests: Callable[[], list[bytes]] | None,
    ) -> None:
        self.network, self.settings, self.memory, self.digests = network, settings, memory, digests
        self.grid = check_basin(
            settings.accuracy, settings.sample_rays, settings.low, settings.high, settings.rel_tol, settings.seed
        )
        walk = prepare_walk(network, *probe, settings.criterion, settings.batch_size, settings.tolerance)
        self.walk = replace(walk, crew=crew)
        _check_classes(self.walk, settings)
        #: Whoever has read the layers knows the network already.
        self.reader: LayerReader | None = None
        #: Number of samples with outputs that are not finite.
        self.lost: Tensor | None = None

    def attempts(self, held_out: Given | None) -> int:
        """How many measures :meth:`report` attempts."""
        wanted = set(self.settings.measure)
        other = (
            self._reading() is not None,
            "maps" in wanted and self._has_map(),
            held_out is not None,
            held_out is not None and "sample_basin" in wanted and self._has_coverage(),
        )
        return len(wanted & {"sample_basin", "weight_basin"}) + sum(other) + ("batchnorm" in wanted and self._has_gap())

    def report(self, attempt: Attempts, held_out: Given | None) -> Report:
        """Measure everything that is asked for."""
        return self._finish(attempt, self._begin(attempt, held_out), held_out)

    def _begin(self, attempt: Attempts, held_out: Given | None) -> _Begun:
        """Ask what can be asked without knowing an answer, but for one: who is right without noise?"""
        walk, measure, reading = self.walk, self.settings.measure, self._reading()
        held: tuple[Walk, Tensor] | None = None
        if held_out is not None:
            held = attempt("val_probe", lambda: self._look_at(held_out))
        known = attempt.part("sample_basin", self._digest) if "sample_basin" in measure else None
        right = self._unread() if reading is None else attempt(reading, self._read, instead=self._unread)
        assert right is not None  # what comes instead of a failed reading fails, or says who is right
        coming = Coming(right)
        other = walk if held_out is None else None if held is None else held[0]
        wanted = "batchnorm" in measure and self._has_gap()
        gap = attempt("batchnorm", lambda: self._begin_gap(other)) if wanted else None
        # Where nobody is right there is no basin, and a search would be for nothing. Meanwhile this has arrived.
        clean = coming.arrived()
        basins: dict[str, Callable[[], BasinResult] | None] = {}
        if "sample_basin" in measure:
            begin = _nothing if known is None else partial(self._begin_sample_basin, clean)
            basins["sample_basin"] = attempt("sample_basin", begin)
        if "weight_basin" in measure:
            basins["weight_basin"] = attempt("weight_basin", partial(self._begin_weight_basin, clean))
        return _Begun(clean, other, None if held is None else held[1], gap, basins)

    def _finish(self, attempt: Attempts, begun: _Begun, held_out: Given | None) -> Report:
        """Read the answers, and ask what depends on them."""
        walk, measure, reading = self.walk, self.settings.measure, self._reading()
        reader = self.reader
        self._warn_of_lost()
        layers = (attempt.part(reading, None if reader is None else reader.told) if reading else None) or []
        # Each is let go of with what it holds.
        basins = {name: attempt.part(name, begun.basins.pop(name)) for name in list(begun.basins)}
        gap = attempt.part("batchnorm", begun.gap) if "batchnorm" in measure and self._has_gap() else None
        maps = attempt("maps", self._maps) if "maps" in measure and self._has_map() else None
        within, basin, other = None, basins.get("sample_basin"), begun.other
        if held_out is not None and other is not None and basin is not None and self._has_coverage():
            within = attempt("coverage", lambda: coverage(basin, walk.inputs, walk.target, other.inputs, other.target))
        accuracy = _accuracy(walk, begun.clean)
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

    def _read(self) -> Tensor:
        reader = LayerReader(self.walk, self.settings)
        reader.find()
        right = reader.read()
        self.reader, self.lost = reader, reader.lost
        return right

    def _reading(self) -> Measure | None:
        """The measure that asks for the layers to be read."""
        return next((name for name in ("modes", "linear") if name in self.settings.measure), None)

    def _unread(self) -> Tensor:
        """Who is right without noise, where no reading has told."""
        walk = self.walk
        # If the reading has failed elsewhere, nobody has read.
        self.reader = None
        right = torch.empty(walk.samples, dtype=torch.bool, device=walk.target.device)
        self.lost = torch.zeros((), dtype=torch.int64, device=right.device)
        for part in blocks(walk.samples, walk.batch_size):
            inputs, target = walk.batch(part)
            outputs = walk.outputs(inputs)
            right[part] = checked(walk.criterion, outputs, target)
            self.lost += nonfinite(outputs).to(right.device)
        return right if walk.crew.size == 1 else walk.crew.share(right.cpu)[0].to(right.device)

    def _warn_of_lost(self) -> None:
        # Where the inputs are to blame, that has been said.
        if self.lost is not None:
            warn_of_nonfinite(int(self.lost) if self.lost and finite(self.walk.inputs) else 0, self.walk.samples)

    def _look_at(self, given: Given) -> tuple[Walk, Tensor]:
        """The held-out probe, and which of its samples are right."""
        settings = self.settings
        walk = prepare_walk(self.network, *given, settings.criterion, settings.batch_size, settings.tolerance)
        return walk, walk.all_right()

    def _digest(self) -> list[bytes]:
        """What seeds the samples' noise is made of all of the probe, which has to be on the host for it."""
        if self.digests is not None:
            self.walk.digests = self.digests()
        return self.walk.prints

    def _begin_sample_basin(self, clean: Tensor) -> Callable[[], BasinResult]:
        walk, settings = self.walk, self.settings
        labels = walk.known_labels
        return sample_rays.begin_sample_basin(
            walk,
            self.grid,
            accuracy=settings.accuracy,
            relative=False,
            rays=settings.sample_rays,
            seed=settings.seed,
            noise_at=settings.noise_at,
            clean=clean,
            memory=self.memory,
            # Of a probe with a single class it has been said that classes are missing.
            quiet=walk.num_classes > 1 and bool((labels == labels[0]).all()),
        )

    def _begin_weight_basin(self, clean: Tensor) -> Callable[[], BasinResult]:
        settings = self.settings
        return weight_rays.begin_weight_basin(
            self.walk,
            self.grid,
            accuracy=settings.accuracy,
            relative=False,
            rays=settings.weight_rays,
            normalization=settings.normalization,
            layers=settings.weight_layers,
            seed=settings.seed,
            clean=clean,
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
        survey = discover(walk.model, walk.inputs) if self.reader is None else self.reader.survey
        maps = input_maps(walk.model, walk.inputs, Choice(layouts=survey.layouts)).cpu()
        if not survey.found or walk.crew.lockstep:
            # Weights that are spread over processes come together only for gradients that begin at the output.
            return maps, None
        name = next(iter(survey.found))
        first = choose(walk.model, survey, [name])
        pathway = None if self.reader is None else self.reader.whole_pathway(name)
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


def _nothing() -> None:
    """What can be begun of a measure that has failed before."""


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
            _checks.warn(
                f"The probe holds {held} of {walk.num_classes} classes; {shown} are missing and left out of every "
                "mean. Give it at least one sample of each."
            )
