"""What a probe's targets are: class labels, one label per position, several labels, or numbers to be predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from netdyn._utils import checks
from netdyn._utils.options import instead
from netdyn._utils.trees import Inputs, tensors
from netdyn.probes.criteria import as_logits
from netdyn.probes.positions import Positions

Task = Literal["auto", "classes", "multilabel", "numbers"]
AccuracyOf = Literal["samples", "labels"]

#: Marks an entry without a label in targets that have been read.
LEFT_OUT = -1


@dataclass(frozen=True)
class TargetOptions:
    """How targets are to be read."""

    task: Task = "auto"
    ignore_index: int = -100
    accuracy_of: AccuracyOf = "samples"

    def __post_init__(self) -> None:
        checks.choice("task", self.task, ("auto", "classes", "multilabel", "numbers"))
        checks.choice("accuracy_of", self.accuracy_of, ("samples", "labels"))
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise TypeError(f"`ignore_index` must be a whole number, got {self.ignore_index!r}.")


@dataclass(frozen=True)
class Targets:
    """Targets that have been read.

    ``values`` are class labels ``[samples]``, labels ``[samples, positions]``, zeros and ones ``[samples, labels]``
    (all int64, −1 where left out), or numbers ``[samples, outputs]``.
    """

    kind: Literal["classes", "positions", "multilabel", "numbers"]
    values: Tensor
    num_classes: int = 1
    positions: Positions | None = None
    note: str = ""  # how the targets have been read, where that is not obvious

    @property
    def kept(self) -> Tensor | None:
        """Indices of the samples that have a label; None if all have."""
        labelled = (self.values != LEFT_OUT).reshape(len(self.values), -1).any(dim=1)
        return None if self.kind == "numbers" or bool(labelled.all()) else labelled.nonzero()[:, 0]


def read_targets(outputs: Tensor, target: Tensor, inputs: Inputs, options: TargetOptions) -> Targets:
    """Read targets, samples first, on the CPU; ``outputs`` are those for some of the samples.

    Raises:
        TypeError: If targets are complex, or are no labels where labels are needed.
        ValueError: If shapes or values do not fit.
    """
    if target.is_complex():
        raise TypeError(f"`target` must hold labels or real numbers, got dtype {target.dtype}.")
    wide = target if target.is_floating_point() else target.long()
    task = _guessed(outputs, wide, inputs, options.ignore_index) if options.task == "auto" else options.task
    if task == "numbers":
        return _numbers(outputs, wide)
    if task == "multilabel":
        return _multilabel(outputs, wide, options.ignore_index)
    return _classes(outputs, wide, inputs, options.ignore_index)


def _same_size(outputs: Tensor, target: Tensor) -> bool:
    """Whether there is an entry for each output."""
    return outputs[:1].numel() == target[:1].numel()


def _guessed(outputs: Tensor, target: Tensor, inputs: Inputs, ignore_index: int) -> Task:
    """The task that the shapes and values of outputs and targets fit."""
    floating, several = target.is_floating_point(), target[:1].numel() > 1
    binary = bool(((target == 0) | (target == 1) | (target == ignore_index)).all())
    if not _same_size(outputs, target):
        return "classes"
    if not several:
        # Zeros and ones for a single output are class labels, as for binary cross entropy.
        return "numbers" if floating and not binary else "classes"
    if any(each.shape == target.shape and torch.equal(each.cpu().to(target.dtype), target) for each in tensors(inputs)):
        return "numbers"  # an autoencoder
    if _is_distribution(target):
        other = "; pass task='multilabel' or task='numbers' if they are something else"
        raise TypeError(
            "`target` must hold whole class labels (an integer dtype), got rows that sum to 1, of shape "
            f"{list(target.shape)}. Convert one-hot or probability targets with `target.argmax(1)`"
            f"{instead('task', other, '')}."
        )
    if outputs.ndim == 2 and binary:
        return "multilabel"
    return "classes" if not floating or (binary and _positions(outputs, target) is not None) else "numbers"


def _is_distribution(target: Tensor) -> bool:
    """Whether all sums over the classes ``[samples, classes, …]`` are 1: one-hot or soft labels."""
    return target.shape[1] > 1 and bool((target >= 0).all()) and bool(((target.sum(dim=1) - 1).abs() < 1e-4).all())


def _positions(outputs: Tensor, target: Tensor) -> Positions | None:
    return Positions.between(tuple(outputs.shape), tuple(target.shape))


def _classes(outputs: Tensor, target: Tensor, inputs: Inputs, ignore_index: int) -> Targets:
    """A label per sample, or one per position."""
    if not bool((target == target.round()).all() if target.is_floating_point() else True):
        maker = instead("forward", "`forward=`", "the model")
        raise TypeError(
            "`target` must hold whole class labels, or one number for each output, got numbers that are not whole, of "
            f"dtype {target.dtype} and shape {list(target.shape)}, for {math.prod(outputs.shape[1:])} outputs per "
            f"sample. Let {maker} return one output for each number, such as the mean without the variance."
        )
    labels, positions, doubt = target.long(), None, ""
    if target[:1].numel() == 1:
        channels = as_logits(outputs, len(outputs)).shape[1]
    else:
        if (positions := _positions(outputs, target)) is None:
            raise ValueError(
                "`target` must have one label per sample, shape [samples], or one per position of outputs [samples, "
                f"classes, …] or [samples, positions, classes], got shape {list(target.shape)} for outputs of shape "
                f"[samples, {', '.join(map(str, outputs.shape[1:]))}]."
            )
        positions, doubt = _settled(positions, outputs, target, inputs)
        channels = 1 if tuple(outputs.shape[1:]) == positions.shape else outputs.shape[-1 if positions.last else 1]
    classes = max(channels, 2)
    values = _in_range(labels.reshape(len(labels), -1), classes, ignore_index)
    note = ""
    if target.is_floating_point() and channels > 1:
        note = "the targets, whole numbers of a floating dtype, are taken as class labels"
    note = "; ".join(filter(None, (note, doubt)))
    if positions is None:
        return Targets("classes", values[:, 0], classes, note=note)
    return Targets("positions", values, classes, positions, note)


def _settled(positions: Positions, outputs: Tensor, target: Tensor, inputs: Inputs) -> tuple[Positions, str]:
    """Whether classes come first or last where there are as many as positions: last if the inputs are tokens."""
    sizes = tuple(outputs.shape[1:])
    if not (len(sizes) > len(positions.shape) and sizes[:-1] == sizes[1:] == positions.shape):
        return positions, ""
    shape = (len(target), *positions.shape)
    steps = len(positions.shape) == 1
    last = steps and any(tuple(each.shape) == shape and not each.is_floating_point() for each in tensors(inputs))
    order = "positions, classes" if last else "classes, positions"
    how = instead("forward", "`forward=`", "the model")
    note = f"outputs {list(sizes)} per sample are read as [{order}]; if they are not, let {how} transpose them"
    return replace(positions, last=last), note


def _in_range(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Labels in ``[0, classes)``, and −1 for what is to be left out."""
    left_out = labels == ignore_index
    counted = labels[~left_out]
    if not len(counted):
        raise ValueError(f"`target` must hold labels, got {ignore_index}, `ignore_index`, alone.")
    low, high = map(int, counted.aminmax())
    if low < 0 or high >= classes:
        text = f"`target` must lie in [0, num_classes) = [0, {classes}), got the label {low if low < 0 else high}."
        outside = torch.unique(counted[(counted < 0) | (counted >= classes)])
        if low == 1 and high == classes:
            text += " Subtract 1 from labels that begin at 1."
        elif len(outside) == 1:
            how = instead("ignore_index", f"Pass `ignore_index={int(outside)}`", "Leave these samples out")
            text += f" {how} if that marks what has no label."
        if len(outside) > 1 or classes == 2:
            how = instead("task", "Pass task='numbers'", "Pass `target.float()`")
            text += f" {how} if these are numbers to be predicted."
        raise ValueError(text)
    return labels.masked_fill(left_out, LEFT_OUT)


