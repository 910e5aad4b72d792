"""What every metric of netdyn shares: states that torchmetrics can reduce, copy and move without losing a digit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from netdyn._utils import checks
from netdyn._utils.random import digests
from netdyn._utils.trees import Inputs, count, map_tensors, samples_first, tensors

_numbers = itertools.count()


def _number() -> Tensor:
    """A new number, a factor above the last: a collection treats numbers that differ by a part in 10⁵ as equal."""
    return torch.tensor(1.0001 ** next(_numbers), dtype=torch.float64)


class StateMetric(Metric):
    """States stay in float64: neither labels nor ranks nor counts survive rounding to half precision.

    They are one-dimensional lists, maxima or sums, which survive a process that saw no data.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The type of the placeholder that torchmetrics gathers from a process without data.
        self._dtype = torch.float64
        # A collection merges metrics whose states are equal after an update. This number keeps each metric apart.
        self.add_state("number", default=_number(), dist_reduce_fx="max")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give a copy a number of its own: it is another metric."""
        super().__setstate__(state)
        number = self._defaults["number"] = _number()
        self.number = number.to(self.device)

    def set_dtype(self, dst_type: str | torch.dtype) -> Metric:
        """States keep their type, whatever ``dst_type`` is."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        device = fn(torch.empty(0, device=self.device)).device
        return super()._apply(lambda tensor: tensor.to(device), exclude_state)

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        super()._reduce_states(incoming_state)
        # merge_state leaves an old value in the cache, and a new metric without an update.
        self._computed = None
        self._update_count = max(self._update_count, 1)
        self._settle()

    def _settle(self) -> None:
        """Shorten the states after an update or a reduction."""

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one value or several in a row, see :meth:`torchmetrics.Metric.plot`."""
        return self._plot(val, ax)


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
        return torch.cat([_real(leaf).reshape(len(leaf), -1).double() for leaf in self._leaves()], dim=1)

    @property
    def width(self) -> int:
        """How many numbers a sample has."""
        return sum(_real(leaf)[0].numel() if len(leaf) else 0 for leaf in self._leaves())

    def unpacked(self, rows: Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and targets of the kind of this update's, from rows."""
        turn = iter(samples_first(self.inputs))
        parts = iter(torch.split(rows, [_real(like)[0].numel() for like in self._leaves()], dim=1))

        def leaf(like: Tensor) -> Tensor:
            own = next(parts).reshape(len(rows), *_real(like).shape[1:])
            return (torch.view_as_complex(own.contiguous()) if like.is_complex() else own).to(like.device, like.dtype)

        inputs = map_tensors(lambda like: leaf(like) if next(turn) else like, self.inputs)
        return inputs, leaf(self.target)


def _real(leaf: Tensor) -> Tensor:
    """Real numbers; a complex one is two."""
    return torch.view_as_real(leaf.detach()) if leaf.is_complex() else leaf.detach()


class SampleMetric(StateMetric):
    """Keeps samples, and the model of the last update, which :meth:`compute` measures."""

    if TYPE_CHECKING:  # TorchScript reads annotations of classes, and does not know these
        rows: list[Tensor]
        width: Tensor

    def __init__(self, max_samples: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_samples = None if max_samples is None else checks.whole("max_samples", max_samples)
        self._measured: _Measured | None = None
        self._result: Any = None
        # Samples, flattened one after the other; a process without data does not know the width of a sample.
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("width", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, model: nn.Module, inputs: Inputs, target: Tensor) -> None:
        """Keep the samples of a batch, and the model, which is measured by :meth:`compute`.

        Args:
            model: Any PyTorch module, the same in every update of one accumulation.
            inputs: A tensor, or a sequence or mapping of tensors, samples first.
            target: Labels or numbers, as in :func:`netdyn.diagnose`: a tensor (else a ``TypeError``) with one
                entry per sample (else a ``ValueError``).
        """
        checks.entries("target", target, count(inputs))
        measured = _Measured(model, inputs, target)
        rows = measured.rows().to(self.device)
        if int(self.width) not in (0, rows.shape[1]):
            raise ValueError(
                f"`inputs` and `target` must have as many numbers per sample as those that {type(self).__name__} "
                f"holds, {int(self.width)}, got {rows.shape[1]}. Call `reset()` for other data."
            )
        self._measured = measured
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

    def _measure(self, model: nn.Module, inputs: Inputs, target: Tensor) -> Any:
        """What is measured on all samples."""
        raise NotImplementedError

    def _found(self) -> Any:
        """What is measured on all samples kept; None without data."""
        result: Any = None
        # Samples from a checkpoint may be other ones than those of the last update.
        if self._measured is not None and int(self.width) == self._measured.width:
            result = self._measure(self._measured.model, *self._measured.unpacked(self._kept()))
        if self._is_synced and dist.is_available() and dist.is_initialized():
            # A process without data has no model: it takes the result of another one.
            found: list[Any] = [None] * dist.get_world_size(self.process_group)
            dist.all_gather_object(found, result, group=self.process_group)
            result = next((each for each in found if each is not None), None)
        if int(self.width) and result is None:
            raise RuntimeError(
                f"{type(self).__name__} holds samples but no model that takes them. Call `update` with the model first."
            )
        self._result = result
        return result

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take over another metric's samples, and its model if this one has none."""
        super().merge_state(incoming_state)
        self._measured = self._measured or getattr(incoming_state, "_measured", None)

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self._measured = self._result = None
