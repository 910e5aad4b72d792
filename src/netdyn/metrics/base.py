"""What every metric of netdyn shares: states that torchmetrics can reduce, copy and move without losing a digit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

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
