"""Read a network's layers on one probe: modes, ranks and linear tails, each layer reduced to numbers as it passes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from netdyn._utils import checks
from netdyn._utils.trees import blocks, finite
from netdyn.basins.interval import clustered_error
from netdyn.engine.config import Config
from netdyn.linear.substitution import substitute, warn_of_defects
from netdyn.linear.tails import TailReader, Tails, all_layers, layers_to_run, run_tails, squared_correlation
from netdyn.modes.order import Wiring, shares_of
from netdyn.modes.ranks import (
    centre_pathway,
    correlation_from_ranks,
    densities,
    doubled_midranks,
    occurrences,
    rank_counts,
    tuning_from_ranks,
)
from netdyn.modes.sorting import holds_nan, ranks_from, sort_rows, unit_blocks, unit_rows
from netdyn.modes.transfer import kept_order
from netdyn.probes.criteria import apply_criterion, as_logits, right_class
from netdyn.probes.evaluator import Evaluator
from netdyn.report.results import LayerReport
from netdyn.tracing.fields import Choice, OtherRun, choose, read, warn_of_company, warn_of_unread
from netdyn.tracing.rows import RowMemory, Rows, Verdict
from netdyn.tracing.survey import Survey, survey

#: Bins of a layer's rank probability distribution.
BINS = 20


@dataclass(frozen=True)
class Reading:
    """What one reading of a network's layers has found."""

    layers: tuple[LayerReport, ...]
    right: Tensor  # which samples are right, bool `[samples]`
    survey: Survey | None = None  # None where the layers were not read
    pathways: dict[str, Tensor] = field(default_factory=dict)  # where all are known: the map `[classes, units]`


