"""A network, a probe and a criterion on their way through a search; counts what passes through the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from netdyn._utils.distributed import Crew
from netdyn._utils.transit import sent
from netdyn._utils.trees import (
    Inputs,
    Scratch,
    blocks,
    consecutive,
    copied,
    fingerprints,
    map_tensors,
    sample_tensors,
    take,
    tensors,
)
from netdyn.basins.input_noise import Noise, Rows
from netdyn.basins.supply import Supply
from netdyn.probes.criteria import Criterion, checked

#: Whether a probe's inputs are finite, and whether the model has put out the same for them twice: bool scalars.
Sound = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Batch:
    """Rows on their way through a search, each a ray of a sample.

    Attributes:
        inputs: The samples, without noise; not to be written over.
        target: Their targets ``[rows]``.
        noise: Their noise.
        cut: Which of the inputs' tensors have the rows first.
    """

    inputs: Inputs
    target: Tensor
    noise: Rows
    cut: tuple[bool, ...]

    def chosen(self, index: Tensor) -> Batch:
        """Some of the rows, by their numbers."""
        at = sent(index, self.target.device)
        noise = [None if own is None else own.index_select(0, sent(index, own.device)) for own in self.noise]
        return Batch(take(self.inputs, index, self.cut), self.target[at], noise, self.cut)

    def joined(self, other: Batch) -> Batch:
        """These rows and then those of another batch."""
        turn = iter(self.cut)
        inputs = map_tensors(lambda a, b: torch.cat([a, b]) if next(turn) else a, self.inputs, other.inputs)
        pairs = zip(self.noise, other.noise, strict=True)
        noise = [None if a is None or b is None else torch.cat([a, b]) for a, b in pairs]
        return Batch(inputs, torch.cat([self.target, other.target]), noise, self.cut)


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
        at_hand: The targets on the host.
        sound: Whether inputs and model are what they seem to be; not read yet.
        supply: The noise of a search, while one is under way.
        origin: Which samples of the supply the walk's are; None: all, in order.
        scratch: Memory for the batch that passes through the network.
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
    at_hand: Tensor | None = None
    sound: Sound = field(default_factory=lambda: (torch.tensor(True), torch.tensor(True)))
    supply: Supply | None = None
    origin: Tensor | None = None
    scratch: Scratch = field(default_factory=Scratch)

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
        if self.num_classes > 1:
            return self.target
        return torch.zeros(self.samples, dtype=torch.int64, device=self.target.device)

    @property
    def known_labels(self) -> Tensor:
        """The labels on the host, where looking at them makes nobody wait."""
        if self.num_classes > 1:
            return self.target.cpu() if self.at_hand is None else self.at_hand
        return torch.zeros(self.samples, dtype=torch.int64)

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
            inputs = self.scratch.filled(take(self.inputs, part, self.cut))
            right[part] = self.right(inputs, self.target[part], model)
        return right

    def batch(self, part: slice | Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and targets of some samples: copies, since a network may write over its input."""
        return copied(take(self.inputs, part, self.cut)), self.target[part]

    def rows(self, noise: Noise, rays: Tensor, index: Tensor) -> Batch:
        """Some rows, each a ray of a sample, with their noise."""
        if self.supply is not None and self.supply.noise is noise:
            drawn = self.supply.rows(rays, index if self.origin is None else self.origin[index])
        else:
            drawn = noise.draw(self.inputs, self._digests(index), rays.tolist())
        part = consecutive(index)
        return Batch(take(self.inputs, part, self.cut), self._targets(part), drawn, self.cut)

    def noisy(self, noise: Noise, batch: Batch, sigma: Tensor) -> Any:
        """Outputs of some rows under noise of level ``sigma [rows]``."""
        level = sent(sigma.float(), self.target.device)
        return noise.outputs(self.model, batch.inputs, batch.noise, level, self.outputs, self.scratch)

    def only(self, index: Tensor) -> Walk:
        """The same walk on some of the samples, by this process alone; its inputs are not to be written over."""
        part = consecutive(index)
        return replace(
            self,
            inputs=take(self.inputs, part, self.cut),
            target=self._targets(part),
            at_hand=None if self.at_hand is None else self.at_hand[part],
            crew=Crew(),
            passed=0,
            digests=self._digests(index),
            origin=index if self.origin is None else self.origin[index],
        )

    def _digests(self, index: Tensor) -> list[bytes]:
        prints = self.prints
        return [prints[i] for i in index.tolist()]

    def _targets(self, part: slice | Tensor) -> Tensor:
        return self.target[part if isinstance(part, slice) else sent(part, self.target.device)]

    def shared(self, work: Callable[[Walk], Tensor], index: Tensor | None = None) -> Tensor:
        """Let each process do its part of the samples (of ``index``); the results side by side, ``[..., samples]``."""
        return self.divided(lambda own, part: work(own), index)

    def divided(self, work: Callable[[Walk, Tensor], Tensor], index: Tensor | None = None) -> Tensor:
        """As :meth:`shared`, for work that asks also which samples its part is.

        One process leaves its results where they are; those of several are on the host.
        """
        index = torch.arange(self.samples) if index is None else index
        part, counted = self.crew.samples(index)
        own = self.only(part)

        def one() -> tuple[Tensor, float]:
            found = work(own, part)[..., :counted]
            return found if self.crew.size == 1 else found.cpu(), own.passed * counted / max(len(part), 1)

        results = self.crew.share(one)
        self.passed += sum(passed for _, passed in results)
        return torch.cat([result for result, _ in results], dim=-1)

    @property
    def forwards(self) -> float:
        """Forward passes a sample so far."""
        return self.passed / max(self.samples, 1)
