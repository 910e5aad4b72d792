"""Weight pathway analysis: how logits and hidden units depend on the input once activations are the identity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.trees import Inputs, blocks, count, evenly_chosen, samples_first, take, tensors
from netdyn.isolation.adapter import isolated_network
from netdyn.linear.substitution import MAP_SAMPLES, Head, straight_run, substitute
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.criteria import as_logits
from netdyn.tracing.fields import Choice, choose, discover, read
from netdyn.tracing.site import Site
from netdyn.tracing.survey import Survey

#: Number of samples for the shares of units in a logit's variance.
SHARE_SAMPLES = 1024


def characteristic_maps(
    model: nn.Module, inputs: Inputs, layer: str | None = None, units: Sequence[int] | None = None
) -> Tensor:
    """The derivative of each logit by the input once every activation is the identity: the network as one matrix.

    Args:
        model: Any eager PyTorch module; called with the inputs as its ``forward`` takes them.
        inputs: Samples first, with exactly one floating tensor.
        layer: Name of a layer, or of a module whose output counts as one, for the parts of the maps that go through its
            units: pathway × input map of each unit. None: the whole maps.
        units: Indices of the layer's units; None: all.

    Returns:
        ``[classes, *input shape]``: each logit's derivative with respect to the input, with every activation's
        derivative 1. It is the mean over 64 samples, or over four if it is the same for all four. With ``layer``:
        ``[classes, units, *input shape]``, whose sum over all units is the whole map if no path leads around the layer.

    Raises:
        TypeError: If there is not exactly one floating input tensor.
        ValueError: If there is no such layer or unit, or ``units`` is given without ``layer``.

    Source:
        P2, characteristic maps of output and hidden nodes.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> maps = characteristic_maps(net, torch.zeros(5, 3))
        >>> torch.allclose(maps, net[2].weight @ net[0].weight)
        True
    """
    with isolated_network(model) as network:
        survey = discover(network, inputs, None if layer is None else [layer])
        if layer is None:
            if units is not None:
                raise ValueError(f"`units` needs `layer`, the layer of the units, got {list(units)} alone.")
            return input_maps(network, inputs, Choice(axes=survey.axes))
        choice, pathway = _one_layer(network, inputs, survey, layer)
        wanted = range(pathway.shape[1]) if units is None else units
        if wrong := [unit for unit in wanted if not 0 <= unit < pathway.shape[1]]:
            raise ValueError(f"`units` must lie in [0, {pathway.shape[1]}) in layer {layer!r}, got {wrong}.")
        return unit_maps(network, inputs, choice, pathway, list(wanted))


def subnetwork(model: nn.Module, inputs: Inputs, layer: str, most: int = 5) -> tuple[Tensor, Tensor]:
    """The units of a layer that carry most of each logit's linear share.

    A unit carries cov(M_ki·φ_i, z_k) / var(z_k) over the samples, M its pathway and φ_i its output.

    ``model``, ``inputs`` and ``layer`` are those of :func:`characteristic_maps`, except that the inputs may be any
    tensors; ``most`` is the number of units per logit.

    Returns:
        Indices of the units, the largest share first, and their shares, ``[classes, most]`` each. The shares of all
        units sum to 1 if the network is affine after the layer and no path leads around it.

    Raises:
        TypeError: If ``most`` is not a whole number.
        ValueError: If there is no such layer, or ``most`` is smaller than 1.

    Source:
        P2, subnetworks of weight pathways; the number is netdyn's convention.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False))
        >>> net.load_state_dict({"0.weight": torch.eye(2), "0.bias": torch.ones(2), "2.weight": torch.eye(2)})
        <All keys matched successfully>
        >>> units, carried = subnetwork(net, torch.rand(9, 2), "0", most=1)
        >>> units.tolist(), carried.round(decimals=6).tolist()
        ([[0], [1]], [[1.0], [1.0]])
    """
    checks.whole("most", most)
    with isolated_network(model) as network:
        choice, pathway = _one_layer(network, inputs, discover(network, inputs, [layer]), layer)
        return largest_shares(network, inputs, choice, pathway, most)


def _one_layer(model: nn.Module, inputs: Inputs, survey: Survey, layer: str) -> tuple[Choice, Tensor]:
    """The layer of this name, and its map; an error if it is not one layer with a map."""
    choice = choose(model, survey, [layer])
    if len(choice.names) != 1:
        raise ValueError(f"`layer` must name one layer, got {layer!r}, which matches {list(choice.names)}.")
    linear_map = substitute(model, inputs, choice)
    if not linear_map:
        raise ValueError(
            f"`layer` names {choice.names[0]!r}, from which no gradient reaches the logits. Name another layer."
        )
    return choice, next(iter(linear_map.values()))


def input_maps(model: nn.Module, inputs: Inputs, choice: Choice, head: Head = as_logits) -> Tensor:
    """Mean derivative of each logit with respect to the input, with every activation's 1: ``[classes, *shape]``."""
    return _mean_gradients(model, inputs, choice, lambda logits, _: (own.sum() for own in logits.unbind(dim=1)), head)


