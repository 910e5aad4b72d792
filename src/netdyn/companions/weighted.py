"""The layers of a network that hold weights, and the edges that lead to and from their units."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from netdyn._utils.distributed import full_tensor
from netdyn.isolation.wrappers import unwrapped
from netdyn.modes.ranks import statistic_dtype
from netdyn.tracing.names import ROOT, clean_name

#: Modules that count as layers with weights.
KINDS = (nn.Linear, _ConvNd)


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear and convolutional layers, each once, by name, in the order in which the network registers them."""
    return {name: module for name, module in named_modules(model) if isinstance(module, KINDS)}


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules that run, with their names; ``"model"`` is the whole one."""
    model = unwrapped(model)[0]
    # An isolated network lists the modules of the model inside, without its own shell, which has a name all the same.
    names = {module: name for name, module in model.named_modules()}
    for module in model.modules():
        yield clean_name(names.get(module, "")) or ROOT, module


def weight_of(module: nn.Module) -> Tensor:
    """A layer's weight as ``[outputs, inputs, taps]``, one tap in a linear layer, in the widest type of its device.

    The inputs of a grouped convolution are those of a group.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight = full_tensor(weight.detach())
    weight = weight.abs() if weight.is_complex() else weight
    weight = weight.to(statistic_dtype(weight.device))
    if not isinstance(module, _ConvNd):
        return weight[..., None]
    weight = weight.flatten(2)
    if module.transposed:  # [inputs, outputs of a group, taps]
        groups, (_, outputs, taps) = module.groups, weight.shape
        weight = weight.reshape(groups, -1, outputs, taps).transpose(1, 2).flatten(0, 1)
    return weight


def bias_of(module: nn.Module) -> Tensor | float:
    """A layer's bias; 0 without one."""
    bias = module.bias
    return 0.0 if not isinstance(bias, Tensor) else full_tensor(bias.detach()).to(statistic_dtype(bias.device))


def inputs_of(module: nn.Module) -> int:
    """Number of a layer's input units or channels."""
    number = module.in_channels if isinstance(module, _ConvNd) else module.in_features
    assert isinstance(number, int)
    return number


def outgoing_sums(module: nn.Module) -> Tensor:
    """Sum of the weights with which each input unit or channel enters a layer, ``[inputs]``."""
    weight = weight_of(module).sum(dim=2)
    groups = module.groups if isinstance(module, _ConvNd) else 1
    assert isinstance(groups, int)
    return weight.reshape(groups, -1, weight.shape[1]).sum(dim=1).flatten()
