"""Criteria: functions of ``(outputs, target)`` that decide which outputs are right, bool ``[samples]``, or a share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from netdyn._utils.inputs import shown
from netdyn._utils.options import instead
from netdyn._utils.user_code import explained
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.positions import Positions

Criterion = Callable[[Tensor, Tensor], Tensor]


def as_logits(outputs: object, samples: int) -> Tensor:
    """The outputs as logits ``[samples, classes]``; a vector ``[samples]`` is one logit per sample."""
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"The model's output must be a tensor [samples, classes], got {type(outputs).__name__}. "
            f"{_way()} that picks "
            "the logits from it."
        )
    logits = outputs[:, None] if outputs.ndim == 1 else outputs
    if logits.ndim != 2 or len(logits) != samples:
        raise ValueError(
            f"The model's output must have shape [samples, classes] = [{samples}, classes], "
            f"got shape {list(outputs.shape)}. {_way()} that reduces it to one row of logits per sample."
        )
    return logits


def _way() -> str:
    return instead("forward", "Pass `forward=`, a function of the model and the inputs", "Wrap the model in a module")


def predictions(logits: Tensor) -> Tensor:
    """Predicted class ``[samples]``: the largest logit, or for a single logit whether it is positive."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


def right_class(outputs: Tensor, target: Tensor) -> Tensor:
    """Whether the prediction is the target and all outputs are finite (netdyn's convention)."""
    logits = as_logits(outputs, len(target))
    return (predictions(logits) == target) & logits.isfinite().all(dim=1)


def right_probability(outputs: Tensor, target: Tensor) -> Tensor:
    """:func:`right_class` for a single output that is a probability: class 1 if it is above one half."""
    return right_class(outputs - 0.5, target)


class Within:
    """Numbers to be predicted are right if each is finite and within ``distance [outputs]`` of its value without noise.

    >>> Within(torch.tensor([0.5]))(torch.tensor([[1.4], [1.6]]), torch.tensor([[1.0], [1.0]]))
    tensor([ True, False])
    """

    def __init__(self, distance: Tensor) -> None:
        self.distance = distance

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Outputs ``[samples, …]`` and the same without noise ``[samples, outputs]`` → bool ``[samples]``."""
        own = outputs.reshape(len(target), -1)
        moved = (own - target).abs()
        return ((moved <= self.distance.to(moved.device)) & own.isfinite()).all(dim=1)


@dataclass(frozen=True)
class RightPositions:
    """Share of a sample's positions with a label at which the predicted class is the label, and the logits finite.

    A single logit predicts class 1 above ``limit``: 0, or one half for probabilities.
    """

    positions: Positions
    limit: float = 0.0

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Outputs and labels ``[samples, positions]``, −1 where there is none → float64 ``[samples]``."""
        return self.of_logits(self.positions.logits(outputs), target, self.limit)

    def of_logits(self, logits: Tensor, target: Tensor, limit: float = 0.0) -> Tensor:
        """The same for logits ``[samples, positions, classes]``."""
        return share_right(self.predicted(logits, limit) == target, target)

    @staticmethod
    def predicted(logits: Tensor, limit: float = 0.0) -> Tensor:
        """The classes predicted at positions, ``[samples, positions]``; −1 where logits are not finite."""
        found = (logits[..., 0] > limit).long() if logits.shape[-1] == 1 else logits.argmax(dim=-1)
        return found.masked_fill(~logits.isfinite().all(dim=-1), -1)


@dataclass(frozen=True)
class RightLabels:
    """Whether all of a sample's labels are predicted by the signs of its logits, or the ``share`` of those that are."""

    share: bool = False
    limit: float = 0.0

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Outputs and labels ``[samples, labels]``, −1 where there is none → bool ``[samples]``, or float64."""
        return self.of_logits(outputs.reshape(len(target), -1), target, self.limit)

    def of_logits(self, logits: Tensor, target: Tensor, limit: float = 0.0) -> Tensor:
        """The same for logits ``[samples, labels]``."""
        right = ((logits > limit).long() == target) & logits.isfinite()
        return share_right(right, target) if self.share else (right | (target < 0)).all(dim=1)


def share_right(right: Tensor, target: Tensor) -> Tensor:
    """Share of right answers among those that count, whose ``target`` is not negative: float64 ``[samples]``."""
    counted = target >= 0
    return (right & counted).sum(dim=1) / counted.sum(dim=1).to(statistic_dtype(target.device))


def apply_criterion(criterion: Criterion, outputs: Tensor, target: Tensor) -> Tensor:
    """The criterion's result, checked to be bool ``[samples]`` if it is the user's, on the device of the target."""

    def message(reason: str) -> str:
        given = f"outputs ({shown(outputs)}) and target ({shown(target)})"
        return f"`criterion`, called with {given}, raised {reason} It must return a boolean tensor [samples]."

    with explained(message):
        right = criterion(outputs, target)
    if isinstance(criterion, RightPositions | RightLabels):
        return right.to(target.device)
    if not isinstance(right, Tensor) or right.dtype != torch.bool:
        what = right.dtype if isinstance(right, Tensor) else type(right).__name__
        raise TypeError(f"`criterion` must return a boolean tensor [samples], got {what}.")
    if right.shape != (len(target),):
        raise ValueError(
            f"`criterion` must return one boolean per sample, shape [{len(target)}], got shape {list(right.shape)}."
        )
    return right.to(target.device)
