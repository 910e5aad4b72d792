"""torchmetrics :class:`~torchmetrics.Metric` classes: they hold states, the numbers come from below.

States are one-dimensional float64 lists (``cat``), fixed-shape maxima or sums, which also survive a process that saw
no data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from netdyn import _checks
from netdyn import rays as sample_rays
from netdyn.batches import Inputs, fingerprints
from netdyn.criteria import Criterion
from netdyn.functional import check_basin, prepare_walk
from netdyn.isolation import isolated
from netdyn.modes import mode_shares, order_alignment, order_index
from netdyn.radii import LOST_CLEAN, BasinResult
from netdyn.ranks import class_tuning, constant_units, rank_distribution, rows_fit
from netdyn.weight_rays import Trail, WeightNoise, class_counts, summarize_weights, warn_unmoved, weight_accuracy

_numbers = itertools.count()


def _number() -> Tensor:
    """A new number; a factor apart from the last, since a collection takes what differs by a part in 10⁵ for equal."""
    return torch.tensor(1.0001 ** next(_numbers), dtype=torch.float64)


class _StateMetric(Metric):
    """States stay in float64: neither labels nor ranks nor counts survive rounding to half precision."""

    full_state_update = False
    is_differentiable = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The type of the placeholder that torchmetrics gathers from a process without data.
        self._dtype = torch.float64
        # A collection takes metrics for one whose states are equal after an update: this one is told from all others.
        self.add_state("number", default=_number(), dist_reduce_fx="max")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is another metric, with a number of its own."""
        super().__setstate__(state)
        number = _number()
        self._defaults["number"] = number
        self.number = number.to(self.device)

    def set_dtype(self, dst_type: str | torch.dtype) -> Metric:
        """States keep their type, whatever ``dst_type`` is."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        device = fn(torch.empty(0, device=self.device)).device
        return super()._apply(lambda tensor: tensor.to(device), exclude_state)

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        super()._reduce_states(incoming_state)
        # merge_state leaves an old value in the cache, and a fresh metric without an update.
        self._computed = None
        self._update_count = max(self._update_count, 1)


class _FieldMetric(_StateMetric):
    """Keeps the local fields of one layer, their targets and the layer's pathway."""

    higher_is_better = None
    fields: list[Tensor]
    target: list[Tensor]
    pathway: list[Tensor]
    units_seen: Tensor
    rows_seen: Tensor

    def __init__(self, num_classes: int, *, max_samples: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = _checks.whole("num_classes", num_classes)
        self.max_samples = None if max_samples is None else _checks.whole("max_samples", max_samples)
        for name in ("fields", "target", "pathway"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        for name in ("units_seen", "rows_seen"):
            self.add_state(name, default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, fields: Tensor, target: Tensor, pathway: Tensor) -> None:
        """Add samples.

        Args:
            fields: Local fields ``[samples, units]``.
            target: Class labels ``[samples]``.
            pathway: Linear substitution map ``[num_classes, units]`` (``[1, units]`` for a single logit), the same in
                every update of one accumulation.

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

    def forward(self, fields: Tensor, target: Tensor, pathway: Tensor) -> Any:
        """Update, and the value of this batch alone."""
        # A batch that does not fit must be refused before torchmetrics takes the states apart.
        self._checked(fields, target, pathway)
        return super().forward(fields, target, pathway)

    def _checked(self, fields: Tensor, target: Tensor, pathway: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fields = _checks.matrix("fields", fields, "[samples, units]").to(self.device, torch.float64)
        pathway = _checks.matrix("pathway", pathway, "[num_classes, units]").to(self.device, torch.float64)
        target = _checks.labels(target, self.num_classes, len(fields)).to(self.device, torch.float64)
        _checks.same_units("fields", fields, "pathway", pathway)
        rows_fit("pathway", pathway, self.num_classes)
        self._refuse_another([pathway.reshape(-1)])
        return fields, target, pathway

    def _refuse_another(self, pathways: Sequence[Tensor] | Tensor) -> None:
        own = [*self.pathway]
        if own and any(not torch.equal(other.to(self.device), own[0]) for other in pathways):
            raise ValueError(
                "`pathway` must be the same in every update of one accumulation, got another one. "
                "Call `reset()` when the network has changed."
            )

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        self._refuse_another(incoming_state["pathway"])
        super()._reduce_states(incoming_state)
        self.pathway = self.pathway[:1]
        self._settle()

    def _settle(self) -> None:
        """Keep ``max_samples`` samples."""
        if self.max_samples is not None and sum(map(len, self.target)) > self.max_samples:
            fields, target = self._smallest(*self._samples())
            self.fields, self.target = [fields.reshape(-1)], [target.double()]

    def _smallest(self, fields: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The ``max_samples`` samples with the smallest content digests: the same ones in whatever order they came."""
        if self.max_samples is None or len(target) <= self.max_samples:
            return fields, target
        digests = fingerprints([fields, target])
        kept = torch.tensor(
            sorted(range(len(target)), key=digests.__getitem__)[: self.max_samples], device=fields.device
        )
        return fields[kept], target[kept]

    def _samples(self) -> tuple[Tensor, Tensor]:
        """Fields ``[samples, units]`` and targets of all processes seen."""
        units = int(self.units_seen)
        if not units:
            return torch.zeros(0, 0, device=self.device), torch.zeros(0, dtype=torch.int64, device=self.device)
        fields = dim_zero_cat(self.fields).reshape(-1, units)
        return self._smallest(fields, dim_zero_cat(self.target).long())

    def _pathway(self) -> Tensor:
        """The pathway ``[classes or 1, units]``.

        Raises:
            ValueError: If processes have different ones.
        """
        shape = int(self.rows_seen), int(self.units_seen)
        if not shape[1]:
            return torch.zeros(self.num_classes, 0, device=self.device)
        copies = dim_zero_cat(self.pathway).reshape(-1, *shape)
        if not bool((copies == copies[0]).all()):
            raise ValueError("`pathway` must be the same on every process, got different ones.")
        return copies[0]


class NeuronModes(_FieldMetric):
    """Shares of a layer's units that preserve the order of the samples (OPT), that do not (NPT), and that are neither.

    See :func:`netdyn.functional.order_alignment` for the test behind OPT with five or more classes; with fewer, the
    layer's own lower tail is mirrored. :meth:`compute` gives a dict of scalars: ``opt_fraction``, ``npt_fraction``
    (sum 1 over wired, live units), ``constant_fraction``, ``unwired_fraction`` (of all units) and ``rpd_gradient``.
    :attr:`rule` names the rule used.

    Args:
        num_classes: Number of classes K.
        alpha: Share of OPT units that an untrained network is allowed to show.
        max_samples: Keep at most this many samples (those with the smallest content digests). None: all, exact.
        kwargs: torchmetrics' own, see :class:`torchmetrics.Metric`.

    Source:
        P1, order-preserving and non-order-preserving transformations; both rules are netdyn's conventions.

    Example:
        >>> metric = NeuronModes(num_classes=2)
        >>> fields = torch.arange(8.0)[:, None] * torch.ones(20)
        >>> metric.update(fields, torch.arange(8) // 4, torch.tensor([[-1.0], [1.0]]) * torch.ones(20))
        >>> float(metric.compute()["opt_fraction"]), metric.rule
        (1.0, 'mirror')
    """

    def __init__(self, num_classes: int, *, alpha: float = 0.05, max_samples: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, max_samples=max_samples, **kwargs)
        self.alpha = _checks.share("alpha", alpha)
        self.rule = "none"

    def compute(self) -> dict[str, Tensor]:
        """The shares and the gradient, float64 scalars; NaN where nothing can be said."""
        fields, target = self._samples()
        share = torch.bincount(target, minlength=self.num_classes).double() / max(len(target), 1)
        tuning = class_tuning(fields, target, self.num_classes)
        shares = mode_shares(tuning, self._pathway(), constant_units(fields), share, self.alpha)
        self.rule = shares.rule
        names = ("opt_fraction", "npt_fraction", "constant_fraction", "unwired_fraction", "rpd_gradient")
        return {name: torch.tensor(getattr(shares, name), dtype=torch.float64, device=self.device) for name in names}

    def units(self) -> dict[str, Tensor]:
        """``order_index [units]``, ``alignment [units]``, ``tuning [classes, units]``; all processes must call it."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            fields, target = self._samples()
            tuning, pathway = class_tuning(fields, target, self.num_classes), self._pathway()
        return {
            "order_index": order_index(tuning, pathway),
            "alignment": order_alignment(tuning, pathway),
            "tuning": tuning,
        }

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one result or several in a row, see :meth:`torchmetrics.Metric.plot`."""
        return self._plot(val, ax)


class RankDistribution(_FieldMetric):
    """Rank probability distribution of a layer, see :func:`netdyn.functional.rank_distribution`.

    Args:
        num_classes: Number of classes K.
        bins: Number of equal bins on [0, 1].
        max_samples: Keep at most this many samples (those with the smallest content digests). None: all, exact.
        kwargs: torchmetrics' own, see :class:`torchmetrics.Metric`.

    Source:
        P1, rank probability distribution.

    Example:
        >>> metric = RankDistribution(num_classes=2, bins=2)
        >>> metric.update(torch.arange(4.0)[:, None], torch.tensor([0, 0, 1, 1]), torch.tensor([[-1.0], [1.0]]))
        >>> metric.compute()
        tensor([[0., 2.],
                [0., 2.]], dtype=torch.float64)
    """

    def __init__(self, num_classes: int, *, bins: int = 20, max_samples: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, max_samples=max_samples, **kwargs)
        self.bins = _checks.whole("bins", bins)

    def compute(self) -> Tensor:
        """Densities ``[classes, bins]``."""
        return rank_distribution(*self._samples(), self._pathway(), self.num_classes, self.bins)

    def plot(self, val: Tensor | None = None, ax: Any = None) -> Any:
        """Draw one curve a class."""
        from matplotlib.figure import Figure

        value = self.compute() if val is None else val
        figure = Figure() if ax is None else ax.figure
        axes = figure.add_subplot() if ax is None else ax
        edges = torch.linspace(0, 1, value.shape[1] + 1)
        for k, density in enumerate(value):
            axes.stairs(density.tolist(), edges.tolist(), label=f"class {k}")
        axes.set_xlabel("normalised rank")
        axes.set_ylabel("density")
        axes.legend()
        return figure, axes


class _Kept(list[Any]):
    """Batches that a later pass needs; never changed, so that a copy of the metric shares them and the model."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return _Kept(self)


class _BasinMetric(_StateMetric):
    """A radius from rays; :meth:`result` gives the whole :class:`~netdyn.radii.BasinResult`."""

    higher_is_better = True
    classes_seen: Tensor
    _result: BasinResult | None

    def __init__(
        self,
        *,
        accuracy: float | None,
        relative: bool,
        rays: int,
        low: float,
        high: float,
        rel_tol: float,
        seed: int,
        batch_size: int | None,
        criterion: Criterion | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if batch_size is not None:
            _checks.whole("batch_size", batch_size)
        _checks.function("criterion", criterion)
        self.grid = check_basin(accuracy, rays, low, high, rel_tol, seed)
        self.accuracy, self.relative, self.rays, self.seed = accuracy, relative, rays, seed
        self.batch_size, self.criterion = batch_size, criterion
        self._result = None
        self.add_state("classes_seen", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="max")

    def _saw(self, num_classes: int) -> None:
        self.classes_seen = torch.maximum(
            self.classes_seen, torch.tensor(num_classes, dtype=torch.float64).to(self.device)
        )

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._result = None

    def result(self) -> BasinResult:
        """The whole result; computed if need be, in which case all processes must call it.

        Raises:
            RuntimeError: If there was no update.
        """
        self.compute()
        if self._result is None:
            raise RuntimeError(f"{type(self).__name__}.result() needs an update first.")
        return self._result

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one radius or several in a row, see :meth:`torchmetrics.Metric.plot`."""
        return self._plot(val, ax)


class SampleBasin(_BasinMetric):
    """How much noise the inputs bear, see :func:`netdyn.functional.sample_basin`; :meth:`compute` gives the radius.

    Updates walk the rays. The correction for rays that come back needs one more pass at a noise level that is known
    only at the end: until :meth:`reset` the metric holds on to the batches and the model, and each process makes the
    pass on its own.

    Args:
        accuracy: The accuracy that defines the radius, in (0, 1); None: 0.5, or 0.75 for two classes.
        relative: Count ``accuracy`` from the floor that noise leaves to the accuracy without noise.
        rays: Rays a sample.
        low: Smallest noise level.
        high: Largest noise level.
        rel_tol: Cells of the search end no wider than (1 + rel_tol)².
        seed: Seed of the noise.
        batch_size: Samples a forward pass; None: an update's.
        criterion: ``criterion(outputs, target)`` → bool ``[samples]``; None: right class.
        kwargs: torchmetrics' own, see :class:`torchmetrics.Metric`.

    Source:
        P1, attraction basin in sample space.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> net.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> metric = SampleBasin(rays=4)
        >>> metric.update(net, torch.eye(2).repeat(50, 1), torch.tensor([0, 1]).repeat(50))
        >>> bool(metric.compute() > 0.5)
        True
    """

    cells: list[Tensor]
    target: list[Tensor]
    top: list[Tensor]
    passed: Tensor

    def __init__(
        self,
        *,
        accuracy: float | None = None,
        relative: bool = False,
        rays: int = 1,
        low: float = 1e-3,
        high: float = 1e1,
        rel_tol: float = 0.05,
        seed: int = 0,
        batch_size: int | None = None,
        criterion: Criterion | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            accuracy=accuracy,
            relative=relative,
            rays=rays,
            low=low,
            high=high,
            rel_tol=rel_tol,
            seed=seed,
            batch_size=batch_size,
            criterion=criterion,
            **kwargs,
        )
        for name in ("cells", "target", "top"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("passed", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self._kept = _Kept()

    def update(self, model: nn.Module, inputs: Inputs, target: Tensor) -> None:
        """Walk the rays of a batch; arguments as in :func:`netdyn.functional.sample_basin`."""
        with isolated(model):
            walk = prepare_walk(model, inputs, target, self.criterion, self.batch_size)
            sample_rays.check_floating(inputs)
            alive = walk.all_right().nonzero()[:, 0]
            cells = torch.full((self.rays, walk.samples), LOST_CLEAN, device=walk.target.device)
            cells[:, alive] = walk.shared(
                lambda own: sample_rays.sample_cells(own, self.grid, self.rays, self.seed), alive.cpu()
            ).to(cells.device)
            top = sample_rays.at_top(walk, self.grid, self.seed)
        self._saw(walk.num_classes)
        self._kept.append(walk)
        self.cells.append(self._flat(cells.t()))
        self.target.append(self._flat(walk.labels))
        self.top.append(self._flat(top.t()))
        self.passed = self.passed + walk.passed

    def _flat(self, values: Tensor) -> Tensor:
        return values.to(self.device, torch.float64).reshape(-1)

    def compute(self) -> Tensor:
        """The radius, a float64 scalar; NaN without data."""
        if not int(self.classes_seen):
            return torch.tensor(torch.nan, dtype=torch.float64, device=self.device)
        labels = dim_zero_cat(self.target).long()
        self._result = sample_rays.summarize_samples(
            dim_zero_cat(self.cells).reshape(-1, self.rays).t().long(),
            self.grid,
            labels,
            int(self.classes_seen),
            accuracy=self.accuracy,
            relative=self.relative,
            top=dim_zero_cat(self.top).reshape(-1, 2).t().long(),
            right_at=self._right_at,
            forwards=lambda: float(self.passed) / len(labels) + self.rays,
        )
        return torch.tensor(self._result.radius, dtype=torch.float64, device=self.device)

    def _right_at(self, sigma: float) -> Tensor:
        """Which rays are right at ``sigma``, of all processes: each one asks its own model about its own batches."""
        own = [torch.zeros(0, dtype=torch.float64, device=self.device)]
        for walk in self._kept:
            with isolated(walk.model):
                own.append(self._flat(sample_rays.right_at(walk, self.rays, self.seed, sigma).t()))
        right = torch.cat(own)
        if self._is_synced:
            right = torch.cat((self.dist_sync_fn or gather_all_tensors)(right, group=self.process_group))
        return right.reshape(-1, self.rays).t().bool()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Update, and the radius of this batch alone."""
        before = list(self._kept)
        value = super().forward(*args, **kwargs)
        self._kept[:0] = before
        return value

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take over another metric's samples, with its batches and model.

        Raises:
            TypeError: If it is not a metric (a dict of states has no batches).
        """
        if not isinstance(incoming_state, SampleBasin):
            raise TypeError(f"`incoming_state` must be a SampleBasin, got {type(incoming_state).__name__}.")
        super().merge_state(incoming_state)
        self._kept[:0] = incoming_state._kept

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._kept = _Kept()


class WeightBasin(_BasinMetric):
    """How much noise the weights bear, see :func:`netdyn.functional.weight_basin`; :meth:`compute` gives the radius.

    Batches come one after the other, so that no search can wait for their common accuracy: every update counts the
    right answers of each class on a fixed ladder of noise levels a ray, between whose rungs the radius is interpolated.

    Args:
        accuracy: The accuracy that defines the radius, in (0, 1); None: 0.5, or 0.75 for two classes.
        relative: Count ``accuracy`` from chance to the accuracy without noise.
        rays: Number of rays.
        normalization: ``"layer"`` or ``"global"``: whose standard deviation the noise is measured in.
        layers: Names or globs of the parameters to disturb; None: every floating one with two or more dimensions.
        low: Smallest noise level.
        high: Largest noise level.
        rel_tol: Below 0.3 without effect: the ladder has 32 rungs, evenly spaced in log σ.
        seed: Seed of the noise.
        batch_size: Samples a forward pass; None: an update's.
        criterion: ``criterion(outputs, target)`` → bool ``[samples]``; None: right class.
        kwargs: torchmetrics' own, see :class:`torchmetrics.Metric`.

    Source:
        P1, attraction basin in weight space.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> net.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> metric = WeightBasin()
        >>> metric.update(net, torch.eye(2).repeat(50, 1), torch.tensor([0, 1]).repeat(50))
        >>> bool(metric.compute() > 0.5)
        True
    """

    counts: list[Tensor]

    def __init__(
        self,
        *,
        accuracy: float | None = None,
        relative: bool = False,
        rays: int = 8,
        normalization: str = "layer",
        layers: Sequence[str] | None = None,
        low: float = 1e-3,
        high: float = 1e1,
        rel_tol: float = 0.05,
        seed: int = 0,
        batch_size: int | None = None,
        criterion: Criterion | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            accuracy=accuracy,
            relative=relative,
            rays=rays,
            low=low,
            high=high,
            rel_tol=rel_tol,
            seed=seed,
            batch_size=batch_size,
            criterion=criterion,
            **kwargs,
        )
        self.normalization = _checks.choice("normalization", normalization, ("layer", "global"))
        # One tensor at a time is the function's to measure: here it would be a ladder for each.
        _checks.names("layers", layers)
        self.layers = layers
        self.ladder = self.grid.edges()[:: max(self.grid.cells // 32, 1)][1:].tolist()
        # Right answers [ladder and clean, rays, classes] and, last, the size of each class; flat, since the number of
        # classes is not known to a process without data.
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, model: nn.Module, inputs: Inputs, target: Tensor) -> None:
        """Count right answers on the ladder; arguments as in :func:`netdyn.functional.weight_basin`."""
        with isolated(model):
            walk = prepare_walk(model, inputs, target, self.criterion, self.batch_size)
            noise = WeightNoise.on(model, self.layers, self.normalization, self.seed)
            warn_unmoved(noise)
            right = walk.all_right()
            rows = [class_counts(walk, torch.ones_like(right)), class_counts(walk, right)]
            for ray in range(self.rays):
                direction = noise.draw(ray)
                networks = (noise.network(direction, sigma) for sigma in self.ladder)
                rows += [class_counts(walk, walk.all_right(network)) for network in networks]
        self._saw(walk.num_classes)
        self.counts.append(torch.stack(rows).reshape(-1).to(self.device))
        self._settle()

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        super()._reduce_states(incoming_state)
        self._settle()

    def _settle(self) -> None:
        if len(self.counts) > 1 and len({len(count) for count in self.counts}) == 1:
            self.counts = [torch.stack(self.counts).sum(dim=0)]

    def compute(self) -> Tensor:
        """The radius, a float64 scalar; NaN without data."""
        if not int(self.classes_seen):
            return torch.tensor(torch.nan, dtype=torch.float64, device=self.device)
        trail = self._trail()
        accuracy = weight_accuracy(trail, self.accuracy, self.relative, int(self.classes_seen))
        radii = torch.tensor([trail.ray_curve(ray).crossing(accuracy) for ray in trail.rays])
        self._result = summarize_weights(radii, self.grid, trail, accuracy, 1.0 + self.rays * len(self.ladder))
        return torch.tensor(self._result.radius, dtype=torch.float64, device=self.device)

    def _trail(self) -> Trail:
        """The right answers counted, ray by ray."""
        rows, classes = 2 + self.rays * len(self.ladder), int(self.classes_seen)
        counts = dim_zero_cat(self.counts).reshape(-1, rows, classes).sum(dim=0).cpu()
        trail = Trail(counts[0], counts[1])
        on_rays = counts[2:].reshape(self.rays, len(self.ladder), classes)
        trail.rays = [dict(zip(self.ladder, visits, strict=True)) for visits in on_rays]
        return trail
