"""Several processes that share one piece of work, and fail together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class ProcessError(RuntimeError):
    """The work failed on another process."""


@dataclass(frozen=True)
class Processes:
    """The processes that measure one network together.

    Every process must call :meth:`gather` equally often, whatever happens to it. One whose own code fails outside of it
    calls :meth:`fail` instead, which the others meet in their next :meth:`gather`: they raise too, and nobody waits
    forever. So work ends with a last :meth:`gather`, even if there is nothing to exchange.

    Attributes:
        rank: This process's number, from 0.
        size: Number of processes.
        lockstep: Each holds a part of the model's weights, so that all must run it equally often, at the same time.
    """

    rank: int = 0
    size: int = 1
    lockstep: bool = False

    @classmethod
    def world(cls, lockstep: bool = False) -> Processes:
        """All processes of ``torch.distributed``, or this one alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), lockstep)

    def part(self, total: int) -> slice:
        """This process's share of ``total`` things: consecutive, in the order of ranks, sizes differing by one at most.

        >>> [Processes(rank, 3).part(7) for rank in range(3)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
        """
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def samples(self, index: Tensor) -> tuple[Tensor, int]:
        """This process's part of some samples, and how many of them count.

        In lockstep parts are filled up to equal sizes with samples that somebody else has too.
        """
        own = index[self.part(len(index))]
        counted = len(own)
        if self.lockstep and len(index):
            missing = -(-len(index) // self.size) - counted
            own = torch.cat([own, index[:1].expand(missing)])
        return own, counted

    def gather(self, work: Callable[[], T]) -> list[T]:
        """Do one's own work; everybody's results, in the order of ranks.

        Raises:
            ProcessError: If the work failed on another process.
            Exception: What the work raised here.
        """
        if self.size == 1:
            return [work()]
        try:
            result = work()
        except Exception as error:
            self.fail(error)
            error.add_note("This ended the work on all processes.")
            raise
        return [content for content, _ in self._exchange((result, None))]

    def in_step(self, work: Callable[[], T]) -> T:
        """Do what all do; one's own result. Where it fails for one it fails for all."""
        done: list[T] = []
        self.gather(lambda: done.append(work()))
        return done[0]

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Give everybody the first process's values, in place.

        Batch normalisation without synchronisation has other running statistics on every process; as in data-parallel
        training, the first one's count.
        """
        if self.size > 1:
            own = [tensor for tensor in tensors if not hasattr(tensor, "to_local")]
            first = self.gather(lambda: [tensor.cpu() for tensor in own] if self.rank == 0 else [])[0]
            for tensor, value in zip(own, first, strict=True):
                if not torch.equal(tensor.cpu(), value):
                    tensor.copy_(value)

    def fail(self, error: BaseException) -> None:
        """Let the others know that this process cannot go on; of an error that is raised again they know."""
        if self.size > 1 and not isinstance(error, ProcessError) and not error.__dict__.get("shared"):
            error.__dict__["shared"] = True
            gathered: list[Any] = [None] * self.size
            dist.all_gather_object(gathered, (None, f"{type(error).__name__}: {error}"))

    def _exchange(self, own: tuple[Any, str | None]) -> list[Any]:
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, own)
        for rank, (_, trouble) in enumerate(gathered):
            if trouble is not None:
                raise ProcessError(f"Process {rank} failed: {trouble}")
        return gathered


# Weights that are spread over processes (FSDP2) ----------------------------------------------------------------------
#
# Such a weight is a `DTensor`. It is recognised by its methods, and a sharded module by its class's name: importing
# either class takes longer than anything done with it here.


def is_shard(weight: Tensor) -> bool:
    """Whether this process holds only a part of a weight."""
    return hasattr(weight, "to_local")


def local(weight: Any) -> Tensor:
    """What this process holds of a weight; writing to it writes to the weight."""
    return weight.to_local() if is_shard(weight) else weight  # type: ignore[no-any-return]


def whole(weight: Any) -> Tensor:
    """The weight with the parts that other processes hold; all of them must ask."""
    return weight.full_tensor() if is_shard(weight) else weight  # type: ignore[no-any-return]


def own_part(value: Tensor, weight: Any) -> Tensor:
    """This process's part of a tensor shaped like the whole weight, which every process has alike."""
    value = value.to(weight.device)
    if not is_shard(weight):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None).to_local()


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are spread over processes."""
    return any(base.__name__ == "FSDPModule" for base in type(module).__mro__)


def reshard(model: nn.Module) -> None:
    """Let sharded modules give up the whole weights that a forward has left in them.

    Until the next backward pass these stand in for the shards, and would hide what happens to the shards. The next
    forward gathers them anew.
    """
    for module in model.modules():
        if is_sharded(module):
            module.reshard()  # type: ignore[operator]
