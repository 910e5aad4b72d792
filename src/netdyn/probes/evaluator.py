"""A network, a probe and a criterion: is the network still right?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from netdyn._utils.distributed import Processes
from netdyn._utils.random import Contents
from netdyn._utils.trees import Inputs, as_slice, blocks, copied, samples_first, take, tensors
from netdyn.probes.criteria import Criterion, apply_criterion


@dataclass
class Evaluator:
    """A network, a probe and a criterion; counts the samples that it sends through the network.

    Attributes:
        model: The network, in eval mode.
        inputs: The probe's inputs.
        target: Their targets ``[samples]``.
        criterion: Decides which outputs are right.
        num_classes: Number of classes; 1 where the targets are no labels.
        batch_size: Samples per forward pass (None: all).
        processes: The processes that share the work.
        passed: Samples sent through the network so far.
        known_contents: What :attr:`contents` gives, if it is known already.
        by_sample: Which of the inputs' tensors have the samples first; the others travel whole.
        numbers: The numbers to be predicted ``[samples, outputs]``, in regression.
    """

    model: nn.Module
    inputs: Inputs
    target: Tensor
    criterion: Criterion
    num_classes: int
    batch_size: int | None = None
    processes: Processes = field(default_factory=Processes)
    passed: float = 0
    known_contents: Contents | None = None
    by_sample: tuple[bool, ...] = ()
    numbers: Tensor | None = None

    def __post_init__(self) -> None:
        self.by_sample = self.by_sample or samples_first(self.inputs)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.target)

    @property
    def contents(self) -> Contents:
        """What seeds the samples' noise, and which of them are copies."""
        if self.known_contents is None:
            self.known_contents = Contents.of(self.inputs, self.by_sample)
        return self.known_contents

    @property
    def labels(self) -> Tensor:
        """Class labels int64 ``[samples]``; all zero where the targets are no labels."""
        if self.num_classes > 1:
            return self.target
        return torch.zeros(self.samples, dtype=torch.int64, device=self.target.device)

    @property
    def forwards(self) -> float:
        """Forward passes per sample so far."""
        return self.passed / max(self.samples, 1)

    def outputs(self, inputs: Inputs, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """The network's outputs for a batch."""
        self.passed += len(next(t for t, cut in zip(tensors(inputs), self.by_sample, strict=True) if cut))
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
        """Inputs and targets of some samples: copies, since a network may write over its input."""
        return copied(take(self.inputs, part, self.by_sample)), self.targets(part)

    def targets(self, part: slice | Tensor) -> Tensor:
        """Targets of some samples."""
        return self.target[part if isinstance(part, slice) else part.to(self.target.device)]

    def only(self, index: Tensor) -> Evaluator:
        """The same on some of the samples, by this process alone; its inputs are not to be written over."""
        part = as_slice(index)
        return replace(
            self,
            inputs=take(self.inputs, part, self.by_sample),
            target=self.targets(part),
            processes=Processes(),
            passed=0,
            known_contents=self.contents.chosen(index),
        )

    def divided(self, work: Callable[[Evaluator, Tensor], Tensor], index: Tensor | None = None) -> Tensor:
        """Let each process do its part of the samples (of ``index``); the results side by side, ``[..., samples]``.

        The work gets an evaluator of its part, and the indices of that part. With one process the results stay on
        their device; those of several are on the host.
        """
        index = torch.arange(self.samples) if index is None else index
        part, counted = self.processes.own_samples(index)
        own = self.only(part)

        def one() -> tuple[Tensor, float]:
            found = work(own, part)[..., :counted]
            return found if self.processes.size == 1 else found.cpu(), own.passed * counted / max(len(part), 1)

        results = self.processes.gather(one)
        self.passed += sum(passed for _, passed in results)
        return torch.cat([result for result, _ in results], dim=-1)
