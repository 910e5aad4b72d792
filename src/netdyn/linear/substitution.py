"""The linear substitution map (L-map): how strongly units are wired to the logits once activations are the identity."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from netdyn._utils.checks import warn
from netdyn._utils.trees import Inputs, copied, count, evenly_chosen, map_tensors, numbers, take
from netdyn.isolation.adapter import isolated_network
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.criteria import as_logits
from netdyn.tracing.fields import Choice, choose, discover
from netdyn.tracing.names import is_quantised
from netdyn.tracing.sample_axis import SampleAxis
from netdyn.tracing.site import Site
from netdyn.tracing.tracer import Tracer, traced

Head = Callable[[object, int], Tensor]
"""``head(outputs, samples)`` → logits ``[samples, classes]``."""
Rows = Callable[[SampleAxis, Tensor], Tensor]
"""``rows(axis, field)`` → ``[samples, units]``."""

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
    """How much a layer's Jacobian differs between samples."""

    sums: Tensor  #: Σ_s‖J_s − J̄‖² and Σ_s‖J_s‖² over all classes ``[2]``, on the network's device
    samples: int  #: number m of samples

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
        unreached: Layers that no gradient reaches, with the reason: ``"detached"`` (the network stops it on its way) or
            ``"untracked"`` (the layer runs without gradients, or in an autograd function of the network's own).
    """

    pathways: dict[str, Tensor]
    through: dict[str, Tensor] = field(default_factory=dict, repr=False)
    spreads: dict[str, Spread] = field(default_factory=dict, repr=False)
    unreached: dict[str, str] = field(default_factory=dict, repr=False)

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

    Arguments and errors are those of :func:`netdyn.functional.local_fields`.

    Returns:
        A mapping of layer name → ``[classes, units]``, uncentred, with ``.affine_defect`` (layer name → how much of the
        Jacobian depends on the sample, in [0, 1]).

    Warns:
        DynamicsWarning: If a layer's ``affine_defect`` is above 0.9: the signs of its map are noise.

    Raises:
        TypeError: If the output is not a tensor.
        ValueError: If the output does not have the shape ``[samples, classes]``.

    Source:
        P1, linear substitution map; the straight-through operating point is netdyn's convention.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> pathway = linear_substitution_map(net, torch.zeros(4, 2))["0"]
        >>> torch.equal(pathway, net[2].weight)
        True
    """
    with isolated_network(model) as network:
        choice = choose(network, discover(network, inputs, layers), layers)
        linear_map = substitute(network, inputs, choice)
        warn_of_missing(network, choice.missing(linear_map))
    warn_of_defects(linear_map.affine_defect)
    return linear_map


def warn_of_missing(model: nn.Module, names: Sequence[str]) -> None:
    """Warn of layers that have no map; where a part is quantised, which has no gradient, there has been a warning."""
    if names and not any(is_quantised(module) for module in model.modules()):
        warn(
            f"The layers {list(names)} are left out: they ran on a few samples, but not in the run with gradients that "
            "shows how they are wired, or not on the whole probe."
        )


def warn_of_defects(defects: Mapping[str, float]) -> None:
    """Warn of layers whose averaged map is noise."""
    bad = [name for name, defect in defects.items() if defect > DEFECT_LIMIT]
    if bad:
        warn(
            f"In the layers {bad} the linear substitution map depends on the sample almost entirely (affine_defect "
            f"above {DEFECT_LIMIT}): the network after them is far from affine, and the signs of their pathways are "
            "noise. Leave them out with `layers=`."
        )


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Turn activation checkpointing off: it runs its block a second time, untraced, which gives a wrong map."""
    module = torch.utils.checkpoint

    def nothing(*_args: object, **_kwargs: object) -> Iterator[None]:
        yield

    with ExitStack() as undo:
        undo.enter_context(
            patch.object(module.CheckpointFunction, "apply", lambda function, preserve, *args: function(*args))
        )
        # The block runs between the two steps of a generator, which torch 2.15 has under a second name.
        for name in [name for name in vars(module) if name.startswith("_checkpoint_without_reentrant_generator")]:
            undo.enter_context(patch.object(module, name, nothing))
        yield


@contextmanager
def without_backward_hooks(model: nn.Module) -> Iterator[None]:
    """Take backward hooks off for a while: they wrap the modules' outputs, and must not see or change our gradients."""
    kinds = ("_backward_hooks", "_backward_pre_hooks")
    with ExitStack() as undo:
        for kind in kinds:
            undo.enter_context(patch.object(nn.modules.module, f"_global{kind}", OrderedDict()))
        for module in model.modules():
            for kind in kinds:
                if not isinstance(module, torch.jit.ScriptModule) and getattr(module, kind, None):
                    undo.enter_context(patch.dict(module.__dict__, {kind: OrderedDict()}))
        yield


@contextmanager
def straight_run(
    model: nn.Module, inputs: Inputs, choice: Choice, index: Tensor, head: Head = as_logits
) -> Iterator[tuple[Tensor, Inputs, list[Site]]]:
    """A straight-through run of some samples, also in inference mode: logits, the inputs passed, and chosen sites."""
    sites: list[Site] = []

    def keep(site: Site) -> None:
        if choice.holds(site):
            sites.append(site)

    chosen = take(inputs, index)
    with torch.inference_mode(False), torch.enable_grad(), without_checkpointing(), without_backward_hooks(model):
        # Copies can start a graph, unlike inputs made in inference mode.
        chosen = map_tensors(lambda t: t.clone().requires_grad_() if t.is_floating_point() else t.clone(), chosen)
        tracer = Tracer(model, len(index), keep, straight=True, promoted=choice.promoted, axes=choice.axes)
        with traced(tracer, model, chosen) as (_, output):
            yield head(output, len(index)), chosen, sites


def substitute(
    model: nn.Module,
    inputs: Inputs,
    choice: Choice,
    *,
    classes: Tensor | None = None,
    units: Callable[[int], Tensor] | None = None,
    through: bool = False,  # also find the part of each map that goes through the layer's activation
    batch_size: int | None = None,
    head: Head = as_logits,
    rows: Rows = SampleAxis.rows,
) -> LinearMap:
    """The maps of the chosen layers; ``classes`` are their rows, ``units`` gives columns from the width; None: all."""
    if classes is None:
        with torch.no_grad():
            few = head(model(copied(take(inputs, slice(0, 2)))), min(count(inputs), 2))
        classes = torch.arange(few.shape[1])
    most = min(batch_size or MOST_ROWS, MOST_ROWS)
    quantised = any(is_quantised(module) for module in model.modules())

    def averaged(index: Tensor) -> LinearMap:
        # The samples are repeated, so that one backward pass gives the Jacobians of as many classes as possible; each
        # beside itself, so that samples in the order of their lengths stay in it.
        copies = max(1, min(len(classes), most // len(index)))
        with straight_run(model, inputs, choice, index.repeat_interleave(copies), head) as (logits, _, sites):
            layers = [_Average(site, copies, units, rows) for site in sites]
            _add_jacobians(layers, logits.reshape(len(index), copies, -1).transpose(0, 1), classes, through)
        # Layers before a quantised one, which has no gradient, are wired to the logits, but their map is unknown.
        layers = [layer for layer in layers if layer.reached or not quantised]
        pathways = {layer.site.name: torch.cat(layer.means) for layer in layers}
        reached = {layer.site.name for layer in layers if layer.reached}
        passing = {layer.site.name: torch.cat(layer.through) for layer in layers if layer.passed}
        spreads = {layer.site.name: layer.spread() for layer in layers}
        without = {site.name: "untracked" if site.edge is None else "detached" for site in sites}
        return LinearMap(pathways, passing, spreads, {n: without[n] for n in spreads if n not in reached})

    for samples in MAP_SAMPLES:
        # One sample that holds NaN would leave nothing of a map.
        chosen = evenly_chosen(inputs, samples)
        found = _joined([averaged(part) for part in torch.split(chosen, most)])
        everything = len(chosen) < samples or samples >= count(inputs)
        if everything or all(spread.settled for spread in found.spreads.values()):
            break
    return found


def _joined(parts: Sequence[LinearMap]) -> LinearMap:
    """One map from those of several choices of samples: their means, and the spread within and between them."""
    if len(parts) == 1:
        return parts[0]

    def mean(tensors: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        return torch.stack([own * size for own, size in zip(tensors, sizes, strict=True)]).sum(dim=0) / sum(sizes)

    found = LinearMap({}, unreached=parts[0].unreached)
    for name in parts[0]:
        sizes = [part.spreads[name].samples for part in parts]
        found.pathways[name] = mean([part.pathways[name] for part in parts], sizes)
        if name in parts[0].through:
            found.through[name] = mean([part.through[name] for part in parts], sizes)
        sums = torch.zeros_like(parts[0].spreads[name].sums)
        for part, size in zip(parts, sizes, strict=True):
            sums += part.spreads[name].sums
            sums[0] += size * (part.pathways[name] - found.pathways[name]).square().sum()
        found.spreads[name] = Spread(sums, sum(sizes))
    return found


def _add_jacobians(layers: Sequence[_Average], logits: Tensor, classes: Tensor, through: bool) -> None:
    """Add the Jacobians of the logits ``[copies, samples, all classes]`` of some classes to the layers' means."""
    edges = [layer.site.edge for layer in layers]
    edges += [layer.site.output_edge for layer in layers if through]
    wanted = [edge for edge in edges if edge is not None]
    for chunk in torch.split(classes.to(logits.device), len(logits)):
        total = logits[torch.arange(len(chunk), device=chunk.device), :, chunk].sum()
        found: Iterator[Tensor | None] = repeat(None)
        if total.requires_grad and wanted:
            found = iter(torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True))
        gradients = [None if edge is None else next(found) for edge in edges]
        for i, layer in enumerate(layers):
            layer.add(gradients[i], len(chunk))
            if through:
                layer.add_through(gradients[i + len(layers)], len(chunk))


class _Average:
    """A layer's mean Jacobian and its spread, gathered over chunks of classes."""

    def __init__(self, site: Site, copies: int, units: Callable[[int], Tensor] | None, rows: Rows) -> None:
        self.site, self.rows = site, rows
        repeated, width = rows(site.axis, site.field).shape
        self.samples = repeated // copies
        index = None if units is None else units(width)
        self.index = None if index is None or len(index) == width else index.to(site.field.device)
        self.dtype = torch.promote_types(site.field.dtype, torch.float32)
        self.means: list[Tensor] = []
        self.through: list[Tensor] = []
        #: Σ_s‖J_s − J̄‖² and Σ_s‖J_s‖², chunk by chunk.
        self.squares: list[Tensor] = []
        self.reached = self.passed = False

    def add(self, gradient: Tensor | None, classes: int) -> None:
        """Add the Jacobians of some classes with respect to the field."""
        self.reached = self.reached or gradient is not None
        jacobian = self._jacobian(gradient, classes, self.index)
        mean = jacobian.mean(dim=1)
        # A difference of sums of squares would turn rounding into a defect of 1e-4.
        apart = jacobian - mean[:, None]
        self.squares.append(torch.stack([apart.square().sum(), jacobian.square().sum()]))
        self.means.append(mean)

    def add_through(self, gradient: Tensor | None, classes: int) -> None:
        """Add the Jacobians of some classes with respect to the output."""
        self.passed = self.passed or gradient is not None
        self.through.append(self._jacobian(gradient, classes, None).mean(dim=1))

    def spread(self) -> Spread:
        """The spread over all classes that were added."""
        squares = torch.stack(self.squares)
        return Spread(squares.to(statistic_dtype(squares.device)).sum(dim=0), self.samples)

    def _jacobian(self, gradient: Tensor | None, classes: int, index: Tensor | None) -> Tensor:
        """``[classes, samples, units]``."""
        gradient = torch.zeros_like(self.site.field) if gradient is None else gradient
        rows = self.rows(self.site.axis, gradient)
        rows = rows if index is None else rows.index_select(1, index)
        return rows.to(self.dtype).reshape(self.samples, -1, rows.shape[1])[:, :classes].transpose(0, 1)
