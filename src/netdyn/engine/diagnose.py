"""Everything about one network on one probe, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.distributed import Crew
from netdyn._utils.trees import Inputs
from netdyn.engine.config import MEASURES, Measure, Settings
from netdyn.engine.evaluate import examine
from netdyn.engine.layers import LayerReport
from netdyn.isolation.adapter import Adapter
from netdyn.isolation.isolated import isolated, kept
from netdyn.probes.criteria import Criterion
from netdyn.probes.outset import TOLERANCE
from netdyn.probes.probe import Probe
from netdyn.report.results import Report

__all__ = ["LayerReport", "Report", "diagnose"]


def diagnose(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    val_inputs: Inputs = None,
    val_target: Tensor | None = None,
    num_classes: int | None = None,
    progress: bool | None = None,
    measure: Sequence[Measure] = MEASURES,
    layers: Sequence[str] | None = None,
    max_units: int = 4096,
    max_classes: int = 100,
    alpha: float = 0.05,
    accuracy: float | None = None,
    sample_rays: int = 1,
    weight_rays: int = 8,
    weight_layers: Sequence[str] | Literal["each"] | None = None,
    normalization: Literal["layer", "global"] = "layer",
    low: float = 1e-3,
    high: float = 1e1,
    rel_tol: float = 0.05,
    criterion: Criterion | None = None,
    tolerance: float = TOLERANCE,
    noise_at: Sequence[str] | None = None,
    forward: Callable[[Any, Inputs], Any] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    crew: Crew | None = None,
) -> Report:
    """Measure a network, trained or not, on one probe: neuron modes layer by layer, and both attraction basins.

    The model is left as it was found, and so is every random generator.

    Args:
        model: Any eager PyTorch module.
        inputs: The probe's inputs: a tensor, or a sequence or mapping of tensors, samples first.
        target: Class labels ``[samples]``, or numbers to be predicted, ``[samples]`` or ``[samples, outputs]``.
        val_inputs: Inputs of a held-out probe, for its accuracy.
        val_target: Its labels.
        num_classes: Number of classes, checked against the model's output; None: as many as it has.
        progress: Show a progress bar; None: where work takes over two seconds and a person is watching.
        measure: What to measure: ``"modes"``, ``"linear"`` (tails and shares), ``"sample_basin"``, ``"weight_basin"``,
            ``"batchnorm"``, ``"maps"`` (characteristic maps).
        layers: Names or globs of the layers to read, as in :func:`netdyn.functional.local_fields`.
        max_units: Units measured a layer; of larger layers this many, the same at every call.
        max_classes: Of more classes than this a seeded choice stands for all in modes and ranks.
        alpha: Share of OPT units that an untrained network is allowed to show.
        accuracy: The accuracy that defines the radii; None: 0.5, or 0.75 for two classes.
        sample_rays: Rays a sample.
        weight_rays: Rays in weight space.
        weight_layers: Parameters to disturb, or ``"each"``, as in :func:`netdyn.functional.weight_basin`.
        normalization: Whose standard deviation the weights' noise is measured in.
        low: Smallest noise level.
        high: Largest noise level.
        rel_tol: Cells of the search end no wider than (1 + rel_tol)².
        criterion: ``criterion(outputs, target)`` → bool ``[samples]``; None: right class, or for numbers ``tolerance``.
        tolerance: How far a predicted number may move before it counts as wrong, in standard deviations of its target.
        noise_at: Where the noise of the sample basin falls, as in :func:`netdyn.functional.sample_basin`.
        forward: ``forward(model, inputs)`` → outputs, where ``model(inputs)`` is not the model.
        batch_size: Samples a forward pass; None: all at once.
        seed: Seed of the noise and of the choice of units.
        crew: Processes that share the work, each with the same network and probe; all of them must call this, and all
            get the same report. None: this process alone.

    Returns:
        A :class:`Report`; print it.

    Warns:
        UserWarning: If the probe lacks classes, the network or the probe hold NaN, or a result is not to be trusted.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument lies outside its range, or the model's output is not ``[samples, classes]``.

    Source:
        P1; the conventions are named with each quantity in :mod:`netdyn.functional`.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 2))
        >>> report = diagnose(net, torch.eye(4).repeat(25, 1), torch.tensor([0, 0, 1, 1]).repeat(25))
        >>> [layer.name for layer in report.layers], "basin/sample/radius" in report.scalars()
        (['0'], True)
    """
    checks.names("measure", measure)
    checks.function("forward", forward)
    settings = Settings(
        measure=tuple(measure),
        layers=layers,
        max_units=max_units,
        max_classes=max_classes,
        alpha=alpha,
        accuracy=accuracy,
        sample_rays=sample_rays,
        weight_rays=weight_rays,
        weight_layers=weight_layers,
        normalization=normalization,
        low=low,
        high=high,
        rel_tol=rel_tol,
        criterion=criterion,
        tolerance=tolerance,
        noise_at=noise_at,
        batch_size=batch_size,
        num_classes=num_classes,
        seed=seed,
    )
    network = model if forward is None else Adapter(model, forward)
    if (val_inputs is None) != (val_target is None):
        missing = "val_target" if val_target is None else "val_inputs"
        raise ValueError(f"`val_inputs` and `val_target` must be given together, got None for `{missing}`.")
    held_out = None if val_target is None else Probe(val_inputs, val_target)
    with isolated(model), kept(forward, criterion):
        return examine(network, Probe(inputs, target), settings, crew or Crew(), progress, held_out=held_out)
