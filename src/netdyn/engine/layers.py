"""Read a network's layers on one probe: modes, ranks and linear tails, each layer reduced to numbers as it passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.trees import blocks, usable
from netdyn.basins.interval import clustered_error, mean_of
from netdyn.engine.companions import CompanionReader
from netdyn.engine.config import Config
from netdyn.engine.modes import ModeReader
from netdyn.linear.substitution import substitute, warn_of_defects, warn_of_missing
from netdyn.linear.tails import TailReader, all_layers, layers_to_run, run_tails, squared_correlation
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.criteria import (
    RightLabels,
    RightPositions,
    Within,
    apply_criterion,
    right_class,
    right_probability,
    share_right,
)
from netdyn.probes.evaluator import Evaluator
from netdyn.report.results import LayerReport
from netdyn.tracing.fields import Choice, OtherRun, choose, read, warn_of_company, warn_of_unread
from netdyn.tracing.names import is_quantised
from netdyn.tracing.rows import RowMemory, Rows, Verdict
from netdyn.tracing.sample_axis import SampleAxis
from netdyn.tracing.survey import Survey, survey

#: Most positions that the modes are of, over all samples.
POSITIONS = 8192


@dataclass(frozen=True)
class Reading:
    """What one reading of a network's layers has found."""

    layers: tuple[LayerReport, ...]
    right: Tensor  # which samples are right, bool `[samples]`, or the share of each that is
    survey: Survey | None = None  # None where the layers were not read
    finite: float = 1.0  # share of the samples with finite outputs, see `summed_up`
    loss: float = math.nan  # mean cross-entropy, where the targets are class labels
    pathways: dict[str, Tensor] = field(default_factory=dict)  # where all are known: the map `[classes, units]`


def chosen_outputs(evaluator: Evaluator, config: Config) -> Tensor | None:
    """Of more classes or outputs than ``max_classes`` a seeded choice to stand for all; None where all are used.

    Classes are those present, and outputs those whose target varies.
    """
    number = evaluator.answers if evaluator.numbers is None else evaluator.numbers.shape[1]
    number = evaluator.target.shape[1] if evaluator.multilabel else number
    if number <= config.max_classes:
        return None
    present: Tensor = torch.arange(number)
    if isinstance(evaluator.criterion, Within):
        present = evaluator.criterion.distance.isfinite().nonzero()[:, 0].cpu()
    elif not evaluator.multilabel:
        labels: Tensor = torch.unique(evaluator.target.cpu())
        present = labels[labels >= 0]
    generator = torch.Generator().manual_seed(config.seed)
    return present[torch.randperm(len(present), generator=generator)[: config.max_classes].sort().values]


def mean_logits(evaluator: Evaluator, columns: Tensor | None, outputs: object, samples: int) -> Tensor:
    """The logits that a map is of, ``[samples, classes]``: means over the positions; of numbers some ``columns``."""
    logits = evaluator.logits(outputs, samples)
    logits = logits.mean(dim=1) if logits.ndim == 3 else logits
    return logits if columns is None else logits.index_select(1, columns.to(logits.device))


