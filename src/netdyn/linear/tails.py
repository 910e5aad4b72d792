"""The linear tail: the outputs of a network when every activation from a layer upward is the identity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.trees import Inputs, blocks, count, samples_first, take
from netdyn.isolation.adapter import isolated_network
from netdyn.linear.substitution import Head, LinearMap, substitute
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.criteria import as_logits, right_class
from netdyn.tracing.fields import Choice, choose, discover
from netdyn.tracing.site import Site
from netdyn.tracing.survey import Survey
from netdyn.tracing.tracer import run

#: A tail is as good as the network if it loses no more accuracy than this.
CLOSE = 0.02


def linear_tail(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    layers: Sequence[str] | None = None,
    *,
    exact: bool = False,
    batch_size: int | None = None,
) -> dict[str, float]:
    """Accuracy of a network whose activations from a layer upward, in order of execution, are the identity.

    If it is as high as the network's own, the layers from there on act linearly and could be one matrix. One forward
    pass gives all layers: z_l = z − Σ_{j≥l} M^(j)(φ(h_j) − h_j), which is exact if the tail is affine. Up to the last
    layer that a max-pooling follows, each takes a forward pass without the activations.

    Args:
        model: Any eager PyTorch module; called with the inputs as its ``forward`` takes them.
        inputs: A tensor, or a sequence or mapping of tensors, samples first.
        target: Class labels ``[samples]``.
        layers: As in :func:`netdyn.functional.local_fields`.
        exact: Run every layer's tail, for networks whose tails are not affine (norms, gates, attention: see
            ``affine_defect`` of :func:`netdyn.functional.linear_substitution_map`).
        batch_size: Samples per forward pass; None: all at once.

    Returns:
        Layer name → accuracy in [0, 1], in order of execution.

    Raises:
        TypeError: If the labels are not whole numbers.
        ValueError: If a name in ``layers`` matches nothing, there is no activation, or a label lies outside the
            classes.

    Source:
        P1 asks which layers can be linear; the closed form is netdyn's convention.

    Examples:
        >>> import torch
        >>> class IsFar(nn.Module):  # whether |x| > ½
        ...     def forward(self, x):
        ...         size = torch.cat([x, -x], dim=1).relu().sum(dim=1)
        ...         return torch.stack([torch.full_like(size, 0.5), size], dim=1)
        >>> x = torch.tensor([[-1.0], [-0.1], [0.1], [1.0]])
        >>> linear_tail(IsFar(), x, torch.tensor([1, 0, 0, 1]))
        {'model': 0.5}
    """
    with isolated_network(model) as network:
        logits, linear = find_tails(network, inputs, layers, exact, batch_size)
        target = checks.class_labels(target, max(logits.shape[1], 2), count(inputs)).to(logits.device)
        return {name: float(right_class(value, target).double().mean()) for name, value in linear.items()}


def linear_share(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str] | None = None,
    *,
    exact: bool = False,
    batch_size: int | None = None,
    centre: bool = True,
) -> dict[str, float]:
    """Linear share: the squared correlation of a network's logits z with the logits z_l of a linear tail.

    It is max(0, ⟨z, z_l⟩)²/(‖z‖²‖z_l‖²), after the mean over the classes of each sample, and then the mean over the
    samples for each class, are subtracted from both. Unlike Var(z − z_l)/Var(z) it does not depend on the gain, which
    is different without activations.

    Arguments and errors are those of :func:`linear_tail`, without ``target``, and ``centre``: centre over classes;
    ``False`` for outputs that are numbers to be predicted.

    Returns:
        Layer name → share in [0, 1], in order of execution: 1 if nothing is lost; NaN if the logits are constant.

    Source:
        P2, linear and nonlinear learning modes; the number is netdyn's convention.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Identity(), nn.Linear(3, 2))
        >>> {name: round(value, 6) for name, value in linear_share(net, torch.eye(2), layers=["0"]).items()}
        {'0': 1.0}
    """
    with isolated_network(model) as network:
        logits, linear = find_tails(network, inputs, layers, exact, batch_size)
        return {name: squared_correlation(logits, value, centre) for name, value in linear.items()}


@dataclass
class Tails:
    """Logits of a network whose activations from a layer upward are the identity, by layer name.

    The network is the one with identities as activations, plus a residual r_j = φ(h_j) − h_j after each. If that is
    affine, r_j adds M^(j) r_j to the logits, M^(j) layer j's map through its activation: also with skip connections.
    """

    names: tuple[str, ...]  #: of all layers, in order of execution
    parts: dict[str, Tensor]  #: what each layer's activation adds to the logits, M^(j) r_j ``[samples, classes]``
    exact: dict[str, Tensor] = field(default_factory=dict)  #: logits of tails from runs without the activations

    def logits(self, true: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each layer's name and the logits of its linear tail, from the network's own logits; the last layer first."""
        rest = true
        for name in reversed(self.names):
            if name in self.parts:
                rest = rest - self.parts[name]
            if name in self.exact or name in self.parts:
                yield name, self.exact.get(name, rest)


def all_layers(survey: Survey, choice: Choice) -> Choice:
    """All local fields of a network, and the promoted modules of a choice: a tail includes all of them."""
    return Choice((*survey.found, *choice.promoted), choice.promoted, survey.axes)


