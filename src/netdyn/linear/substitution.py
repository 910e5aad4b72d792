"""The linear substitution map (L-map): how strongly each unit is wired to each logit once activations are the identity.

Layout: pathways ``[classes, units]``. The real forward runs with the backward of every activation replaced by the
identity. K vector-Jacobian products then give the maps of all layers at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from netdyn._utils.checks import warn
from netdyn._utils.trees import Inputs, copied, count, evenly_spaced, map_tensors, numbers, take
from netdyn.isolation.isolated import isolated
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.criteria import as_logits
from netdyn.tracing.fields import Choice, choose
from netdyn.tracing.names import is_quantised
from netdyn.tracing.site import Site
from netdyn.tracing.survey import discover
from netdyn.tracing.tracer import Tracer, traced

#: Number of samples that a map is averaged over: more where the Jacobians of fewer disagree.
MAP_SAMPLES = (4, 16, 64)
#: A mean Jacobian is known when its standard error is at most this part of it.
SETTLED = 0.025
#: Most samples in one graph: samples times the classes whose Jacobians one backward pass gives.
MOST_ROWS = 64
#: Above this the signs of an averaged map are noise.
DEFECT_LIMIT = 0.9


@dataclass(frozen=True)
class Spread:
    """How much a layer's Jacobian differs between samples.

    affine_defect² = [Σ_s‖J_s − J̄‖²/(m − 1)] / mean_s‖J_s‖², at most 1. The differences are taken before squaring: a
    difference of sums would turn rounding into a defect of 1e-4.

    Attributes:
        sums: Σ_s‖J_s − J̄‖² and Σ_s‖J_s‖² over all classes ``[2]``, on the network's device.
        samples: Number m of samples.
    """

    sums: Tensor
    samples: int

    @property
    def settled(self) -> bool:
        """Whether more samples would hardly change the mean; it is read from the device."""
        ((apart, size),) = numbers([self.sums])
        return not self.defect(apart, size) / math.sqrt(self.samples) > SETTLED

    def defect(self, apart: float, size: float) -> float:
        """The affine defect, from both sums on the host; NaN for one sample or non-finite Jacobians, 0 if all are 0."""
        if self.samples < 2 or not math.isfinite(apart + size):
            return math.nan
        return math.sqrt(min(1.0, (apart / (self.samples - 1)) / (size / self.samples))) if size else 0.0


@dataclass(frozen=True)
class LinearMap(Mapping[str, Tensor]):
    """The linear substitution maps of a network's layers: layer name → pathway ``[classes, units]``, uncentred.

    Attributes:
        pathways: Layer name → pathway.
        through: The part of each map that goes through the layer's activation, if it was asked for. It is the whole
            map, unless the network uses the local field beside its activation. It lacks layers from whose output no
            gradient reaches the logits (because of a stop-gradient, or another head).
        spreads: How much each layer's Jacobian differs between samples.
    """

    pathways: dict[str, Tensor]
    through: dict[str, Tensor] = field(default_factory=dict, repr=False)
    spreads: dict[str, Spread] = field(default_factory=dict, repr=False)

    @cached_property
    def affine_defect(self) -> dict[str, float]:
        """Layer name → how much of the Jacobian depends on the sample, in [0, 1].

        0 if the network is affine after the layer, 1 if the Jacobians of two samples have nothing in common, NaN for a
        single sample. All layers are read together at the first use.
        """
        sums = numbers([spread.sums for spread in self.spreads.values()])
        return {name: spread.defect(*own) for (name, spread), own in zip(self.spreads.items(), sums, strict=True)}

    def __getitem__(self, name: str) -> Tensor:
        return self.pathways[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.pathways)

    def __len__(self) -> int:
        return len(self.pathways)


def linear_substitution_map(model: nn.Module, inputs: Inputs, layers: Sequence[str] | None = None) -> LinearMap:
    """How strongly each unit is wired to each logit when activations from its layer upward are the identity (L-map).

    For a fully connected network it is W^(L)⋯W^(l+1), with batch normalisation's factors diag(γ/σ̂). For other networks
    it is the Jacobian of the logits with respect to the local field, averaged over 64 samples. The backward pass of
    activations is replaced by the identity, and that of max-pooling by average pooling's. Norms, gates and attention
    are linearised at their operating point. The map is exact if the network is affine after the layer.

    Args:
        model: Any eager PyTorch module; called as ``model(inputs)``.
        inputs: A tensor, or a sequence or mapping of tensors, samples first.
        layers: As in :func:`netdyn.functional.local_fields`.

    Returns:
        A mapping of layer name → ``[classes, units]``, uncentred, with ``.affine_defect`` (layer name → how much of the
        Jacobian depends on the sample, in [0, 1]).

    Warns:
        DynamicsWarning: If a layer's ``affine_defect`` is above 0.9: the signs of its map are noise.

    Raises:
        TypeError: If ``layers`` is a single string, or the output is not a tensor.
        ValueError: If a name in ``layers`` matches nothing, there is no activation, or the output does not have the
            shape ``[samples, classes]``.

    Source:
        P1, linear substitution map; the straight-through operating point is netdyn's convention.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> pathway = linear_substitution_map(net, torch.zeros(4, 2))["0"]
        >>> torch.equal(pathway, net[2].weight)
        True
    """
    with isolated(model):
        linear_map = substitute(model, inputs, choose(model, discover(model, inputs), layers))
    warn_of_defects(linear_map.affine_defect)
    return linear_map


def warn_of_defects(defects: Mapping[str, float]) -> None:
    """Warn of layers whose averaged map is noise."""
    bad = [name for name, defect in defects.items() if defect > DEFECT_LIMIT]
    if bad:
        warn(
            f"In the layers {bad} the linear substitution map depends on the sample almost entirely (affine_defect "
            f"above {DEFECT_LIMIT}): the network after them is far from affine, and the signs of their pathways are "
            "noise. Leave them out with `layers=`."
        )


def _run_once(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
    return function(*args)


def _no_recomputation(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Stands in for torch's generator: the block runs between its two steps, and nothing is recomputed."""
    yield


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Turn activation checkpointing off: it runs its block a second time, untraced, which gives a wrong map."""
    module = torch.utils.checkpoint
    with (
        patch.object(module.CheckpointFunction, "apply", _run_once),
        patch.object(module, "_checkpoint_without_reentrant_generator", _no_recomputation),
    ):
        yield


@contextmanager
def differentiable() -> Iterator[None]:
    """Inside, gradients can be taken, also in inference mode, and nothing runs a second time in the backward pass."""
    with torch.inference_mode(False), torch.enable_grad(), without_checkpointing():
        yield


def substitute(
    model: nn.Module,
    inputs: Inputs,
    choice: Choice,
    *,
    classes: Tensor | None = None,
    units: Callable[[int], Tensor] | None = None,
    through: bool = False,
    batch_size: int | None = None,
) -> LinearMap:
    """The maps of the chosen layers, averaged over 4 samples, and over 16 or 64 where the Jacobians of fewer disagree.

    Args:
        model: The network, in eval mode.
        inputs: Its inputs.
        choice: The layers.
        classes: The rows of the map, as indices of classes; None: all.
        units: From a layer's number of units to the indices of the map's columns; None: all.
        through: Also find the part of each map that goes through the layer's activation.
        batch_size: Most samples per pass.
    """
    if classes is None:
        with torch.no_grad():
            few = as_logits(model(copied(take(inputs, slice(0, 2)))), min(count(inputs), 2))
        classes = torch.arange(few.shape[1])
    rows = min(batch_size or MOST_ROWS, MOST_ROWS)
    for samples in MAP_SAMPLES:
        index = evenly_spaced(count(inputs), samples)
        parts = [
            _averaged(model, inputs, choice, part, classes, units, through, rows) for part in torch.split(index, rows)
        ]
        found = _joined(parts)
        if samples >= count(inputs) or all(spread.settled for spread in found.spreads.values()):
            break
    return found


def _joined(parts: Sequence[LinearMap]) -> LinearMap:
    """One map from those of several choices of samples: their means, and the spread within and between them."""
    if len(parts) == 1:
        return parts[0]

    def mean(maps: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
        sizes = [part.spreads[name].samples for part in parts]
        weighted = [own[name] * size for own, size in zip(maps, sizes, strict=True)]
        return torch.stack(weighted).sum(dim=0) / sum(sizes)

    pathways = {name: mean([part.pathways for part in parts], name) for name in parts[0]}
    through = {name: mean([part.through for part in parts], name) for name in parts[0].through}
    spreads = {}
    for name, own in pathways.items():
        sums = torch.zeros_like(parts[0].spreads[name].sums)
        for part in parts:
            sums += part.spreads[name].sums
            sums[0] += part.spreads[name].samples * (part.pathways[name] - own).square().sum()
        spreads[name] = Spread(sums, sum(part.spreads[name].samples for part in parts))
    return LinearMap(pathways, through, spreads)


def _averaged(
    model: nn.Module,
    inputs: Inputs,
    choice: Choice,
    index: Tensor,
    classes: Tensor,
    units: Callable[[int], Tensor] | None,
    through: bool,
    rows: int,
) -> LinearMap:
    """Mean Jacobian over some samples and its spread.

    The samples are repeated, once for each of several classes, so that one backward pass gives the Jacobians of all of
    these, as far as ``rows`` samples per pass allow. Further classes take a backward pass each.
    """
    sites: list[Site] = []
    copies = max(1, min(len(classes), rows // len(index)))
    chosen = take(inputs, index.repeat(copies))
    with differentiable():
        # Copies can start a graph, unlike inputs made in inference mode.
        chosen = map_tensors(lambda t: t.clone().requires_grad_() if t.is_floating_point() else t.clone(), chosen)

        def keep(site: Site) -> None:
            if choice.holds(site):
                sites.append(site)

        tracer = Tracer(model, len(index) * copies, keep, straight=True, promoted=choice.promoted, axes=choice.axes)
        with traced(tracer, model, chosen) as (_, output):
            logits = as_logits(output, len(index) * copies).reshape(copies, len(index), -1)
            layers = [_Average(site, copies, units) for site in sites]
            edges = [layer.site.edge for layer in layers]
            if through:
                edges += [layer.site.output_edge for layer in layers]
            wanted = [edge for edge in edges if edge is not None]
            for chunk in torch.split(classes.to(logits.device), copies):
                total = logits[torch.arange(len(chunk), device=chunk.device), :, chunk].sum()
                found: Sequence[Tensor | None] = (None,) * len(wanted)
                if total.requires_grad and wanted:
                    found = torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True)
                values = iter(found)
                gradients = [None if edge is None else next(values) for edge in edges]
                for i, layer in enumerate(layers):
                    layer.add(gradients[i], len(chunk))
                    if through and layer.site.output_edge is not None:
                        layer.add_through(gradients[i + len(layers)], len(chunk))
    # A quantised layer has no gradient: layers before it are wired to the logits, but their maps are unknown.
    quantised = any(is_quantised(module) for module in model.modules())
    layers = [layer for layer in layers if layer.reached or not quantised]
    return LinearMap(
        {layer.site.name: torch.cat(layer.means) for layer in layers},
        {layer.site.name: torch.cat(layer.through) for layer in layers if layer.passed},
        {layer.site.name: layer.spread() for layer in layers},
    )


class _Average:
    """A layer's mean Jacobian and its spread, gathered over chunks of classes."""

    def __init__(self, site: Site, copies: int, units: Callable[[int], Tensor] | None) -> None:
        self.site = site
        rows, self.width = site.axis.rows(site.field).shape
        self.samples = rows // copies
        index = None if units is None else units(self.width)
        self.index = None if index is None or len(index) == self.width else index.to(site.field.device)
        self.dtype = torch.promote_types(site.field.dtype, torch.float32)
        self.means: list[Tensor] = []
        self.through: list[Tensor] = []
        #: Σ_s‖J_s − J̄‖² and Σ_s‖J_s‖², chunk by chunk.
        self.squares: list[Tensor] = []
        self.reached = self.passed = False

    def add(self, gradient: Tensor | None, classes: int) -> None:
        """Add the Jacobians of some classes with respect to the field; units are chosen before any arithmetic."""
        self.reached = self.reached or gradient is not None
        jacobian = self._jacobian(gradient, classes, self.index)
        mean = jacobian.mean(dim=1)
        apart = jacobian - mean[:, None]
        self.squares.append(torch.stack([apart.square().sum(), jacobian.square().sum()]))
        self.means.append(mean)

    def add_through(self, gradient: Tensor | None, classes: int) -> None:
        """Add the Jacobians of some classes with respect to the output; None if no class depends on it."""
        self.passed = self.passed or gradient is not None
        self.through.append(self._jacobian(gradient, classes, None).mean(dim=1))

    def spread(self) -> Spread:
        """The spread over all classes that were added."""
        squares = torch.stack(self.squares)
        return Spread(squares.to(statistic_dtype(squares.device)).sum(dim=0), self.samples)

    def _jacobian(self, gradient: Tensor | None, classes: int, index: Tensor | None) -> Tensor:
        """``[classes, samples, units]``."""
        width = self.width if index is None else len(index)
        if gradient is None:
            return torch.zeros(classes, self.samples, width, dtype=self.dtype, device=self.site.field.device)
        rows = self.site.axis.rows(gradient.detach())[: classes * self.samples]
        rows = rows if index is None else rows.index_select(1, index)
        return rows.to(self.dtype).reshape(classes, self.samples, width)
