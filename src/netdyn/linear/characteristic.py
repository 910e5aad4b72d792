"""Weight pathway analysis: what each logit, and each hidden unit, looks at in the input once activations are gone.

Layout: characteristic maps ``[classes, *input shape]``, those of hidden units ``[classes, units, *input shape]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netdyn._utils.transit import sent
from netdyn._utils.trees import Inputs, count, map_tensors, sample_tensors, spread, take, tensors
from netdyn.linear.substitution import MAP_SAMPLES, differentiable, substitute
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.criteria import as_logits
from netdyn.tracing.survey import Choice, read
from netdyn.tracing.tracer import Site, Watch, watching

#: Samples that show whether a derivative depends on the sample at all; where it does not, no others are asked.
FEW = 4
#: Samples that tell which units carry a logit's variance.
SHARE_SAMPLES = 1024


@contextmanager
def _straight_run(
    model: nn.Module, inputs: Inputs, choice: Choice, samples: int
) -> Iterator[tuple[Tensor, Tensor, list[Site]]]:
    """A straight-through run of some samples: the logits, the input tensor and the chosen layers' sites.

    Raises:
        TypeError: If there is not exactly one floating input tensor.
    """
    floating = [
        t for t, own in zip(tensors(inputs), sample_tensors(inputs), strict=True) if own and t.is_floating_point()
    ]
    if len(floating) != 1:
        raise TypeError(
            "`inputs` must hold exactly one floating tensor with the samples first for a map of the input, got "
            f"{len(floating)}. For tokens, give the model the output of its embedding."
        )
    sites: list[Site] = []
    chosen = take(inputs, spread(count(inputs), samples))
    with differentiable():
        # The copy that the graph starts from is the one handed to the network.
        chosen = map_tensors(lambda t: t.clone().requires_grad_() if t.is_floating_point() else t.clone(), chosen)
        cut = sample_tensors(inputs)
        source = next(t for t, own in zip(tensors(chosen), cut, strict=True) if own and t.is_floating_point())
        watch = Watch(model, count(chosen), sites.append, straight=True, layouts=choice.layouts)
        with watching(watch, model, chosen) as (_, logits):
            yield as_logits(logits, count(chosen)), source, [site for site in sites if choice.holds(site)]


def input_maps(model: nn.Module, inputs: Inputs, choice: Choice) -> Tensor:
    """Mean derivative of each logit with respect to the input, every activation's being 1: ``[classes, *shape]``."""

    def outputs(logits: Tensor, sites: list[Site]) -> Iterator[Tensor]:
        return (logits[:, k].sum() for k in range(logits.shape[1]))

    return _mean_gradients(model, inputs, choice, outputs)


def unit_maps(model: nn.Module, inputs: Inputs, choice: Choice, pathway: Tensor, units: Sequence[int]) -> Tensor:
    """Pathway × input map of some units of the one chosen layer: ``[classes, units, *shape]``.

    How much of a logit's map goes through the unit; over all units of a layer that cuts the network in two they sum to
    the logit's own map.
    """

    def outputs(logits: Tensor, sites: list[Site]) -> Iterator[Tensor | None]:
        site = only_site(sites)
        places = site.layout.rows(torch.arange(site.field.numel(), device=site.field.device).reshape(site.field.shape))
        for unit in units:
            pick = torch.zeros(site.field.numel(), dtype=site.field.dtype, device=site.field.device)
            pick[places[:, unit]] = 1
            graph = site.graph
            yield None if graph is None else (graph * pick.reshape(graph.shape)).sum()

    maps = _mean_gradients(model, inputs, choice, outputs)
    weights = pathway.index_select(1, sent(torch.tensor(list(units)), pathway.device)).to(maps.dtype)
    return weights.reshape(*weights.shape, *[1] * (maps.ndim - 1)) * maps


def only_site(sites: Sequence[Site]) -> Site:
    """The one site.

    Raises:
        ValueError: If there is none.
    """
    if not sites:
        raise ValueError("`layer` must name a layer with samples, got one whose output is the same for all.")
    return sites[0]