def read_layers(
    evaluator: Evaluator, config: Config, distributions: bool = True, memory: RowMemory | None = None
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
            reader = _LayerReader(evaluator, config, distributions, checked, choice)
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
        memory.keep(found.signature, verdict)
        warn_of_company(verdict)
        return reading
    finally:
        warn_of_unread(model, found, unread | verdict.refused)


class _LayerReader:
    """One reading. Of one batch, one layer's fields are kept at a time; of several, all layers' sampled units."""

    def __init__(
        self, evaluator: Evaluator, config: Config, distributions: bool, survey: Survey, choice: Choice
    ) -> None:
        self.evaluator, self.config, self.distributions = evaluator, config, distributions
        self.modes, self.linear = "modes" in config.measure, "linear" in config.measure
        self.survey, self.choice = survey, choice
        self.parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.units: dict[str, int] = {}
        self.reports: dict[str, LayerReport] = {}
        self.labels = evaluator.labels.cpu()
        self.classes = self._classes()
        self.sizes = occurrences(evaluator.labels, evaluator.num_classes)
        self.number_ranks = torch.zeros(0, 0) if evaluator.numbers is None else doubled_midranks(evaluator.numbers)
        shares = self.sizes.cpu().double() / evaluator.samples
        shares = shares if self.classes is None else shares[self.classes]
        self.class_shares = shares if evaluator.num_classes > 1 else None
        # A tail runs through all layers.
        self.everything = all_layers(self.survey, self.choice) if self.linear else self.choice
        self.map = substitute(
            evaluator.model,
            evaluator.inputs,
            self.everything,
            classes=self.classes,
            units=self._sampled,
            # Of many classes the tail needs all rows, and is cheaper to run.
            through=self.linear and self.classes is None,
            batch_size=evaluator.batch_size,
        )
        self.own = set(list(self.map)[evaluator.processes.part(len(self.map))])
        self.tail = TailReader(self.map)

    def read(self, rows: Rows) -> Reading:
        """Run the network and reduce its layers; ``rows`` takes what is to be compared with another run."""
        evaluator = self.evaluator
        right = torch.empty(evaluator.samples, dtype=torch.bool, device=evaluator.target.device)
        lost, logits = 0, []
        for part in blocks(evaluator.samples, evaluator.batch_size):
            inputs, target = evaluator.batch(part)
            samples = torch.arange(part.start, part.stop)
            outputs, found = read(evaluator.model, inputs, self._add, self.everything, rows, samples)
            evaluator.passed += len(target)
            right[part] = apply_criterion(evaluator.criterion, outputs, target)
            lost += nonfinite(outputs)
            if self.linear:
                logits.append(as_logits(found, len(target)))
        warn_of_nonfinite(evaluator, lost)
        tails = self.tail.tails()
        if self.linear:
            tails.exact = self._run_tails()
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
            self._judge_tails(tails, torch.cat(logits).cpu())
        layers = tuple(self.reports[name] for name in self.map if name in self.reports)
        whole = {name: own for name, own in self.map.items() if own.shape[1] < self.config.max_units}
        return Reading(layers, right, self.survey, whole if self.classes is None else {})

    def _classes(self) -> Tensor | None:
        """Of more classes than ``max_classes`` a seeded choice of those present, to stand for all."""
        if self.evaluator.num_classes <= self.config.max_classes:
            return None
        present: Tensor = torch.unique(self.labels)
        generator = torch.Generator().manual_seed(self.config.seed)
        chosen = torch.randperm(len(present), generator=generator)[: self.config.max_classes].sort().values
        return present[chosen]

    def _add(self, name: str, fields: Tensor, outputs: Tensor) -> None:
        if name not in self.own:
            return
        if self.linear:
            self.tail.add(name, fields, outputs)
        if not self.choice.wants(name):
            return
        if self.units.setdefault(name, fields.shape[1]) != fields.shape[1]:
            raise ValueError(
                f"Layer {name!r} has {self.units[name]} units in one batch and {fields.shape[1]} in another: the "
                "network cuts each batch to its longest sample. Pad all samples alike, or leave `batch_size` None."
            )
        if not self.modes:
            return
        if fields.shape[1] > self.config.max_units:
            index = self._sampled(fields.shape[1]).to(fields.device)
            fields, outputs = fields.index_select(1, index), outputs.index_select(1, index)
        if len(fields) == self.evaluator.samples:
            self.reports[name] = self._reduced(name, fields, outputs)
            return
        parts = self.parts.setdefault(name, [])
        # Copies, because the network may overwrite these tensors.
        parts.append((fields.clone(), outputs.clone()))
        if sum(len(part) for part, _ in parts) == self.evaluator.samples:
            self.reports[name] = self._reduced(name, *(torch.cat(pieces) for pieces in zip(*parts, strict=True)))
            del self.parts[name]

    def _sampled(self, units: int) -> Tensor:
        """The units to measure: all, or a seeded choice, the same at every call."""
        if units <= self.config.max_units:
            return torch.arange(units)
        generator = torch.Generator().manual_seed(self.config.seed)
        return torch.randperm(units, generator=generator)[: self.config.max_units].sort().values

    def _reduced(self, name: str, fields: Tensor, outputs: Tensor) -> LayerReport:
        """The numbers of a layer's sampled units."""
        evaluator = self.evaluator
        classes = evaluator.num_classes > 1
        rows, out = unit_rows(fields), unit_rows(outputs)
        wired = self._wired(self.map[name])
        sign = self._of_all_classes(wired) if self.distributions and classes else None
        counts = None if sign is None else torch.zeros(len(sign), BINS, dtype=torch.int64, device=rows.device)
        found = []
        # Sorting is the most expensive part: everything that depends on order uses one sort, while it is in the cache.
        for part in unit_blocks(rows):
            order, differs = sort_rows(rows[part])
            ranks, unread = ranks_from(order, differs), holds_nan(rows[part])
            constant = ~(differs.any(dim=1) | unread)
            found.append((self._tuning(ranks, unread), constant, kept_order(rows[part], out[part], order, differs)))
            if sign is not None and counts is not None:
                counts += rank_counts(ranks, evaluator.labels, sign[:, part] * ~(constant | unread), BINS)
        tuning, constant, transfer = (torch.cat(pieces, dim=-1) for pieces in zip(*found, strict=True))
        # One copy to the host for each layer: everything from here on is small.
        together = torch.cat([tuning, wired, constant[None], transfer[None]]).cpu()
        tuning, wired, constant, transfer = torch.split(together, [len(tuning), len(wired), 1, 1])
        wiring, constant = Wiring.of(tuning, wired, centred=classes), constant[0].bool()
        shares = shares_of(wiring, constant, self.class_shares, self.config.alpha, fewest=2 if classes else 1)
        return LayerReport(
            name=name,
            units=self.units[name],
            sampled=len(constant),
            **vars(shares),
            transfer_order=float(transfer.nanmean()),
            affine_defect=self.map.affine_defect[name],
            order_index=wiring.index,
            alignment=wiring.alignment,
            distribution=None if counts is None else densities(counts.cpu()).nanmean(dim=0),
        )

    def _tuning(self, ranks: Tensor, unread: Tensor) -> Tensor:
        """Tuning to the classes, or to the numbers to be predicted."""
        if self.evaluator.num_classes < 2:
            tuning = correlation_from_ranks(ranks, self.number_ranks)
        else:
            tuning = tuning_from_ranks(ranks, self.evaluator.labels, self.sizes)
            tuning = tuning if self.classes is None else tuning.index_select(0, self.classes.to(tuning.device))
        return tuning.masked_fill(unread, torch.nan)

    def _wired(self, pathway: Tensor) -> Tensor:
        """How the units are wired to the chosen classes, or to the numbers to be predicted: the pathway's signs."""
        classes = self.evaluator.num_classes
        # A constant added to all logits changes no prediction; one added to all predicted numbers does.
        return centre_pathway(pathway, classes if self.classes is None else len(self.classes), classes > 1).sign()

    def _of_all_classes(self, sign: Tensor) -> Tensor:
        """Signs of the wiring to all classes: units are not wired to those that were not chosen."""
        if self.classes is None:
            return sign
        whole = sign.new_zeros(self.evaluator.num_classes, sign.shape[1])
        return whole.index_copy_(0, self.classes.to(sign.device), sign)

    def _run_tails(self) -> dict[str, Tensor]:
        """Logits of the tails that must be run; on the host if there are several processes."""
        evaluator, order = self.evaluator, list(self.map)
        pooled = set(order) if self.classes is not None else layers_to_run(self.survey, self.map)
        names = [name for name in order if name in pooled and self.choice.wants(name)]
        own = names if evaluator.processes.lockstep else names[evaluator.processes.part(len(names))]

        def work() -> dict[str, Tensor]:
            found = run_tails(evaluator.model, evaluator.inputs, self.survey, order, own, evaluator.batch_size)
            return found if evaluator.processes.size == 1 else {name: value.cpu() for name, value in found.items()}

        return {name: value for found in evaluator.processes.gather(work) for name, value in found.items()}

    def _judge_tails(self, tails: Tails, logits: Tensor) -> None:
        """Accuracy and linear share of every layer's tail, computed on the host."""
        evaluator = self.evaluator
        tails.exact = {name: value.cpu() for name, value in tails.exact.items()}
        classes = evaluator.num_classes > 1
        for name, linear in tails.logits(logits).items():
            if name in self.reports:
                share = squared_correlation(logits, linear, centre=classes)
                self.reports[name] = replace(self.reports[name], linear_share=share)
                if classes:
                    right = right_class(linear, self.labels).double()
                    change = right - right_class(logits, self.labels).double()
                    self.reports[name] = replace(
                        self.reports[name],
                        tail_accuracy=float(right.mean()),
                        tail_change=float(change.mean()),
                        tail_error=clustered_error(change, evaluator.contents.clusters)[0],
                    )


def nonfinite(outputs: object) -> int:
    """Number of samples whose outputs are not finite; 0 if the outputs are not a tensor."""
    if not isinstance(outputs, Tensor):
        return 0
    return int((~outputs.isfinite()).reshape(len(outputs), -1).any(dim=1).sum())


def warn_of_nonfinite(evaluator: Evaluator, lost: int) -> None:
    """Warn of samples whose outputs are not finite, unless there was a warning about the inputs already."""
    if lost and bool(finite(evaluator.inputs)):
        checks.warn(
            f"The network outputs NaN or inf for {lost} of {evaluator.samples} samples, which count as wrong; units "
            "whose local fields hold NaN are left out of the modes."
        )
