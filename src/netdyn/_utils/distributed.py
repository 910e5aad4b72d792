"""Several processes that divide one piece of work among themselves, and fail together."""

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

    Every process must call :meth:`gather` the same number of times. A process that fails elsewhere calls :meth:`fail`
    instead; the others then raise in their next :meth:`gather`, so that no process waits forever. Work therefore ends
    with a :meth:`gather`, even if there is nothing to exchange.

    Attributes:
        rank: This process's number, from 0.
        size: Number of processes.
        lockstep: Whether each process holds a part of the model's weights. All must then run the model the same number
            of times, at the same time.
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
        """This process's part of ``total`` items: consecutive, in the order of ranks, sizes differing by one at most.

        >>> [Processes(rank, 3).part(7) for rank in range(3)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
        """
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def own_samples(self, index: Tensor) -> tuple[Tensor, int]:
        """This process's part of some samples, and how many of them count.

        In lockstep all parts have the same size: shorter ones are filled up with a sample that does not count.
        """
        own = index[self.part(len(index))]
        counted = len(own)
        if self.lockstep and len(index):
            missing = -(-len(index) // self.size) - counted
            own = torch.cat([own, index[:1].expand(missing)])
        return own, counted

    def gather(self, work: Callable[[], T]) -> list[T]:
        """Do this process's work, and return the results of all processes in the order of ranks.

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

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's values to all processes, in place.

        Batch normalisation without synchronisation has different running statistics on every process. As in
        data-parallel training, those of the first process count.
        """
        if self.size > 1:
            own = [tensor for tensor in tensors if not hasattr(tensor, "to_local")]
            first = self.gather(lambda: [tensor.cpu() for tensor in own] if self.rank == 0 else [])[0]
            for tensor, value in zip(own, first, strict=True):
                if not torch.equal(tensor.cpu(), value):
                    tensor.copy_(value)

    def fail(self, error: BaseException) -> None:
        """Report to the other processes that this one cannot go on; an error is reported once."""
        if self.size > 1 and not isinstance(error, ProcessError) and not error.__dict__.get("reported"):
            error.__dict__["reported"] = True
            gathered: list[Any] = [None] * self.size
            dist.all_gather_object(gathered, (None, f"{type(error).__name__}: {error}"))

    def _exchange(self, own: tuple[Any, str | None]) -> list[Any]:
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, own)
        for rank, (_, error) in enumerate(gathered):
            if error is not None:
                raise ProcessError(f"Process {rank} failed: {error}")
        return gathered


# Weights that are spread over processes (FSDP2) ----------------------------------------------------------------------
#
# Such a weight is a `DTensor`. It is recognised by its methods, and a sharded module by the name of its class, because
# importing either class takes longer than all that is done with it here.


def is_shard(weight: Tensor) -> bool:
    """Whether this process holds only a part of a weight."""
    return hasattr(weight, "to_local")


def local_tensor(weight: Any) -> Tensor:
    """The part of a weight that this process holds; writing to it writes to the weight."""
    return weight.to_local() if is_shard(weight) else weight  # type: ignore[no-any-return]


def full_tensor(weight: Any) -> Tensor:
    """The weight with the parts that other processes hold; all processes must call this."""
    return weight.full_tensor() if is_shard(weight) else weight  # type: ignore[no-any-return]


def local_part(value: Tensor, weight: Any) -> Tensor:
    """This process's part of a tensor shaped like the whole weight; every process holds the same tensor."""
    value = value.to(weight.device)
    if not is_shard(weight):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None).to_local()


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are spread over processes."""
    return any(base.__name__ == "FSDPModule" for base in type(module).__mro__)


def reshard(model: nn.Module) -> None:
    """Free the whole weights that a forward pass has left in sharded modules.

    Until the next backward pass they stand in for the shards, and hide changes of the shards. The next forward pass
    gathers them again.
    """
    for module in model.modules():
        if is_sharded(module):
            module.reshard()  # type: ignore[operator]
