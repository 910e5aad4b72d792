"""Which units preserve the order of the samples; means are over wired, live units only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from netdyn._utils import checks
from netdyn.modes.ranks import centre_pathway, rows_fit

#: With this many classes or more the sign-flip test is used, with fewer the mirror rule (netdyn's convention).
SIGN_FLIP_CLASSES = 5


@dataclass(frozen=True)
class Wiring:
    """How a layer's units are tuned and wired, prepared once for all statistics; 0 where a class does not count."""

    tuning: Tensor  #: ``[classes, units]``, like the next
    sign: Tensor  #: of the centred pathway
    tuned: Tensor  #: which units are tuned to any class; a constant local field has the tuning 0
    wired: Tensor  #: which units have a pathway that is not zero throughout
    absent: Tensor  #: which entries of the tuning are not known, bool ``[classes, units]``
    centred: bool

    @classmethod
    def of(cls, tuning: Tensor, sign: Tensor, centred: bool = True) -> Wiring:
        """From a tuning with NaN where it is not known, and the signs of a pathway ``[classes, units]``."""
        absent = tuning.isnan()
        known, counts = tuning.masked_fill(absent, 0.0), sign.masked_fill(absent, 0.0)
        return cls(known * counts.abs(), counts, (known != 0).any(dim=0), sign.any(dim=0), absent, centred)

    @cached_property
    def index(self) -> Tensor:
        """The order index, see :func:`order_index`."""
        mean = (self.tuning * self.sign).sum(dim=0) / self.sign.abs().sum(dim=0)
        return mean.masked_fill(~self.tuned, torch.nan)

    @cached_property
    def alignment(self) -> Tensor:
        """The alignment, see :func:`order_alignment`."""
        # K independent normal numbers have a correlation of −1/(K − 1) once they are centred; the arcsine law turns it
        # into that of their signs. A single class has no wired unit once it is centred, so that its spread is 0.
        correlation = 2 / math.pi * math.asin(-1 / max(len(self.tuning) - 1, 1)) if self.centred else 0.0
        spread = ((1 - correlation) * self.tuning.square().sum(dim=0)).sqrt()
        # NaN where the spread is 0.
        return (self.tuning * self.sign).sum(dim=0) / spread

    def gradient(self, class_share: Tensor, live: Tensor) -> Tensor:
        """Slope of the rank probability distribution of the units ``live``, see :func:`rpd_gradient`."""
        if class_share.shape != self.tuning.shape[:1]:
            raise ValueError(
                f"`class_share` must hold one share per class, shape [{len(self.tuning)}], "
                f"got shape {list(class_share.shape)}."
            )
        sign = self.sign * live
        ordered = (self.tuning * sign).sum(dim=1) / sign.abs().sum(dim=1)
        return (6 * (1 - class_share.to(ordered)) * ordered).nanmean()


def _wiring(tuning: Tensor, pathway: Tensor, centre: bool) -> Wiring:
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

    Example:
        >>> order_index(torch.tensor([[-1.0], [1.0]]), torch.tensor([[-0.3], [0.3]]))
        tensor([1.], dtype=torch.float64)
    """
    return _wiring(tuning, pathway, centre).index


def order_alignment(tuning: Tensor, pathway: Tensor, centre: bool = True) -> Tensor:
    """The order index in units of its spread under random wiring (z value of a sign-flip randomisation test).

    If the wiring were independent of the tuning, the signs would be coin flips, and
    z = Σ_k sign(M_ki) t_ki / sqrt((1 − c_K) Σ_k t_ki²) would be a standard normal number. c_K is the correlation of
    the signs that centring causes: for balanced classes Σ_k t_ki = 0, so that Var Σ_k s_k t_ki = (1 − c_K) Σ_k t_ki².

    Arguments and errors are those of :func:`order_index`.

    Returns:
        float64 ``[units]``; NaN for units that are unwired or constant.

    Source:
        netdyn's convention.

    Example:
        >>> order_alignment(torch.tensor([[-1.0], [1.0]]), torch.tensor([[-0.3], [0.3]]))
        tensor([1.], dtype=torch.float64)
    """
    return _wiring(tuning, pathway, centre).alignment


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

    Example:
        >>> rpd_gradient(torch.tensor([[-1.0], [1.0]]), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, 0.5]))
        tensor(3., dtype=torch.float64)
    """
    wiring = _wiring(tuning, pathway, centre)
    return wiring.gradient(class_share, wiring.tuned)