def _mean_gradients(
    model: nn.Module,
    inputs: Inputs,
    choice: Choice,
    outputs: Callable[[Tensor, list[Site]], Iterator[Tensor | None]],
) -> Tensor:
    """Mean over samples of some outputs' gradients with respect to the input, ``[outputs, *shape]``.

    What leads to the first layer is mostly affine, and then every sample's gradient is the same.
    """
    for samples in (FEW, MAP_SAMPLES):
        last = samples == MAP_SAMPLES
        with _straight_run(model, inputs, choice, samples) as (logits, source, sites):
            means: list[Tensor] = []
            apart: list[Tensor] = []
            for output in outputs(logits, sites):
                gradient = _gradient(output, source)
                means.append(gradient.mean(dim=0))
                apart.append(_depends(gradient))
                # The first output's mostly tells; the others are asked together, for each answer is waited for.
                if not last and len(apart) == 1 and bool(apart[0]):
                    break
        if last or not bool(torch.stack(apart).any()):
            break
    return torch.stack(means)


def _depends(gradients: Tensor) -> Tensor:
    """Whether gradients ``[samples, *shape]`` differ between samples by more than rounding."""
    rounding = 16 * torch.finfo(gradients.dtype).eps * gradients.abs().amax()
    # Not the other way round: what is NaN depends.
    return ~((gradients - gradients[:1]).abs().amax() <= rounding)


def _gradient(output: Tensor | None, source: Tensor) -> Tensor:
    """An output's gradient with respect to the input; zero where it does not depend on it."""
    if output is None or not output.requires_grad:
        return torch.zeros_like(source).detach()
    (gradient,) = torch.autograd.grad(output, source, retain_graph=True, allow_unused=True)
    return torch.zeros_like(source).detach() if gradient is None else gradient.detach()


@dataclass(frozen=True)
class Subnetwork:
    """The units of a layer that carry most of each logit, and what of the input each brings to it.

    Attributes:
        layer: The layer's name.
        units: Indices of the units, the largest share first ``[classes, most]``.
        shares: Their shares, see :func:`unit_shares` ``[classes, most]``.
        maps: Pathway × input map of each ``[classes, most, *input shape]``.
    """

    layer: str
    units: Tensor
    shares: Tensor
    maps: Tensor


def find_subnetwork(
    model: nn.Module, inputs: Inputs, choice: Choice, most: int, classes: int, pathway: Tensor | None = None
) -> Subnetwork | None:
    """The subnetwork of the one chosen layer for the first ``classes`` logits; None where the layer has no map.

    The layer's whole ``pathway`` is found where it is not given.
    """
    if pathway is None:
        pathway = substitute(model, inputs, choice).pathways.get(choice.names[0])
    if pathway is None:
        return None
    few = take(inputs, spread(count(inputs), SHARE_SAMPLES))
    units, shares = (found[:classes] for found in largest_shares(model, few, choice, pathway, most))
    wanted = torch.unique(units)
    maps = unit_maps(model, inputs, choice, pathway, wanted.tolist())
    place = torch.searchsorted(wanted, units)
    own = torch.stack([maps[k, place[k]] for k in range(len(place))])
    return Subnetwork(choice.names[0], units.cpu(), shares.cpu(), own.cpu())


def largest_shares(
    model: nn.Module, inputs: Inputs, choice: Choice, pathway: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Units of the one chosen layer that carry most of each logit, and their shares, ``[classes, most]`` each."""
    found: list[Tensor] = []
    _, logits = read(model, inputs, lambda name, fields, outputs: found.append(outputs.clone()), choice)
    shares = unit_shares(found[0], pathway, as_logits(logits, count(inputs)))
    top = shares.topk(min(most, shares.shape[1]), dim=1)
    return top.indices, top.values


def unit_shares(outputs: Tensor, pathway: Tensor, logits: Tensor) -> Tensor:
    """How much of a logit's variance over the samples each unit carries: cov(M_ki·φ_i, z_k) / var(z_k).

    Args:
        outputs: A layer's activation outputs ``[samples, units]``.
        pathway: Its map ``[classes, units]``.
        logits: ``[samples, classes]``.

    Returns:
        ``[classes, units]``; where the layer's tail is affine and cuts the network in two, each row sums to 1.

    Source:
        P2 speaks of subnetworks of weight pathways; the measure is netdyn's convention.
    """
    dtype = statistic_dtype(outputs.device)
    wide, z = (value.to(dtype) - value.to(dtype).mean(dim=0) for value in (outputs, logits))
    return pathway.to(dtype) * (z.t() @ wide) / z.square().sum(dim=0)[:, None]
