"""How a layer's units divide into modes; means are over wired, live units only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from netdyn._utils import checks
from netdyn.modes.order import Wiring, wiring_of
from netdyn.modes.permutation import FEWEST_CLASSES, chance_share, layer_z

#: With fewer classes: the share of the order-preserving units that may be false, and the fewest units that show it.
FALSE_DISCOVERIES, FEWEST_UNITS = 0.2, 20


@dataclass(frozen=True)
class ModeShares:
    """How the units of a layer divide into modes."""

    # A unit is wired if its centred pathway is not zero throughout, and live if its local field is not constant.
    opt_fraction: float  #: of the wired, live units, like the next; NaN if no rule applies
    npt_fraction: float
    constant_fraction: float  #: of all units, like the next; an unwired unit that is constant counts here only
    unwired_fraction: float
    rpd_gradient: float
    order_z: float  #: the layer's own test, like the next; NaN with fewer than five classes
    opt_chance: float
    positive_fraction: float  #: of the wired, live units: those with an order index above 0
    order_mean: float  #: mean order index of the wired, live units
    rule: Literal["sign-flip", "false-discovery", "none"]


def mode_shares(
    tuning: Tensor,
    pathway: Tensor,
    constant: Tensor,
    class_share: Tensor | None = None,  # without it the gradient is NaN
    alpha: float = 0.05,  # share of OPT units that an untrained network is allowed to show
    centre: bool = True,
) -> ModeShares:
    """Divide a layer's units into order-preserving (OPT), non-order-preserving (NPT), constant and unwired ones.

    With at least five classes present a unit is OPT if its alignment exceeds the one-sided 1 − α normal quantile. Fewer
    classes have too few sign flips to test each unit. Units are then OPT from the smallest order index θ > 0 on with
    (1 + #{index ≤ −θ})/#{index ≥ θ} ≤ 0.2: what is as far below zero measures how many are above by chance (R. F.
    Barber and E. J. Candès, *Controlling the false discovery rate via knockoffs*, 2015). This rule needs 20 units.
    """
    return shares_of(wiring_of(tuning, pathway, centre), constant, class_share, alpha)


def shares_of(wiring: Wiring, constant: Tensor, class_share: Tensor | None, alpha: float) -> ModeShares:
    """:func:`mode_shares` of what is prepared already."""
    checks.fraction("alpha", alpha)
    if constant.dtype != torch.bool or constant.shape != wiring.wired.shape:
        raise ValueError(
            f"`constant` must be a boolean tensor [units] = [{len(wiring.wired)}], "
            f"got {constant.dtype} of shape {list(constant.shape)}."
        )
    constant = constant.to(wiring.wired.device)
    live = wiring.wired & ~(constant | wiring.absent.all(dim=0))
    known = ~wiring.absent.all(dim=1)
    # A live unit without any tuning counts as 0, the middle of the layer.
    index = wiring.index.nan_to_num(0.0)[live]
    opt = z = chance = math.nan
    rule: Literal["sign-flip", "false-discovery", "none"] = "none"
    if len(index) and int(known.sum()) >= FEWEST_CLASSES:
        rule = "sign-flip"
        opt = share_of(wiring.alignment[live] > NormalDist().inv_cdf(1 - alpha))
        z, chance = float(layer_z(wiring, known)), chance_share(wiring, known, live, alpha)
    elif len(index) >= FEWEST_UNITS:
        rule = "false-discovery"
        opt = share_of(index >= discovery_threshold(index))
    return ModeShares(
        opt_fraction=opt,
        npt_fraction=1 - opt,
        constant_fraction=share_of(constant),
        unwired_fraction=share_of(~(wiring.wired | constant)),
        rpd_gradient=math.nan if class_share is None else float(wiring.gradient(class_share, live)),
        order_z=z,
        opt_chance=chance,
        positive_fraction=share_of(index > 0),
        order_mean=float(index.mean()),
        rule=rule,
    )


def discovery_threshold(index: Tensor) -> float:
    """The smallest θ > 0 with (1 + #{index ≤ −θ})/#{index ≥ θ} ≤ 0.2; infinite if there is none."""
    ordered, sizes = index.sort().values, index.abs()
    # Both numbers change at the units' own values only.
    above = len(index) - torch.searchsorted(ordered, sizes)
    below = torch.searchsorted(ordered, -sizes, right=True)
    fits = (1 + below <= FALSE_DISCOVERIES * above) & (sizes > 0)
    return float(sizes.masked_fill(~fits, math.inf).min())


def share_of(units: Tensor) -> float:
    """The share of True; NaN of nothing."""
    return int(units.sum()) / len(units) if len(units) else math.nan
