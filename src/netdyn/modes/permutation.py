"""Whether a whole layer orders the samples: a test that permutes the rows of its pathway."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from netdyn._utils import checks
from netdyn.modes.order import Wiring, wiring_of

#: With this many classes or more, units and layers are tested by random wiring; with fewer there are too few wirings.
FEWEST_CLASSES = 5
#: Number of random permutations, and which of their shares is the band, from the smallest: 95 % of 200.
PERMUTATIONS, BAND = 199, 190
#: Numbers held at a time.
AT_ONCE = 1 << 20


class OrderTest(NamedTuple):
    """A layer's test of order; both are NaN with fewer than five classes present."""

    z: float  #: agreement of tuning and wiring over all units, standard normal by chance
    opt_chance: float  #: the share of order-preserving units that chance exceeds in 5 % of cases


def order_test(
    tuning: Tensor, pathway: Tensor, centre: bool = True, *, alpha: float = 0.05, seed: int = 0
) -> OrderTest:
    """Does a layer order the samples? The test permutes the rows of its pathway, and keeps everything else.

    The last layer of an untrained network has rows that are drawn alike, so that the pathway's rows may be exchanged,
    whatever the architecture, the sizes of the classes and the correlation of the units. With
    A_jk = Σ_i sign(M_ji)·t_ki, and Ã centred over rows and columns, tr A has the mean ΣA/K and the variance
    ΣÃ²/(K − 1) over all permutations, so that z = (tr A − ΣA/K)/sqrt(ΣÃ²/(K − 1)).

    The band says how large ``opt_fraction`` becomes by chance, which depends on how alike the units are: it is exceeded
    in at most 5 % of untrained layers. It is the 190th of the 199 shares under random permutations, in order of size.

    Args:
        tuning: Class tuning ``[classes, units]``, see :func:`netdyn.functional.class_tuning`.
        pathway: Linear substitution map ``[classes, units]``.
        centre: Subtract the pathway's mean over classes first; ``False`` keeps P1's raw sign.
        alpha: Level of the test by which a unit counts as order-preserving.
        seed: Seed of the permutations.

    Returns:
        ``z`` and ``opt_chance``; NaN with fewer than five classes present, or without a wired, live unit.

    Raises:
        TypeError: If an argument is not a tensor.
        ValueError: If classes or units do not fit.

    Source:
        netdyn's convention; mean and variance over permutations are those of the linear statistic of W. Hoeffding,
        *A combinatorial central limit theorem*, 1951.

    Examples:
        >>> tuning = torch.eye(5, dtype=torch.float64).repeat(1, 8) * 2 - 1
        >>> z, opt_chance = order_test(tuning, tuning)
        >>> round(z, 3), opt_chance < 1
        (4.0, True)
    """
    checks.fraction("alpha", alpha)
    wiring = wiring_of(tuning, pathway, centre)
    known = ~wiring.absent.all(dim=1)
    if int(known.sum()) < FEWEST_CLASSES:
        return OrderTest(math.nan, math.nan)
    z = float(layer_z(wiring, known))
    return OrderTest(z, chance_share(wiring, known, wiring.tuned & wiring.wired, alpha, seed))


def layer_z(wiring: Wiring, known: Tensor) -> Tensor:
    """The layer's z value over the classes ``known``; NaN without a wired unit that is tuned to any."""
    both = (wiring.sign @ wiring.tuning.t())[known][:, known]
    rows = both - both.mean(dim=0)
    centred = rows - rows.mean(dim=1, keepdim=True)
    return centred.trace() * math.sqrt(len(centred) - 1) / centred.square().sum().sqrt()


def chance_share(wiring: Wiring, known: Tensor, live: Tensor, alpha: float, seed: int = 0) -> float:
    """The share of order-preserving units among the ``live`` ones that permuted pathways exceed in 5 % of cases."""
    # Only a share is counted, so that single precision is enough.
    sign, tuning = (part[known][:, live].float() for part in (wiring.sign, wiring.tuning))
    if not sign.shape[1]:
        return math.nan
    spread = wiring.spread(tuning) if bool(sign.all()) else None
    rows = permutations(len(sign), seed).to(sign.device)
    critical, ordered = NormalDist().inv_cdf(1 - alpha), []
    for part in torch.split(rows, max(AT_ONCE // max(sign.numel(), 1), 1)):
        signs = sign[part]
        width = wiring.spread(tuning * signs.abs()) if spread is None else spread
        ordered.append(((signs * tuning).sum(dim=1) > critical * width).sum(dim=1))
    # In whole numbers: an equal share must not exceed it.
    return int(torch.cat(ordered).kthvalue(BAND).values) / sign.shape[1]


@lru_cache(maxsize=16)
def permutations(number: int, seed: int) -> Tensor:
    """Random permutations of so many rows, int64 ``[permutations, number]``, not to be written to."""
    rows = np.tile(np.arange(number), (PERMUTATIONS, 1))
    return torch.from_numpy(np.random.default_rng(seed).permuted(rows, axis=1))