def unit_maps(
    model: nn.Module, inputs: Inputs, choice: Choice, pathway: Tensor, units: Sequence[int], head: Head = as_logits
) -> Tensor:
    """Pathway × input map of some units of the one chosen layer, ``[classes, units, *shape]``."""

    def outputs(logits: Tensor, sites: list[Site]) -> Iterator[Tensor | None]:
        if not sites:
            raise ValueError(
                "`layer` must name a layer with samples, got one whose output is the same for all samples."
            )
        field, graph = sites[0].field, sites[0].graph
        places = sites[0].axis.rows(torch.arange(field.numel(), device=field.device).reshape(field.shape))
        for unit in units:
            pick = field.new_zeros(field.numel())
            pick[places[:, unit]] = 1
            yield None if graph is None else (graph * pick.reshape(graph.shape)).sum()

    maps = _mean_gradients(model, inputs, choice, outputs, head)
    weights = pathway.index_select(1, torch.tensor(list(units), device=pathway.device)).to(maps.dtype)
    return weights.reshape(*weights.shape, *[1] * (maps.ndim - 1)) * maps


def _mean_gradients(
    model: nn.Module,
    inputs: Inputs,
    choice: Choice,
    outputs: Callable[[Tensor, list[Site]], Iterator[Tensor | None]],
    head: Head,
) -> Tensor:
    """Mean over samples of some outputs' gradients by the input, ``[outputs, *shape]``; of a few if those are equal."""
    by_sample = samples_first(inputs)

    def floating(batch: Inputs) -> list[Tensor]:
        return [t for t, own in zip(tensors(batch), by_sample, strict=True) if own and t.is_floating_point()]

    if len(floating(inputs)) != 1:
        raise TypeError(
            "`inputs` must hold exactly one floating tensor with the samples first for a map of the input, got "
            f"{len(floating(inputs))}. For tokens, give the model the output of its embedding."
        )
    for samples in (MAP_SAMPLES[0], MAP_SAMPLES[-1]):
        last = samples == MAP_SAMPLES[-1]
        index = evenly_chosen(inputs, samples)
        with straight_run(model, inputs, choice, index, head) as (logits, chosen, sites):
            (source,) = floating(chosen)
            means: list[Tensor] = []
            differing: list[Tensor] = []
            for output in outputs(logits, sites):
                gradient = torch.zeros_like(source)
                if output is not None and output.requires_grad:
                    (gradient,) = torch.autograd.grad(output, source, retain_graph=True, materialize_grads=True)
                means.append(gradient.mean(dim=0))
                rounding = 16 * torch.finfo(gradient.dtype).eps * gradient.abs().amax()
                # Written so that NaN counts as a difference between samples.
                differing.append(~((gradient - gradient[:1]).abs().amax() <= rounding))
                # Mostly the first output decides. The others are tested together, since each test waits for the device.
                if not last and len(differing) == 1 and bool(differing[0]):
                    break
        if last or not bool(torch.stack(differing).any()):
            break
    return torch.stack(means)


@dataclass(frozen=True)
class Subnetwork:
    """The units of a layer that carry most of each logit's linear share, and the input maps of these units."""

    layer: str
    units: Tensor  #: indices of the units, the largest share first ``[classes, most]``
    shares: Tensor  #: their shares, see :func:`subnetwork` ``[classes, most]``
    maps: Tensor  #: pathway × input map of each ``[classes, most, *input shape]``


def find_subnetwork(
    model: nn.Module,
    inputs: Inputs,
    choice: Choice,
    most: int,
    classes: int,
    pathway: Tensor | None,
    batch_size: int | None,
    head: Head = as_logits,
) -> Subnetwork | None:
    """The subnetwork of the one chosen layer for the first ``classes`` logits; None if the layer has no map."""
    if pathway is None:
        pathway = substitute(model, inputs, choice, head=head).pathways.get(choice.names[0])
    if pathway is None:
        return None
    some = take(inputs, evenly_chosen(inputs, SHARE_SAMPLES))
    units, shares = (found[:classes] for found in largest_shares(model, some, choice, pathway, most, batch_size, head))
    wanted = torch.unique(units)
    maps = unit_maps(model, inputs, choice, pathway, wanted.tolist(), head)
    place = torch.searchsorted(wanted, units)
    own = torch.stack([maps[k, place[k]] for k in range(len(place))])
    return Subnetwork(choice.names[0], units.cpu(), shares.cpu(), own.cpu())


def largest_shares(
    model: nn.Module,
    inputs: Inputs,
    choice: Choice,
    pathway: Tensor,
    most: int,
    batch_size: int | None = None,
    head: Head = as_logits,
) -> tuple[Tensor, Tensor]:
    """The units of the one chosen layer with the largest shares, and the shares, ``[classes, most]`` each."""
    found: list[Tensor] = []
    logits = []
    for part in blocks(count(inputs), batch_size):
        batch = take(inputs, part)
        _, own = read(model, batch, lambda name, fields, outputs: found.append(outputs.clone()), choice)
        logits.append(head(own, count(batch)))
    outputs, z = torch.cat(found), torch.cat(logits)
    dtype = statistic_dtype(outputs.device)
    outputs, z = (value.to(dtype) - value.to(dtype).mean(dim=0) for value in (outputs, z))
    shares = pathway.to(dtype) * (z.t() @ outputs) / z.square().sum(dim=0)[:, None]
    top = shares.topk(min(most, shares.shape[1]), dim=1)
    return top.indices, top.values
