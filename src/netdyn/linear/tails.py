"""The linear tail: what a network's answers become when every activation from a layer upward is the identity.

Layout: logits ``[samples, classes]``, residuals r = φ(h) − h ``[samples, units]``. A network is its own linear twin
with r_j added behind every activation j ≥ l. Where that twin is affine it answers r_j with M^(j) r_j, M^(j) the map of
layer j through its activation, so that the twin's logits are z_l = z − Σ_{j≥l} M^(j) r_j: exact, skips included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.trees import Inputs, blocks, count, samples_first, take
from netdyn.isolation.isolated import isolated
from netdyn.linear.substitution import LinearMap, substitute
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.criteria import as_logits, right_class
from netdyn.tracing.fields import Choice, choose
from netdyn.tracing.site import Site
from netdyn.tracing.survey import Survey, discover
from netdyn.tracing.tracer import run

#: A tail is as good as the network if their accuracies differ by no more than this.
CLOSE = 0.02
#: A network beats chance if it is this share of the way from chance to perfection: one that is untrained is not.
BEATEN = 0.2


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

    Where it is as high as the network's own, the layers from there on act linearly and could be one matrix. One pass
    gives all layers: z_l = z − Σ_{j≥l} M^(j)(φ(h_j) − h_j), exact where what follows is affine. Layers that a
    max-pooling follows are run without their activations, one forward pass each.

    Args:
        model: Any eager PyTorch module; called as ``model(inputs)``.
        inputs: A tensor, or a sequence or mapping of tensors, samples first.
        target: Class labels ``[samples]``.
        layers: As in :func:`netdyn.functional.local_fields`.
        exact: Run every layer's tail, for networks whose tails are not affine (norms, gates, attention: see
            ``affine_defect`` of :func:`netdyn.functional.linear_substitution_map`).
        batch_size: Samples a forward pass; None: all at once.

    Returns:
        Layer → accuracy in [0, 1], in order of execution.

    Raises:
        TypeError: If the labels are not whole numbers.
        ValueError: If a layer matches nothing, there is no activation, or a label lies outside the classes.

    Source:
        P1 asks which layers can be linear; the closed form is netdyn's.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> net.load_state_dict(
        ...     {
        ...         "0.weight": torch.tensor([[1.0], [-1.0]]),
        ...         "0.bias": torch.zeros(2),
        ...         "2.weight": torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
        ...         "2.bias": torch.tensor([0.5, 0.0]),
        ...     }
        ... )
        <All keys matched successfully>
        >>> x, is_far = torch.tensor([[-1.0], [-0.1], [0.1], [1.0]]), torch.tensor([1, 0, 0, 1])
        >>> linear_tail(net, x, is_far)  # |x| > ½ is told by two units and their activations; a line cannot
        {'0': 0.5}
    """
    with isolated(model):
        logits, linear = _tails(model, inputs, layers, exact, batch_size)
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
    """How much of what a network says it says linearly: squared correlation of its logits with those of a linear tail.

    Both are centred over classes a sample and freed of each class's mean: max(0, ⟨z, z_l⟩)²/(‖z‖²‖z_l‖²). A gain does
    not change it, which taking activations away does: Var(z − z_l)/Var(z) would be useless.

    Args:
        model: As in :func:`linear_tail`, as all others.
        inputs: Inputs, samples first.
        layers: As in :func:`netdyn.functional.local_fields`.
        exact: Run every layer's tail.
        batch_size: Samples a forward pass; None: all at once.
        centre: Centre over classes; ``False`` for outputs that are numbers to be predicted.

    Returns:
        Layer → share in [0, 1], in order of execution: 1 where nothing is lost; NaN where the logits are constant.

    Raises:
        ValueError: If a layer matches nothing, or there is no activation.

    Source:
        P2, linear and nonlinear learning modes; the number is netdyn's convention.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Identity(), nn.Linear(3, 2))
        >>> {name: round(value, 6) for name, value in linear_share(net, torch.eye(2), layers=["0"]).items()}
        {'0': 1.0}
    """
    with isolated(model):
        logits, linear = _tails(model, inputs, layers, exact, batch_size)
        return {name: share(logits, value, centre) for name, value in linear.items()}


def _tails(
    model: nn.Module, inputs: Inputs, layers: Sequence[str] | None, exact: bool, batch_size: int | None
) -> tuple[Tensor, dict[str, Tensor]]:
    if batch_size is not None:
        checks.whole("batch_size", batch_size)
    survey = discover(model, inputs)
    choice = choose(model, survey, layers)
    return tails_of(model, inputs, survey, choice, exact=exact, batch_size=batch_size)


@dataclass
class Tails:
    """Logits of a network whose activations from a layer upward are the identity.

    Attributes:
        names: All layers, in order of execution.
        parts: What each layer's activation adds to the logits ``[samples, classes]``.
        exact: Logits found by running the network so.
    """

    names: tuple[str, ...]
    parts: dict[str, Tensor] = field(default_factory=dict)
    exact: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, true: Tensor) -> dict[str, Tensor]:
        """Layer → logits of its linear tail, from the network's true ones."""
        found: dict[str, Tensor] = {}
        rest = true
        for name in reversed(self.names):
            if name in self.parts:
                rest = rest - self.parts[name]
                found[name] = rest
        found |= self.exact
        return {name: found[name] for name in self.names if name in found}


