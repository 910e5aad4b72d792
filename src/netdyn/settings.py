"""What to measure and how: the arguments that the report and the callback share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from netdyn import _checks
from netdyn.criteria import Criterion
from netdyn.functional import check_basin
from netdyn.outset import TOLERANCE

Measure = Literal["modes", "linear", "sample_basin", "weight_basin", "batchnorm", "maps"]
MEASURES: tuple[Measure, ...] = ("modes", "linear", "sample_basin", "weight_basin", "batchnorm", "maps")


@dataclass(frozen=True)
class Settings:
    """What to measure and how; :func:`netdyn.report.diagnose` describes each argument.

    ``train_batch_size`` is the least number of samples that batch normalisation sees at once where the probe does not
    fit in one batch; ``distributions`` asks for what figures alone show.

    Raises:
        TypeError: If one is of the wrong type.
        ValueError: If one lies outside its range.
    """

    measure: tuple[Measure, ...] = MEASURES
    layers: Sequence[str] | None = None
    max_units: int = 4096
    max_classes: int = 100
    alpha: float = 0.05
    accuracy: float | None = None
    sample_rays: int = 1
    weight_rays: int = 8
    weight_layers: Sequence[str] | Literal["each"] | None = None
    normalization: Literal["layer", "global"] = "layer"
    low: float = 1e-3
    high: float = 1e1
    rel_tol: float = 0.05
    criterion: Criterion | None = None
    tolerance: float = TOLERANCE
    noise_at: Sequence[str] | None = None
    batch_size: int | None = None
    num_classes: int | None = None
    seed: int = 0
    train_batch_size: int | None = None
    distributions: bool = True

    def __post_init__(self) -> None:
        _checks.names("layers", self.layers)
        _checks.names("weight_layers", self.weight_layers, words=("each",))
        _checks.names("noise_at", self.noise_at)
        _checks.function("criterion", self.criterion)
        for name in self.measure:
            _checks.choice("measure", name, MEASURES)
        _checks.whole("max_units", self.max_units)
        _checks.whole("max_classes", self.max_classes, minimum=2)
        _checks.share("alpha", self.alpha)
        _checks.positive("tolerance", self.tolerance)
        _checks.whole("sample_rays", self.sample_rays)
        _checks.whole("weight_rays", self.weight_rays)
        _checks.choice("normalization", self.normalization, ("layer", "global"))
        if self.batch_size is not None:
            _checks.whole("batch_size", self.batch_size)
        if self.num_classes is not None:
            _checks.whole("num_classes", self.num_classes)
        check_basin(self.accuracy, self.sample_rays, self.low, self.high, self.rel_tol, self.seed)
