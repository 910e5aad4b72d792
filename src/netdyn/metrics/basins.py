"""torchmetrics :class:`~torchmetrics.Metric` classes of attraction basins; the numbers come from below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from netdyn._utils import checks
from netdyn._utils.trees import Inputs
from netdyn.basins.curve import LOST_CLEAN
from netdyn.basins.result import BasinResult
from netdyn.basins.sample_basin import at_top, noise_of, right_at, sample_cells, summarize_samples
from netdyn.basins.target import check_basin
from netdyn.basins.weight_basin import Trail, class_counts, summarize_weights, warn_unmoved, weight_accuracy
from netdyn.basins.weight_noise import WeightNoise
from netdyn.isolation.isolated import isolated
from netdyn.metrics.base import StateMetric
from netdyn.probes.criteria import Criterion
from netdyn.probes.tasks import TOLERANCE, prepare


class _Kept(list[Any]):
    """Batches that a later pass needs; never changed, so that a copy of the metric shares them and the model."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return _Kept(self)


class _BasinMetric(StateMetric):
    """A radius from rays; :meth:`result` gives the whole :class:`~netdyn.basins.result.BasinResult`."""

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
        tolerance: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if batch_size is not None:
            checks.whole("batch_size", batch_size)
        checks.function("criterion", criterion)
        self.grid = check_basin(accuracy, rays, low, high, rel_tol, seed)
        self.accuracy, self.relative, self.rays, self.seed = accuracy, relative, rays, seed
        self.batch_size, self.criterion = batch_size, criterion
        self.tolerance = checks.positive("tolerance", tolerance)
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

    Updates search along the rays. The correction for rays that come back needs one more pass at a noise level that is
    known only at the end: until :meth:`reset` the metric holds on to the batches and the model, and each process makes
    the pass on its own.

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
        tolerance: How far a predicted number may move before it counts as wrong, in standard deviations of its target.
        noise_at: Names of the modules whose outputs noise falls on, or of inputs; None: all floating inputs.
        kwargs: torchmetrics' own, see :class:`torchmetrics.Metric`.

    Source:
        P1, attraction basin in sample space.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> net.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> metric = SampleBasin(rays=4)
        >>> points = torch.eye(2).repeat(100, 1) + 0.01 * torch.arange(200)[:, None]
        >>> metric.update(net, points, torch.tensor([0, 1]).repeat(100))
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
        tolerance: float = TOLERANCE,
        noise_at: Sequence[str] | None = None,
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
            tolerance=tolerance,
            **kwargs,
        )
        checks.names("noise_at", noise_at)
        self.noise_at = noise_at
        for name in ("cells", "target", "top"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("passed", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self._kept = _Kept()

    def update(self, model: nn.Module, inputs: Inputs, target: Tensor) -> None:
        """Evaluator the rays of a batch; arguments as in :func:`netdyn.functional.sample_basin`."""
        with isolated(model):
            evaluator = prepare(model, inputs, target, self.criterion, self.batch_size, self.tolerance)
            noise = noise_of(evaluator, self.noise_at, self.seed)
            alive = evaluator.all_right().cpu().nonzero()[:, 0]
            cells = torch.full((self.rays, evaluator.samples), LOST_CLEAN)
            found = evaluator.divided(lambda own, part: sample_cells(own, noise, self.grid, self.rays), alive)
            cells[:, alive] = found.cpu()
            top = at_top(evaluator, noise, self.grid)
        self._saw(evaluator.num_classes)
        self._kept.append((evaluator, noise))
        self.cells.append(self._flat(cells.t()))
        self.target.append(self._flat(evaluator.labels))
        self.top.append(self._flat(top.t()))
        self.passed = self.passed + evaluator.passed

    def _flat(self, values: Tensor) -> Tensor:
        return values.to(self.device, torch.float64).reshape(-1)

    def compute(self) -> Tensor:
        """The radius, a float64 scalar; NaN without data."""
        if not int(self.classes_seen):
            return torch.tensor(torch.nan, dtype=torch.float64, device=self.device)
        labels = dim_zero_cat(self.target).long()
        self._result = summarize_samples(
            dim_zero_cat(self.cells).reshape(-1, self.rays).t().long(),
            self.grid,
            labels,
            int(self.classes_seen),
            accuracy=self.accuracy,
            relative=self.relative,
            top=dim_zero_cat(self.top).reshape(-1, 2).t().long(),
            right_at=self._right_at,
            forwards=lambda: float(self.passed) / len(labels),
        )
        return torch.tensor(self._result.radius, dtype=torch.float64, device=self.device)

    def _right_at(self, sigma: Tensor) -> Tensor:
        """Which rays are right at ``sigma``, of all processes: each one asks its own model about its own batches."""
        own, place = [torch.zeros(0, dtype=torch.float64, device=self.device)], self._first()
        for evaluator, noise in self._kept:
            with isolated(evaluator.model):
                right = right_at(evaluator, noise, sigma[:, place : place + evaluator.samples])
            own.append(self._flat(right.t()))
            place += evaluator.samples
        right = torch.cat(own)
        return torch.cat(self._gathered(right)).reshape(-1, self.rays).t().bool().cpu()

    def _gathered(self, own: Tensor) -> list[Tensor]:
        """One tensor of each process whose samples are here, in their order."""
        if not self._is_synced:
            return [own]
        gather = self.dist_sync_fn or gather_all_tensors
        return gather(own, group=self.process_group)

    def _first(self) -> int:
        """How many samples of other processes stand before this one's own."""
        own = torch.tensor([float(sum(evaluator.samples for evaluator, _ in self._kept))], device=self.device)
        counts = self._gathered(own)
        # Gathering leaves this process's own tensor in its place.
        place = next(i for i, count in enumerate(counts) if count is own)
        return int(sum(float(count.sum()) for count in counts[:place]))

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
        tolerance: How far a predicted number may move before it counts as wrong, in standard deviations of its target.
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
        tolerance: float = TOLERANCE,
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
            tolerance=tolerance,
            **kwargs,
        )
        self.normalization = checks.choice("normalization", normalization, ("layer", "global"))
        # One tensor at a time is the function's to measure: here it would be a ladder for each.
        checks.names("layers", layers)
        self.layers = layers
        self.ladder = self.grid.edges()[:: max(self.grid.cells // 32, 1)][1:].tolist()
        # Right answers [ladder and clean, rays, classes] and, last, the size of each class; flat, since the number of
        # classes is not known to a process without data.
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, model: nn.Module, inputs: Inputs, target: Tensor) -> None:
        """Count right answers on the ladder; arguments as in :func:`netdyn.functional.weight_basin`."""
        with isolated(model):
            evaluator = prepare(model, inputs, target, self.criterion, self.batch_size, self.tolerance)
            noise = WeightNoise.on(model, self.layers, self.normalization, self.seed)
            if unmoved := noise.unmoved:
                warn_unmoved(unmoved)
            right = evaluator.all_right()
            rows = [class_counts(evaluator, torch.ones_like(right)), class_counts(evaluator, right)]
            for ray in range(self.rays):
                direction = noise.draw(ray)
                networks = (noise.network(direction, sigma) for sigma in self.ladder)
                rows += [class_counts(evaluator, evaluator.all_right(network)) for network in networks]
        self._saw(evaluator.num_classes)
        self.counts.append(torch.stack(rows).reshape(-1).to(self.device, torch.float64))
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
        accuracy = weight_accuracy(trail.clean_accuracy, self.accuracy, self.relative, int(self.classes_seen))
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
