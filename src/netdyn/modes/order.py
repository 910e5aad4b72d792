"""How well units' tuning agrees with their wiring; means are over wired, live units only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from netdyn._utils import checks
from netdyn.modes.ranks import centre_pathway, rows_fit


@dataclass(frozen=True)
class Wiring:
    """How a layer's units are tuned and wired, prepared once for all statistics; 0 where the tuning is not known."""

    tuning: Tensor  #: ``[classes, units]``, like the next
    sign: Tensor  #: of the centred pathway; 0 also where a unit is not wired to a class
    tuned: Tensor  #: which units are tuned to any class; a constant local field has the tuning 0
    wired: Tensor  #: which units have a pathway that is not zero throughout
    absent: Tensor  #: which entries of the tuning are not known, bool ``[classes, units]``
    centred: bool

    @classmethod
    def of(cls, tuning: Tensor, sign: Tensor, centred: bool = True) -> Wiring:
        """From a tuning with NaN where it is not known, and the signs of a pathway ``[classes, units]``."""
        absent = tuning.isnan()
        known, counts = tuning.masked_fill(absent, 0.0), sign.masked_fill(absent, 0.0)
        return cls(known, counts, (known != 0).any(dim=0), sign.any(dim=0), absent, centred)

    @cached_property
    def index(self) -> Tensor:
        """The order index, see :func:`order_index`."""
        return (self.agreement / self.sign.abs().sum(dim=0)).masked_fill(~self.tuned, torch.nan)

    @cached_property
    def alignment(self) -> Tensor:
        """The alignment, see :func:`order_alignment`; NaN where the spread is 0."""
        return self.agreement / self.spread(self.tuning * self.sign.abs())

    @cached_property
    def agreement(self) -> Tensor:
        """Sum over classes of sign(M_ki)·t_ki ``[units]``."""
        return (self.tuning * self.sign).sum(dim=0)

    def spread(self, tuning: Tensor) -> Tensor:
        """Standard deviation by chance ``[..., units]`` of the agreement of a tuning ``[..., classes, units]``."""
        # K independent normal numbers have a correlation of −1/(K − 1) once they are centred; the arcsine law turns it
        # into that of their signs. A single class has no wired unit once it is centred, so that its spread is 0.
        correlation = 2 / math.pi * math.asin(-1 / max(len(self.sign) - 1, 1)) if self.centred else 0.0
        squares, total = tuning.square().sum(dim=-2), tuning.sum(dim=-2)
        return ((1 - correlation) * squares + correlation * total.square()).clamp(min=0).sqrt()

    def gradient(self, class_share: Tensor, live: Tensor) -> Tensor:
        """Slope of the rank probability distribution of the units ``live``, see :func:`rpd_gradient`."""
        if class_share.shape != self.tuning.shape[:1]:
            raise ValueError(
                f"`class_share` must hold one share per class, shape [{len(self.tuning)}], "
                f"got shape {list(class_share.shape)}."
            )
        sign = self.sign * live
        ordered = (self.tuning * sign).sum(dim=1) / sign.abs().sum(dim=1)
        return ((6 - 6 * class_share.to(ordered)) * ordered).nanmean()


def wiring_of(tuning: Tensor, pathway: Tensor, centre: bool) -> Wiring:
    """From a tuning and a pathway as users give them."""
    tuning = checks.matrix("tuning", tuning, "[classes, units]")
    pathway = checks.matrix("pathway", pathway, "[classes, units]").to(tuning.device)
    checks.same_units("tuning", tuning, "pathway", pathway)
    rows_fit("pathway", pathway, len(tuning))
    sign = centre_pathway(pathway, len(tuning), centre).sign()
    return Wiring.of(tuning.to(sign.dtype), sign, centre)


def order_index(tuning: Tensor, pathway: Tensor, centre: bool = True) -> Tensor:
    """How well each unit's tuning agrees with its wiring: the mean over classes of sign(M_ki)·t_ki.

    1 means that the unit ranks the samples of each class above all others if it is wired for the class, and below them
    if it is wired against it; −1 means the opposite.

    Args:
        tuning: Class tuning ``[classes, units]``, see :func:`netdyn.functional.class_tuning`.
        pathway: Linear substitution map ``[classes, units]``, or ``[1, units]`` for a single logit.
        centre: Subtract the pathway's mean over classes first; ``False`` keeps P1's raw sign.

    Returns:
        float64 ``[units]`` in [−1, 1]; NaN for units that are unwired (M = 0) or constant (tuning 0).

    Raises:
        TypeError: If an argument is not a tensor.
        ValueError: If classes or units do not fit.

    Source:
        netdyn's convention, after P1's order-preserving and non-order-preserving transformations.

    Examples:
        >>> order_index(torch.tensor([[-1.0], [1.0]]), torch.tensor([[-0.3], [0.3]]))
        tensor([1.], dtype=torch.float64)
    """
    return wiring_of(tuning, pathway, centre).index


def order_alignment(tuning: Tensor, pathway: Tensor, centre: bool = True) -> Tensor:
    """The order index in units of its spread under random wiring (z value of a sign-flip randomisation test).

    If the wiring were independent of the tuning, the signs s_k would be coin flips, and
    z = Σ_k sign(M_ki) t_ki / sqrt((1 − c_K) Σ_k t_ki² + c_K (Σ_k t_ki)²) would be a standard normal number. c_K is the
    correlation of two signs, (2/π)·arcsin(−1/(K − 1)), which centring causes; it is 0 without. The denominator is the
    standard deviation of Σ_k s_k t_ki; its second term is 0 for classes of equal size, where Σ_k t_ki = 0.

    Arguments and errors are those of :func:`order_index`.

    Returns:
        float64 ``[units]``; NaN for units that are unwired or constant.

    Source:
        netdyn's convention.

    Examples:
        >>> order_alignment(torch.tensor([[-1.0], [1.0]]), torch.tensor([[-0.3], [0.3]]))
        tensor([1.], dtype=torch.float64)
    """
    return wiring_of(tuning, pathway, centre).alignment


def rpd_gradient(tuning: Tensor, pathway: Tensor, class_share: Tensor, centre: bool = True) -> Tensor:
    """Slope of a layer's rank probability distribution, exactly and without bins.

    The least-squares slope of a density p on [0, 1] is 12·∫(u − ½)p(u)du = 12·(E[u] − ½). The mean rank of class k
    is a linear function of its tuning, E[u] − ½ = ½(1 − π_k)·sign(M_ki)·t_ki, ties included, so that the slope is
    6·(1 − π_k)·mean_i(sign(M_ki)·t_ki), here averaged over classes.

    Arguments and errors are those of :func:`order_index`, and ``class_share``: the fraction π_k of the samples that are
    in each class, ``[classes]``.

    Returns:
        float64 scalar in ±6(1 − 1/K): 0 for no order, positive for preserved order; NaN without a wired, live unit.

    Source:
        P1 reads the slope off the distribution; the closed form is netdyn's convention.

    Examples:
        >>> rpd_gradient(torch.tensor([[-1.0], [1.0]]), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, 0.5]))
        tensor(3., dtype=torch.float64)
    """
    wiring = wiring_of(tuning, pathway, centre)
    return wiring.gradient(class_share, wiring.tuned)