def read_layers(
    evaluator: Evaluator,
    config: Config,
    distributions: bool = True,
    memory: RowMemory | None = None,
    companions: CompanionReader | None = None,
) -> Reading:
    """Run the network once, and reduce what passes to numbers; several processes share the layers, and all get all.

    Local fields whose rows differ from those of another run, in another order and company, are left out, and the rest
    is read anew. That other run is one of all samples where ``memory`` does not know the network, else of a few.
    """
    memory = memory or RowMemory()
    model, inputs = evaluator.model, evaluator.inputs
    found = survey(model, inputs)
    known = memory.recall(found.signature)
    verdict = known or Verdict()
    unread, other = set(found.mixed), None
    try:
        while True:
            checked = found.without(verdict.refused)
            choice = choose(model, checked, config.layers)
            reader = _LayerReader(evaluator, config, distributions, checked, choice, companions)
            if other is None:
                other = OtherRun(model, inputs, reader.everything, evaluator.batch_size, few=known is not None)
                evaluator.passed += len(other.rows.chosen)
            reading = reader.read(rows := Rows(other.rows.chosen, other.rows.unread))
            unread |= rows.unread.keys
            # The first process decides, so that all go on alike.
            differing = other.judge(rows, lambda work: evaluator.processes.gather(work)[0])
            new = differing.refused - verdict.refused
            if known is not None and not (new or differing.moved - known.moved):
                break
            verdict |= differing
            if known is not None:
                known, other = None, None  # a few samples do not show it all
            elif not new:
                break
        missing = choice.missing({layer.name for layer in reading.layers})
        if not reading.layers and not any(map(is_quantised, model.modules())):
            raise ValueError(
                f"None of the layers {missing} could be read: they ran on a few samples, but not in the run with "
                "gradients that shows how they are wired, or not on the whole probe."
            )
        # Those that are named as not read anyway need no second warning.
        warn_of_missing(model, [name for name in missing if checked.found.get(name) not in unread])
        memory.keep(found.signature, verdict)
        warn_of_company(verdict)
        reader.tell_of_other_positions()
        return reading
    finally:
        warn_of_unread(model, found, unread | verdict.refused)


