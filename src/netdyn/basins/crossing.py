"""Where an accuracy that falls as noise grows crosses a target: which noise level to ask next, the σ, its interval.

Accuracy is measured at a few noise levels, on the same rays at each, and interpolated as a straight line of logit A
against log σ. Samples are the independent units; samples of equal content are one cluster.

Layout: ``right [samples]`` holds the share of each sample's rays that are right at a level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from netdyn.basins.interval import LEVEL, clustered_error, student_quantile

#: The first two levels lie this far, in log σ, to both sides of the first guess.
APART = 0.12
#: An end of the interval farther than this from every level asked is asked itself.
FAR = 0.4
#: Most levels asked.
MOST = 12


def logit(share: float, count: float = math.inf) -> float:
    """Logit of a share of ``count`` outcomes; half an outcome is added on both sides, so that 0 and 1 stay finite."""
    if math.isfinite(count):
        share = (share * count + 0.5) / (count + 1)
    return math.log(share / (1 - share))


@dataclass
class Crossing:
    """The search for the σ at which the accuracy of some samples crosses a target.

    Attributes:
        target: The accuracy a that defines the radius.
        clean: Accuracy without noise.
        guess: First guess of the radius.
        low: Smallest noise level.
        high: Largest noise level.
        cluster: Number of each sample's cluster, int64 ``[samples]``.
        right: What was measured: log σ → ``right [samples]``.

    Source:
        netdyn's convention.

    Example:
        >>> import torch
        >>> search = Crossing(0.5, 1.0, guess=1.0, low=1e-3, high=10.0, cluster=torch.arange(400))
        >>> lost = torch.linspace(-2, 2, 400)
        >>> while (level := search.next_level()) is not None:
        ...     search.add(level, (level < lost).double())
        >>> round(search.radius, 2), len(search.right)
        (1.0, 2)
    """

    target: float
    clean: float
    guess: float
    low: float
    high: float
    cluster: Tensor
    right: dict[float, Tensor] = field(default_factory=dict)

    def add(self, level: float, right: Tensor) -> None:
        """Take what was measured at ``level``, a log σ."""
        self.right[level] = right.double()

    def next_level(self) -> float | None:
        """The log σ to ask next; None when the radius and its interval are known."""
        if self.clean <= self.target or len(self.right) >= MOST:
            return None
        bottom, top = math.log(self.low), math.log(self.high)
        levels = sorted(self.right)
        if len(levels) < 2:
            middle = min(max(math.log(min(max(self.guess, self.low), self.high)), bottom + APART), top - APART)
            return middle + APART if levels else middle - APART
        shares = self._shares(levels)
        # Twice the distance each time, as far as the ends, until the target lies between two levels or next to one.
        step = 2 * APART * 2 ** (len(levels) - 2)
        radius = self.radius
        at = math.log(radius) if 0 < radius < math.inf else math.copysign(math.inf, radius - 1)
        if shares[-1] > self.target and at > levels[-1] + APART and levels[-1] < top - 1e-9:
            return float(min(levels[-1] + step, top))
        if shares[0] <= self.target and at < levels[0] - APART and levels[0] > bottom + 1e-9:
            return float(max(levels[0] - step, bottom))
        for end in map(math.log, filter(None, self.interval)):
            wanted = min(max(end, bottom), top)
            if min(abs(wanted - level) for level in levels) > FAR:
                return wanted
        return None

    @property
    def radius(self) -> float:
        """The σ at which accuracy crosses the target; 0 if it starts below, inf if it stays above."""
        return self._sigma(self.target)

    @property
    def interval(self) -> tuple[float, float]:
        """Confidence interval of the radius: A⁻¹(a ± t·se), se that of the accuracy at the radius; (0, 0) for 0."""
        if self.radius == 0 or not self.right:
            return self.radius, self.radius
        error, clusters = clustered_error(self._outcomes(), self.cluster)
        margin = student_quantile((1 + LEVEL) / 2, clusters - 1) * error if error > 0 else 0.0
        return self._sigma(self.target + margin), self._sigma(self.target - margin)

    def _outcomes(self) -> Tensor:
        """Each sample's share of right answers at the radius, straight between the two levels around it."""
        levels, radius = sorted(self.right), self.radius
        at = math.log(radius) if math.isfinite(radius) else levels[-1]
        above = next((level for level in levels if level >= at), levels[-1])
        below = next((level for level in reversed(levels) if level <= at), levels[0])
        part = (at - below) / (above - below) if above > below else 0.0
        return (1 - part) * self.right[below] + part * self.right[above]

    def _shares(self, levels: list[float]) -> list[float]:
        """Accuracy at the levels, made to fall: no share is larger than one at a smaller level."""
        shares: list[float] = []
        for level in levels:
            shares.append(min([float(self.right[level].mean()), *shares[-1:]]))
        return shares

    def _sigma(self, share: float) -> float:
        """The σ at which accuracy has fallen to ``share``."""
        if share >= self.clean:
            return 0.0
        levels, count = sorted(self.right), len(self.cluster)
        if share <= 0 or not levels:
            return math.inf
        shares = self._shares(levels)
        bottom, top = math.log(self.low), math.log(self.high)
        if levels[-1] >= top - 1e-9 and shares[-1] > share:
            return math.inf
        if levels[0] <= bottom + 1e-9 and shares[0] <= share:
            # Between no noise and the lowest level a straight line in σ, which log σ has no room for.
            return self.low * (self.clean - share) / (self.clean - shares[0])
        last = next((i for i, found in enumerate(shares) if found <= share), len(levels) - 1)
        last = max(last, 1)
        x, y = levels[last - 1 : last + 1], [logit(found, count) for found in shares[last - 1 : last + 1]]
        slope = (y[1] - y[0]) / (x[1] - x[0])
        if slope >= 0:
            return math.exp(x[0]) if shares[last] <= share else math.inf
        sigma = math.exp(min(max(x[0] + (logit(share) - y[0]) / slope, bottom - 1), top + 1))
        return math.inf if sigma > self.high else sigma
