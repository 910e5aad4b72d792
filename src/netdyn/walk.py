"""A network, a probe and a criterion on their way through a search; counts what passes through the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from netdyn.batches import Inputs, blocks, copied, fingerprints, sample_tensors, take, tensors
from netdyn.crew import Crew
from netdyn.criteria import Criterion, checked
from netdyn.noise import Noise, Rows


@dataclass
class Walk:
    """A network, a probe and a criterion; counts the samples that it sends through the network.

    Attributes:
        model: The network, in eval mode.
        inputs: The probe's inputs.
        target: Their targets ``[samples]``.
        criterion: Says which outputs are still right.
        num_classes: Number of classes; 1 where the targets are no labels.
        batch_size: Samples a forward pass (None: all).
        crew: The processes that share the work.
        passed: Samples sent through the network so far.
        digests: Digests of the samples' contents, which seed their noise; made when they are first asked for.
        cut: Which of the inputs' tensors have the samples first; the others travel whole.
        numbers: The numbers to be predicted ``[samples, outputs]``, in regression.
    """

    model: nn.Module
    inputs: Inputs
    target: Tensor
    criterion: Criterion
    num_classes: int
    batch_size: int | None = None
    crew: Crew = field(default_factory=Crew)
    passed: float = 0
    digests: list[bytes] | None = None
    cut: tuple[bool, ...] = ()
    numbers: Tensor | None = None

    def __post_init__(self) -> None:
        self.cut = self.cut or sample_tensors(self.inputs)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.target)

    @property
    def prints(self) -> list[bytes]:
        """The digests."""
        if self.digests is None:
            self.digests = fingerprints(self.inputs, self.cut)
        return self.digests

    @property
    def labels(self) -> Tensor:
        """Class labels int64 ``[samples]``; all zero where the targets are no labels."""
        none = torch.zeros(self.samples, dtype=torch.int64, device=self.target.device)
        return self.target if self.num_classes > 1 else none

    def outputs(self, inputs: Inputs, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """The network's outputs for a batch."""
        self.passed += len(next(t for t, cut in zip(tensors(inputs), self.cut, strict=True) if cut))
        return (model or self.model)(inputs)

    def right(self, inputs: Inputs, target: Tensor, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """Which samples of a batch are right, bool ``[batch]``."""
        return checked(self.criterion, self.outputs(inputs, model), target)

    def all_right(self, model: Callable[[Inputs], Tensor] | None = None) -> Tensor:
        """Which samples of the probe are right, bool ``[samples]``."""
        right = torch.empty(self.samples, dtype=torch.bool, device=self.target.device)
        for part in blocks(self.samples, self.batch_size):
            right[part] = self.right(*self.batch(part), model)
        return right

    def batch(self, part: slice | Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and targets of some samples: copies, since a network may write over its input."""
        return copied(take(self.inputs, part, self.cut)), self.target[part]

    def draw(self, noise: Noise, rays: Tensor, index: Tensor) -> Rows:
        """The noise of some rows, each a ray of a sample."""
        inputs = take(self.inputs, index.to(self.target.device), self.cut)
        return noise.draw(inputs, [self.prints[i] for i in index.tolist()], rays.tolist())

    def noisy(self, noise: Noise, rows: Rows, index: Tensor, sigma: Tensor) -> tuple[Any, Tensor]:
        """Outputs of some rows under noise of level ``sigma [rows]``, and their targets."""
        inputs, target = self.batch(index.to(self.target.device))
        level = sigma.to(self.target.device, torch.float32)
        return noise.outputs(self.model, inputs, rows, level, self.outputs), target

    def only(self, index: Tensor) -> Walk:
        """The same walk on some of the samples, by this process alone."""
        inputs, target = self.batch(index.to(self.target.device))
        digests = [self.prints[i] for i in index.tolist()]
        return replace(self, inputs=inputs, target=target, crew=Crew(), passed=0, digests=digests)

    def shared(self, work: Callable[[Walk], Tensor], index: Tensor | None = None) -> Tensor:
        """Let each process do its part of the samples (of ``index``); the results side by side, ``[..., samples]``."""
        return self.divided(lambda own, part: work(own), index)

    def divided(self, work: Callable[[Walk, Tensor], Tensor], index: Tensor | None = None) -> Tensor:
        """As :meth:`shared`, for work that asks also which samples its part is."""
        index = torch.arange(self.samples) if index is None else index
        part, counted = self.crew.samples(index)
        own = self.only(part)
        results = self.crew.share(
            lambda: (work(own, part)[..., :counted].cpu(), own.passed * counted / max(len(part), 1))
        )
        self.passed += sum(passed for _, passed in results)
        return torch.cat([result for result, _ in results], dim=-1)

    @property
    def forwards(self) -> float:
        """Forward passes a sample so far."""
        return self.passed / max(self.samples, 1)
