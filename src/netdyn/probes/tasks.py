"""The task of a network on a probe: labels, numbers to be predicted, or a criterion of the user's own."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.inputs import check_inputs
from netdyn._utils.trees import Inputs, blocks, copied, finite, samples_first, take, tensors
from netdyn.isolation.call_errors import trying
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.criteria import (
    Criterion,
    RightLabels,
    RightPositions,
    Within,
    as_logits,
    right_class,
    right_probability,
)
from netdyn.probes.evaluator import Evaluator
from netdyn.probes.probe import device_of
from netdyn.probes.targets import TargetOptions, read_targets
from netdyn.tracing.survey import survey

#: How far a predicted number may move before it counts as wrong, in standard deviations of its target.
TOLERANCE = 0.5
#: A target whose standard deviation is at most this part of the largest does not vary.
CONSTANT = 1e-6


def prepare(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    criterion: Criterion | None,
    batch_size: int | None,
    tolerance: float = TOLERANCE,
    options: TargetOptions | None = None,
) -> Evaluator:
    """Check the probe of an isolated network, and find the criterion that fits its outputs and targets."""
    if batch_size is not None:
        checks.whole("batch_size", batch_size)
    samples = check_inputs(inputs, target)
    if samples == 0:
        raise ValueError("`inputs` must hold at least one sample, got none.")
    checks.entries("target", target, samples)
    two = take(inputs, slice(0, 2))
    with trying(inputs, target):
        outputs, again = model(copied(two)), model(copied(two))
    _warn_of_problems(finite(inputs), _same(outputs, again))
    device = device_of(model) or target.device
    target = target.cpu()  # where it is tested several times
    if criterion is not None:
        return Evaluator(model, inputs, target.to(device), criterion, _classes(outputs, target), batch_size)
    options = options or TargetOptions()
    if not isinstance(outputs, Tensor) or len(outputs) != min(samples, 2):
        as_logits(outputs, min(samples, 2))  # raises
    read = read_targets(outputs, target, inputs, options)
    if read.kind == "numbers":
        return _regression(model, inputs, read.values, batch_size, tolerance)
    if (kept := read.kept) is not None:
        inputs, read = take(inputs, kept), replace(read, values=read.values[kept])
    sizes = ", ".join(map(str, outputs.shape[1:]))
    first = f"of several tensors that the model returns the first, [samples, {sizes}], is taken as the logits"
    notes = tuple(filter(None, (read.note, first if getattr(model, "several", False) else "")))
    found = Evaluator(
        model, inputs, read.values.to(device), right_class, 1, batch_size, kept=kept, notes=notes, answers=1
    )
    single = read.kind == "multilabel" or outputs[:1].numel() == read.values[:1].numel()
    probability = single and survey(model, inputs).probabilities
    limit = 0.5 if probability else 0.0
    if read.kind == "classes":
        found.criterion = right_probability if probability else right_class
        found.num_classes = found.answers = read.num_classes
    elif read.positions is not None:
        found.criterion = RightPositions(read.positions, limit)
        found.positions, found.answers = read.positions, read.num_classes
    else:
        found.criterion, found.multilabel = RightLabels(options.accuracy_of == "labels", limit), True
        found.answers = 2 if options.accuracy_of == "labels" else 1
    if found.positions is not None or found.answers != found.num_classes:
        labels = (read.values >= 0).sum(dim=1).double()
        found.weight = labels / labels.mean()
    return found


def _regression(
    model: nn.Module, inputs: Inputs, numbers: Tensor, batch_size: int | None, tolerance: float
) -> Evaluator:
    """Numbers to be predicted: the outputs without noise take the place of the target."""
    # Of equal numbers, rounding may leave a deviation.
    scale = numbers.double().std(dim=0, correction=0) * (numbers != numbers[:1]).any(dim=0)
    constant = scale <= CONSTANT * scale.max()
    if bool(constant.all()):
        raise ValueError(
            "`target` must vary between samples, since `tolerance` is in units of its standard deviation; got the same "
            f"{'number' if len(scale) == 1 else 'numbers'} for all samples. Pass `criterion=` to say which outputs are "
            "right."
        )
    if bool(constant.any()):
        checks.warn(
            f"The outputs {listed(constant.nonzero()[:, 0].tolist())} have a constant target, from which no tolerance "
            "follows: they take no part in what is right."
        )
    by_sample = samples_first(inputs)
    parts = (model(copied(take(inputs, part, by_sample))) for part in blocks(len(numbers), batch_size))
    clean = torch.cat([part.reshape(len(part), -1) for part in parts])
    distance = (tolerance * scale).masked_fill(constant, math.inf).to(statistic_dtype(clean.device))
    within = Within(distance.to(clean.device))
    return Evaluator(model, inputs, clean, within, 1, batch_size, numbers=numbers.to(clean.device))


def listed(items: list[int], most: int = 10) -> str:
    """The first items of a list, and how many more there are."""
    return f"{items}" if len(items) <= most else f"{items[:most]} and {len(items) - most} more"


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


def _classes(outputs: object, target: Tensor) -> int:
    """Number of classes under a criterion of the user's own; 1 if targets and outputs are not a classifier's."""
    columns = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim == 2 else 1
    whole = target.ndim == 1 and not target.is_floating_point() and not target.is_complex()
    classes = max(columns, 2)
    return classes if whole and int(target.min()) >= 0 and int(target.max()) < classes else 1