@dataclass(frozen=True)
class ModeShares:
    """How the units of a layer divide into modes."""

    # A unit is wired if its centred pathway is not zero throughout, and live if its local field is not constant.
    opt_fraction: float  #: of the wired, live units, like the next; NaN if no rule applies
    npt_fraction: float
    constant_fraction: float  #: of all units, like the next; an unwired unit that is constant counts here only
    unwired_fraction: float
    rpd_gradient: float
    rule: Literal["sign-flip", "mirror", "none"]


def mode_shares(
    tuning: Tensor,
    pathway: Tensor,
    constant: Tensor,
    class_share: Tensor | None = None,  # without it the gradient is NaN
    alpha: float = 0.05,  # share of OPT units that an untrained network is allowed to show
    centre: bool = True,
    fewest: int = 2,  # rows of the tuning that must be known: two classes, or one number to be predicted
) -> ModeShares:
    """Divide a layer's units into order-preserving (OPT), non-order-preserving (NPT), constant and unwired ones.

    With at least five classes present a unit is OPT if its alignment exceeds the one-sided 1 − α normal quantile. Fewer
    classes have too few sign flips to test each unit. The layer's lower tail is then mirrored: a unit is OPT if its
    order index exceeds max(0, −Q_α), where Q_α is the α quantile over the layer. This rule needs 1/α units.
    """
    return shares_of(_wiring(tuning, pathway, centre), constant, class_share, alpha, fewest)


def shares_of(
    wiring: Wiring, constant: Tensor, class_share: Tensor | None = None, alpha: float = 0.05, fewest: int = 2
) -> ModeShares:
    """:func:`mode_shares` of what is prepared already."""
    checks.fraction("alpha", alpha)
    if constant.dtype != torch.bool or constant.shape != wiring.wired.shape:
        raise ValueError(
            f"`constant` must be a boolean tensor [units] = [{len(wiring.wired)}], "
            f"got {constant.dtype} of shape {list(constant.shape)}."
        )
    constant = constant.to(wiring.wired.device)
    counted = wiring.wired & ~(constant | wiring.absent.all(dim=0))
    live, present = int(counted.sum()), int((~wiring.absent).any(dim=1).sum())
    enough = live > 0 and present >= fewest
    rule: Literal["sign-flip", "mirror", "none"] = "none"
    opt = torch.zeros_like(counted)
    if enough and present >= SIGN_FLIP_CLASSES:
        rule, opt = "sign-flip", wiring.alignment > NormalDist().inv_cdf(1 - alpha)
    # Rounding must not decide: 1/alpha may lie just above a whole number.
    elif enough and live >= 1 / alpha - 1e-9:
        # A live unit without any tuning counts as 0, the middle of the layer.
        index = wiring.index.nan_to_num(0.0)
        rule, opt = "mirror", index > max(0.0, -float(torch.quantile(index[counted], alpha)))
    fraction = math.nan if rule == "none" else int((counted & opt).sum()) / live
    gradient = math.nan if class_share is None else float(wiring.gradient(class_share, counted))
    units = max(len(constant), 1)
    return ModeShares(
        opt_fraction=fraction,
        npt_fraction=1 - fraction,
        constant_fraction=int(constant.sum()) / units,
        unwired_fraction=int((~(wiring.wired | constant)).sum()) / units,
        rpd_gradient=gradient,
        rule=rule,
    )