class TailReader:
    """Collects what each layer's activation adds to the logits, layer by layer and batch by batch."""

    def __init__(self, linear_map: LinearMap) -> None:
        self.map = linear_map
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, name: str, fields: Tensor, outputs: Tensor) -> None:
        """Add a layer's fields and outputs ``[samples, units]`` for one batch."""
        if (through := self.map.through.get(name)) is not None:
            residual = (outputs - fields).to(through.dtype)
            self.parts.setdefault(name, []).append(residual @ through.t())

    def tails(self) -> Tails:
        """The tails of all samples that were added."""
        whole = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in self.parts.items()}
        return Tails(tuple(self.map), whole)


def run_tails(
    model: nn.Module,
    inputs: Inputs,
    survey: Survey,
    order: Sequence[str],
    names: Iterable[str],
    batch_size: int | None,
    head: Head = as_logits,
) -> Iterator[tuple[str, Tensor]]:
    """Names and logits of the tails of some layers, one run without the activations each; ``order`` names all."""
    for name in names:
        linear = {survey.found[later] for later in order[order.index(name) :] if later in survey.found}
        yield name, _logits(model, inputs, batch_size, lambda site: None, head, axes=survey.axes, linear=linear)


def _logits(
    model: nn.Module,
    inputs: Inputs,
    batch_size: int | None,
    on_site: Callable[[Site], None],
    head: Head = as_logits,
    **options: Any,
) -> Tensor:
    """The logits of runs of all batches, see :func:`~netdyn.tracing.tracer.run`."""
    logits, by_sample = [], samples_first(inputs)
    for part in blocks(count(inputs), batch_size):
        batch = take(inputs, part, by_sample)
        logits.append(head(run(model, batch, on_site, **options)[1], count(batch)))
    return torch.cat(logits)


def find_tails(
    model: nn.Module, inputs: Inputs, layers: Sequence[str] | None, exact: bool, batch_size: int | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of an isolated network, and those of the chosen layers' tails: from maps, or runs if ``exact``."""
    if batch_size is not None:
        checks.whole("batch_size", batch_size)
    survey = discover(model, inputs, layers, batch_size)
    choice = choose(model, survey, layers)
    everything = all_layers(survey, choice)
    linear_map = substitute(model, inputs, everything, through=not exact)
    reader = TailReader(linear_map)

    def visit(site: Site) -> None:
        if everything.holds(site):
            reader.add(site.name, site.axis.rows(site.field), site.axis.rows(site.output))

    true = _logits(model, inputs, batch_size, visit, promoted=choice.promoted, axes=survey.axes)
    tails = reader.tails()
    wanted = [name for name in tails.names if choice.wants(name)]
    # A max-pooling that follows is no affine function.
    to_run = wanted if exact else [name for name in wanted if name in layers_to_run(survey, linear_map)]
    tails.exact = dict(run_tails(model, inputs, survey, tails.names, to_run, batch_size))
    found = {name: value for name, value in tails.logits(true) if name in wanted}
    return true, {name: found[name] for name in wanted if name in found}


def layers_to_run(survey: Survey, linear_map: LinearMap) -> set[str]:
    """The layers up to the last one that a max-pooling follows, or that has no map since it runs without gradients."""
    order = list(linear_map)
    unknown = [name for name in order if name in survey.pooled or name not in linear_map.through]
    return set(order[: order.index(unknown[-1]) + 1]) if unknown else set()


def squared_correlation(true: Tensor, linear: Tensor, centre: bool = True) -> float:
    """Squared correlation of two networks' finite logits, see :func:`linear_share`; NaN if either is constant."""
    # Of samples whose logits are not finite nothing can be said.
    known = (true.isfinite() & linear.isfinite()).all(dim=1)
    z, z_linear = (_centred(logits[known], centre) for logits in (true, linear))
    size = float(z.square().sum() * z_linear.square().sum())
    return max(0.0, float((z * z_linear).sum())) ** 2 / size if size > 0 else math.nan


def _centred(logits: Tensor, centre: bool) -> Tensor:
    wide = logits.to(statistic_dtype(logits.device))
    # A number added to all logits of a sample changes no prediction.
    if centre and wide.shape[1] > 1:
        wide = wide - wide.mean(dim=1, keepdim=True)
    return wide - wide.mean(dim=0)


def functional_depth(accuracies: Mapping[str, float], accuracy: float, *, untrained: bool = False) -> float:
    """The first layer (from 0) such that its tail and all later ones lose no more than 0.02 of accuracy.

    Args:
        accuracies: Layer name → accuracy of its tail, in order of execution.
        accuracy: Accuracy of the network.
        untrained: Whether guessing explains that accuracy: the comparison then means nothing.

    Returns:
        0 to the number of layers, which means that there is no such layer. NaN for an untrained network, without
        layers, and where an accuracy is NaN. This is a point estimate: on a small probe the accuracies vary by chance.

    Source:
        netdyn's convention.

    Examples:
        >>> functional_depth({"fc1": 0.6, "fc2": 0.89, "fc3": 0.95}, 0.9)
        1.0
    """
    known = list(accuracies.values())
    if untrained or not known or any(map(math.isnan, [*known, accuracy])):
        return math.nan
    depth = len(known)
    while depth and accuracy - known[depth - 1] <= CLOSE + 1e-12:
        depth -= 1
    return float(depth)
