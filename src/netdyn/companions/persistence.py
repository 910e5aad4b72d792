"""Neural persistence of one layer, and the variance of its weights, which explains most of it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from netdyn._utils import checks
from netdyn._utils.distributed import full_tensor


def neural_persistence(weight: Tensor, p: float = 2, *, largest: float | None = None, whole: bool = False) -> float:
    """How far the strong weights of a layer lie apart from the weak ones that tie it together.

    The layer is a graph of inputs and outputs with the weights w = |W|/max|W| as edges. Edges are added from the
    strongest to the weakest; each one that joins two parts ends one of them, which has lived 1 − w. Those edges are the
    graph's maximum spanning tree, and the persistence is (Σ (1 − w)^p)^(1/p) over them, divided by its largest possible
    value (inputs + outputs − 1)^(1/p).

    Args:
        weight: ``[outputs, inputs]``; a kernel ``[outputs, inputs, …]`` has every tap of its inputs as an input.
        p: The norm, at least 1.
        largest: What the weights are divided by, at least their largest absolute value. None: that value. The authors
            take the largest weight of the whole network.
        whole: Also count the part that never ends, with a life of 1, as the authors' code does. The value may then
            exceed 1.

    Returns:
        0 (all weights are equally strong) to 1 (a single weight differs from 0). NaN if all weights are 0 or one is not
        finite.

    Raises:
        TypeError: If ``weight`` is no tensor.
        ValueError: If it has fewer than two dimensions or no entries, ``p`` is below 1 or infinite, or ``largest`` is
            too small.

    Source:
        Rieck et al., *Neural Persistence*, arXiv:1812.09764. Girrbach et al., arXiv:2307.10865, show that in deep
        networks it is mostly the variance of |W|/max|W|: :func:`weight_variance`.

    Examples:
        >>> import torch
        >>> round(neural_persistence(torch.tensor([[4.0, -2.0], [0.0, 1.0]]), p=1), 4)  # (0 + 1/2 + 3/4) / 3
        0.4167
    """
    edges = _normalised(weight, largest)
    if not 1 <= p < math.inf:
        raise ValueError(f"`p` must be a finite number of at least 1, got {p!r}.")
    if edges is None:
        return math.nan
    lives = 1.0 - spanning_tree(edges)
    total = float((lives**p).sum()) + whole
    return float((total / len(lives)) ** (1.0 / p))


def weight_variance(weight: Tensor, *, largest: float | None = None) -> float:
    """Variance of the absolute weights of a layer, divided by the largest of them.

    Args:
        weight: ``[outputs, inputs, …]``.
        largest: As in :func:`neural_persistence`.

    Returns:
        Population variance, 0 to 1/4; NaN as there.

    Raises:
        TypeError: If ``weight`` is no tensor.
        ValueError: As there.

    Source:
        Girrbach et al., arXiv:2307.10865.

    Examples:
        >>> import torch
        >>> weight_variance(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]))
        0.25
    """
    edges = _normalised(weight, largest)
    return math.nan if edges is None else float(edges.var())


def _normalised(weight: Tensor, largest: float | None) -> NDArray[np.float64] | None:
    """Absolute weights ``[outputs, inputs]``, divided by the largest; None if that is 0 or not finite."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"`weight` must be a tensor [outputs, inputs], got {type(weight).__name__}.")
    if weight.ndim < 2 or weight.numel() == 0:
        raise ValueError(f"`weight` must have shape [outputs, inputs, …] and entries, got shape {list(weight.shape)}.")
    edges: NDArray[np.float64] = full_tensor(weight.detach()).flatten(1).abs().cpu().double().numpy()
    most = float(edges.max())
    if not math.isfinite(most) or (most == 0 and largest is None):
        return None
    if largest is not None and checks.positive("largest", largest) < most:
        raise ValueError(f"`largest` must be at least the largest absolute weight, {most:g}, got {largest:g}.")
    return edges / (most if largest is None else largest)


def spanning_tree(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights of the maximum spanning tree of a complete bipartite graph ``[left, right]``, all at least 0.

    Prim's algorithm, in an order of vertices that needs no sorting: the tree grows by the vertex outside of it that the
    strongest edge ties to it. Every edge is looked at twice, and no memory is needed beside a copy of them.
    """
    left = len(edges)
    from_left, from_right = edges, np.ascontiguousarray(edges.T)
    # The strongest edge between the tree and each vertex outside of it; −1 in the tree. Left vertices come first.
    nearest = np.concatenate([np.full(left, -1.0), from_left[0]])
    outside = np.concatenate([np.ones(left, dtype=bool), np.ones(edges.shape[1], dtype=bool)])
    outside[0] = False
    found = np.empty(sum(edges.shape) - 1)
    for place in range(len(found)):
        new = int(nearest.argmax())
        found[place], outside[new], nearest[new] = nearest[new], False, -1.0
        others, own = (slice(left, None), from_left) if new < left else (slice(0, left), from_right)
        row = own[new if new < left else new - left]
        np.maximum(nearest[others], row, out=nearest[others], where=outside[others])
    return found
