"""Measure one network on one probe, in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from netdyn._utils import checks
from netdyn._utils.distributed import Processes
from netdyn._utils.options import takes_options_of
from netdyn.engine.config import Config
from netdyn.engine.evaluate import evaluate
from netdyn.isolation.adapter import isolated_task
from netdyn.probes.loaders import first_loader, given_probe, on_device_of
from netdyn.probes.probe import Probe
from netdyn.probes.unpacking import input_and_target
from netdyn.report.results import Report


@takes_options_of(Config)
def diagnose(
    model: nn.Module,
    inputs: Any,
    target: Tensor | None = None,
    *,
    val_inputs: Any = None,
    val_target: Tensor | None = None,
    probe_size: int = 1024,
    unpack: Callable[[Any], Any] | None = None,
    progress: bool | None = None,
    processes: Processes | None = None,
    **options: Any,
) -> Report:
    """Measure a network, trained or not, on one probe: neuron modes of each layer, and both attraction basins.

    The model is left as it was found, and so is every random generator.

    Args:
        model: Any eager PyTorch module.
        inputs: The probe's inputs: a tensor, or a sequence or mapping of tensors, samples first. Without ``target``: a
            DataLoader or a Dataset of inputs and targets, of which ``probe_size`` samples are measured; of several (a
            list or a mapping) the first.
        target: Class labels ``[samples]``, or one per position ``[samples, …]``; several labels, zeros and ones
            ``[samples, labels]``; or numbers to be predicted, ``[samples]`` or ``[samples, …]``. ``task`` says which
            where shapes and values do not. None: ``inputs`` holds the targets too.
        val_inputs: Inputs of a held-out probe, likewise.
        val_target: Targets of the held-out probe.
        probe_size: Number of samples in a probe that is read from a data set, with the classes in proportion.
        unpack: ``unpack(batch)`` → (inputs, target), for batches that are not such pairs.
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

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 2))
        >>> report = diagnose(net, torch.eye(4).repeat(25, 1), torch.tensor([0, 0, 1, 1]).repeat(25))
        >>> [layer.name for layer in report.layers], "basin/sample/radius" in report.scalars()
        (['0'], True)
    """
    config = Config(**options)
    checks.whole("probe_size", probe_size)
    checks.function("unpack", unpack)
    if val_target is not None and val_inputs is None:
        raise TypeError("`val_inputs` must be given with `val_target`, got None.")

    def probe(prefix: str, inputs: Any, target: Tensor | None) -> Probe:
        given = first_loader(inputs)
        loads = isinstance(given, DataLoader | Dataset)
        if loads and target is not None:
            raise TypeError(f"`{prefix}target` must be None: the {type(given).__name__} holds the targets too.")
        if not loads and target is None:
            raise TypeError(
                f"`{prefix}target` must be given, unless `{prefix}inputs` is a DataLoader or a Dataset, got None for "
                f"inputs of type {type(inputs).__name__}."
            )
        if target is not None:
            return Probe(inputs, target)
        return given_probe(given, probe_size, config.seed, on_device_of(model), unpack or input_and_target)

    task = isolated_task(
        model, config.criterion, unpack, forward=config.forward, observer_hooks=config.observer_hooks or ()
    )
    with task as (network, criterion, unpack):
        config = replace(config, criterion=criterion)
        return evaluate(
            network,
            probe("", inputs, target),
            config,
            val_probe=None if val_inputs is None else probe("val_", val_inputs, val_target),
            processes=processes,
            progress=progress,
        )
