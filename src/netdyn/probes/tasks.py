"""The task of a network on a probe: classification, regression, or a criterion of the user's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.inputs import check_inputs
from netdyn._utils.trees import Inputs, blocks, copied, finite, samples_first, take, tensors
from netdyn.isolation.call_errors import trying
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.criteria import Criterion, Within, as_logits, right_class, right_probability
from netdyn.probes.evaluator import Evaluator
from netdyn.tracing.survey import survey

#: How far a predicted number may move before it counts as wrong, in standard deviations of its target.
TOLERANCE = 0.5


def prepare(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    criterion: Criterion | None,
    batch_size: int | None,
    tolerance: float = TOLERANCE,
) -> Evaluator:
    """Check the probe of an isolated network, and find the criterion that fits its outputs."""
    if batch_size is not None:
        checks.whole("batch_size", batch_size)
    samples = check_inputs(inputs, target)
    if samples == 0:
        raise ValueError("`inputs` must hold at least one sample, got none.")
    if not isinstance(target, Tensor):
        raise TypeError(f"`target` must be a tensor with one entry per sample, got {type(target).__name__}.")
    two = take(inputs, slice(0, 2))
    with trying(inputs, target):
        outputs, again = model(copied(two)), model(copied(two))
    _warn_of_problems(bool(finite(inputs)), _same(outputs, again))
    weight = next(model.parameters(), None)
    device = target.device if weight is None else weight.device
    target = target.cpu()  # where it is tested several times
    if criterion is not None:
        checks.entries("target", target, samples)
        return Evaluator(model, inputs, target.to(device), criterion, _classes(outputs, target), batch_size)
    logits = as_logits(outputs, min(samples, 2))
    if target.is_floating_point() and (numbers := _numbers(logits, target, samples)) is not None:
        # Zeros and ones for a single output are class labels, as for binary cross entropy.
        if logits.shape[1] > 1 or not bool(((numbers == 0) | (numbers == 1)).all()):
            # The outputs without noise take the place of the target.
            by_sample = samples_first(inputs)
            parts = [model(copied(take(inputs, part, by_sample))) for part in blocks(samples, batch_size)]
            clean = as_logits(torch.cat([as_logits(part, len(part)) for part in parts]), samples)
            scale = numbers.double().std(dim=0, correction=0).to(statistic_dtype(logits.device))
            within = Within((tolerance * scale).to(logits.device))
            return Evaluator(model, inputs, clean, within, 1, batch_size, numbers=numbers.to(clean.device))
        target = numbers[:, 0].long()
    num_classes = max(logits.shape[1], 2)
    target = checks.class_labels(target, num_classes, samples)
    probability = logits.shape[1] == 1 and survey(model, inputs).probabilities
    right = right_probability if probability else right_class
    return Evaluator(model, inputs, target.to(device), right, num_classes, batch_size)


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
    pairs = zip(tensors(first), tensors(second), strict=False)
    return all(a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in pairs)


def _numbers(logits: Tensor, target: Tensor, samples: int) -> Tensor | None:
    """Targets of a regression, ``[samples, outputs]``; None if they have another shape, or encode classes."""
    numbers = target[:, None] if target.ndim == 1 else target
    if numbers.ndim != 2 or numbers.shape != (samples, logits.shape[1]):
        return None
    # One-hot rows and probabilities are class labels, which the user has to convert to whole numbers.
    probabilities = (numbers >= 0).all() and ((numbers.sum(dim=1) - 1).abs() < 1e-4).all()
    if numbers.shape[1] > 1 and bool(((numbers == 0) | (numbers == 1)).all() or probabilities):
        return None
    if not bool(numbers.isfinite().all()):
        raise ValueError("`target` must hold finite numbers, got NaN or inf.")
    return numbers


def _classes(outputs: object, target: Tensor) -> int:
    """Number of classes under a criterion of the user's own; 1 if targets and outputs are not a classifier's."""
    columns = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim == 2 else 1
    whole = target.ndim == 1 and not target.is_floating_point() and not target.is_complex()
    classes = max(columns, 2)
    return classes if whole and int(target.min()) >= 0 and int(target.max()) < classes else 1
