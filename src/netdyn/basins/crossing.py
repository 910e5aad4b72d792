"""Where accuracy, which falls as noise grows, crosses a target: which noise level to ask next, the σ, its interval."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from netdyn.basins.interval import LEVEL, clustered_error, mean_of, student_quantile

#: The first two levels lie this far, in log σ, to both sides of the guess. Further ones are asked until accuracy
#: crosses between two, and the radius and the ends of its interval are no farther than this from any level.
APART = 0.12
#: Most levels asked.
MOST = 12


def logit(share: float, count: int) -> float:
    """Logit of a share of ``count`` outcomes; half an outcome is added on both sides, so that 0 and 1 stay finite."""
    return math.log((share * count + 0.5) / ((1 - share) * count + 0.5))


@dataclass
class Crossing:
    """The search for the σ at which the accuracy of some samples crosses a target: a line of logit A against log σ.

    >>> import torch
    >>> lost = torch.linspace(-2, 2, 400)
    >>> search = Crossing(0.5, lost > -2, torch.arange(400), low=1e-3, high=10.0)
    >>> while (level := search.next_level()) is not None:
    ...     search.right[level] = (level < lost).double()
    >>> round(search.radius, 2), len(search.right)
    (1.0, 2)
    """

    target: float
    clean: Tensor  # which samples are right without noise, bool `[samples]`, or the share of each that is
    cluster: Tensor  # samples of equal content have the same number, int64 `[samples]`
    low: float
    high: float
    weight: Tensor | None = None  # of each sample in the accuracy, `[samples]` with the mean 1; None: all the same
    guess: float = 1.0  # of the σ at which accuracy crosses `aim`
    right: dict[float, Tensor] = field(default_factory=dict)  # log σ → share of right rays, float64 `[samples]`

    @cached_property
    def clean_accuracy(self) -> float:
        """Accuracy without noise."""
        return mean_of(self.clean, self.weight)

    @cached_property
    def aim(self) -> float:
        """The accuracy whose σ is searched: the target, or that of the interval's upper end where the radius is 0."""
        return self.target if self.clean_accuracy > self.target else self.target - self._margin()

    @property
    def reachable(self) -> bool:
        """Whether accuracy falls to :attr:`aim` at any σ above 0."""
        return 0 < self.aim < self.clean_accuracy

    def next_level(self) -> float | None:
        """The log σ to ask next; None when the radius and its interval are known."""
        if not self.reachable or len(self.right) >= MOST:
            return None
        bottom, top = math.log(self.low), math.log(self.high)
        levels = sorted(self.right)
        if len(levels) < 2:
            apart = min(APART, (top - bottom) / 2)
            middle = min(max(math.log(self.guess), bottom + apart), top - apart)
            return middle + apart if levels else middle - apart
        shares = [mean_of(self.right[level], self.weight) for level in levels]
        wanted = [math.log(sigma) for sigma in (self._sigma(self.aim), *self.interval) if sigma > 0]
        # A crossing that the line puts a little outside of the levels is not taken from it.
        if min(shares) > self.aim:
            wanted[0] = max(wanted[0], levels[-1] + 2 * APART)
        elif shares[0] <= self.aim:
            wanted[0] = min(wanted[0], levels[0] - 2 * APART)
        # Beyond all levels no farther than a step that doubles each time: there the slope is uncertain.
        step = 2 * APART * 2 ** (len(levels) - 2)
        for level in wanted:
            level = min(max(level, bottom), top)
            if min(abs(level - asked) for asked in levels) > APART + 1e-9:
                return float(min(max(level, levels[0] - step), levels[-1] + step))
        return None

    @property
    def radius(self) -> float:
        """The σ at which accuracy crosses the target; 0 if it starts below, inf if it stays above."""
        return self._sigma(self.target)

    @property
    def interval(self) -> tuple[float, float]:
        """Confidence interval of the radius: A⁻¹(a ± t·se), se that of the accuracy at the radius."""
        margin = self._margin()
        return self._sigma(self.target + margin), self._sigma(self.target - margin)

    def influence(self) -> Tensor | None:
        """ψ_s = (F_s − a)/|dA/dlog σ| of each sample at the radius ``[samples]``; None outside of the noise levels.

        See :class:`netdyn.basins.change.Influences`. The slope is that of logit A between the levels around the radius.
        """
        if not self.right or not self.low <= self.radius < math.inf:
            return None
        (below, more), (above, less) = self._around(self.target)
        fall = logit(more, len(self.cluster)) - logit(less, len(self.cluster))
        if fall <= 0:
            return None
        outcomes = self._outcomes()
        return (outcomes - mean_of(outcomes, self.weight)) * (above - below) / (self.target * (1 - self.target) * fall)

    def _margin(self) -> float:
        """t·se of the accuracy at the radius."""
        error, clusters = clustered_error(self._outcomes(), self.cluster, self.weight)
        return student_quantile((1 + LEVEL) / 2, clusters - 1) * error

    def _outcomes(self) -> Tensor:
        """Each sample's share of right answers at the radius, on the straight line through the levels around it."""
        if self.clean_accuracy <= self.target:
            return self.clean.double()
        (below, _), (above, _) = self._around(self.target)
        at = min(max(math.log(self.radius), min(self.right) - APART), max(self.right) + APART)
        part = (at - below) / (above - below)
        return (1 - part) * self.right[below] + part * self.right[above]

    def _around(self, share: float) -> list[tuple[float, float]]:
        """The levels between which accuracy falls to ``share``, or the two nearest to that, and their accuracies.

        Accuracy is made to fall: it is nowhere larger than at a smaller level.
        """
        levels = sorted(self.right)
        shares = list(itertools.accumulate((mean_of(self.right[level], self.weight) for level in levels), min))
        last = next((i for i, found in enumerate(shares) if found <= share), len(levels) - 1)
        return list(zip(levels, shares, strict=True))[max(last - 1, 0) :][:2]

    def _sigma(self, share: float) -> float:
        """The σ at which accuracy has fallen to ``share``."""
        if share >= self.clean_accuracy:
            return 0.0
        if share <= 0 or not self.right:
            return math.inf
        bottom, top = math.log(self.low), math.log(self.high)
        (below, more), (above, less) = self._around(share)
        if above >= top - 1e-9 and less > share:
            return math.inf
        if below <= bottom + 1e-9 and more <= share:
            # Between no noise and the lowest level a straight line in σ, which log σ has no room for.
            return self.low * (self.clean_accuracy - share) / (self.clean_accuracy - more)
        wanted, more, less = (logit(each, len(self.cluster)) for each in (share, more, less))
        if more > less:
            part = (wanted - more) / (less - more)
        else:
            part = math.copysign(math.inf, more - wanted) if more != wanted else 0.0
        level = min(max(below + part * (above - below), bottom - 1), top + 1)
        return math.inf if level > top + 1e-9 else min(math.exp(level), self.high)
