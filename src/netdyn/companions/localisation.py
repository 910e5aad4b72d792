"""Localisation: on how small a part of its input a unit or logit looks."""

from __future__ import annotations

from torch import Tensor

from netdyn.modes.ranks import statistic_dtype


def localisation(maps: Tensor) -> Tensor:
    """Inverse participation ratio Σw⁴/(Σw²)² of each map: 1 if it looks at a single input, 1/n if at all n alike.

    Weights from a normal distribution have 3/n.

    Args:
        maps: ``[maps, *input shape]``: characteristic maps, or the weight of a first layer.

    Returns:
        float64 ``[maps]``, 1/n to 1; NaN for a map of zeros.

    Raises:
        TypeError: If ``maps`` is no tensor.
        ValueError: If it has fewer than two dimensions.

    Source:
        Ingrosso and Goldt, *Data-driven emergence of convolutional structure*, arXiv:2202.00565.

    Examples:
        >>> import torch
        >>> localisation(torch.tensor([[0.0, 5.0, 0.0, 0.0], [1.0, -1.0, 1.0, 1.0]])).tolist()
        [1.0, 0.25]
    """
    if not isinstance(maps, Tensor):
        raise TypeError(f"`maps` must be a tensor [maps, *input shape], got {type(maps).__name__}.")
    if maps.ndim < 2:
        raise ValueError(f"`maps` must have shape [maps, *input shape], got shape {list(maps.shape)}.")
    wide = maps.detach().flatten(1).to(statistic_dtype(maps.device))
    # On a scale of 1, so that fourth powers neither vanish nor overflow.
    energy: Tensor = (wide / wide.abs().amax(dim=1, keepdim=True)).square()
    return energy.square().sum(dim=1) / energy.sum(dim=1).square()