class _LayerReader:
    """One reading. Of one batch, one layer's fields are kept at a time; of several, all layers' sampled units."""

    def __init__(
        self,
        evaluator: Evaluator,
        config: Config,
        distributions: bool,
        survey: Survey,
        choice: Choice,
        companions: CompanionReader | None,
    ) -> None:
        self.evaluator, self.config, self.companions = evaluator, config, companions
        self.modes, self.linear = "modes" in config.measure, "linear" in config.measure
        self.survey, self.choice = survey, choice
        self.parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.units: dict[str, int] = {}
        self.reports: dict[str, LayerReport] = {}
        self.classes = chosen_outputs(evaluator, config)
        self.part = slice(0, 0)  # the samples that run now
        self.chosen = self._chosen_rows()
        self.mode_reader = ModeReader(evaluator, config, self.classes, self.chosen, distributions)
        self.elsewhere: list[str] = []  # layers that do not have the labels' positions
        # A tail runs through all layers.
        self.everything = all_layers(self.survey, self.choice) if self.linear else self.choice
        self.map = substitute(
            evaluator.model,
            evaluator.inputs,
            self.everything,
            classes=self.classes,
            units=self._sampled,
            # Of many classes, and of all positions, the tail needs all rows, and is cheaper to run.
            through=self.linear and not self._runs_tails,
            batch_size=evaluator.batch_size,
            head=partial(mean_logits, evaluator, None),
            rows=self._map_rows,
        )
        self.own = set(list(self.map)[evaluator.processes.part(len(self.map))])
        self.tail = TailReader(self.map)

    def read(self, rows: Rows) -> Reading:
        """Run the network and reduce its layers; ``rows`` takes what is to be compared with another run."""
        evaluator = self.evaluator
        answers, tallies, logits = [], [], []
        if self.companions is not None:
            self.companions.begin()
        for part in blocks(evaluator.samples, evaluator.batch_size):
            self.part = part
            inputs, target = evaluator.batch(part)
            samples = torch.arange(part.start, part.stop)
            outputs, found = read(evaluator.model, inputs, self._add, self.everything, rows, samples, self._field_rows)
            evaluator.passed += len(target)
            answers.append(apply_criterion(evaluator.criterion, outputs, target))
            tallies.append(tally(evaluator, outputs, found, target))
            if self.linear:
                logits.append(self._tail_logits(found, len(target)))
        right = torch.cat(answers)
        share, loss = summed_up(evaluator, tallies)
        tails = self.tail.tails()
        judged = self._run_tails(torch.cat(logits)) if self.linear else {}
        # Logits may be rounded differently on other devices. The first process decides, so that all go on alike.
        if evaluator.processes.size > 1:
            right = evaluator.processes.gather(right.cpu)[0].to(right.device)
        defects = self.map.affine_defect
        warn_of_defects({name: defect for name, defect in defects.items() if self.choice.wants(name)})
        if not self.modes:
            own = {name: LayerReport(name, units, 0, affine_defect=defects[name]) for name, units in self.units.items()}
            self.reports |= own
        # Every process has seen all layers, and reduced its part of them.
        parts = evaluator.processes.gather(lambda: (self.reports, {n: p.cpu() for n, p in tails.parts.items()}))
        self.reports = {name: report for reports, _ in parts for name, report in reports.items()}
        tails.parts = {name: part for _, own_parts in parts for name, part in own_parts.items()}
        if self.linear:
            true = torch.cat(logits).cpu()
            judged = {name: self._judged(linear, true) for name, linear in tails.logits(true)} | judged
            for name in judged.keys() & self.reports.keys():
                self.reports[name] = replace(self.reports[name], **judged[name])
        if evaluator.positions is not None and self.modes:
            self.elsewhere = [name for name in self.map if name in self.reports and not self.reports[name].sampled]
        unreached = self.map.unreached | dict.fromkeys(self.elsewhere, "elsewhere")
        layers = tuple(
            replace(self.reports[name], unreached=unreached.get(name, "")) for name in self.map if name in self.reports
        )
        whole = {name: own for name, own in self.map.items() if own.shape[1] < self.config.max_units}
        known = self.classes is None and evaluator.positions is None
        return Reading(layers, right, self.survey, share, loss, whole if known else {})

    @property
    def _runs_tails(self) -> bool:
        """Whether every tail is run: where accuracy needs the logits of more classes than maps have, or positions."""
        return self.evaluator.positions is not None or (self.evaluator.labelled and self.classes is not None)

    def _chosen_rows(self) -> Tensor | None:
        """What the modes are of: bool ``[samples]`` or ``[samples, positions]``; None for all samples.

        Entries without a label are left out, and of more positions than ``POSITIONS`` a seeded choice is taken.
        """
        evaluator = self.evaluator
        if evaluator.multilabel:
            known = (evaluator.target >= 0).all(dim=1)
            return None if bool(known.all()) else known
        if evaluator.positions is None:
            return None
        chosen = evaluator.target >= 0
        places = chosen.flatten().nonzero()[:, 0]
        if len(places) > POSITIONS:
            generator = torch.Generator().manual_seed(self.config.seed)
            left_out = torch.randperm(len(places), generator=generator)[POSITIONS:].to(places.device)
            chosen = chosen.flatten().index_fill(0, places[left_out], False).reshape(chosen.shape)
        return chosen

    def _field_rows(self, axis: SampleAxis, value: Tensor) -> Tensor:
        """A field ``[samples, units]``, or ``[samples, positions, units]`` where it has the labels' positions."""
        found = None
        if self.evaluator.positions is not None:
            found = self.evaluator.positions.units(axis.samples_first(value))
        return axis.rows(value) if found is None else found

    def _map_rows(self, axis: SampleAxis, value: Tensor) -> Tensor:
        """A gradient ``[samples, units]``: the mean over the labels' positions where it has them."""
        rows = self._field_rows(axis, value)
        return rows.mean(dim=1) if rows.ndim == 3 else rows

    def tell_of_other_positions(self) -> None:
        """Warn once of the layers that have no modes."""
        if self.elsewhere and self.evaluator.positions is not None:
            checks.warn(
                f"The layers {self.elsewhere} have no modes: their fields do not have the positions of the labels, "
                f"{list(self.evaluator.positions.shape)}."
            )

    def _add(self, name: str, fields: Tensor, outputs: Tensor) -> None:
        if name not in self.own:
            return
        if self.linear and not self._runs_tails:
            self.tail.add(name, fields, outputs)
        if not self.choice.wants(name):
            return
        if self.companions is not None:
            self.companions.see(name, fields)
        if self.units.setdefault(name, fields.shape[-1]) != fields.shape[-1]:
            raise ValueError(
                f"Layer {name!r} has {self.units[name]} units in one batch and {fields.shape[-1]} in another: the "
                "network cuts each batch to its longest sample. Pad all samples alike, or leave `batch_size` None."
            )
        if not self.modes:
            return
        if self.evaluator.positions is not None and fields.ndim == 2:
            self.reports[name] = LayerReport(name, self.units[name], 0, affine_defect=self.map.affine_defect[name])
            return
        if self.chosen is not None:
            chosen = self.chosen[self.part].to(fields.device)
            fields, outputs = fields[chosen], outputs[chosen]
        if fields.shape[1] > self.config.max_units:
            index = self._sampled(fields.shape[1]).to(fields.device)
            fields, outputs = fields.index_select(1, index), outputs.index_select(1, index)
        if len(fields) == self.mode_reader.rows:
            self.reports[name] = self._report(name, fields, outputs)
            return
        parts = self.parts.setdefault(name, [])
        # Copies, because the network may overwrite these tensors.
        parts.append((fields.clone(), outputs.clone()))
        if sum(len(part) for part, _ in parts) == self.mode_reader.rows:
            self.reports[name] = self._report(name, *(torch.cat(pieces) for pieces in zip(*parts, strict=True)))
            del self.parts[name]

    def _sampled(self, units: int) -> Tensor:
        """The units to measure: all, or a seeded choice, the same at every call."""
        if units <= self.config.max_units:
            return torch.arange(units)
        generator = torch.Generator().manual_seed(self.config.seed)
        return torch.randperm(units, generator=generator)[: self.config.max_units].sort().values

    def _report(self, name: str, fields: Tensor, outputs: Tensor) -> LayerReport:
        """The numbers of a layer's sampled units."""
        found = self.mode_reader.read(fields, outputs, self.map[name])
        return LayerReport(name, self.units[name], affine_defect=self.map.affine_defect[name], **found)

    def _tail_logits(self, outputs: object, samples: int) -> Tensor:
        """The logits that tails are compared by: all of them, or those of the chosen numbers to be predicted.

        With positions those of the chosen classes, and then the predicted class: all logits of all positions may be
        too many to be kept.
        """
        logits, criterion = self.evaluator.logits(outputs, samples), self.evaluator.criterion
        if isinstance(criterion, RightPositions):
            predicted = criterion.predicted(logits)[..., None]
            return torch.cat([self.mode_reader.of_chosen(logits).float(), predicted], dim=2)
        return logits if self.evaluator.labelled else self.mode_reader.of_chosen(logits)

    def _run_tails(self, true: Tensor) -> dict[str, dict[str, Any]]:
        """The numbers of the tails that must be run, by layer name; several processes share the layers."""
        evaluator, order = self.evaluator, list(self.map)
        to_run = set(order) if self._runs_tails else layers_to_run(self.survey, self.map)
        names = [name for name in order if name in to_run and self.choice.wants(name)]
        own = names if evaluator.processes.lockstep else names[evaluator.processes.part(len(names))]

        def work() -> dict[str, dict[str, Any]]:
            options = (self.survey, order, own, evaluator.batch_size, self._tail_logits)
            # Each is judged at once, since the logits of all positions may be large.
            found = run_tails(evaluator.model, evaluator.inputs, *options)
            return {name: self._judged(linear.cpu(), true.cpu()) for name, linear in found}

        return {name: numbers for found in evaluator.processes.gather(work) for name, numbers in found.items()}

    def _judged(self, linear: Tensor, true: Tensor) -> dict[str, Any]:
        """Accuracy and linear share of a tail, computed on the host, from its logits and the network's."""
        evaluator, target = self.evaluator, self.evaluator.target.cpu()
        z, z_linear, judge = true, linear, evaluator.right_logits
        if evaluator.positions is not None:
            z, z_linear = (value[target >= 0][:, :-1] for value in (true, linear))
            judge = _share_predicted
        found = {"linear_share": squared_correlation(z, z_linear, centre=self.mode_reader.exclusive)}
        if evaluator.labelled:
            right, before = (judge(value, target).double() for value in (linear, true))
            found["tail_accuracy"] = mean_of(right, evaluator.weight)
            found["tail_change"] = mean_of(right - before, evaluator.weight)
            error, _ = clustered_error(right - before, evaluator.contents.clusters, evaluator.weight)
            found["tail_error"] = error
        return found


