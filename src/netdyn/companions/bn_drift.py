"""Drift of batch normalisation: how far running statistics lie from those of the samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netdyn._utils.trees import Inputs, copied
from netdyn.companions.weighted import named_modules
from netdyn.isolation.adapter import isolated_network
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.batchnorm import BatchStatistics


def bn_drift(model: nn.Module, inputs: Inputs) -> dict[str, float]:
    """Distance of each batch normalisation's running statistics from the statistics of what it gets.

    √(mean over channels of [(m − μ)² + (s − σ)²]/σ²), m and s the running mean and standard deviation, μ and σ those of
    the samples: the Wasserstein distance of two normal distributions, in standard deviations of the samples. As the
    module itself does, s² and σ² include its eps.

    The network runs as in :func:`netdyn.functional.batchnorm_gap`: each module normalises with the statistics of the
    samples, as in training, so that its drift is its own and not that of the modules before it. Dropout is off, and
    nothing is updated.

    Args:
        model: Any eager PyTorch module; called with the inputs as its ``forward`` takes them, once.
        inputs: A tensor, or a sequence or mapping of tensors, samples first; two samples or more.

    Returns:
        Name of the module → distance: 0 if the statistics fit, 1 if they are off by one standard deviation. Empty
        without batch normalisation that has running statistics.

    Source:
        netdyn's convention; P1: grokking in deep networks is largely the lag of these statistics.

    Examples:
        >>> net = nn.Sequential(nn.BatchNorm1d(1, eps=1e-12))
        >>> net.load_state_dict({"0.running_mean": torch.tensor([3.0])}, strict=False).unexpected_keys
        []
        >>> round(bn_drift(net, torch.tensor([[-1.0], [1.0]]))["0"], 6)  # mean 0, and a standard deviation of 1 as well
        3.0
    """
    with isolated_network(model) as network:
        return measure_drift(network, [copied(inputs)])


def measure_drift(network: nn.Module, batches: Iterable[Inputs]) -> dict[str, float]:
    """:func:`bn_drift` of an isolated network, over one or more batches; it does not run without such modules."""
    with _observed(network) as drift, BatchStatistics(), torch.no_grad():
        for inputs in batches if drift.modules else ():
            network(inputs)
    return drift.found()


class _Drift:
    """Statistics of what normalisations get, over one or more batches."""

    def __init__(self) -> None:
        self.modules: dict[str, _BatchNorm] = {}
        self.seen: dict[str, tuple[int, Tensor, Tensor]] = {}  # number, mean, and sum of squared deviations

    def add(self, name: str, value: Tensor) -> None:
        """Take the input ``[samples, channels, …]`` of a normalisation."""
        x = value.detach().transpose(0, 1).flatten(1).to(statistic_dtype(value.device))
        number, mean = x.shape[1], x.mean(dim=1)
        spread = (x - mean[:, None]).square().sum(dim=1)
        before = self.seen.get(name)
        if before is not None:
            # Two sets as one: their own spreads, and that between their means.
            other, other_mean, other_spread = before
            both, apart = number + other, mean - other_mean
            spread = spread + other_spread + apart.square() * number * other / both
            number, mean = both, other_mean + apart * number / both
        self.seen[name] = number, mean, spread

    def found(self) -> dict[str, float]:
        """Module name → distance."""
        distances = {}
        for name, (number, mean, spread) in self.seen.items():
            module = self.modules[name]
            assert module.running_mean is not None
            assert module.running_var is not None
            deviation = (spread / number + module.eps).sqrt()
            running = (module.running_var.to(spread) + module.eps).sqrt()
            squared = (module.running_mean.to(mean) - mean).square() + (running - deviation).square()
            distances[name] = float((squared / deviation.square()).mean().sqrt())
        return distances


@contextmanager
def _observed(network: nn.Module) -> Iterator[_Drift]:
    """Inside, runs of an isolated network tell what its normalisations get."""
    drift, handles = _Drift(), []

    def hook(name: str) -> Any:
        def see(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args:
                drift.add(name, args[0])

        return see

    try:
        for name, module in named_modules(network):
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                drift.modules[name] = module
                handles.append(module.register_forward_pre_hook(hook(name)))
        yield drift
    finally:
        for handle in handles:
            handle.remove()
