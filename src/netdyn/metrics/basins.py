"""torchmetrics metrics of attraction basins: they keep samples, and measure in ``compute``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.trees import Inputs
from netdyn.basins.result import BasinResult
from netdyn.basins.sample_basin import sample_basin
from netdyn.basins.target import check_basin
from netdyn.basins.weight_basin import weight_basin
from netdyn.metrics.base import SampleMetric
from netdyn.probes.criteria import Criterion
from netdyn.probes.targets import AccuracyOf, TargetOptions, Task
from netdyn.probes.tasks import TOLERANCE


class _BasinMetric(SampleMetric):
    """A radius; :meth:`result` gives the whole :class:`netdyn.BasinResult`."""

    if TYPE_CHECKING:  # TorchScript reads annotations of classes, and does not know these
        _basin: Callable[..., BasinResult]
    higher_is_better = True

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given["max_samples"], **given["kwargs"])
        if given["batch_size"] is not None:
            checks.whole("batch_size", given["batch_size"])
        checks.function("criterion", given["criterion"])
        checks.positive("tolerance", given["tolerance"])
        TargetOptions(given["task"], given["ignore_index"], given["accuracy_of"])
        check_basin(given["accuracy"], given["rays"], given["low"], given["high"], given["seed"])
        self.options = {name: given[name] for name in inspect.signature(self._basin).parameters if name in given}

    def _measure(self, model: nn.Module, inputs: Inputs, target: Tensor) -> BasinResult:
        return self._basin(model, inputs, target, **self.options)

    def compute(self) -> Tensor:
        """The radius over all samples kept, a float64 scalar; NaN without data.

        A metric loaded from a checkpoint has samples but no model: it raises a ``RuntimeError`` until an update.
        """
        result = self._found()
        radius = torch.nan if result is None else result.radius
        return torch.tensor(radius, dtype=torch.float64, device=self.device)

    def result(self) -> BasinResult:
        """The whole result; a ``RuntimeError`` before an update. If it must be computed, all processes must call it."""
        self.compute()
        if self._result is None:
            raise RuntimeError(f"{type(self).__name__}.result() needs an update first.")
        return self._result  # type: ignore[no-any-return]


class SampleBasin(_BasinMetric):
    """How much noise the inputs tolerate, see :func:`netdyn.functional.sample_basin`.

    Updates keep samples and the model; :meth:`compute` measures. The radius is the function's on all samples kept,
    whatever the batches and the number of processes.

    Args:
        accuracy: The accuracy that defines the radius, in (0, 1). None: 0.5, or 0.75 for two classes.
        relative: Count ``accuracy`` from the floor that noise leaves to the accuracy without noise.
        rays: Rays per sample.
        per_class: Find the radius of each class too.
        low: Smallest noise level.
        high: Largest noise level.
        seed: Seed of the noise.
        batch_size: Samples per forward pass. None: all at once.
        criterion: ``criterion(outputs, target)`` → bool ``[samples]``. None: right class.
        tolerance: How far a predicted number may move before it counts as wrong, in standard deviations of its target.
        noise_at: Names of modules, to whose outputs noise is added, or of inputs. None: all floating inputs, or the
            embedding that runs first.
        task: What the targets are, as in :class:`netdyn.Config`.
        ignore_index: Label that marks what has none: samples, positions or labels that are left out.
        accuracy_of: What counts with several labels per sample: ``"samples"`` whose labels are all right, or
            ``"labels"``.
        max_samples: Most samples kept, those with the smallest content digests. None: all.
        kwargs: Options of :class:`torchmetrics.Metric`.

    Source:
        P1, attraction basin in sample space.

    Examples:
        >>> net = nn.Linear(2, 2)
        >>> net.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> metric = SampleBasin(rays=4)
        >>> points = torch.eye(2).repeat(100, 1) + 0.01 * torch.arange(200)[:, None]
        >>> metric.update(net, points, torch.tensor([0, 1]).repeat(100))
        >>> bool(metric.compute() > 0.5)
        True
    """

    _basin = staticmethod(sample_basin)

    def __init__(
        self,
        *,
        accuracy: float | None = None,
        relative: bool = False,
        rays: int = 1,
        per_class: bool = False,
        low: float = 1e-3,
        high: float = 1e1,
        seed: int = 0,
        batch_size: int | None = None,
        criterion: Criterion | None = None,
        tolerance: float = TOLERANCE,
        noise_at: Sequence[str] | None = None,
        task: Task = "auto",
        ignore_index: int = -100,
        accuracy_of: AccuracyOf = "samples",
        max_samples: int | None = 4096,
        **kwargs: Any,
    ) -> None:
        checks.names("noise_at", noise_at, of="names of modules or inputs")
        super().__init__(locals())


class WeightBasin(_BasinMetric):
    """How much noise the weights tolerate, see :func:`netdyn.functional.weight_basin`.

    Updates keep samples and the model; :meth:`compute` measures. The radius is the function's on all samples kept,
    whatever the batches and the number of processes.

    Args:
        accuracy: The accuracy that defines the radius, in (0, 1). None: 0.5, or 0.75 for two classes.
        relative: Count ``accuracy`` from chance to the accuracy without noise.
        rays: Number of rays.
        samples: Samples per ray, a different stratified choice for each ray.
        normalization: ``"layer"`` or ``"global"``: each tensor's own standard deviation, or that of all together.
        layers: Names or globs of the parameters to disturb, or ``"each"``. None: every floating one with two or more
            dimensions.
        per_class: Find the radius of each class too.
        low: Smallest noise level.
        high: Largest noise level.
        seed: Seed of the noise.
        batch_size: Samples per forward pass. None: all at once.
        criterion: ``criterion(outputs, target)`` → bool ``[samples]``. None: right class.
        tolerance: How far a predicted number may move before it counts as wrong, in standard deviations of its target.
        task: What the targets are, as in :class:`netdyn.Config`.
        ignore_index: Label that marks what has none: samples, positions or labels that are left out.
        accuracy_of: What counts with several labels per sample: ``"samples"`` whose labels are all right, or
            ``"labels"``.
        max_samples: Most samples kept, those with the smallest content digests. None: all.
        kwargs: Options of :class:`torchmetrics.Metric`.

    Source:
        P1, attraction basin in weight space.

    Examples:
        >>> net = nn.Linear(2, 2)
        >>> net.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> metric = WeightBasin()
        >>> metric.update(net, torch.eye(2).repeat(50, 1), torch.tensor([0, 1]).repeat(50))
        >>> bool(metric.compute() > 0.5)
        True
    """

    _basin = staticmethod(weight_basin)

    def __init__(
        self,
        *,
        accuracy: float | None = None,
        relative: bool = False,
        rays: int = 16,
        samples: int = 128,
        normalization: str = "layer",
        layers: Sequence[str] | str | None = None,
        per_class: bool = False,
        low: float = 1e-3,
        high: float = 1e1,
        seed: int = 0,
        batch_size: int | None = None,
        criterion: Criterion | None = None,
        tolerance: float = TOLERANCE,
        task: Task = "auto",
        ignore_index: int = -100,
        accuracy_of: AccuracyOf = "samples",
        max_samples: int | None = 4096,
        **kwargs: Any,
    ) -> None:
        checks.names("layers", layers, words=("each",))
        checks.whole("samples", samples)
        checks.choice("normalization", normalization, ("layer", "global"))
        super().__init__(locals())