def _share_predicted(logits: Tensor, target: Tensor) -> Tensor:
    """Share of right positions where the last column holds the predicted class."""
    return share_right(logits[..., -1] == target, target)


def logits_of(evaluator: Evaluator, outputs: object) -> object:
    """Outputs that are probabilities, as logits; all others as they are. A traced run finds the logits themselves."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        return outputs
    if evaluator.criterion is right_probability:
        return outputs.float().logit(eps=torch.finfo(torch.float32).eps)
    if outputs.ndim != 2:
        return outputs
    known = outputs[outputs.isfinite().all(dim=1)].float()
    distributions = bool(((known >= 0).all(dim=1) & ((known.sum(dim=1) - 1).abs() < 1e-3)).all())
    return outputs.clamp(min=torch.finfo(outputs.dtype).tiny).log() if distributions else outputs


def tally(evaluator: Evaluator, outputs: object, logits: object, target: Tensor) -> Tensor:
    """Of each sample of a batch whether outputs are not finite, cross-entropy, and outputs' extremes ``[4, samples]``.

    Outputs that are no tensor count as finite; the entropies are NaN unless there is one logit per class, or one for
    two classes; the extremes NaN unless labels are predicted by the outputs' signs.
    """
    classes = evaluator.num_classes
    device = outputs.device if isinstance(outputs, Tensor) else target.device
    unknown = torch.full((len(target),), math.nan, device=device)
    if not isinstance(outputs, Tensor) or not isinstance(logits, Tensor):
        return torch.stack([torch.zeros_like(unknown), unknown, unknown, unknown])
    ends = [unknown, unknown]
    if _by_sign(evaluator, outputs):
        flat = outputs.detach().reshape(len(outputs), -1).float()
        ends = [flat.amin(dim=1), flat.amax(dim=1)]
    lost = (~outputs.isfinite()).reshape(len(outputs), -1).any(dim=1).float()
    logits = logits.detach().reshape(len(target), -1)
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    if classes < 2 or logits.shape[1] != classes or not logits.is_floating_point():
        return torch.stack([lost, unknown, *ends])
    entropies = nn.functional.cross_entropy(logits.float(), target.to(logits.device), reduction="none")
    return torch.stack([lost, entropies, *ends])


def _by_sign(evaluator: Evaluator, outputs: Tensor) -> bool:
    """Whether labels are predicted by the signs of single logits."""
    criterion = evaluator.criterion
    if isinstance(criterion, RightPositions):
        return criterion.limit == 0 and tuple(outputs.shape[1:]) == criterion.positions.shape
    if isinstance(criterion, RightLabels):
        return criterion.limit == 0
    return criterion is right_class and outputs[:1].numel() == 1


def summed_up(evaluator: Evaluator, tallies: Sequence[Tensor]) -> tuple[float, float]:
    """The share of samples with finite outputs, of which it warns, and the mean cross-entropy.

    Samples that hold NaN themselves say nothing of the network, and are left out; both are NaN if all do.
    """
    index, found = usable(evaluator.inputs), torch.cat(list(tallies), dim=1)
    found = found if index is None else found[:, index.to(found.device)]
    if not found.shape[1]:
        return math.nan, math.nan
    means = found[:2].to(statistic_dtype(found.device)).mean(dim=1)
    share, loss, least, most = torch.cat([means, found[2].amin()[None], found[3].amax()[None]]).tolist()
    if share > 0:
        checks.warn(
            f"The network outputs NaN or inf for {round(share * found.shape[1])} of {found.shape[1]} samples, which "
            "count as wrong and are left out of the modes of layers whose local fields are not finite for them."
        )
    # Probabilities of a network that has learnt something; the logits of an untrained one are hardly so far apart.
    if 0 <= least < 0.25 and 0.75 < most <= 1:
        checks.warn(
            "All outputs lie between 0 and 1, but are read as logits: the label is 1 wherever they are above 0. If "
            "they are probabilities, return the logits, or pass `criterion=`, for instance `lambda outputs, target: "
            "(outputs.flatten() > 0.5) == target`."
        )
    return 1 - share, loss
