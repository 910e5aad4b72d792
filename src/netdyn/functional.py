"""netdyn's public functions: tensors or a model in, tensors out; nothing global is read or written.

Functions that take a model run it in eval mode and leave it as they found it: modes, buffers, attributes, random
generators, also when they raise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.trees import Inputs, sample_tensors, tensors
from netdyn.basins.coverage import Covered, covered
from netdyn.basins.result import BasinResult, Grid
from netdyn.basins.sample_basin import begin_sample_basin
from netdyn.basins.weight_basin import begin_weight_basin
from netdyn.isolation.isolated import isolated
from netdyn.linear.substitution import DEFECT_LIMIT, LinearMap, substitute
from netdyn.linear.tails import functional_depth
from netdyn.linear.wiring import characteristic_maps, linear_share, linear_tail, subnetwork
from netdyn.modes.order import order_alignment, order_index, rpd_gradient
from netdyn.modes.phases import Phase, phase
from netdyn.modes.ranks import class_tuning, midranks, rank_correlation, rank_distribution
from netdyn.modes.transfer import transfer_order
from netdyn.probes import batchnorm
from netdyn.probes.criteria import Criterion
from netdyn.probes.outset import prepare_walk
from netdyn.tracing.activations import register_activation
from netdyn.tracing.survey import choose, discover, read

__all__ = [
    "BasinResult",
    "Covered",
    "LinearMap",
    "Phase",
    "batchnorm_gap",
    "characteristic_maps",
    "class_tuning",
    "coverage",
    "functional_depth",
    "linear_share",
    "linear_substitution_map",
    "linear_tail",
    "local_fields",
    "midranks",
    "order_alignment",
    "order_index",
    "phase",
    "rank_correlation",
    "rank_distribution",
    "register_activation",
    "rpd_gradient",
    "sample_basin",
    "subnetwork",
    "transfer_order",
    "weight_basin",
]


def local_fields(model: nn.Module, inputs: Inputs, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Read the local field (the input of the activation function) of every unit, for every sample.

    Args:
        model: Any eager PyTorch module; called as ``model(inputs)``.
        inputs: A tensor, or a sequence or mapping of tensors, samples first.
        layers: Names or globs of layers to read, or names of modules whose outputs are to count as local fields (a
            linear network has no activation). None: all that activations read.

    Returns:
        Layer name → ``[samples, units]``, in order of execution. A layer is called after the module whose output the
        local field is (``encoder.0.fc1``; ``:1``, ``:2`` where it runs again), else after the innermost module running.

    Raises:
        ValueError: If a layer matches nothing, or there is no activation.

    Source:
        P1, local field; after any normalisation layer.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> {name: list(field.shape) for name, field in local_fields(net, torch.zeros(5, 2)).items()}
        {'0': [5, 3]}
    """
    fields: dict[str, Tensor] = {}
    with isolated(model):
        choice = choose(model, discover(model, inputs), layers)
        read(model, inputs, lambda name, field, _: fields.update({name: field.clone()}), choice)
    return fields


