"""What to measure and how: the arguments that the report and the callback share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from netdyn._utils import checks
from netdyn.functional import check_basin
from netdyn.probes.criteria import Criterion
from netdyn.probes.outset import TOLERANCE

Measure = Literal["modes", "linear", "sample_basin", "weight_basin", "batchnorm", "maps"]
MEASURES: tuple[Measure, ...] = ("modes", "linear", "sample_basin", "weight_basin", "batchnorm", "maps")


@dataclass(frozen=True)
class Settings:
    """What to measure and how; :func:`netdyn.engine.diagnose.diagnose` describes each argument.

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
        checks.names("layers", self.layers)
        checks.names("weight_layers", self.weight_layers, words=("each",))
        checks.names("noise_at", self.noise_at)
        checks.function("criterion", self.criterion)
        for name in self.measure:
            checks.choice("measure", name, MEASURES)
        checks.whole("max_units", self.max_units)
        checks.whole("max_classes", self.max_classes, minimum=2)
        checks.share("alpha", self.alpha)
        checks.positive("tolerance", self.tolerance)
        checks.whole("sample_rays", self.sample_rays)
        checks.whole("weight_rays", self.weight_rays)
        checks.choice("normalization", self.normalization, ("layer", "global"))
        if self.batch_size is not None:
            checks.whole("batch_size", self.batch_size)
        if self.num_classes is not None:
            checks.whole("num_classes", self.num_classes)
        check_basin(self.accuracy, self.sample_rays, self.low, self.high, self.rel_tol, self.seed)
