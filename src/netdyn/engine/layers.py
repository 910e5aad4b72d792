"""Read a network's layers on one probe: modes, ranks and linear tails, each layer reduced to numbers as it passes.

With the probe in one batch only one layer's fields are alive at a time; in several batches the sampled units of every
layer are kept until the last batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from netdyn._utils import checks
from netdyn._utils.transit import sent
from netdyn._utils.trees import blocks
from netdyn.engine.config import Settings
from netdyn.functional import warn_of_defects
from netdyn.linear.substitution import LinearMap, substitute
from netdyn.linear.tails import TailReader, Tails, must_run, run_tails, share, whole_choice
from netdyn.modes.order import mode_shares, order_alignment, order_index
from netdyn.modes.ranks import (
    centre_pathway,
    class_sizes,
    correlation_from_ranks,
    densities,
    doubled_midranks,
    rank_counts,
    tuning_from_ranks,
)
from netdyn.modes.sorting import holds_nan, ranks_from, sort_rows, unit_blocks, unit_rows
from netdyn.modes.transfer import kept_order
from netdyn.probes.criteria import as_logits, checked, right_class
from netdyn.probes.evaluator import Walk
from netdyn.tracing.survey import Choice, Survey, choose, read

#: Bins of a layer's rank probability distribution.
BINS = 20


@dataclass(frozen=True)
class LayerReport:
    """What was measured of one layer; NaN where it was not, or nothing can be said.

    Attributes:
        name: The layer's name.
        units: Number of its units, of which ``sampled`` were measured.
        sampled: Number of units measured.
        opt_fraction: Share of order-preserving units among wired, live ones.
        npt_fraction: Share of the others among wired, live ones.
        constant_fraction: Share of units with a constant local field.
        unwired_fraction: Share of units without any pathway to the logits.
        rpd_gradient: Slope of the rank probability distribution.
        transfer_order: Share of pairs of samples whose order the activation keeps, mean over units.
        affine_defect: How much of the pathway depends on the sample.
        tail_accuracy: Accuracy when every activation from this layer upward is the identity.
        linear_share: Squared correlation of the logits with those of that linear tail.
        rule: The rule that told OPT from NPT: ``"sign-flip"``, ``"mirror"`` or ``"none"``.
        order_index: Per measured unit ``[sampled]``.
        alignment: Per measured unit ``[sampled]``.
        distribution: The layer's rank probability distribution ``[bins]``, mean over classes; None if not asked for.
    """

    name: str
    units: int
    sampled: int
    opt_fraction: float = math.nan
    npt_fraction: float = math.nan
    constant_fraction: float = math.nan
    unwired_fraction: float = math.nan
    rpd_gradient: float = math.nan
    transfer_order: float = math.nan
    affine_defect: float = math.nan
    tail_accuracy: float = math.nan
    linear_share: float = math.nan
    rule: str = "none"
    order_index: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)
    alignment: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)
    distribution: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Ordered:
    """What one sort of a layer's sampled units tells, on the network's device.

    Attributes:
        tuning: ``[classes, units]``, NaN for units that hold NaN.
        constant: Which units are constant ``[units]``.
        transfer: Transfer order ``[units]``.
        counts: Ranks in bins ``[classes, bins]``, see :func:`netdyn.modes.ranks.rank_counts`; None if not asked for.
    """

    tuning: Tensor
    constant: Tensor
    transfer: Tensor
    counts: Tensor | None


class LayerReader:
    """Reads the layers of a walk's network; on several processes each reduces its part of them, and all get all."""

    def __init__(self, walk: Walk, settings: Settings, survey: Survey) -> None:
        self.walk, self.settings = walk, settings
        self.modes, self.linear = "modes" in settings.measure, "linear" in settings.measure
        self.survey, self.choice = survey, choose(walk.model, survey, settings.layers)
        self.tails: Tails
        self.map = LinearMap({})
        self.own: set[str] = set()
        self.parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.units: dict[str, int] = {}
        self.ordered: dict[str, _Ordered] = {}
        self.reports: dict[str, LayerReport] = {}
        self.tail = TailReader(self.map)
        self.classes = self._classes()
        self.sizes = class_sizes(walk.labels, walk.num_classes)
        self.number_ranks = torch.zeros(0, 0) if walk.numbers is None else doubled_midranks(walk.numbers)

    def read(self) -> Tensor:
        """Run the network and sort what passes; which samples are right, bool ``[samples]``.

        All stays on the network's device: nothing is read before :meth:`told` asks for it.
        """
        walk = self.walk
        everything = self._map()
        right = torch.empty(walk.samples, dtype=torch.bool, device=walk.target.device)
        self.lost = torch.zeros((), dtype=torch.int64, device=right.device)
        logits = []
        for part in blocks(walk.samples, walk.batch_size):
            inputs, target = walk.batch(part)
            outputs, found = read(walk.model, inputs, self._add, everything)
            walk.passed += len(target)
            right[part] = checked(walk.criterion, outputs, target)
            if self.linear:
                logits.append(as_logits(found, len(target)))
            self.lost += nonfinite(outputs).to(right.device)
        self.tails = self.tail.tails()
        self.tail.parts.clear()
        if self.linear:
            self.logits = torch.cat(logits)
            self.tails.exact = self._run_tails()
        # A logit rounded otherwise on another device must not let processes take different ways: the first one decides.
        return right if walk.crew.size == 1 else walk.crew.share(right.cpu)[0].to(right.device)

    def told(self) -> list[LayerReport]:
        """The layers' reports, worked out on the host."""
        walk, tails = self.walk, self.tails
        defects = self.map.affine_defect
        warn_of_defects({name: defect for name, defect in defects.items() if self.choice.wants(name)})
        for name, units in self.units.items():
            if name in self.ordered:
                self.reports[name] = self._told(name, self.ordered[name])
            elif not self.modes:
                self.reports[name] = LayerReport(name, units, 0, affine_defect=defects[name])
        # Every process has seen all fields, and reduced those of its part of the layers.
        parts = walk.crew.share(lambda: (self.reports, {n: p.cpu() for n, p in tails.parts.items()}))
        self.reports = {name: report for reports, _ in parts for name, report in reports.items()}
        tails.parts = {name: part for _, own in parts for name, part in own.items()}
        if self.linear:
            self._judge_tails(tails, self.logits.cpu())
            del self.logits
        del self.tails
        return [self.reports[n] for n in self.map if n in self.reports]

    def whole_pathway(self, name: str) -> Tensor | None:
        """A layer's map, if all its classes and units are known."""
        pathway = self.map.pathways.get(name)
        whole = self.classes is None and pathway is not None and pathway.shape[1] < self.settings.max_units
        return pathway if whole else None

    def _map(self) -> Choice:
        """Find the layers' maps; what is to be read: a tail runs through all of them."""
        walk = self.walk
        everything = whole_choice(self.survey, self.choice) if self.linear else self.choice
        # Of many classes the tail needs all rows, and is cheaper to run.
        through = self.linear and self.classes is None
        self.map = substitute(
            walk.model, walk.inputs, everything, classes=self.classes, units=self._sampled, through=through
        )
        self.own = set(list(self.map)[walk.crew.part(len(self.map))])
        self.tail = TailReader(self.map)
        return everything

    def _classes(self) -> Tensor | None:
        """Of more classes than ``max_classes`` a seeded choice of those present, to stand for all."""
        walk, most = self.walk, self.settings.max_classes
        if walk.num_classes <= most:
            return None
        present = torch.unique(walk.known_labels)
        generator = torch.Generator().manual_seed(self.settings.seed)
        chosen: Tensor = present[torch.randperm(len(present), generator=generator)[:most]].sort().values
        return chosen

    def _add(self, name: str, fields: Tensor, outputs: Tensor) -> None:
        if name not in self.own:
            return
        if self.linear:
            self.tail.add(name, fields, outputs)
        if not self.choice.wants(name):
            return
        if self.units.setdefault(name, fields.shape[1]) != fields.shape[1]:
            raise ValueError(
                f"Layer {name!r} has {self.units[name]} units in one batch and {fields.shape[1]} in another: a network "
                "that cuts its batches to their longest sample. Pad all samples alike, or leave `batch_size` None."
            )
        if not self.modes:
            return
        if fields.shape[1] > self.settings.max_units:
            index = sent(self._sampled(fields.shape[1]), fields.device)
            fields, outputs = fields.index_select(1, index), outputs.index_select(1, index)
        if len(fields) == self.walk.samples:
            self.ordered[name] = self._in_order(name, fields, outputs)
            return
        parts = self.parts.setdefault(name, [])
        # Copies, since the network may write over what it has handed over.
        parts.append((fields.clone(), outputs.clone()))
        if sum(len(part) for part, _ in parts) == self.walk.samples:
            self.ordered[name] = self._in_order(name, *(torch.cat(pieces) for pieces in zip(*parts, strict=True)))
            del self.parts[name]

    def _sampled(self, units: int) -> Tensor:
        """The units to measure: all, or a seeded choice that is the same at every call."""
        if units <= self.settings.max_units:
            return torch.arange(units)
        generator = torch.Generator().manual_seed(self.settings.seed)
        return torch.randperm(units, generator=generator)[: self.settings.max_units].sort().values

    def _in_order(self, name: str, fields: Tensor, outputs: Tensor) -> _Ordered:
        """What the order of the samples tells of a layer's sampled units; all of it stays on the device."""
        walk = self.walk
        rows, out = unit_rows(fields), unit_rows(outputs)
        sign = self._sign(self.map[name]) if self.settings.distributions and walk.num_classes > 1 else None
        counts = None if sign is None else torch.zeros(len(sign), BINS, dtype=torch.int64, device=rows.device)
        found = []
        # What costs is the sort: all that asks for order is served from it, while its result is in the cache.
        for part in unit_blocks(rows):
            order, differs = sort_rows(rows[part])
            ranks, unread = ranks_from(order, differs), holds_nan(rows[part])
            constant = ~(differs.any(dim=1) | unread)
            found.append((self._tuning(ranks, unread), constant, kept_order(rows[part], out[part], order, differs)))
            if sign is not None and counts is not None:
                counts += rank_counts(ranks, walk.labels, sign[:, part] * ~(constant | unread), BINS)
        tuning, constant, transfer = (torch.cat(pieces, dim=-1) for pieces in zip(*found, strict=True))
        return _Ordered(tuning, constant, transfer, counts)

    def _tuning(self, ranks: Tensor, unread: Tensor) -> Tensor:
        """Tuning to classes, or to the numbers to be predicted."""
        if self.walk.num_classes < 2:
            tuning = correlation_from_ranks(ranks, self.number_ranks)
        else:
            tuning = tuning_from_ranks(ranks, self.walk.labels, self.sizes)
            tuning = tuning if self.classes is None else tuning.index_select(0, sent(self.classes, tuning.device))
        return tuning.masked_fill(unread, torch.nan)

    def _sign(self, pathway: Tensor) -> Tensor:
        """How the units are wired to all classes; those that are not among the chosen ones are wired to nothing."""
        rows = centre_pathway(pathway, self.walk.num_classes).sign()
        if self.classes is None:
            return rows
        whole = rows.new_zeros(self.walk.num_classes, rows.shape[1])
        return whole.index_copy_(0, sent(self.classes, rows.device), rows)

    def _told(self, name: str, ordered: _Ordered) -> LayerReport:
        """The numbers of a layer, worked out on the host."""
        walk = self.walk
        classes = walk.num_classes > 1
        tuning, constant, pathway = ordered.tuning.cpu(), ordered.constant.cpu(), self.map[name].cpu()
        class_share = None
        if classes:
            sizes = class_sizes(walk.known_labels, walk.num_classes)
            sizes = sizes if self.classes is None else sizes[self.classes]
            class_share = sizes.double() / walk.samples
        # A number added to all logits changes no prediction; one added to all predicted numbers changes all.
        options = {"centre": classes}
        shares = mode_shares(
            tuning, pathway, constant, class_share, self.settings.alpha, fewest=2 if classes else 1, **options
        )
        return LayerReport(
            name=name,
            units=self.units[name],
            sampled=len(constant),
            opt_fraction=shares.opt_fraction,
            npt_fraction=shares.npt_fraction,
            constant_fraction=shares.constant_fraction,
            unwired_fraction=shares.unwired_fraction,
            rpd_gradient=shares.rpd_gradient,
            transfer_order=float(ordered.transfer.nanmean()),
            affine_defect=self.map.affine_defect[name],
            rule=shares.rule,
            order_index=order_index(tuning, pathway, **options),
            alignment=order_alignment(tuning, pathway, **options),
            distribution=None if ordered.counts is None else densities(ordered.counts.cpu()).nanmean(dim=0),
        )

    def _run_tails(self) -> dict[str, Tensor]:
        """Logits of the tails that must be run; all processes' on the host, this one's alone on its device."""
        walk, order = self.walk, list(self.map)
        pooled = set(order) if self.classes is not None else must_run(self.survey, self.map)
        names = [name for name in order if name in pooled and self.choice.wants(name)]
        own = names if walk.crew.lockstep else names[walk.crew.part(len(names))]

        def work() -> dict[str, Tensor]:
            found = run_tails(walk.model, walk.inputs, self.survey, order, own, walk.batch_size)
            return found if walk.crew.size == 1 else {name: value.cpu() for name, value in found.items()}

        return {name: value for found in walk.crew.share(work) for name, value in found.items()}

    def _judge_tails(self, tails: Tails, logits: Tensor) -> None:
        """Accuracy and linear share of every layer's tail, worked out on the host."""
        walk = self.walk
        tails.exact = {name: value.cpu() for name, value in tails.exact.items()}
        for name, linear in tails.logits(logits).items():
            if name in self.reports:
                self.reports[name] = replace(
                    self.reports[name],
                    tail_accuracy=self._accuracy(linear),
                    linear_share=share(logits, linear, centre=walk.num_classes > 1),
                )

    def _accuracy(self, logits: Tensor) -> float:
        """Accuracy of some logits; NaN where there are no classes."""
        if self.walk.num_classes < 2:
            return math.nan
        return float(right_class(logits, self.walk.known_labels).double().mean())


def nonfinite(outputs: object) -> Tensor:
    """Number of samples whose outputs are not finite, on their device; 0 where the outputs are no tensor."""
    if not isinstance(outputs, Tensor):
        return torch.zeros((), dtype=torch.int64)
    return (~outputs.isfinite()).reshape(len(outputs), -1).any(dim=1).sum()


def warn_of_nonfinite(lost: int, samples: int) -> None:
    """Say how many samples' outputs are not finite."""
    if lost:
        checks.warn(
            f"The network puts out NaN or inf for {lost} of {samples} samples, which count as wrong; units whose local "
            "fields hold NaN are left out of the modes."
        )
