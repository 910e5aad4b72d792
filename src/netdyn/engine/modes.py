"""Reduce a layer's local fields and outputs to the numbers of its modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from netdyn.engine.config import Config
from netdyn.modes.order import Wiring
from netdyn.modes.ranks import (
    centre_pathway,
    correlation_from_ranks,
    densities,
    doubled_midranks,
    finite_samples,
    label_tuning_from_ranks,
    occurrences,
    rank_counts,
    tuning_from_ranks,
)
from netdyn.modes.shares import share_of, shares_of
from netdyn.modes.sorting import all_equal, holds_nan, ranks_from, sort_rows, unit_blocks, unit_rows
from netdyn.modes.transfer import kept_order
from netdyn.probes.evaluator import Evaluator

#: Bins of a layer's rank probability distribution.
BINS = 20
#: What a unit's local field does over the samples; one that is never finite is unread.
CONSTANT, VARIES, UNREAD = 0, 1, 2


@dataclass(frozen=True)
class _Targets:
    """What units are tuned to: the classes or labels, or the numbers to be predicted."""

    labels: Tensor  # [rows], with one number for all classes that were not chosen; or [rows, labels]
    sizes: Tensor  # how often each occurs
    number_ranks: Tensor | None  # doubled mid-ranks [outputs, rows]
    shares: Tensor | None  # share of the rows with each of the chosen classes or labels, on the host


class ModeReader:
    """The modes of layers on one probe, whose fields come as rows.

    Args:
        evaluator: The network and its probe.
        config: What to measure.
        classes: Chosen classes, or numbers to be predicted; None: all.
        chosen: Which samples, or positions of samples, are the rows; None: all samples.
        distributions: Also measure rank distributions.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        config: Config,
        classes: Tensor | None,
        chosen: Tensor | None,
        distributions: bool,
    ) -> None:
        self.evaluator, self.config, self.classes, self.distributions = evaluator, config, classes, distributions
        #: Whether a label belongs to one of several classes. A constant added to all logits then changes no prediction.
        self.exclusive = evaluator.num_classes > 1 or evaluator.positions is not None
        labels = evaluator.labels if evaluator.num_classes > 1 else evaluator.target
        labels = labels if chosen is None else labels[chosen]
        if evaluator.multilabel:
            labels = self.of_chosen(labels)
        elif classes is not None and evaluator.numbers is None:
            # Numbers of the chosen classes, and one for all others.
            places = torch.full((evaluator.answers,), len(classes))
            labels = places.index_copy_(0, classes, torch.arange(len(classes))).to(labels.device)[labels]
        self.labels, self.rows = labels, len(labels)
        self.targets = self._targets(slice(None))

    def read(self, fields: Tensor, outputs: Tensor, pathway: Tensor) -> dict[str, Any]:
        """The fields of a :class:`~netdyn.report.results.LayerReport` that belong to modes."""
        targets = self.targets
        fields, kept = finite_samples(fields)
        if kept is not None:
            outputs = outputs[kept]
            targets = self._targets(kept.to(self.labels.device))
        rows, out = unit_rows(fields), unit_rows(outputs)
        signs = self._signs(pathway)
        of_all = self._of_all_classes(signs) if self.distributions and self.exclusive else None
        counts = None if of_all is None else torch.zeros(len(of_all), BINS, dtype=torch.int64, device=rows.device)
        found = []
        # Sorting is the most expensive part: everything that depends on order uses one sort, while it is in the cache.
        for part in unit_blocks(rows):
            order, differs = sort_rows(rows[part])
            ranks = ranks_from(order, differs)
            tuning, steps = self._tuning(ranks, targets), differs.sum(dim=1)
            state = (steps > 0).to(torch.uint8)
            if kept is not None:
                # Of units that are finite for different samples none may be left for all of them.
                unread = holds_nan(rows[part]) | (rows.shape[1] == 0)
                tuning, state = tuning.masked_fill(unread, torch.nan), state.masked_fill(unread, UNREAD)
            same = all_equal(out[part])
            transfer = kept_order(rows[part], out[part], order, differs)
            found.append(torch.cat([tuning, state[None], same[None], transfer[None], steps[None]]))
            if of_all is not None and counts is not None:
                counts += rank_counts(ranks, targets.labels, of_all[:, part] * (state == VARIES), BINS)
        # One copy to the host for each layer: everything from here on is small.
        together = torch.cat([signs, torch.cat(found, dim=1)]).cpu()
        sizes = [len(signs), len(together) - len(signs) - 4, 4]
        signs, tuning, (state, same, transfer, steps) = torch.split(together, sizes)
        varies = state == VARIES
        wiring = Wiring.of(tuning, signs, centred=self.exclusive)
        shares = shares_of(wiring, state == CONSTANT, targets.shares, self.config.alpha)
        return vars(shares) | {
            "sampled": len(state),
            "left_out": self.rows - len(fields),
            "dead_fraction": share_of(same[varies] == 1),
            "transfer_order": float(transfer.nanmean()),
            "tied_fraction": 1 - float(steps[varies].mean()) / max(len(fields) - 1, 1),
            "order_index": wiring.index,
            "alignment": wiring.alignment,
            "distribution": None if counts is None else densities(counts.cpu()).nanmean(dim=0),
        }

    def of_chosen(self, columns: Tensor) -> Tensor:
        """Of ``[…, outputs]`` those that were chosen."""
        return columns if self.classes is None else columns.index_select(-1, self.classes.to(columns.device))

    def _targets(self, kept: Tensor | slice) -> _Targets:
        """The targets of some rows."""
        evaluator, labels, ranks = self.evaluator, self.labels[kept], None
        sizes = torch.zeros(0, dtype=torch.int64)
        if evaluator.numbers is not None:
            ranks = doubled_midranks(self.of_chosen(evaluator.numbers)[kept])
        elif evaluator.multilabel:
            sizes = labels.sum(dim=0)
        else:
            sizes = occurrences(labels, evaluator.answers if self.classes is None else len(self.classes) + 1)
        shares = sizes.cpu().double() / len(labels)
        shares = shares if self.classes is None else shares[: len(self.classes)]
        return _Targets(labels, sizes, ranks, shares if evaluator.labelled else None)

    def _tuning(self, ranks: Tensor, targets: _Targets) -> Tensor:
        """Tuning to the classes or labels, or to the numbers to be predicted."""
        if targets.number_ranks is not None:
            return correlation_from_ranks(ranks, targets.number_ranks)
        if self.evaluator.multilabel:
            return label_tuning_from_ranks(ranks, targets.labels)
        tuning = tuning_from_ranks(ranks, targets.labels, targets.sizes)
        return tuning if self.classes is None else tuning[: len(self.classes)]

    def _signs(self, pathway: Tensor) -> Tensor:
        """How the units are wired to the chosen classes, or to the numbers to be predicted: the pathway's signs."""
        classes = self.evaluator.answers if self.classes is None else len(self.classes)
        # A constant added to all logits changes no prediction; one added to all predicted numbers does.
        return centre_pathway(pathway, classes, self.exclusive).sign()

    def _of_all_classes(self, signs: Tensor) -> Tensor:
        """Signs of the wiring to all classes: units are not wired to those that were not chosen."""
        return signs if self.classes is None else torch.cat([signs, signs.new_zeros(1, signs.shape[1])])
