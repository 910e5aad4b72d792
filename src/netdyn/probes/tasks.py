"""The task of a network on a probe: classification, regression, or a criterion of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.trees import Inputs, blocks, copied, count, finite, samples_first, take, tensors
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.criteria import Criterion, Within, as_logits, right_class, right_probability
from netdyn.probes.evaluator import Evaluator
from netdyn.tracing.survey import survey

#: How far a predicted number may move before it counts as wrong, in standard deviations of its target.
TOLERANCE = 0.5


@dataclass(frozen=True)
class Task:
    """A task: which outputs count as right.

    Attributes:
        target: What the criterion compares outputs with ``[samples, …]``: class labels, or the outputs without noise.
        criterion: Decides which outputs are right.
        num_classes: Number of classes; 1 in other tasks.
        numbers: The numbers to be predicted ``[samples, outputs]``; None in other tasks.
    """

    target: Tensor
    criterion: Criterion
    num_classes: int
    numbers: Tensor | None = None


def prepare(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    criterion: Criterion | None,
    batch_size: int | None,
    tolerance: float = TOLERANCE,
) -> Evaluator:
    """Check a probe, and find the criterion that fits the model's outputs.

    Args:
        model: The network, isolated.
        inputs: The probe's inputs.
        target: Its targets.
        criterion: The user's own criterion, or None.
        batch_size: Samples per forward pass; None: all at once.
        tolerance: How far a predicted number may move, in standard deviations of its target.

    Raises:
        TypeError: If the targets do not fit any task, or an output is not a tensor.
        ValueError: If there is no sample, or a shape or label is wrong.
    """
    if batch_size is not None:
        checks.whole("batch_size", batch_size)
    samples = count(inputs)
    if samples == 0:
        raise ValueError("`inputs` must hold at least one sample, got none.")
    if not isinstance(target, Tensor):
        raise TypeError(f"`target` must be a tensor with one entry per sample, got {type(target).__name__}.")
    two = take(inputs, slice(0, 2))
    outputs, again = model(copied(two)), model(copied(two))
    _warn_of_problems(bool(finite(inputs)), _same(outputs, again))
    by_sample = samples_first(inputs)

    def all_outputs() -> Tensor:
        parts = [model(copied(take(inputs, part, by_sample))) for part in blocks(samples, batch_size)]
        return torch.cat([as_logits(part, len(part)) for part in parts])

    task = find_task(
        outputs,
        target.cpu(),
        samples,
        criterion,
        probability=lambda: survey(model, inputs, check=False).probabilities,
        all_outputs=all_outputs,
        tolerance=tolerance,
    )
    weight = next(model.parameters(), None)
    device = target.device if weight is None else weight.device
    if task.numbers is not None:
        device = task.target.device  # that of the outputs, which are compared with the target
    return Evaluator(
        model,
        inputs,
        task.target.to(device),
        task.criterion,
        task.num_classes,
        batch_size,
        numbers=None if task.numbers is None else task.numbers.to(device),
    )


def _warn_of_problems(inputs_finite: bool, deterministic: bool) -> None:
    """Warn of inputs that are not finite, and of a model that is random."""
    if not inputs_finite:
        checks.warn(
            "`inputs` holds NaN or inf. Samples whose outputs are not finite count as wrong. Leave them out to measure "
            "the network alone."
        )
    if not deterministic:
        checks.warn(
            "The model is random in eval mode: two identical calls gave different outputs. Its basins are those of the "
            "network and its own noise together. Switch off what is random, such as a functional dropout without "
            "`training=self.training`."
        )


def _same(first: object, second: object) -> bool:
    """Whether all tensors of two outputs are the same; NaN equals NaN."""
    pairs = list(zip(tensors(first), tensors(second), strict=False))
    if any(a.shape != b.shape for a, b in pairs):
        return False
    return all(bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in pairs)


def find_task(
    outputs: object,
    target: Tensor,
    samples: int,
    criterion: Criterion | None,
    *,
    probability: Callable[[], bool],
    all_outputs: Callable[[], Tensor],
    tolerance: float,
) -> Task:
    """The task that fits targets and outputs.

    Args:
        outputs: Outputs for two samples (one, if there is only one).
        target: All targets, on the host, since they are tested several times.
        samples: Number of samples.
        criterion: The user's own, or None.
        probability: Returns whether the outputs are probabilities.
        all_outputs: Returns the outputs for all samples.
        tolerance: How far a predicted number may move, in standard deviations of its target.

    Raises:
        TypeError: If the targets do not fit any task.
        ValueError: If their shape does not fit.
    """
    if criterion is not None:
        checks.entries("target", target, samples)
        return Task(target, criterion, _classes(outputs, target))
    logits = as_logits(outputs, min(samples, 2))
    if target.is_floating_point() and (numbers := _numbers(logits, target, samples)) is not None:
        if _binary(numbers):
            target = numbers[:, 0].long()
        else:
            scale = numbers.double().std(dim=0, correction=0).to(statistic_dtype(logits.device))
            return Task(as_logits(all_outputs(), samples), Within((tolerance * scale).to(logits.device)), 1, numbers)
    num_classes = max(logits.shape[1], 2)
    target = checks.class_labels(target, num_classes, samples)
    right = right_probability if logits.shape[1] == 1 and probability() else right_class
    return Task(target, right, num_classes)


def _numbers(logits: Tensor, target: Tensor, samples: int) -> Tensor | None:
    """Targets of a regression, ``[samples, outputs]``; None if they have another shape, or encode classes.

    Raises:
        ValueError: If they are not finite.
    """
    numbers = target[:, None] if target.ndim == 1 else target
    if numbers.ndim != 2 or numbers.shape != (samples, logits.shape[1]):
        return None
    # One-hot rows and probabilities are class labels, which the user has to convert to whole numbers.
    if numbers.shape[1] > 1 and bool(((numbers == 0) | (numbers == 1)).all() or _are_probabilities(numbers)):
        return None
    if not bool(numbers.isfinite().all()):
        raise ValueError("`target` must hold finite numbers, got NaN or inf.")
    return numbers


def _are_probabilities(numbers: Tensor) -> bool:
    return bool((numbers >= 0).all() and ((numbers.sum(dim=1) - 1).abs() < 1e-4).all())


def _binary(numbers: Tensor) -> bool:
    """Whether a single column holds only zeros and ones: class labels as for binary cross entropy."""
    return numbers.shape[1] == 1 and bool(((numbers == 0) | (numbers == 1)).all())


def _classes(outputs: object, target: Tensor) -> int:
    """Number of classes under a criterion of the user's own; 1 if targets and outputs are not a classifier's."""
    columns = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim == 2 else 1
    whole = target.ndim == 1 and not target.is_floating_point() and not target.is_complex()
    classes = max(columns, 2)
    return classes if whole and int(target.min()) >= 0 and int(target.max()) < classes else 1
