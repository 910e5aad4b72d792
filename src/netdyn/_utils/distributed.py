"""Several processes that divide one piece of work among themselves, and fail together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from netdyn._utils.user_code import add_note

T = TypeVar("T")


class ProcessError(RuntimeError):
    """The work failed on another process."""


@dataclass(frozen=True)
class Processes:
    """The processes that measure one network together.

    Every process must call :meth:`gather` the same number of times. A process that fails elsewhere calls :meth:`fail`
    instead; the others then raise in their next :meth:`gather`, so that no process waits forever. Work therefore ends
    with a :meth:`gather`, even if there is nothing to exchange.

    In lockstep each process holds a part of the weights: all must run the model the same number of times, together.
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
        """This process's part of ``total`` items: consecutive, in the order of ranks, sizes differ by one at most."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def own_samples(self, index: Tensor) -> tuple[Tensor, int]:
        """This process's part of some samples, in lockstep filled up to the same size; and how many of them count."""
        own = filled = index[self.part(len(index))]
        if self.lockstep and len(index):
            filled = torch.cat([own, index[:1].expand(-(-len(index) // self.size) - len(own))])
        return filled, len(own)

    def gather(self, work: Callable[[], T]) -> list[T]:
        """Do this process's work, and return the results of all processes in the order of ranks."""
        if self.size == 1:
            return [work()]
        try:
            result = work()
        except Exception as error:
            self.fail(error)
            add_note(error, "This ended the work on all processes.")
            raise
        gathered = self._exchange(result, None)
        for rank, (_, failure) in enumerate(gathered):
            if failure is not None:
                raise ProcessError(f"Process {rank} failed: {failure}")
        return [content for content, _ in gathered]

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's values (running statistics, as data-parallel training does) to all, in place."""
        if self.size > 1:
            own = [tensor for tensor in tensors if not is_shard(tensor)]
            first = self.gather(lambda: [tensor.cpu() for tensor in own] if self.rank == 0 else [])[0]
            for tensor, value in zip(own, first, strict=True):
                if not torch.equal(tensor.cpu(), value):
                    tensor.copy_(value)

    def fail(self, error: BaseException) -> None:
        """Report to the other processes that this one cannot go on; an error is reported once."""
        if self.size > 1 and not isinstance(error, ProcessError) and not error.__dict__.get("reported"):
            error.__dict__["reported"] = True
            self._exchange(None, f"{type(error).__name__}: {error}")

    def _exchange(self, result: Any, failure: str | None) -> list[Any]:
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, (result, failure))
        return gathered


# A weight spread over processes (FSDP2) is a `DTensor`. It is recognised by its methods, and a sharded module by the
# name of its class, because importing either class takes longer than all that is done with it here.


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
    """Free the whole weights that a forward pass has left in sharded modules, where they hide changes of the shards."""
    for module in model.modules():
        if is_sharded(module):
            module.reshard()  # type: ignore[operator]
