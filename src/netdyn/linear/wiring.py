"""Public functions that read what a network does linearly: its tails, its shares, what it looks at."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.trees import Inputs, count
from netdyn.isolation.isolated import isolated
from netdyn.linear.characteristic import input_maps, largest_shares, unit_maps
from netdyn.linear.substitution import substitute
from netdyn.linear.tails import share, tails_of
from netdyn.probes.criteria import right_class
from netdyn.tracing.survey import Choice, Survey, choose, discover


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
        target = checks.labels(target, max(logits.shape[1], 2), count(inputs)).to(logits.device)
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


def characteristic_maps(
    model: nn.Module, inputs: Inputs, layer: str | None = None, units: Sequence[int] | None = None
) -> Tensor:
    """What each logit looks at in the input once every activation is the identity: the network as one matrix.

    Args:
        model: Any eager PyTorch module; called as ``model(inputs)``.
        inputs: Samples first, with exactly one floating tensor.
        layer: Name of a layer whose units' part of the maps is wanted: pathway × input map of each unit. None: the
            whole map.
        units: Indices of the units; None: all of them.

    Returns:
        ``[classes, *input shape]``: the mean over 64 samples of each logit's derivative with respect to the input, that
        of every activation being 1; over four where it is the same for each of them. With ``layer``:
        ``[classes, units, *input shape]``, which sum over all units to the whole map where no other way leads around
        the layer.

    Raises:
        TypeError: If there is not exactly one floating input tensor.
        ValueError: If there is no such layer or unit, or ``units`` comes without ``layer``.

    Source:
        P2, characteristic maps of output and hidden nodes.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> maps = characteristic_maps(net, torch.zeros(5, 3))
        >>> torch.allclose(maps, net[2].weight @ net[0].weight)
        True
        >>> torch.allclose(characteristic_maps(net, torch.zeros(5, 3), "0").sum(dim=1), maps)
        True
    """
    with isolated(model):
        survey = discover(model, inputs)
        if layer is None:
            if units is not None:
                raise ValueError(f"`units` needs `layer`, the layer that they are in, got {list(units)} alone.")
            return input_maps(model, inputs, Choice(layouts=survey.layouts))
        choice, pathway = _one_layer(model, inputs, survey, layer)
        wanted = range(pathway.shape[1]) if units is None else units
        if wrong := [unit for unit in wanted if not 0 <= unit < pathway.shape[1]]:
            raise ValueError(f"`units` must lie in [0, {pathway.shape[1]}) in layer {layer!r}, got {wrong}.")
        return unit_maps(model, inputs, choice, pathway, list(wanted))


def subnetwork(model: nn.Module, inputs: Inputs, layer: str, most: int = 5) -> tuple[Tensor, Tensor]:
    """The units of a layer that carry most of each logit's linear share.

    A unit carries cov(M_ki·φ_i, z_k) / var(z_k) over the samples, M its pathway and φ_i its output.

    Args:
        model: Any eager PyTorch module; called as ``model(inputs)``.
        inputs: Inputs, samples first.
        layer: Name of the layer.
        most: How many units of it.

    Returns:
        Indices of the units, the largest share first, and their shares, ``[classes, most]`` each. The shares of all
        units sum to 1 where what follows the layer is affine and no other way leads around it.

    Raises:
        ValueError: If there is no such layer.

    Source:
        P2, subnetworks of weight pathways; the measure is netdyn's convention.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False))
        >>> net.load_state_dict({"0.weight": torch.eye(2), "0.bias": torch.ones(2), "2.weight": torch.eye(2)})
        <All keys matched successfully>
        >>> units, carried = subnetwork(net, torch.rand(9, 2), "0", most=1)
        >>> units.tolist(), carried.round(decimals=6).tolist()
        ([[0], [1]], [[1.0], [1.0]])
    """
    checks.whole("most", most)
    with isolated(model):
        choice, pathway = _one_layer(model, inputs, discover(model, inputs), layer)
        return largest_shares(model, inputs, choice, pathway, most)


def _one_layer(model: nn.Module, inputs: Inputs, survey: Survey, layer: str) -> tuple[Choice, Tensor]:
    """The one layer of this name, and its map.

    Raises:
        ValueError: If there are several, or it has no map.
    """
    choice = choose(model, survey, [layer])
    if len(choice.names) != 1:
        raise ValueError(f"`layer` must name one layer, got {layer!r}, which matches {list(choice.names)}.")
    linear_map = substitute(model, inputs, choice)
    if not linear_map:
        raise ValueError(
            f"`layer` names {choice.names[0]!r}, from which no gradient leads to the logits. Name another."
        )
    return choice, next(iter(linear_map.values()))
