"""torchmetrics :class:`~torchmetrics.Metric` classes that ask a whole network; the numbers come from below."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from netdyn import _checks
from netdyn.batches import Inputs
from netdyn.batchnorm import right_answers_gained
from netdyn.criteria import Criterion
from netdyn.functional import prepare_walk
from netdyn.isolation import isolated
from netdyn.metric_state import StateMetric


class BatchNormGap(StateMetric):
    """What batch statistics add to the accuracy, see :func:`netdyn.functional.batchnorm_gap`.

    Each update is a probe of its own, shuffled and cut into batches by itself; :meth:`compute` gives the mean over all
    samples. So the value depends on what came together in an update: give large ones, of mixed classes.

    Args:
        batch_size: Batches of at least this many samples; None: an update is one batch.
        seed: Seed of the shuffle.
        criterion: ``criterion(outputs, target)`` → bool ``[samples]``; None: right class.
        kwargs: torchmetrics' own, see :class:`torchmetrics.Metric`.

    Source:
        P1: in deep networks grokking is largely the closing of this gap.

    Example:
        >>> metric = BatchNormGap()
        >>> net = nn.BatchNorm1d(2, affine=False)  # has seen nothing: mean 0, variance 1, so that class 1 always wins
        >>> metric.update(net, torch.tensor([[2.0, 10.0], [0.0, 12.0]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False
    gained: Tensor
    samples: Tensor

    def __init__(
        self, *, batch_size: int | None = None, seed: int = 0, criterion: Criterion | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if batch_size is not None:
            _checks.whole("batch_size", batch_size, minimum=2)
        _checks.function("criterion", criterion)
        self.batch_size, self.seed, self.criterion = batch_size, _checks.whole("seed", seed, minimum=0), criterion
        for name in ("gained", "samples"):
            self.add_state(name, default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, model: nn.Module, inputs: Inputs, target: Tensor) -> None:
        """Run the network both ways; arguments as in :func:`netdyn.functional.batchnorm_gap`.

        Samples of a network without batch normalisation do not count.
        """
        with isolated(model):
            walk = prepare_walk(model, inputs, target, self.criterion, None)
            gained = right_answers_gained(walk, self.batch_size, self.seed)
        if gained is not None:
            self.gained = self.gained + gained
            self.samples = self.samples + walk.samples

    def compute(self) -> Tensor:
        """The difference of the two accuracies, a float64 scalar; NaN without data or batch normalisation."""
        return self.gained / self.samples

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one gap or several in a row, see :meth:`torchmetrics.Metric.plot`."""
        return self._plot(val, ax)
