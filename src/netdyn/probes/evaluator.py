"""Which samples of a probe a network gets right, under a criterion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from netdyn._utils.distributed import Processes
from netdyn._utils.random import Contents
from netdyn._utils.trees import Inputs, as_slice, blocks, copied, samples_first, take, tensors
from netdyn.probes.criteria import Criterion, apply_criterion


@dataclass
class Evaluator:
    """A network in eval mode, a probe and a criterion."""

    model: nn.Module
    inputs: Inputs
    target: Tensor
    criterion: Criterion
    num_classes: int  # 1 if the targets are not class labels
    batch_size: int | None = None
    processes: Processes = field(default_factory=Processes)
    passed: float = 0  # samples that have passed through the network
    by_sample: tuple[bool, ...] = ()  # whether each of the inputs' tensors has the samples first; others stay whole
    numbers: Tensor | None = None  # to be predicted, `[samples, outputs]`, in regression

    def __post_init__(self) -> None:
        self.by_sample = self.by_sample or samples_first(self.inputs)

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

    def outputs(self, inputs: Inputs, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """The network's outputs for a batch."""
        self.passed += len(next(t for t, own in zip(tensors(inputs), self.by_sample, strict=True) if own))
        return (model or self.model)(inputs)

    def right(self, inputs: Inputs, target: Tensor, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """Which samples of a batch are right, bool ``[batch]``."""
        return apply_criterion(self.criterion, self.outputs(inputs, model), target)

    def all_right(self, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """Which samples of the probe are right, bool ``[samples]``."""
        right = torch.empty(self.samples, dtype=torch.bool, device=self.target.device)
        for part in blocks(self.samples, self.batch_size):
            right[part] = self.right(*self.batch(part), model)
        return right

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
        own = replace(self, inputs=inputs, target=target, processes=Processes(), passed=0)
        own.contents = self.contents.chosen(index)
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
