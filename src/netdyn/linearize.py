"""The linear substitution map (L-map): how strongly each unit is wired to each logit once activations are the identity.

Layout: pathways ``[classes, units]``. The real forward runs with the backward of every activation replaced by the
identity; K vector-Jacobian products then give the maps of all layers at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from netdyn.batches import Inputs, count, map_tensors, spread, take
from netdyn.criteria import as_logits
from netdyn.sites import Site, run

#: Samples that a map is averaged over (where the Jacobian does not depend on the sample, one would do).
MAP_SAMPLES = 64
#: Above this the signs of an averaged map are noise.
DEFECT_LIMIT = 0.9


@dataclass(frozen=True)
class LinearMap(Mapping[str, Tensor]):
    """The linear substitution maps of a network's layers: layer name → pathway ``[classes, units]``, uncentred.

    Attributes:
        affine_defect: For each layer, how much of the Jacobian depends on the sample: 0 where what follows is affine,
            1 where the Jacobians of two samples have nothing in common; NaN for a single sample.
    """

    pathways: dict[str, Tensor]
    affine_defect: dict[str, float]

    def __getitem__(self, name: str) -> Tensor:
        return self.pathways[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.pathways)

    def __len__(self) -> int:
        return len(self.pathways)


def _pass_by_reentrant(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
    return function(*args)


def _pass_by_generator(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Yields once before the block runs, as the real one does, and recomputes nothing."""
    yield


@contextmanager
def _without_checkpointing() -> Iterator[None]:
    """Activation checkpointing runs its block a second time, out of our sight, which gives a wrong map: pass it by."""
    module = torch.utils.checkpoint
    with (
        patch.object(module.CheckpointFunction, "apply", _pass_by_reentrant),
        patch.object(module, "_checkpoint_without_reentrant_generator", _pass_by_generator),
    ):
        yield


def substitute(
    model: nn.Module, inputs: Inputs, names: Iterable[str], promoted: Iterable[str] = (), samples: int = MAP_SAMPLES
) -> LinearMap:
    """The maps of the named layers, averaged over ``samples`` of the inputs; the model is in eval mode.

    Memory: the graph of those samples and K × units a layer.
    """
    wanted, promoted = set(names), set(promoted)
    sites: list[Site] = []

    def keep(site: Site) -> None:
        if site.name in wanted or site.name.split(":")[0] in promoted:
            sites.append(site)

    chosen = take(inputs, spread(count(inputs), samples))
    with torch.inference_mode(False), torch.enable_grad(), _without_checkpointing():
        # Copies that start a graph; inputs made in inference mode could not.
        chosen = map_tensors(lambda t: t.clone().requires_grad_() if t.is_floating_point() else t.clone(), chosen)
        logits = as_logits(run(model, chosen, keep, straight=True, promoted=promoted)[1], count(chosen))
        return _average(logits, sites)


def _average(logits: Tensor, sites: list[Site]) -> LinearMap:
    """Mean Jacobian over samples and its spread, class by class: only one class's Jacobians are alive at a time.

    affine_defect² = [Σ_s‖J_s − J̄‖²/(m − 1)] / mean_s‖J_s‖², at most 1. The differences are taken before squaring: as a
    difference of sums, rounding would show a defect of 1e-4 where there is none.
    """
    m, classes = logits.shape
    edges = {i: site.edge for i, site in enumerate(sites) if site.edge is not None}
    means: list[list[Tensor]] = [[] for _ in sites]
    spread_sum = [0.0] * len(sites)
    size_sum = [0.0] * len(sites)
    for k in range(classes):
        total = logits[:, k].sum()
        found: Sequence[Tensor | None] = (None,) * len(edges)
        if total.requires_grad and edges:
            found = torch.autograd.grad(total, list(edges.values()), retain_graph=k + 1 < classes, allow_unused=True)
        gradients = dict(zip(edges, found, strict=True))
        for i, site in enumerate(sites):
            gradient = gradients.get(i)
            wide = torch.promote_types(site.field.dtype, torch.float32)
            jacobian = (torch.zeros_like(site.field) if gradient is None else gradient).reshape(m, -1).to(wide)
            mean = jacobian.mean(dim=0)
            means[i].append(mean)
            spread_sum[i] += float(((jacobian - mean) ** 2).sum())
            size_sum[i] += float((jacobian**2).sum())
    defects = [_defect(spread, size, m) for spread, size in zip(spread_sum, size_sum, strict=True)]
    return LinearMap(
        {site.name: torch.stack(mean).detach() for site, mean in zip(sites, means, strict=True)},
        {site.name: defect for site, defect in zip(sites, defects, strict=True)},
    )


def _defect(spread: float, size: float, samples: int) -> float:
    """affine_defect from summed squares; NaN for one sample or Jacobians that are not finite, 0 where all are zero."""
    if samples < 2 or not math.isfinite(spread + size):
        return math.nan
    return math.sqrt(min(1.0, (spread / (samples - 1)) / (size / samples))) if size else 0.0
