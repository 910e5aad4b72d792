"""torchmetrics :class:`~torchmetrics.Metric` classes of a layer's modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from netdyn._utils import checks
from netdyn._utils.random import digests
from netdyn.metrics.base import StateMetric
from netdyn.modes.order import order_alignment, order_index
from netdyn.modes.ranks import class_tuning, constant_units, finite_samples, rank_distribution, rows_fit
from netdyn.modes.shares import mode_shares


class _FieldMetric(StateMetric):
    """Keeps the local fields of one layer, their targets and the layer's pathway."""

    higher_is_better = None
    if TYPE_CHECKING:  # TorchScript reads annotations of classes, and does not know these
        fields: list[Tensor]
        target: list[Tensor]
        pathway: list[Tensor]
        units_seen: Tensor
        rows_seen: Tensor

    def __init__(self, num_classes: int, *, max_samples: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = checks.whole("num_classes", num_classes)
        self.max_samples = None if max_samples is None else checks.whole("max_samples", max_samples)
        for name in ("fields", "target", "pathway"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        for name in ("units_seen", "rows_seen"):
            self.add_state(name, default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, fields: Tensor, target: Tensor, pathway: Tensor) -> None:
        """Add samples.

        Args:
            fields: Local fields ``[samples, units]``.
            target: Class labels ``[samples]``.
            pathway: Linear substitution map ``[num_classes, units]`` (``[1, units]`` for a single logit).

        Raises:
            TypeError: If the labels are not whole numbers.
            ValueError: If shapes do not fit, or the pathway or the number of units changed since the first update.
        """
        fields, target, pathway = self._checked(fields, target, pathway)
        self.fields.append(fields.reshape(-1))
        self.target.append(target)
        self.pathway = [pathway.reshape(-1)]
        self.rows_seen = torch.full_like(self.rows_seen, len(pathway))
        self.units_seen = torch.full_like(self.units_seen, fields.shape[1])
        self._settle()

    @torch.jit.unused
    def forward(self, fields: Tensor, target: Tensor, pathway: Tensor) -> Any:
        """Update, and the value of this batch alone."""
        # A batch that does not fit must be refused before torchmetrics changes the states.
        self._checked(fields, target, pathway)
        return super().forward(fields, target, pathway)

    def _checked(self, fields: Tensor, target: Tensor, pathway: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fields = checks.matrix("fields", fields, "[samples, units]").to(self.device, torch.float64)
        pathway = checks.matrix("pathway", pathway, "[num_classes, units]").to(self.device, torch.float64)
        target = checks.class_labels(target, self.num_classes, len(fields)).to(self.device, torch.float64)
        checks.same_units("fields", fields, "pathway", pathway)
        rows_fit("pathway", pathway, self.num_classes)
        self._refuse_another([pathway.reshape(-1)])
        return fields, target, pathway

    def _refuse_another(self, pathways: Sequence[Tensor] | Tensor) -> None:
        if any(not torch.equal(other.to(self.device), own) for own in self.pathway for other in pathways):
            raise ValueError(
                "`pathway` must be the same in every update of one accumulation, got another one. "
                "Call `reset()` when the network has changed."
            )

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        self._refuse_another(incoming_state["pathway"])
        super()._reduce_states(incoming_state)

    def _settle(self) -> None:
        self.pathway = self.pathway[:1]
        if self.max_samples is not None and sum(map(len, self.target)) > self.max_samples:
            fields, target = self._samples()
            self.fields, self.target = [fields.reshape(-1)], [target.double()]

    def _samples(self) -> tuple[Tensor, Tensor]:
        """Fields ``[samples, units]`` and targets, at most ``max_samples``: those with the smallest content digests."""
        units = int(self.units_seen)
        if not units:
            return torch.zeros(0, 0, device=self.device), torch.zeros(0, dtype=torch.int64, device=self.device)
        fields, target = dim_zero_cat(self.fields).reshape(-1, units), dim_zero_cat(self.target).long()
        if self.max_samples is None or len(target) <= self.max_samples:
            return fields, target
        # Copies have the same digest, whichever others of them were left out before.
        kept = torch.argsort(digests([fields, target])[:, 0])[: self.max_samples]
        return fields[kept], target[kept]

    def _finite(self) -> tuple[Tensor, Tensor]:
        """Fields and targets of the samples whose fields are finite."""
        fields, target = self._samples()
        fields, kept = finite_samples(fields)
        return fields, target if kept is None else target[kept]

    def _pathway(self) -> Tensor:
        """The pathway ``[classes or 1, units]``, which all processes must share."""
        shape = int(self.rows_seen), int(self.units_seen)
        if not shape[1]:
            return torch.zeros(self.num_classes, 0, device=self.device)
        copies = dim_zero_cat(self.pathway).reshape(-1, *shape)
        if not bool((copies == copies[0]).all()):
            raise ValueError("`pathway` must be the same on every process, got different ones.")
        return copies[0]


class NeuronModes(_FieldMetric):
    """Shares of a layer's units that preserve the order of the samples (OPT), that do not (NPT), and of other units.

    See :func:`netdyn.functional.order_alignment` for the test behind OPT with five or more classes. With fewer, units
    with an order index below zero measure how many lie above by chance, and a fifth of the OPT units may be false.
    :attr:`rule` names the rule used. Samples whose fields are not finite are left out.

    :meth:`compute` gives a dict of scalars: ``opt_fraction`` and ``npt_fraction`` (of wired, live units, sum 1),
    ``constant_fraction`` and ``unwired_fraction`` (of all units), ``rpd_gradient``, ``order_z`` and ``opt_chance`` (see
    :func:`netdyn.functional.order_test`), ``positive_fraction`` and ``order_mean`` (share of positive order indices and
    their mean).

    Args:
        num_classes: Number of classes K.
        alpha: Share of OPT units that an untrained network may show by chance.
        max_samples: Keep at most this many samples (those with the smallest content digests). None: all, exact.
        kwargs: Options of :class:`torchmetrics.Metric`.

    Source:
        P1, order-preserving and non-order-preserving transformations; both rules are netdyn's conventions.

    Examples:
        >>> metric = NeuronModes(num_classes=2)
        >>> fields = torch.arange(8.0)[:, None] * torch.ones(20)
        >>> metric.update(fields, torch.arange(8) // 4, torch.tensor([[-1.0], [1.0]]) * torch.ones(20))
        >>> float(metric.compute()["opt_fraction"]), metric.rule
        (1.0, 'false-discovery')
    """

    def __init__(self, num_classes: int, *, alpha: float = 0.05, max_samples: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, max_samples=max_samples, **kwargs)
        self.alpha = checks.fraction("alpha", alpha)
        self.rule = "none"

    def compute(self) -> dict[str, Tensor]:
        """The shares and the gradient, float64 scalars; NaN where they are not defined."""
        fields, target = self._finite()
        share = torch.bincount(target, minlength=self.num_classes).double() / max(len(target), 1)
        tuning = class_tuning(fields, target, self.num_classes)
        found = vars(mode_shares(tuning, self._pathway(), constant_units(fields), share, self.alpha))
        self.rule = found.pop("rule")
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in found.items()}

    def units(self) -> dict[str, Tensor]:
        """``order_index [units]``, ``alignment [units]``, ``tuning [classes, units]``; all processes must call it."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            fields, target = self._finite()
            tuning, pathway = class_tuning(fields, target, self.num_classes), self._pathway()
        index, alignment = order_index(tuning, pathway), order_alignment(tuning, pathway)
        return {"order_index": index, "alignment": alignment, "tuning": tuning}


class RankDistribution(_FieldMetric):
    """Rank probability distribution of a layer, see :func:`netdyn.functional.rank_distribution`.

    Args:
        num_classes: Number of classes K.
        bins: Number of equal bins on [0, 1].
        max_samples: Keep at most this many samples (those with the smallest content digests). None: all, exact.
        kwargs: Options of :class:`torchmetrics.Metric`.

    Source:
        P1, rank probability distribution.

    Examples:
        >>> metric = RankDistribution(num_classes=2, bins=2)
        >>> metric.update(torch.arange(4.0)[:, None], torch.tensor([0, 0, 1, 1]), torch.tensor([[-1.0], [1.0]]))
        >>> metric.compute()
        tensor([[0., 2.],
                [0., 2.]], dtype=torch.float64)
    """

    def __init__(self, num_classes: int, *, bins: int = 20, max_samples: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, max_samples=max_samples, **kwargs)
        self.bins = checks.whole("bins", bins)

    def compute(self) -> Tensor:
        """Densities ``[classes, bins]``."""
        return rank_distribution(*self._finite(), self._pathway(), self.num_classes, self.bins)

    def plot(self, val: Tensor | None = None, ax: Any = None) -> Any:
        """Draw one curve per class."""
        from matplotlib.figure import Figure

        value = self.compute() if val is None else val
        axes = Figure().add_subplot() if ax is None else ax
        edges = torch.linspace(0, 1, value.shape[1] + 1)
        for k, density in enumerate(value):
            axes.stairs(density.tolist(), edges.tolist(), label=f"class {k}")
        axes.set_xlabel("normalised rank")
        axes.set_ylabel("density")
        axes.legend()
        return axes.figure, axes