def linear_substitution_map(model: nn.Module, inputs: Inputs, layers: Sequence[str] | None = None) -> LinearMap:
    """How strongly each unit is wired to each logit when activations from its layer upward are the identity (L-map).

    For a fully connected network it is W^(L)⋯W^(l+1), with batch normalisation's factors diag(γ/σ̂). For any other it
    is the Jacobian of the logits with respect to the local field, the backward of activations replaced by the identity
    and that of max-pooling by an average's, averaged over 64 of the inputs: exact where what follows is affine. Norms,
    gates and attention stand at their operating point.

    Args:
        model: Any eager PyTorch module; called as ``model(inputs)``.
        inputs: A tensor, or a sequence or mapping of tensors, samples first.
        layers: As in :func:`local_fields`.

    Returns:
        A mapping of layer name → ``[classes, units]``, uncentred, with ``.affine_defect`` (layer name → share of the
        Jacobian that depends on the sample, in [0, 1]).

    Warns:
        UserWarning: If a layer's ``affine_defect`` is above 0.9: the signs of its map are noise.

    Raises:
        ValueError: If a layer matches nothing, there is no activation, or the output is not ``[samples, classes]``.

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
    """Warn of layers whose averaged map means nothing."""
    bad = [name for name, defect in defects.items() if defect > DEFECT_LIMIT]
    if bad:
        checks.warn(
            f"In the layers {bad} the linear substitution map depends on the sample almost entirely (affine_defect "
            f"above {DEFECT_LIMIT}): what follows them is far from affine, and the signs of their pathways are noise. "
            "Leave them out with `layers=`."
        )


def check_basin(accuracy: float | None, rays: int, low: float, high: float, rel_tol: float, seed: int) -> Grid:
    """The noise grid, if the arguments of a basin are sound.

    Raises:
        TypeError: If a number of the wrong kind came.
        ValueError: If one lies outside its range.
    """
    if accuracy is not None:
        checks.share("accuracy", accuracy)
    checks.whole("rays", rays)
    checks.whole("seed", seed, minimum=0)
    return Grid.over(*checks.noise_range(low, high), checks.positive("rel_tol", rel_tol))


def sample_basin(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 1,
    low: float = 1e-3,
    high: float = 1e1,
    rel_tol: float = 0.05,
    seed: int = 0,
    batch_size: int | None = None,
    criterion: Criterion | None = None,
    noise_at: Sequence[str] | None = None,
) -> BasinResult:
    """How much noise the inputs bear before the network's predictions stop being right.

    Along a ray x + σ·ε, ε ~ N(0, I), bisection in log σ finds the noise level T at which the prediction stops being
    right. The radius is the σ at which accuracy has fallen to ``accuracy``: the quantile of T, corrected for rays that
    are right again beyond T by measuring accuracy at one or two noise levels of the search next to it.

    Args:
        model: Any PyTorch module; called as ``model(inputs)``, in eval mode.
        inputs: A tensor, or a sequence or mapping of tensors, samples first; noise falls on the floating ones.
        target: Class labels ``[samples]`` (or what ``criterion`` takes).
        accuracy: The accuracy that defines the radius, in (0, 1). None: 0.5 as in P1, and 0.75 for two classes.
        relative: Count ``accuracy`` from the floor that noise leaves (0) to the accuracy without noise (1).
        rays: Rays a sample. With 8 or more every sample gets a radius of its own.
        low: Smallest noise level, per input component in the units in which the model receives its input.
        high: Largest noise level.
        rel_tol: Cells of the search end no wider than (1 + rel_tol)².
        seed: Seed of the noise, which depends on it, the ray and the sample's content alone.
        batch_size: Samples a forward pass; None: all at once. Changes nothing but rounding.
        criterion: ``criterion(outputs, target)`` → bool ``[samples]``; None: the predicted class is the target (its
            sign, for a single logit), finite outputs only.
        noise_at: Where noise falls: names of modules, whose outputs are disturbed (``["embedding"]`` where the inputs
            are token ids), or of parts of the inputs by key or position (``["image"]``, ``["0"]``), which win where a
            module has the same name. None: all floating inputs.

    Returns:
        The radius with its interval, and what stands behind it.

    Warns:
        UserWarning: If ``accuracy`` is within 0.05 of what noise alone leaves, if the radius lies outside of the noise
            levels, if the inputs are not finite, or if the model puts out other numbers at a second call.

    Raises:
        TypeError: If the labels are not whole numbers, or there is nothing floating to disturb.
        ValueError: If an argument lies outside its range, a name is unknown, or the output is not
            ``[samples, classes]``.

    Source:
        P1, attraction basin in sample space. Ray search, correction and interval are netdyn's conventions.

    Example:
        >>> import torch
        >>> net = nn.Linear(1, 2)
        >>> net.load_state_dict({"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> x = torch.linspace(0.5, 1.5, 500)[:, None]
        >>> basin = sample_basin(net, x, torch.ones(500, dtype=torch.int64), accuracy=0.9)
        >>> basin.interval[0] < basin.radius < basin.interval[1]
        True
    """
    grid = check_basin(accuracy, rays, low, high, rel_tol, seed)
    with isolated(model):
        walk = prepare_walk(model, inputs, target, criterion, batch_size)
        finish = begin_sample_basin(
            walk, grid, accuracy=accuracy, relative=relative, rays=rays, seed=seed, noise_at=noise_at
        )
        return finish()


def weight_basin(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 8,
    normalization: Literal["layer", "global"] = "layer",
    layers: Sequence[str] | Literal["each"] | None = None,
    low: float = 1e-3,
    high: float = 1e1,
    rel_tol: float = 0.05,
    seed: int = 0,
    batch_size: int | None = None,
    criterion: Criterion | None = None,
) -> BasinResult:
    """How much noise the weights bear before the network's predictions stop being right.

    Along a ray W + σ·s·E, E ~ N(0, I), bisection in log σ finds the noise level at which the accuracy on the probe
    crosses ``accuracy``. The radius is the median over rays, its interval the one of Hettmansperger and Sheather (with
    fewer than 6 rays their extremes, with the level that these have).

    Args:
        model: Any PyTorch module; called as ``model(inputs)``, in eval mode. Its weights are not written to.
        inputs: A tensor, or a sequence or mapping of tensors, samples first.
        target: Class labels ``[samples]`` (or what ``criterion`` takes).
        accuracy: The accuracy that defines the radius, in (0, 1). None: 0.5 as in P1, and 0.75 for two classes.
        relative: Count ``accuracy`` from chance (0) to the accuracy without noise (1).
        rays: Number of rays.
        normalization: ``"layer"``: s is the population standard deviation of each weight tensor. ``"global"``: of all
            entries of the disturbed tensors together.
        layers: Names or globs of the parameters to disturb (None: every floating one with two or more dimensions), or
            ``"each"``: all of them, and then each one alone (``per_layer``; layers × rays × 8 more passes).
        low: Smallest noise level, in units of s.
        high: Largest noise level.
        rel_tol: Cells of the search end no wider than (1 + rel_tol)².
        seed: Seed of the noise, which depends on it, the ray and the parameter's name alone.
        batch_size: Samples a forward pass; None: all at once. Changes nothing but rounding.
        criterion: As in :func:`sample_basin`.

    Returns:
        The radius with its interval, and what stands behind it.

    Warns:
        UserWarning: If a weight tensor is constant, so that noise in units of its spread does not move it.

    Raises:
        TypeError: If the labels are not whole numbers.
        ValueError: If an argument lies outside its range, a name matches nothing or the output is not
            ``[samples, classes]``.

    Source:
        P1, attraction basin in weight space. Scale, ray search and interval are netdyn's conventions.

    Example:
        >>> import torch
        >>> net = nn.Linear(1, 2)
        >>> net.load_state_dict({"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> x = torch.linspace(0.5, 1.5, 100)[:, None]
        >>> basin = weight_basin(net, x, torch.ones(100, dtype=torch.int64), rays=16)
        >>> basin.radius > 0.5, list(basin.radii.shape)
        (True, [16])
    """
    grid = check_basin(accuracy, rays, low, high, rel_tol, seed)
    checks.choice("normalization", normalization, ("layer", "global"))
    with isolated(model):
        walk = prepare_walk(model, inputs, target, criterion, batch_size)
        finish = begin_weight_basin(
            walk,
            grid,
            accuracy=accuracy,
            relative=relative,
            rays=rays,
            normalization=normalization,
            layers=layers,
            seed=seed,
        )
        return finish()


def batchnorm_gap(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    criterion: Criterion | None = None,
) -> float:
    """Accuracy with batch statistics in batch normalisation alone, minus accuracy with the running ones.

    Everything else stays in eval mode (dropout off), and nothing is updated. Above 0 the running statistics do not fit
    the data: the network knows more than it shows in eval mode.

    Normalisations are met as calls of ``torch.nn.functional.batch_norm``, in modules of any kind. ``SyncBatchNorm``
    takes the statistics of its own process's batch. One without running statistics always uses its batch's, and adds
    nothing. Instance, group and layer normalisation take no statistics over samples and are left alone.

    Args:
        model: Any PyTorch module; called as ``model(inputs)``, in eval mode.
        inputs: A tensor, or a sequence or mapping of tensors, samples first: held-out data, two samples or more.
        target: Class labels ``[samples]`` (or what ``criterion`` takes).
        batch_size: Shuffled batches of at least this many samples, the training's batch size for instance; None: all
            in one batch.
        seed: Seed of the shuffle.
        criterion: As in :func:`sample_basin`.

    Returns:
        The difference of the two accuracies, in [−1, 1]; NaN where nothing is batch-normalised.

    Raises:
        TypeError: If the labels are not whole numbers.
        ValueError: If an argument lies outside its range, there are fewer than two samples or the output is not
            ``[samples, classes]``.

    Source:
        P1: in deep networks grokking is largely the closing of this gap.

    Example:
        >>> import torch
        >>> net = nn.BatchNorm1d(2, affine=False)  # has seen nothing: mean 0, variance 1, so that class 1 always wins
        >>> batchnorm_gap(net, torch.tensor([[2.0, 10.0], [0.0, 12.0]]), torch.tensor([0, 1]))
        0.5
    """
    if batch_size is not None:
        checks.whole("batch_size", batch_size, minimum=2)
    checks.whole("seed", seed, minimum=0)
    checks.function("criterion", criterion)
    with isolated(model):
        return batchnorm.batchnorm_gap(prepare_walk(model, inputs, target, criterion, None), batch_size, seed)


def coverage(
    basin: BasinResult | Tensor,
    inputs: Inputs,
    target: Tensor,
    val_inputs: Inputs,
    val_target: Tensor,
) -> Covered:
    """How much of the validation data lies within the basins of the training data.

    For each validation sample v the nearest training sample μ of its class is found; d(v, μ) is the root mean square of
    the difference of their components, the unit of σ. The coverage is the mean over v of the share of μ's rays with
    T > d(v, μ).

    Args:
        basin: A sample basin of the training probe, or its ``radii`` ``[rays, samples]``.
        inputs: The training probe that it was measured on: a tensor, or a sequence or mapping of tensors, samples
            first. Distances count what is floating. For noise on modules' outputs hand over these.
        target: Its class labels ``[samples]``.
        val_inputs: The validation samples, of the same shapes.
        val_target: Their class labels; samples of a class without training sample are left out.

    Returns:
        ``share``, ``distance`` (the median of d, which falls with the size of the probe) and ``nearest``
        ``[validation samples]``. Distances are held in blocks of at most 4 million.

    Raises:
        TypeError: If labels are not whole numbers, or nothing in ``inputs`` is floating.
        ValueError: If the numbers of samples or components do not fit.

    Source:
        P1's account of grokking: training samples' basins come to cover the test samples. The measure is netdyn's
        convention.

    Example:
        >>> import torch
        >>> points, labels = torch.tensor([[0.0], [10.0]]), torch.tensor([0, 1])
        >>> radii = torch.tensor([[0.5, 3.0], [2.0, 3.0]])
        >>> found = coverage(radii, points, labels, torch.tensor([[1.0], [12.0]]), labels)
        >>> found.share, found.distance
        (0.75, 1.5)
    """
    radii = basin.radii if isinstance(basin, BasinResult) else basin
    points, val_points = _points("inputs", inputs), _points("val_inputs", val_inputs)
    classes = 1 + max(int(labels.max()) if len(labels) else 0 for labels in (target, val_target))
    target = checks.labels(target, classes, len(points)).cpu()
    val_target = checks.labels(val_target, classes, len(val_points)).cpu()
    checks.same_units("inputs", points, "val_inputs", val_points)
    if checks.matrix("basin", radii, "[rays, samples]").shape[1] != len(points):
        raise ValueError(f"`basin` must be of the {len(points)} samples in `inputs`, got {radii.shape[1]}.")
    return covered(radii, points, target, val_points, val_target)


def _points(name: str, inputs: Inputs) -> Tensor:
    """All floating components, ``[samples, components]``."""
    leaves = zip(tensors(inputs), sample_tensors(inputs), strict=True)
    found = [t.detach().reshape(len(t), -1).float() for t, own in leaves if own and t.is_floating_point()]
    if not found:
        raise TypeError(f"`{name}` holds no floating tensor between whose samples there could be a distance.")
    return torch.cat(found, dim=1)
