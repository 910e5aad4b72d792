"""Measure one network on one probe, in one call."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from netdyn._utils.distributed import Processes
from netdyn._utils.options import takes_options_of
from netdyn._utils.trees import Inputs
from netdyn.engine.config import Config
from netdyn.engine.evaluate import evaluate
from netdyn.isolation.adapter import Adapter
from netdyn.isolation.isolated import isolated, restored
from netdyn.probes.probe import Probe
from netdyn.report.results import Report


@takes_options_of(Config)
def diagnose(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    val_inputs: Inputs = None,
    val_target: Tensor | None = None,
    progress: bool | None = None,
    processes: Processes | None = None,
    **options: Any,
) -> Report:
    """Measure a network, trained or not, on one probe: neuron modes of each layer, and both attraction basins.

    The model is left as it was found, and so is every random generator.

    Args:
        model: Any eager PyTorch module.
        inputs: The probe's inputs: a tensor, or a sequence or mapping of tensors, samples first.
        target: Class labels ``[samples]``, or numbers to be predicted, ``[samples]`` or ``[samples, outputs]``.
        val_inputs: Inputs of a held-out probe.
        val_target: Targets of the held-out probe.
        progress: Show a progress bar. None: if work takes over two seconds and the output is a terminal.
        processes: Processes that share the work, each with the same network and probe. All of them must call this
            function, and all get the same report. None: only this process.
        options: What to measure and how, see :class:`netdyn.Config`.

    Returns:
        The report. ``print(report)`` shows it.

    Warns:
        UserWarning: If the probe lacks classes, the network or the probe holds NaN, or a result is unreliable.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument lies outside its range, or the model's output is not ``[samples, classes]``.

    Source:
        P1; :mod:`netdyn.functional` names the conventions behind each quantity.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 2))
        >>> report = diagnose(net, torch.eye(4).repeat(25, 1), torch.tensor([0, 0, 1, 1]).repeat(25))
        >>> [layer.name for layer in report.layers], "basin/sample/radius" in report.scalars()
        (['0'], True)
    """
    config = Config(**options)
    network = model if config.forward is None else Adapter(model, config.forward)
    if (val_inputs is None) != (val_target is None):
        missing = "val_target" if val_target is None else "val_inputs"
        raise ValueError(f"`val_inputs` and `val_target` must be given together, got None for `{missing}`.")
    val_probe = None if val_target is None else Probe(val_inputs, val_target)
    with isolated(model), restored(config.forward, config.criterion):
        return evaluate(
            network, Probe(inputs, target), config, val_probe=val_probe, processes=processes, progress=progress
        )
