"""Deep graph persistence: neural persistence of all layers together."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn.companions.persistence import neural_persistence
from netdyn.companions.weighted import inputs_of, weight_of, weighted_layers

#: Most comparisons of the max-min product: a second or two.
MOST = 1 << 30
#: Comparisons made at a time.
_AT_ONCE = 1 << 22


def deep_graph_persistence(model: nn.Module, p: float = 2, *, most: int = MOST) -> float:
    """Neural persistence of the whole network: how far its strong paths lie apart from its weak ones.

    Each layer is standardised, w = |W − mean|/std, so that layers can be compared. A path from an input to an output is
    as strong as its weakest weight; S holds the strongest path between each pair: the product of the layers with
    S_ik = max_j min(S_ij, w_kj) in place of the sum of products. The result is :func:`neural_persistence` of S.

    Args:
        model: A network whose linear layers, in the order in which it registers them, feed one another.
        p: The norm of the persistence.
        most: Most comparisons allowed; they are about (product of the sizes of each two neighbouring layers) × (number
            of inputs or of outputs, whichever costs less).

    Returns:
        0 to 1; NaN if a layer's weights are all equal or not finite.

    Raises:
        ValueError: If there are no weights, layers do not fit together, there is a convolution, or it would take more
            than ``most`` comparisons.

    Source:
        Girrbach et al., arXiv:2307.10865 (standardised weights; their public code). It is defined for layers that are
        fully connected in a chain.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> net.load_state_dict({"0.weight": torch.tensor([[1.0, -1], [3, -3]]), "2.weight": torch.tensor([[1.0, -1]])})
        <All keys matched successfully>
        >>> round(deep_graph_persistence(net, p=1), 4)  # both inputs reach the output by paths of strength 1
        0.0
    """
    chain = _chain(model)
    checks.whole("most", most)
    sizes = [chain[0].shape[1], *(len(weight) for weight in chain)]
    steps = sum(a * b for a, b in pairwise(sizes[1:])) * sizes[0]
    back = sum(a * b for a, b in pairwise(sizes[:-1])) * sizes[-1]
    if min(steps, back) > most:
        raise ValueError(
            f"Deep graph persistence of layers of the sizes {sizes} takes {min(steps, back):.2g} comparisons, more "
            f"than `most`={most:.2g}. Pass a larger `most`, or leave it out."
        )
    chain = [((w - w.mean()) / w.std(correction=0)).abs() for w in chain]
    if back < steps:
        chain = [weight.t() for weight in reversed(chain)]
    paths = chain[0]
    for weight in chain[1:]:
        paths = _max_min(weight, paths)
    return neural_persistence(paths, p)


def _chain(model: nn.Module) -> list[Tensor]:
    """The weights ``[outputs, inputs]`` of layers that feed one another."""
    layers = weighted_layers(model)
    if not layers:
        raise ValueError("`model` must have linear layers, got none.")
    others = [name for name, module in layers.items() if not isinstance(module, nn.Linear)]
    if others:
        raise ValueError(f"`model` must have linear layers only, got the convolutions {others}.")
    chain = {name: weight_of(module)[..., 0] for name, module in layers.items()}
    names = list(chain)
    for before, after in pairwise(names):
        given, taken = len(chain[before]), inputs_of(layers[after])
        if given != taken:
            raise ValueError(
                f"The layers of `model` must feed one another: {before!r} has {given} outputs, and {after!r}, which "
                f"follows, takes {taken} inputs."
            )
    return list(chain.values())


def _max_min(after: Tensor, before: Tensor) -> Tensor:
    """``[outputs, inputs]``: the strongest of the paths through the units between, ``[outputs, units]`` and so on."""
    rows = max(_AT_ONCE // before.numel(), 1)
    # NaN (a constant layer) stays NaN in both operations.
    return torch.cat([torch.minimum(own[:, :, None], before).amax(dim=1) for own in torch.split(after, rows)])
