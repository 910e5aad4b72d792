"""Noise on weights: W' = W + σ·s·E, s each tensor's population standard deviation, E standard normal."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.distributed import full_tensor, is_shard, local_part, local_tensor, reshard
from netdyn._utils.options import instead
from netdyn._utils.random import seeded
from netdyn._utils.trees import Inputs, numbers
from netdyn.modes.ranks import statistic_dtype


def weight_tensors(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """The floating parameters with two or more dimensions, each once, chosen by globs of their names."""
    weights = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and p.is_floating_point()}
    if not weights:
        raise ValueError(
            "The model has no floating parameter with two or more dimensions, so that none can be disturbed."
        )
    if layers is None:
        return weights
    argument = instead("weight_layers", "weight_layers", "layers")
    if isinstance(layers, str):
        raise TypeError(f"`{argument}` must be a list of parameter names or globs, or 'each', got {layers!r}.")
    if not layers:
        raise ValueError(f"`{argument}` must name at least one weight, got []. Leave it None to disturb all.")
    choosing, excluding = checks.split_patterns(layers)
    for pattern in choosing or ():
        if not fnmatch.filter(weights, pattern):
            near = checks.nearest(pattern, weights)
            raise ValueError(f"`{argument}` names {pattern!r}, which matches no weight. {near}")
    chosen = [n for n in weights if choosing is None or any(fnmatch.fnmatch(n, pattern) for pattern in choosing)]
    chosen = checks.without(argument, chosen, excluding, weights, "weight")
    return {name: weights[name] for name in chosen}


class WeightNoise:
    """Gaussian noise on weights, in units of their standard deviations ``scales``."""

    def __init__(
        self, model: nn.Module, weights: dict[str, nn.Parameter], scales: dict[str, Tensor], seed: int
    ) -> None:
        self.model, self.weights, self.scales, self.seed = model, weights, scales, seed

    @classmethod
    def on(cls, model: nn.Module, layers: Sequence[str] | None, normalization: str, seed: int) -> WeightNoise:
        """Noise on the chosen weights, each with its own spread or all with their common one."""
        weights = weight_tensors(model, layers)
        if normalization == "global":
            scales = dict.fromkeys(weights, _common_scale(weights))
        else:
            scales = {name: _wide(weight).std(correction=0) for name, weight in weights.items()}
        return cls(model, weights, scales, seed)

    @property
    def unmoved(self) -> list[str]:
        """Weights that are constant, so that noise in units of their spread does not move them."""
        spreads = numbers(list(self.scales.values()))
        return [name for name, (spread,) in zip(self.scales, spreads, strict=True) if spread == 0]

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights."""
        return any(is_shard(weight) for weight in self.weights.values())

    def only(self, name: str) -> WeightNoise:
        """The same noise on one tensor alone."""
        return WeightNoise(self.model, {name: self.weights[name]}, {name: self.scales[name]}, self.seed)

    def draw(self, ray: int) -> dict[str, Tensor]:
        """One direction s·E, seeded by (seed, ray, the tensor's name): the same on every process."""
        direction = {}
        for name, weight in self.weights.items():
            generator = seeded(torch.Generator(weight.device), self.seed, ray, name)
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32, device=weight.device)
            direction[name] = local_part(drawn, weight.detach())
            direction[name] *= self.scales[name].to(direction[name].device)
        return direction

    def moved(self, direction: dict[str, Tensor], sigma: float) -> dict[str, Tensor]:
        """The weights W + σ·s·E, rounded to their own type."""
        found = {}
        for name, weight in self.weights.items():
            w = local_tensor(weight.detach())
            wide = torch.promote_types(w.dtype, torch.float32)
            found[name] = (w.to(wide) + sigma * direction[name]).to(w.dtype)
        return found

    def network(self, direction: dict[str, Tensor], sigma: float) -> Callable[[Inputs], Tensor]:
        """The network with weights W + σ·s·E. Its own weights are not touched; tied ones move together."""
        moved = self.moved(direction, sigma)
        if self.sharded:
            own = {name: local_tensor(weight.detach()) for name, weight in self.weights.items()}
            return partial(self._call_with_shards, own, moved)

        # A tied weight has several names. With all of them torch need not look for tied weights at each call.
        by_id = {id(weight): moved[name] for name, weight in self.weights.items()}
        named = self.model.named_parameters(remove_duplicate=False)
        everywhere = {name: by_id[id(weight)] for name, weight in named if id(weight) in by_id}

        def call(inputs: Inputs) -> Tensor:
            called = torch.func.functional_call
            return called(self.model, everywhere, (inputs,), tie_weights=False)  # type: ignore[no-any-return]

        return call

    def _call_with_shards(self, own: dict[str, Tensor], moved: dict[str, Tensor], inputs: Inputs) -> Tensor:
        """A sharded module gathers its weights from the shards, whatever is put in their place: write to the shards."""
        kept = {name: shard.clone() for name, shard in own.items()}
        try:
            self._write(own, moved)
            return self.model(inputs)  # type: ignore[no-any-return]
        finally:
            self._write(own, kept)

    def _write(self, own: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        for name, shard in own.items():
            shard.copy_(values[name])
        reshard(self.model)


def _wide(weight: Tensor) -> Tensor:
    """All entries of a weight, as exact as its device has it."""
    found = full_tensor(weight.detach())
    return found.to(statistic_dtype(found.device))


def _common_scale(weights: dict[str, nn.Parameter]) -> Tensor:
    """Population standard deviation of all entries together.

    One tensor at a time: Σ(w − m)² = Σ_i [n_i·v_i + n_i·(m_i − m)²] with tensor i's size, variance and mean.
    """
    device = next(iter(weights.values())).device
    size = sum(weight.numel() for weight in weights.values())
    parts = []
    for weight in weights.values():
        wide = _wide(weight)
        parts.append((weight.numel() / size, wide.mean().to(device), wide.var(correction=0).to(device)))
    mean = torch.stack([share * own for share, own, _ in parts]).sum()
    return torch.stack([share * (variance + (own - mean).square()) for share, own, variance in parts]).sum().sqrt()


def realised_noise(noise: WeightNoise, sigma: float) -> dict[str, float]:
    """Spread of the noise that reaches each weight tensor after rounding, over the spread asked for, at ``sigma``.

    1 in full precision. In bfloat16 noise far smaller than the weights is rounded away, or up to a whole step.
    """
    if noise.sharded:
        return {}  # no process holds a whole tensor
    direction, shares = noise.draw(0), dict[str, Tensor]()
    for name, moved in noise.moved(direction, sigma).items():
        dtype = statistic_dtype(moved.device)
        asked = sigma * direction[name].to(dtype).square().mean().sqrt()
        reached = (moved.to(dtype) - local_tensor(noise.weights[name].detach()).to(dtype)).square().mean().sqrt()
        shares[name] = torch.where(asked > 0, reached / asked, math.nan)
    return {name: share for name, (share,) in zip(shares, numbers(list(shares.values())), strict=True)}
