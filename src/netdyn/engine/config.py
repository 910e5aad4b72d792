"""The options that reports, monitors and the callback share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from netdyn._utils import checks
from netdyn.basins.target import check_basin
from netdyn.probes.targets import AccuracyOf, TargetOptions, Task
from netdyn.probes.tasks import TOLERANCE

Measure = Literal["modes", "linear", "sample_basin", "weight_basin", "batchnorm", "maps", "companions"]
#: What is measured by default: everything but the quantities of related work.
MEASURES: tuple[Measure, ...] = tuple(name for name in get_args(Measure) if name != "companions")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure and how.

    Args:
        measure: What to measure: ``"modes"``, ``"linear"`` (tails and shares), ``"sample_basin"``, ``"weight_basin"``,
            ``"batchnorm"``, ``"maps"`` (characteristic maps, for figures only), ``"companions"`` (quantities of related
            work, not measured by default).
        layers: Names or globs of the layers to read, as in :func:`netdyn.functional.local_fields`; ``["!head.*"]``: all
            but these. None: every local field that an activation reads.
        max_units: Most units measured per layer; in larger layers, a fixed random choice of this many.
        max_classes: Most classes used in modes, ranks and tails; of more classes, a fixed random choice of this many.
        alpha: Share of OPT units that an untrained network may show by chance.
        accuracy: The accuracy that defines a basin's radius, in (0, 1). None: 0.5, or 0.75 for two classes.
        relative: Count ``accuracy`` from the accuracy that noise leaves (0) to the accuracy without noise (1).
        sample_rays: Rays per sample in sample space.
        weight_rays: Rays in weight space.
        weight_samples: Samples per ray in weight space, a different stratified choice for each ray.
        weight_layers: Names or globs of the parameters to disturb (``["!head.*"]``: all but these), or ``"each"``: all
            together, then each one alone. None: all parameters with two or more dimensions.
        normalization: Unit of the noise on weights: each tensor's own standard deviation (``"layer"``), or that of all
            tensors together (``"global"``).
        low: Smallest noise level.
        high: Largest noise level.
        criterion: ``criterion(outputs, target)`` → bool ``[samples]``. None: the predicted class is the target, or a
            predicted number is within ``tolerance``.
        tolerance: How far a predicted number may move before it counts as wrong, in standard deviations of its target.
        noise_at: Where the noise of the sample basin is added: names of modules, whose outputs are disturbed, or of
            parts of the inputs. None: to every floating input; where there is none (token ids), to the output of the
            embedding that runs first.
        forward: ``forward(model, inputs)`` → outputs. None: ``model(inputs)``, or ``model(**inputs)`` and
            ``model(*inputs)`` where the model's ``forward`` takes a mapping or a sequence so. Of an output that is no
            tensor, ``.logits``, ``["logits"]`` or the first item of a tuple are the logits.
        observer_hooks: Hooks of the model that only look at it, and must not see measurements: the hooks themselves, or
            names of the packages that register them. Hooks of wandb and other loggers are known.
        batch_size: Samples per forward pass. None: the whole probe at once.
        task: What the targets are: ``"classes"`` (labels ``[samples]``, or one per position ``[samples, …]`` of logits
            ``[samples, classes, …]`` or ``[samples, positions, classes]``), ``"multilabel"`` (zeros and ones
            ``[samples, labels]``) or ``"numbers"`` to be predicted. ``"auto"``: what shapes and values show.
        ignore_index: Label that marks what has none: samples, positions or labels that are left out.
        accuracy_of: What counts with several labels per sample: ``"samples"`` whose labels are all right, or
            ``"labels"``.
        num_classes: Number of classes, checked against the model's output. None: as many as the output has.
        seed: Seed of all noise, of the choice of units and of the probe's samples.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option lies outside its range.
    """

    measure: Sequence[Measure] = MEASURES
    layers: list[str] | None = None
    max_units: int = 4096
    max_classes: int = 100
    alpha: float = 0.05
    accuracy: float | None = None
    relative: bool = False
    sample_rays: int = 1
    weight_rays: int = 16
    weight_samples: int = 128
    weight_layers: Literal["each"] | list[str] | None = None
    normalization: Literal["layer", "global"] = "layer"
    low: float = 1e-3
    high: float = 10.0
    criterion: Callable[[Any, Any], Any] | None = None
    tolerance: float = TOLERANCE
    noise_at: list[str] | None = None
    forward: Callable[[Any, Any], Any] | None = None
    observer_hooks: list[str | Callable[..., Any]] | None = None
    batch_size: int | None = None
    task: Task = "auto"
    ignore_index: int = -100
    accuracy_of: AccuracyOf = "samples"
    num_classes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checks.names("measure", self.measure, of="measures")
        for name in self.measure:
            checks.choice("measure", name, get_args(Measure))
        # A list and a tuple of the same measures are the same options, also in the key of a checkpoint.
        object.__setattr__(self, "measure", tuple(self.measure))
        checks.names("layers", self.layers)
        checks.names("weight_layers", self.weight_layers, words=("each",))
        checks.names("noise_at", self.noise_at, of="names of modules or inputs")
        checks.function("criterion", self.criterion)
        checks.hooks("observer_hooks", self.observer_hooks)
        checks.function("forward", self.forward)
        checks.whole("max_classes", self.max_classes, minimum=2)
        checks.fraction("alpha", self.alpha)
        checks.positive("tolerance", self.tolerance)
        for whole in ("max_units", "sample_rays", "weight_rays", "weight_samples"):
            checks.whole(whole, getattr(self, whole))
        checks.choice("normalization", self.normalization, ("layer", "global"))
        for whole in ("batch_size", "num_classes"):
            if getattr(self, whole) is not None:
                checks.whole(whole, getattr(self, whole))
        check_basin(self.accuracy, self.sample_rays, self.low, self.high, self.seed)
        TargetOptions(self.task, self.ignore_index, self.accuracy_of)

    @property
    def targets(self) -> TargetOptions:
        """How targets are to be read."""
        return TargetOptions(self.task, self.ignore_index, self.accuracy_of)
