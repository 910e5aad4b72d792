"""Which samples of a probe a network gets right, under a criterion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from netdyn._utils.distributed import Processes
from netdyn._utils.random import Contents, Kept
from netdyn._utils.trees import Inputs, as_slice, blocks, copied, samples_first, take, tensors
from netdyn.probes.criteria import Criterion, RightLabels, RightPositions, apply_criterion, as_logits, right_class
from netdyn.probes.positions import Positions


@dataclass
class Evaluator:
    """A network in eval mode, a probe and a criterion."""

    model: nn.Module
    inputs: Inputs
    target: Tensor
    criterion: Criterion
    num_classes: int  # of the samples' labels; 1 if the targets are no such labels
    batch_size: int | None = None
    processes: Processes = field(default_factory=Processes)
    passed: float = 0  # samples that have passed through the network
    by_sample: tuple[bool, ...] = ()  # whether each of the inputs' tensors has the samples first; others stay whole
    numbers: Tensor | None = None  # to be predicted, `[samples, outputs]`, in regression
    positions: Positions | None = None  # that have a label each: the target is `[samples, positions]`
    multilabel: bool = False  # whether the target holds several labels of each sample, `[samples, labels]`
    answers: int = 0  # number of answers to choose from, for a sample or for a label; 1 if that is not known
    weight: Tensor | None = None  # of each sample's share of right answers, with the mean 1; None: right or wrong
    kept: Tensor | None = None  # which samples of the probe these are, if some have no label
    notes: tuple[str, ...] = ()  # how the targets have been read, where that is not obvious
    drawn: Kept = field(default_factory=lambda: Kept(0))  # random numbers of this and of other evaluations

    def __post_init__(self) -> None:
        self.by_sample = self.by_sample or samples_first(self.inputs)
        self.answers = self.answers or self.num_classes

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.target)

    @cached_property
    def contents(self) -> Contents:
        """What seeds the samples' noise, and which of them are copies; made at the first use."""
        return Contents.of(self.inputs, self.by_sample)

    @property
    def labels(self) -> Tensor:
        """Class labels int64 ``[samples]``; all zero if the targets are not class labels."""
        if self.num_classes > 1:
            return self.target
        return torch.zeros(self.samples, dtype=torch.int64, device=self.target.device)

    @property
    def forwards(self) -> float:
        """Forward passes per sample so far."""
        return self.passed / max(self.samples, 1)

    def logits(self, outputs: object, samples: int) -> Tensor:
        """The outputs as logits ``[samples, classes]`` (or numbers), or ``[samples, positions, classes]``."""
        if self.positions is not None and isinstance(outputs, Tensor):
            return self.positions.logits(outputs)
        if (self.multilabel or self.numbers is not None) and isinstance(outputs, Tensor):
            return outputs.reshape(samples, -1)
        return as_logits(outputs, samples)

    def outputs(self, inputs: Inputs, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """The network's outputs for a batch."""
        self.passed += len(next(t for t, own in zip(tensors(inputs), self.by_sample, strict=True) if own))
        return (model or self.model)(inputs)

    def right(self, inputs: Inputs, target: Tensor, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """Which samples of a batch are right, bool ``[batch]``, or the share of each that is."""
        return apply_criterion(self.criterion, self.outputs(inputs, model), target)

    def right_logits(self, logits: Tensor, target: Tensor) -> Tensor:
        """:meth:`right` of :meth:`logits` with their targets; the logits are no probabilities."""
        if isinstance(self.criterion, RightPositions | RightLabels):
            return self.criterion.of_logits(logits, target)
        return right_class(logits, target)

    @property
    def classes(self) -> int:
        """Number of classes of the samples' or positions' labels; 1 if there are none."""
        return self.num_classes if self.positions is None else self.answers

    def class_sizes(self) -> Tensor:
        """How many samples or positions each class has, int64 ``[classes]`` on the CPU."""
        labels = self.labels if self.positions is None else self.target[self.target >= 0]
        return torch.bincount(labels.cpu(), minlength=self.classes)

    @property
    def labelled(self) -> bool:
        """Whether targets are labels, of samples or of positions."""
        return self.num_classes > 1 or self.positions is not None or self.multilabel

    def all_right(self, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """Which samples of the probe are right, bool ``[samples]``, or the share of each that is."""
        if not self.samples:  # one process of several may have none
            return torch.zeros(0, dtype=torch.bool, device=self.target.device)
        return torch.cat([self.right(*self.batch(part), model) for part in blocks(self.samples, self.batch_size)])

    def batch(self, part: slice | Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and targets of some samples, as copies: a network may overwrite its input."""
        return copied(take(self.inputs, part, self.by_sample)), self.targets(part)

    def targets(self, part: slice | Tensor) -> Tensor:
        """Targets of some samples."""
        return self.target[part if isinstance(part, slice) else part.to(self.target.device)]

    def only(self, index: Tensor) -> Evaluator:
        """An evaluator of some of the samples, for this process alone. Its inputs must not be overwritten."""
        part = as_slice(index)
        inputs, target = take(self.inputs, part, self.by_sample), self.targets(part)
        weight = None if self.weight is None else self.weight[index]
        own = replace(self, inputs=inputs, target=target, weight=weight, processes=Processes(), passed=0)
        own.contents = self.contents.chosen(index)
        return own

    def fresh(self) -> Evaluator:
        """The same evaluator, before any pass; what seeds the noise is not made again."""
        own = replace(self, passed=0)
        own.contents = self.contents
        return own

    def divided(self, work: Callable[[Evaluator, Tensor], Tensor], index: Tensor | None = None) -> Tensor:
        """Divide some samples (None: all) among the processes; the results ``[..., samples]`` of ``work``, in order.

        ``work`` gets an evaluator of a process's part, and its indices. Results of several processes are on the host.
        """
        index = torch.arange(self.samples) if index is None else index
        part, counted = self.processes.own_samples(index)
        own = self.only(part)

        def own_part() -> tuple[Tensor, float]:
            found = work(own, part)[..., :counted]
            return found if self.processes.size == 1 else found.cpu(), own.passed * counted / max(len(part), 1)

        results = self.processes.gather(own_part)
        self.passed += sum(passed for _, passed in results)
        return torch.cat([result for result, _ in results], dim=-1)
