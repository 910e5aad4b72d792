"""Node strength and layer fluctuation: the network as a weighted graph."""

from __future__ import annotations

from itertools import islice

from torch import Tensor, nn

from netdyn.companions.weighted import bias_of, inputs_of, outgoing_sums, weight_of, weighted_layers


def node_strength(model: nn.Module) -> dict[str, Tensor]:
    """How strongly each unit is tied into the network: s = Σ incoming weights + bias + Σ outgoing weights.

    A unit of a convolution is a channel, with the sums over its kernels; borders and strides play no part. Outgoing
    weights are those of the next layer that takes as many inputs as this one gives, in the order in which the network
    registers its layers; where that flattens the channels, a channel has the mean over its positions. The last layer
    has no outgoing weights.

    Args:
        model: Any PyTorch module. Its linear and convolutional layers count; normalisation between them does not.

    Returns:
        Layer name → float64 ``[units]``, in the unit of the weights. Empty without such layers.

    Source:
        La Malfa et al., arXiv:2110.02628 and arXiv:2209.05488. They also count the network's inputs as a layer, and add
        1 to the first and the last one; and every position of a convolution is a node of its own.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> new = {"0.weight": [[1, 2], [3, 4]], "0.bias": [0.5, 0], "2.weight": [[10, 20]]}
        >>> net.load_state_dict({name: torch.tensor(value) for name, value in new.items()})
        <All keys matched successfully>
        >>> {name: strength.tolist() for name, strength in node_strength(net).items()}
        {'0': [13.5, 27.0], '2': [30.0]}
    """
    layers = weighted_layers(model)
    found = {}
    for place, (name, module) in enumerate(layers.items()):
        strength = weight_of(module).sum(dim=(1, 2)) + bias_of(module)
        for later in islice(layers.values(), place + 1, None):
            positions, rest = divmod(inputs_of(later), len(strength))
            # Only a linear layer after a convolution takes the channels' positions one by one.
            flattens = isinstance(later, nn.Linear) and not isinstance(module, nn.Linear)
            if rest == 0 and (positions == 1 or (flattens and positions)):
                sums = outgoing_sums(later).to(strength.device)
                strength = strength + sums.reshape(-1, positions).mean(dim=1)
                break
        found[name] = strength
    return found


def layer_fluctuation(model: nn.Module) -> dict[str, float]:
    """How unlike the units of a layer are: the standard deviation of their :func:`node_strength`.

    Args:
        model: Any PyTorch module.

    Returns:
        Layer name → population standard deviation, in the unit of the weights.

    Source:
        La Malfa et al., arXiv:2110.02628.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(1, 2, bias=False))
        >>> net.load_state_dict({"0.weight": torch.tensor([[1.0], [5.0]])})
        <All keys matched successfully>
        >>> layer_fluctuation(net)
        {'0': 2.0}
    """
    return {name: fluctuation(strength) for name, strength in node_strength(model).items()}


def fluctuation(strength: Tensor) -> float:
    """Population standard deviation of the units' strengths."""
    return float(strength.std(correction=0))
