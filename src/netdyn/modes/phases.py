"""The learning phase of a network: how order preservation is distributed over its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from netdyn._utils import checks

#: Two gradients count as equal if they differ by less than this fraction of the largest possible one.
TIE_SHARE = 0.02


@dataclass(frozen=True)
class Phase:
    """How the gradients of a network's rank distributions are spread over its layers; NaN without a layer.

    Attributes:
        index: −1 where every layer orders less than the one before it (P1's phase I), +1 where every layer orders more
            (phase II); NaN for fewer than two layers.
        spread: Largest minus smallest gradient.
        mean: Mean gradient.
    """

    index: float
    spread: float
    mean: float


def phase(gradients: Sequence[float] | Tensor, num_classes: int) -> Phase:
    """Summarise the layers' RPD gradients in three numbers.

    index = Σ_{i<j} sgn_δ(g_j − g_i) / (L(L − 1)/2) over the L layers, where sgn_δ is 0 for differences smaller than
    δ = 0.02·6(1 − 1/K). This is Kendall's correlation of gradient and depth, with small differences as ties.
    A small spread with a large mean is P1's phase III; an untrained network has all three near 0.

    Args:
        gradients: One gradient per layer, ``[layers]``, in order of execution, see
            :func:`netdyn.functional.rpd_gradient`. Layers whose gradient is NaN are left out.
        num_classes: Number of classes K, at least 2.

    Returns:
        The index in [−1, 1], the spread in [0, 12(1 − 1/K)] and the mean in ±6(1 − 1/K).

    Raises:
        ValueError: If the gradients have another shape or ``num_classes`` is smaller than 2.

    Source:
        P1 reads the phases by eye from the profile of gradients over layers; the numbers are netdyn's convention.

    Examples:
        >>> phase([0.5, 1.0, 2.0], 10)
        Phase(index=1.0, spread=1.5, mean=1.1666666666666667)
    """
    checks.whole("num_classes", num_classes, minimum=2)
    profile = torch.as_tensor(gradients, dtype=torch.float64).detach().cpu()
    if profile.ndim != 1:
        raise ValueError(
            f"`gradients` must hold one number per layer, shape [layers], got shape {list(profile.shape)}."
        )
    profile = profile[~profile.isnan()]
    layers = len(profile)
    if layers == 0:
        return Phase(math.nan, math.nan, math.nan)
    later, earlier = torch.tril_indices(layers, layers, offset=-1)
    rise = profile[later] - profile[earlier]
    signs = rise.sign().masked_fill(rise.abs() < TIE_SHARE * 6 * (1 - 1 / num_classes), 0.0)
    return Phase(float(signs.mean()), float(profile.max() - profile.min()), float(profile.mean()))
