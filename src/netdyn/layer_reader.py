"""Read a network's layers on one probe: modes, ranks and linear tails, each layer reduced to numbers as it passes.

With the probe in one batch only one layer's fields are alive at a time; in several batches the sampled units of every
layer are kept until the last batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from netdyn import _checks
from netdyn.batches import blocks, finite
from netdyn.criteria import as_logits, checked, right_class
from netdyn.functional import warn_of_defects
from netdyn.linearize import LinearMap, substitute
from netdyn.modes import mode_shares, order_alignment, order_index, transfer_order
from netdyn.ranks import (
    centre_pathway,
    constant_units,
    doubled_midranks,
    histogram,
    rank_correlation,
    tuning_from_ranks,
)
from netdyn.settings import Settings
from netdyn.sites import Choice, Survey, choose, discover, read
from netdyn.tails import TailReader, Tails, must_run, run_tails, share, whole_choice
from netdyn.walk import Walk

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


class LayerReader:
    """Reads the layers of a walk's network; on several processes each reduces its part of them, and all get all."""

    def __init__(self, walk: Walk, settings: Settings) -> None:
        self.walk, self.settings = walk, settings
        self.modes, self.linear = "modes" in settings.measure, "linear" in settings.measure
        self.survey: Survey
        self.choice = Choice()
        self.map = LinearMap({}, {})
        self.own: set[str] = set()
        self.parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.units: dict[str, int] = {}
        self.reports: dict[str, LayerReport] = {}
        self.tail = TailReader(self.map)
        self.classes = self._classes()

    def read(self) -> tuple[list[LayerReport], Tensor]:
        """The layers' reports, and which samples are right."""
        walk = self.walk
        everything = self._map()
        right = torch.empty(walk.samples, dtype=torch.bool, device=walk.target.device)
        logits, lost = [], 0
        for part in blocks(walk.samples, walk.batch_size):
            inputs, target = walk.batch(part)
            outputs, found = read(walk.model, inputs, self._add, everything)
            walk.passed += len(target)
            right[part] = checked(walk.criterion, outputs, target)
            if self.linear:
                logits.append(as_logits(found, len(target)))
            lost += nonfinite(outputs)
        # Where the inputs are to blame, that has been said.
        warn_of_nonfinite(lost if finite(walk.inputs) else 0, walk.samples)
        # Every process has seen all fields, and reduced those of its part of the layers.
        tails = self.tail.tails()
        parts = walk.crew.share(lambda: (self.reports, right.cpu(), {n: p.cpu() for n, p in tails.parts.items()}))
        self.reports = {name: report for reports, _, _ in parts for name, report in reports.items()}
        tails.parts = {name: part.to(right.device) for _, _, own in parts for name, part in own.items()}
        if self.linear:
            self._judge_tails(tails, torch.cat(logits))
        # A logit rounded otherwise on another device must not let processes take different ways: the first one decides.
        return [self.reports[n] for n in self.map if n in self.reports], parts[0][1].to(right.device)

    def _map(self) -> Choice:
        """Find the layers and their maps; what is to be read: a tail runs through all of them."""
        walk, settings = self.walk, self.settings
        self.survey = discover(walk.model, walk.inputs)
        self.choice = choose(walk.model, self.survey, settings.layers)
        everything = whole_choice(self.survey, self.choice) if self.linear else self.choice
        # Of many classes the tail needs all rows, and is cheaper to run.
        through = self.linear and self.classes is None
        self.map = substitute(
            walk.model, walk.inputs, everything, classes=self.classes, units=self._sampled, through=through
        )
        wanted = {name: self.map.affine_defect[name] for name in self.map if self.choice.wants(name)}
        warn_of_defects(replace(self.map, affine_defect=wanted))
        self.own = set(list(self.map)[walk.crew.part(len(self.map))])
        self.tail = TailReader(self.map)
        return everything

    def _classes(self) -> Tensor | None:
        """Of more classes than ``max_classes`` a seeded choice of those present, to stand for all."""
        walk, most = self.walk, self.settings.max_classes
        if walk.num_classes <= most:
            return None
        present = torch.bincount(walk.labels, minlength=walk.num_classes).nonzero()[:, 0].cpu()
        generator = torch.Generator().manual_seed(self.settings.seed)
        return present[torch.randperm(len(present), generator=generator)[:most]].sort().values

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
            self.reports[name] = LayerReport(name, fields.shape[1], 0, affine_defect=self.map.affine_defect[name])
            return
        index = self._sampled(fields.shape[1]).to(fields.device)
        if len(fields) == self.walk.samples:
            self.reports[name] = self._reduce(name, fields[:, index], outputs[:, index])
            return
        parts = self.parts.setdefault(name, [])
        parts.append((fields[:, index], outputs[:, index]))
        if sum(len(part) for part, _ in parts) == self.walk.samples:
            self.reports[name] = self._reduce(name, *(torch.cat(pieces) for pieces in zip(*parts, strict=True)))
            del self.parts[name]

    def _sampled(self, units: int) -> Tensor:
        """The units to measure: all, or a seeded choice that is the same at every call."""
        if units <= self.settings.max_units:
            return torch.arange(units)
        generator = torch.Generator().manual_seed(self.settings.seed)
        return torch.randperm(units, generator=generator)[: self.settings.max_units].sort().values

    def _reduce(self, name: str, fields: Tensor, outputs: Tensor) -> LayerReport:
        """A layer's numbers from its sampled units."""
        walk, pathway, constant = self.walk, self.map[name], constant_units(fields)
        classes = walk.num_classes > 1
        class_share = None
        # Ranks are what costs: they serve the tuning and the distribution.
        ranks = doubled_midranks(fields)
        unread = fields.isnan().any(dim=0)
        if classes:
            tuning = tuning_from_ranks(ranks, walk.labels, walk.num_classes).masked_fill(unread, torch.nan)
            class_share = torch.bincount(walk.labels, minlength=walk.num_classes).double() / walk.samples
            if self.classes is not None:
                tuning, class_share = tuning[self.classes], class_share[self.classes]
        else:
            tuning = rank_correlation(fields, self._numbers())
        # A number added to all logits changes no prediction; one added to all predicted numbers changes all.
        options = {"centre": classes}
        shares = mode_shares(
            tuning, pathway, constant, class_share, self.settings.alpha, fewest=2 if classes else 1, **options
        )
        return LayerReport(
            name=name,
            units=self.units[name],
            sampled=fields.shape[1],
            opt_fraction=shares.opt_fraction,
            npt_fraction=shares.npt_fraction,
            constant_fraction=shares.constant_fraction,
            unwired_fraction=shares.unwired_fraction,
            rpd_gradient=shares.rpd_gradient,
            transfer_order=float(transfer_order(fields, outputs).nanmean()),
            affine_defect=self.map.affine_defect[name],
            rule=shares.rule,
            order_index=order_index(tuning, pathway, **options).cpu(),
            alignment=order_alignment(tuning, pathway, **options).cpu(),
            distribution=self._distribution(ranks, pathway, ~(constant | unread)),
        )

    def _numbers(self) -> Tensor:
        if self.walk.numbers is None:
            raise ValueError("there is nothing to compare local fields with")
        return self.walk.numbers

    def _distribution(self, ranks: Tensor, pathway: Tensor, usable: Tensor) -> Tensor | None:
        """The layer's rank probability distribution, mean over classes."""
        walk = self.walk
        if not self.settings.distributions or walk.num_classes < 2:
            return None
        rows = centre_pathway(pathway, walk.num_classes).sign() * usable
        sign = rows
        if self.classes is not None:
            # The other classes are wired to nothing.
            sign = rows.new_zeros(walk.num_classes, rows.shape[1])
            sign[self.classes] = rows
        return histogram(ranks, walk.labels, sign, BINS).nanmean(dim=0).cpu()

    def _judge_tails(self, tails: Tails, logits: Tensor) -> None:
        """Accuracy and linear share of every layer's tail."""
        walk = self.walk
        order = list(self.map)
        pooled = set(order) if self.classes is not None else must_run(self.survey, self.map)
        names = [name for name in order if name in pooled and self.choice.wants(name)]

        def work() -> dict[str, Tensor]:
            own = names if walk.crew.lockstep else names[walk.crew.part(len(names))]
            return run_tails(walk.model, walk.inputs, self.survey, order, own, walk.batch_size)

        for found in walk.crew.share(work):
            tails.exact |= {name: value.to(logits.device) for name, value in found.items()}
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
        return float(right_class(logits, self.walk.target).double().mean())


def nonfinite(outputs: object) -> int:
    """Number of samples whose outputs are not finite; 0 where the outputs are no tensor."""
    if not isinstance(outputs, Tensor):
        return 0
    return int((~outputs.isfinite()).reshape(len(outputs), -1).any(dim=1).sum())


def warn_of_nonfinite(lost: int, samples: int) -> None:
    """Say how many samples' outputs are not finite."""
    if lost:
        _checks.warn(
            f"The network puts out NaN or inf for {lost} of {samples} samples, which count as wrong; units whose local "
            "fields hold NaN are left out of the modes."
        )