def whole_choice(survey: Survey, choice: Choice) -> Choice:
    """All local fields of a network and the promoted modules of a choice: a tail runs through all of them."""
    return Choice((*survey.found, *choice.promoted), choice.promoted, survey.axes)


class TailReader:
    """Gathers what each layer's activation adds to the logits, layer by layer and batch by batch, as fields pass."""

    def __init__(self, linear_map: LinearMap) -> None:
        self.map = linear_map
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, name: str, fields: Tensor, outputs: Tensor) -> None:
        """Take a layer's fields and outputs ``[samples, units]``."""
        through = self.map.through.get(name)
        if through is not None:
            residual = (outputs - fields).to(through.dtype)
            self.parts.setdefault(name, []).append(residual @ through.t())

    def tails(self) -> Tails:
        """What was gathered."""
        return Tails(tuple(self.map), {name: torch.cat(parts) for name, parts in self.parts.items()})


def run_tails(
    model: nn.Module, inputs: Inputs, survey: Survey, order: Sequence[str], names: Iterable[str], batch_size: int | None
) -> dict[str, Tensor]:
    """Logits of the tails of some layers, by running the network with their activations left out.

    Args:
        model: The network, in eval mode.
        inputs: Its inputs.
        survey: What there is in it.
        order: All layers, in order of execution.
        names: The layers wanted; one forward pass each.
        batch_size: Samples a forward pass.
    """
    found: dict[str, Tensor] = {}
    by_sample = samples_first(inputs)
    for name in names:
        linear = {survey.found[later] for later in order[order.index(name) :] if later in survey.found}
        parts = []
        for part in blocks(count(inputs), batch_size):
            batch = take(inputs, part, by_sample)
            _, logits = run(model, batch, _pass_by, axes=survey.axes, linear=linear)
            parts.append(as_logits(logits, count(batch)))
        found[name] = torch.cat(parts)
    return found


def _pass_by(site: Site) -> None:
    return None


def tails_of(
    model: nn.Module,
    inputs: Inputs,
    survey: Survey,
    choice: Choice,
    *,
    exact: bool = False,
    batch_size: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The network's true logits and those of the chosen layers' tails; the model is isolated.

    Unless ``exact`` the map gives them, but for layers that a max-pooling follows: its value is no affine function of
    what it pools, so that these are run.
    """
    everything = whole_choice(survey, choice)
    linear_map = substitute(model, inputs, everything, through=not exact)
    reader = TailReader(linear_map)
    by_sample = samples_first(inputs)
    true = []

    def visit(site: Site) -> None:
        if everything.holds(site):
            reader.add(site.name, site.axis.rows(site.field), site.axis.rows(site.output))

    for part in blocks(count(inputs), batch_size):
        batch = take(inputs, part, by_sample)
        _, logits = run(model, batch, visit, promoted=choice.promoted, axes=survey.axes)
        true.append(as_logits(logits, count(batch)))
    tails = reader.tails()
    wanted = [name for name in tails.names if choice.wants(name)]
    to_run = wanted if exact else [name for name in wanted if name in must_run(survey, linear_map)]
    tails.exact = run_tails(model, inputs, survey, tails.names, to_run, batch_size)
    logits = torch.cat(true)
    return logits, {name: value for name, value in tails.logits(logits).items() if name in wanted}


def must_run(survey: Survey, linear_map: LinearMap) -> set[str]:
    """The layers up to the last one that a max-pooling follows, or that runs without gradients and so has no map."""
    order = list(linear_map)
    unknown = [name for name in order if name in survey.pooled or name not in linear_map.through]
    return set(order[: order.index(unknown[-1]) + 1]) if unknown else set()


def share(true: Tensor, linear: Tensor, centre: bool = True) -> float:
    """Linear share: squared correlation of two networks' logits, which a gain does not change.

    Both are centred over classes a sample, since a number added to all logits changes no prediction (not so with
    ``centre=False``, for outputs that are numbers to be predicted), and freed of each class's mean:
    max(0, ⟨z, z_lin⟩)² / (‖z‖²‖z_lin‖²). NaN where either is constant.
    """
    z, z_linear = _freed(true, centre), _freed(linear, centre)
    size = float(z.square().sum() * z_linear.square().sum())
    return max(0.0, float((z * z_linear).sum())) ** 2 / size if size > 0 else math.nan


def _freed(logits: Tensor, centre: bool) -> Tensor:
    wide = logits.to(statistic_dtype(logits.device))
    if centre and wide.shape[1] > 1:
        wide = wide - wide.mean(dim=1, keepdim=True)
    return wide - wide.mean(dim=0)


def functional_depth(accuracies: Mapping[str, float], accuracy: float, chance: float) -> float:
    """The first layer (from 0) from which on every tail is as accurate as the network; their number if there is none.

    Args:
        accuracies: Layer → accuracy of its tail, in order of execution.
        accuracy: The network's.
        chance: What guessing gives.

    Returns:
        0 to the number of layers; NaN unless the network is a fifth of the way from chance to perfection: the tail of a
        network that knows nothing is as good as the network, and says nothing.
    """
    known = list(accuracies.values())
    if not known or any(map(math.isnan, [*known, accuracy])) or accuracy - chance <= BEATEN * (1 - chance):
        return math.nan
    depth = len(known)
    while depth and abs(known[depth - 1] - accuracy) <= CLOSE + 1e-12:
        depth -= 1
    return float(depth)
