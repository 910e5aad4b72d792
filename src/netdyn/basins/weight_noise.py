"""Noise on weights: W' = W + σ·s·E, s each tensor's population standard deviation, E standard normal.

A complex weight counts as its real and its imaginary part: both get such noise, with s² the mean of their variances.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.distributed import full_tensor, is_shard, local_part, local_tensor, reshard
from netdyn._utils.options import instead
from netdyn._utils.random import Kept, seeded
from netdyn._utils.trees import Inputs, numbers
from netdyn.modes.ranks import statistic_dtype

#: A parameter that noise leaves out is large with this many entries, and this share of all parameters' entries.
LARGE, LARGE_SHARE = 1000, 0.1


def _can_be_disturbed(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and (parameter.is_floating_point() or parameter.is_complex())


def large_left_out(model: nn.Module) -> list[str]:
    """Names of the large parameters that noise cannot disturb: one-dimensional ones, and those of whole numbers."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    large = max(LARGE, LARGE_SHARE * sum(sizes.values()))
    return [n for n, p in model.named_parameters() if sizes[n] >= large and not _can_be_disturbed(p)]


def weight_tensors(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """The floating and complex parameters with two or more dimensions, each once, chosen by globs of their names."""
    weights = {n: p for n, p in model.named_parameters() if _can_be_disturbed(p)}
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
        self, model: nn.Module, weights: dict[str, nn.Parameter], scales: dict[str, Tensor], seed: int, drawn: Kept
    ) -> None:
        self.model, self.weights, self.scales, self.seed, self.drawn = model, weights, scales, seed, drawn

    @classmethod
    def on(
        cls,
        model: nn.Module,
        layers: Sequence[str] | None,
        normalization: str,
        seed: int,
        drawn: Kept | None = None,
    ) -> WeightNoise:
        """Noise on the chosen weights, each with its own spread or all with their common one."""
        weights = weight_tensors(model, layers)
        if normalization == "global":
            scales = dict.fromkeys(weights, _common_scale(weights))
        else:
            scales = {name: _scale(weight) for name, weight in weights.items()}
        return cls(model, weights, scales, seed, drawn or Kept(0))

    @property
    def unmoved(self) -> list[str]:
        """Weights that are constant, so that noise in units of their spread does not move them."""
        spreads = numbers(list(self.scales.values()))
        return [name for name, (spread,) in zip(self.scales, spreads, strict=True) if spread == 0]

    @cached_property
    def _names(self) -> dict[str, str]:
        """All names of each weight → the one used here. With all of them torch need not look for tied weights."""
        by_id = {id(weight): name for name, weight in self.weights.items()}
        named = self.model.named_parameters(remove_duplicate=False)
        return {name: by_id[id(weight)] for name, weight in named if id(weight) in by_id}

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights."""
        return any(is_shard(weight) for weight in self.weights.values())

    def only(self, name: str) -> WeightNoise:
        """The same noise on one tensor alone."""
        return WeightNoise(self.model, {name: self.weights[name]}, {name: self.scales[name]}, self.seed, self.drawn)

    def draw(self, ray: int) -> dict[str, Tensor]:
        """One direction E, seeded by (seed, ray, the tensor's name): the same on every process."""
        direction = {}
        for name, weight in self.weights.items():
            own, parts = local_tensor(weight.detach()), str(getattr(weight, "placements", ""))
            key = name, self.seed, ray, weight.shape, own.shape, parts, own.device, own.is_complex()
            direction[name] = self.drawn.get(key, partial(self._drawn, ray, name))
        return direction

    def _drawn(self, ray: int, name: str) -> Tensor:
        """The standard normal numbers E of one weight; of a sharded one this process's."""
        weight = self.weights[name]
        generator = seeded(torch.Generator(weight.device), self.seed, ray, name)
        parts = (2,) if weight.is_complex() else ()
        drawn = torch.randn(*weight.shape, *parts, generator=generator, dtype=torch.float32, device=weight.device)
        drawn = torch.view_as_complex(drawn) if parts else drawn
        return local_part(drawn, weight.detach())

    def moved(self, direction: dict[str, Tensor], sigma: float) -> dict[str, Tensor]:
        """The weights W + σ·s·E, rounded to their own type."""
        found = {}
        for name, weight in self.weights.items():
            w = local_tensor(weight.detach())
            # The sum has the wider type of both, float32 or better.
            found[name] = torch.addcmul(w, direction[name], self.scales[name].to(w.device), value=sigma).to(w.dtype)
        return found

    def network(self, direction: dict[str, Tensor], sigma: float) -> Callable[[Inputs], Tensor]:
        """The network with weights W + σ·s·E. Its own weights are not touched; tied ones move together."""
        moved = self.moved(direction, sigma)
        if self.sharded:
            own = {name: local_tensor(weight.detach()) for name, weight in self.weights.items()}
            return partial(self._call_with_shards, own, moved)

        everywhere = {other: moved[name] for other, name in self._names.items()}

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


def _real(values: Tensor) -> Tensor:
    """The numbers of a tensor; those of complex ones ``[..., 2]``."""
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


def _wide(weight: Tensor) -> Tensor:
    """All numbers of a weight, as exact as its device has them."""
    values = _real(full_tensor(weight.detach()))
    return values.to(statistic_dtype(values.device))


def _scale(weight: Tensor) -> Tensor:
    """Population standard deviation of a weight; the mean variance of both parts of a complex one, as a deviation."""
    wide = _wide(weight)
    return wide.flatten(0, -2).var(dim=0, correction=0).mean().sqrt() if weight.is_complex() else wide.std(correction=0)


def _common_scale(weights: dict[str, nn.Parameter]) -> Tensor:
    """Population standard deviation of all numbers together.

    One tensor at a time: Σ(w − m)² = Σ_i [n_i·v_i + n_i·(m_i − m)²] with tensor i's size, variance and mean.
    """
    device = next(iter(weights.values())).device
    sizes = {name: weight.numel() * (1 + weight.is_complex()) for name, weight in weights.items()}
    size = sum(sizes.values())
    parts = []
    for name, weight in weights.items():
        wide = _wide(weight)
        parts.append((sizes[name] / size, wide.mean().to(device), wide.var(correction=0).to(device)))
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
        own, wide = local_tensor(noise.weights[name].detach()), torch.promote_types(moved.dtype, torch.float32)
        asked = sigma * noise.scales[name].to(own.device) * _length(direction[name])
        shares[name] = torch.where(asked > 0, _length(moved.to(wide) - own.to(wide)) / asked, math.nan)
    return {name: share for name, (share,) in zip(shares, numbers(list(shares.values())), strict=True)}


def _length(values: Tensor) -> Tensor:
    """The root of the sum of squares, without a copy of the numbers in a wider type."""
    real = _real(values)
    length: Tensor = torch.linalg.vector_norm(real, dtype=statistic_dtype(real.device))
    return length
