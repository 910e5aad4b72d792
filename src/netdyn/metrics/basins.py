"""torchmetrics metrics of attraction basins: they keep samples, and measure in ``compute``."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from netdyn._utils import checks
from netdyn._utils.random import digests
from netdyn._utils.trees import Inputs, count, map_tensors, samples_first, tensors
from netdyn.basins.result import BasinResult
from netdyn.basins.sample_basin import sample_basin
from netdyn.basins.target import check_basin
from netdyn.basins.weight_basin import weight_basin
from netdyn.metrics.base import StateMetric
from netdyn.probes.criteria import Criterion
from netdyn.probes.tasks import TOLERANCE


@dataclass(frozen=True)
class _Measured:
    """The model, inputs and targets of the last update; a copy of the metric shares them."""

    model: nn.Module
    inputs: Inputs
    target: Tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> _Measured:
        return self

    def _leaves(self) -> list[Tensor]:
        return [*itertools.compress(tensors(self.inputs), samples_first(self.inputs)), self.target]

    def rows(self) -> Tensor:
        """Inputs and targets of the samples as numbers, float64 ``[samples, numbers]``."""
        return torch.cat([leaf.detach().reshape(len(leaf), -1).double() for leaf in self._leaves()], dim=1)

    def unpacked(self, rows: Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and targets of the kind of this update's, from rows."""
        turn = iter(samples_first(self.inputs))
        parts = iter(torch.split(rows, [like[0].numel() for like in self._leaves()], dim=1))

        def leaf(like: Tensor) -> Tensor:
            return next(parts).reshape(len(rows), *like.shape[1:]).to(like.device, like.dtype)

        inputs = map_tensors(lambda like: leaf(like) if next(turn) else like, self.inputs)
        return inputs, leaf(self.target)


class _BasinMetric(StateMetric):
    """A radius; :meth:`result` gives the whole :class:`netdyn.BasinResult`."""

    _measure: Callable[..., BasinResult]
    higher_is_better = True
    rows: list[Tensor]
    width: Tensor

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(**given["kwargs"])
        if given["batch_size"] is not None:
            checks.whole("batch_size", given["batch_size"])
        checks.function("criterion", given["criterion"])
        checks.positive("tolerance", given["tolerance"])
        check_basin(given["accuracy"], given["rays"], given["low"], given["high"], given["seed"])
        if given["max_samples"] is not None:
            checks.whole("max_samples", given["max_samples"])
        self.max_samples: int | None = given["max_samples"]
        self.options = {name: given[name] for name in inspect.signature(self._measure).parameters if name in given}
        self._measured: _Measured | None = None
        self._result: BasinResult | None = None
        # Samples, flattened one after the other; a process without data does not know the width of a sample.
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("width", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, model: nn.Module, inputs: Inputs, target: Tensor) -> None:
        """Keep the samples of a batch, and the model, which is measured by :meth:`compute`.

        Args:
            model: Any PyTorch module, the same in every update of one accumulation.
            inputs: A tensor, or a sequence or mapping of tensors, samples first.
            target: Class labels ``[samples]``, or numbers to be predicted: a tensor (else a ``TypeError``) with one
                entry per sample (else a ``ValueError``).
        """
        checks.entries("target", target, count(inputs))
        self._measured = _Measured(model, inputs, target)
        rows = self._measured.rows().to(self.device)
        self.rows.append(rows.reshape(-1))
        self.width = torch.full_like(self.width, rows.shape[1])
        self._settle()

    def _kept(self) -> Tensor:
        """Samples ``[samples, numbers]`` in the order of their digests, at most ``max_samples``."""
        rows = dim_zero_cat(self.rows).reshape(-1, int(self.width))
        # Copies have the same digest, whichever others of them were left out before.
        return rows[torch.argsort(digests(rows)[:, 0])[: self.max_samples]]

    def _settle(self) -> None:
        if self.max_samples is not None and sum(map(len, self.rows)) > self.max_samples * int(self.width) > 0:
            self.rows = [self._kept().reshape(-1)]

    def compute(self) -> Tensor:
        """The radius over all samples kept, a float64 scalar; NaN without data.

        A metric loaded from a checkpoint has samples but no model: it raises a ``RuntimeError`` until an update.
        """
        result: BasinResult | None = None
        if int(self.width) and self._measured is not None:
            result = self._measure(self._measured.model, *self._measured.unpacked(self._kept()), **self.options)
        if self._is_synced and dist.is_available() and dist.is_initialized():
            # A process without data has no model: it takes the result of another one.
            found: list[BasinResult | None] = [None] * dist.get_world_size(self.process_group)
            dist.all_gather_object(found, result, group=self.process_group)
            result = next((each for each in found if each is not None), None)
        if int(self.width) and result is None:
            raise RuntimeError(f"{type(self).__name__} holds samples but no model. Call `update` with the model first.")
        self._result = result
        radius = torch.nan if result is None else result.radius
        return torch.tensor(radius, dtype=torch.float64, device=self.device)

    def result(self) -> BasinResult:
        """The whole result; a ``RuntimeError`` before an update. If it must be computed, all processes must call it."""
        self.compute()
        if self._result is None:
            raise RuntimeError(f"{type(self).__name__}.result() needs an update first.")
        return self._result

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take over another metric's samples, and its model if this one has none."""
        super().merge_state(incoming_state)
        self._measured = self._measured or getattr(incoming_state, "_measured", None)

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self._measured = self._result = None


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
        noise_at: Names of modules, to whose outputs noise is added, or of inputs. None: all floating inputs.
        max_samples: Most samples kept, those with the smallest content digests. None: all.
        kwargs: Options of :class:`torchmetrics.Metric`.

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

    _measure = staticmethod(sample_basin)

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
        max_samples: int | None = 4096,
        **kwargs: Any,
    ) -> None:
        checks.names("noise_at", noise_at)
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
        max_samples: Most samples kept, those with the smallest content digests. None: all.
        kwargs: Options of :class:`torchmetrics.Metric`.

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

    _measure = staticmethod(weight_basin)

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
        max_samples: int | None = 4096,
        **kwargs: Any,
    ) -> None:
        checks.names("layers", layers, words=("each",))
        checks.whole("samples", samples)
        checks.choice("normalization", normalization, ("layer", "global"))
        super().__init__(locals())
