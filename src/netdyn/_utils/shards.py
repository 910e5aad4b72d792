"""Weights that are spread over processes (FSDP2): what this process holds, and the whole.

Such a weight is a ``DTensor``. It is told by what it can do, and a sharded module by its class's name: importing
either class takes longer than anything done with it here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from netdyn._utils.transit import sent


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
    value = sent(value, weight.device)
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