def _multilabel(outputs: Tensor, target: Tensor, ignore_index: int) -> Targets:
    """Several labels per sample, zeros and ones with a logit each."""
    left_out = target == ignore_index
    if not _same_size(outputs, target) or not bool((left_out | (target == 0) | (target == 1)).all()):
        low, high = map(float, target.double().aminmax())
        raise ValueError(
            "`target` must hold a zero or a one for each output with task='multilabel', got shape "
            f"{list(target.shape)} and values from {low:g} to {high:g} for {math.prod(outputs.shape[1:])} outputs per "
            "sample."
        )
    return Targets("multilabel", target.masked_fill(left_out, LEFT_OUT).long().reshape(len(target), -1))


def _numbers(outputs: Tensor, target: Tensor) -> Targets:
    """Numbers to be predicted, flattened."""
    if not _same_size(outputs, target):
        raise ValueError(
            f"`target` must hold one number for each output, {math.prod(outputs.shape[1:])} per sample, got shape "
            f"{list(target.shape)}."
        )
    numbers = target if target.is_floating_point() else target.to(torch.get_default_dtype())
    if not bool(numbers.isfinite().all()):
        raise ValueError("`target` must hold finite numbers, got NaN or inf.")
    return Targets("numbers", numbers.reshape(len(numbers), -1))
