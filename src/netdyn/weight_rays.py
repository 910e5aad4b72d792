"""Walk rays in weight space: W' = W + σ·s·E, s each tensor's population standard deviation, E standard normal."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from netdyn._checks import nearest
from netdyn.batches import Inputs, seeded
from netdyn.radii import BasinResult, Grid, falling_curve, median, median_interval
from netdyn.rays import Walk, clean_right, target_accuracy


def weight_tensors(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """The floating parameters with two or more dimensions, each once, chosen by globs of their names.

    Raises:
        TypeError: If ``layers`` is a single string.
        ValueError: If a glob matches none of them, or there are none.
    """
    weights = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and p.is_floating_point()}
    if not weights:
        raise ValueError(f"The model has no floating parameter with two or more dimensions, got {type(model).__name__}.")
    if layers is None:
        return weights
    if isinstance(layers, str):
        raise TypeError(f"`layers` must be a list of parameter names or globs, or 'each', got the string {layers!r}.")
    chosen: list[str] = []
    for pattern in layers:
        matches = fnmatch.filter(weights, pattern)
        if not matches:
            raise ValueError(f"`layers` names {pattern!r}, which matches no weight. {nearest(pattern, weights)}")
        chosen += matches
    return {name: weights[name] for name in weights if name in chosen}


class WeightNoise:
    """Gaussian noise on weights, in units of their population standard deviation."""

    def __init__(self, model: nn.Module, layers: Sequence[str] | None, normalization: str, seed: int) -> None:
        self.model, self.seed = model, seed
        self.weights = weight_tensors(model, layers)
        wide = {name: weight.detach().float() for name, weight in self.weights.items()}
        scales = {name: float(w.std(correction=0)) for name, w in wide.items()}
        if normalization == "global":
            size = sum(w.numel() for w in wide.values())
            mean = sum(float(w.double().sum()) for w in wide.values()) / size
            spread = sum(float(((w.double() - mean) ** 2).sum()) for w in wide.values())
            scales = dict.fromkeys(wide, math.sqrt(spread / size))
        self.scales = scales
        self.unmoved = [name for name, scale in scales.items() if not scale > 0]

    def draw(self, ray: int) -> dict[str, Tensor]:
        """One direction: s·E for every weight tensor, seeded by (seed, ray, the tensor's name)."""
        generator = torch.Generator()
        direction = {}
        for name, weight in self.weights.items():
            seeded(generator, self.seed, ray, name)
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
            direction[name] = (self.scales[name] * drawn).to(weight.device)
        return direction

    def network(self, direction: dict[str, Tensor], sigma: float) -> Callable[[Inputs], Tensor]:
        """The network with weights W + σ·s·E. Its own weights are not touched; tied ones move together."""
        moved = {
            name: (w.detach().to(torch.promote_types(w.dtype, torch.float32)) + sigma * direction[name]).to(w.dtype)
            for name, w in self.weights.items()
        }

        def call(inputs: Inputs) -> Tensor:
            return torch.func.functional_call(self.model, moved, (inputs,))  # type: ignore[no-any-return]

        return call


def class_counts(right: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Right answers of each class ``[classes]``."""
    if target.is_floating_point():
        return torch.zeros(num_classes, dtype=torch.float64)
    return torch.bincount(target[right], minlength=num_classes).double().cpu()


def weight_basin(
    walk: Walk,
    grid: Grid,
    *,
    num_classes: int,
    accuracy: float | None = None,
    relative: bool = False,
    rays: int = 8,
    normalization: str = "layer",
    layers: Sequence[str] | str | None = None,
    seed: int = 0,
    clean: Tensor | None = None,
) -> BasinResult:
    """Ray search in weight space; see :func:`netdyn.functional.weight_basin`."""
    each = layers == "each"
    chosen = None if each or layers is None else layers
    noise = WeightNoise(walk.model, chosen, normalization, seed)  # type: ignore[arg-type]
    if noise.unmoved:
        warnings.warn(
            f"The weights {noise.unmoved} are constant (standard deviation 0), so that noise in units of it does not move "
            "them.",
            UserWarning,
            stacklevel=2,
        )
    clean = clean_right(walk, clean)
    clean_accuracy, floor = float(clean.double().mean()), 1 / num_classes
    absolute = target_accuracy(accuracy, relative, clean_accuracy, floor, num_classes)
    trail = Trail(class_counts(clean, walk.target, num_classes), walk, num_classes)
    radii = torch.tensor([_weight_radius(noise, ray, grid, absolute, clean_accuracy, trail) for ray in range(rays)])
    per_layer = None
    if each:
        # One tensor at a time: a fragile layer is one whose own radius is small.
        per_layer = {}
        for name in noise.weights:
            alone = WeightNoise(walk.model, [name], normalization, seed)
            alone.scales = {name: noise.scales[name]}
            own = [_weight_radius(alone, ray, grid, absolute, clean_accuracy, Trail(trail.clean, walk, num_classes)) for ray in range(rays)]
            per_layer[name] = median(torch.tensor(own))
    return summarize_weights(radii, trail, absolute, clean_accuracy, floor, walk.forwards, per_layer)


class Trail:
    """Accuracies met on the way: σ, accuracy and right answers a class, over all rays."""

    def __init__(self, clean: Tensor, walk: Walk, num_classes: int) -> None:
        self.clean, self.walk, self.num_classes = clean, walk, num_classes
        self.sigma: list[float] = []
        self.accuracy: list[float] = []
        self.classes: list[Tensor] = []

    def measure(self, network: Callable[[Inputs], Tensor], sigma: float) -> float:
        """Accuracy of a disturbed network on the probe, written down."""
        right = self.walk.all_right(network)
        self.sigma.append(sigma)
        self.accuracy.append(float(right.double().mean()))
        self.classes.append(class_counts(right, self.walk.target, self.num_classes))
        return self.accuracy[-1]


def _weight_radius(noise: WeightNoise, ray: int, grid: Grid, accuracy: float, clean: float, trail: Trail) -> float:
    """The σ at which probe accuracy crosses ``accuracy`` along one ray, interpolated in log σ inside its cell."""
    if clean <= accuracy:
        return 0.0
    edges = grid.edges().tolist()
    direction = noise.draw(ray)
    low, high = 0, grid.cells
    met = {}
    while high - low > 1:
        middle = (low + high) // 2
        met[middle] = trail.measure(noise.network(direction, edges[middle]), edges[middle])
        low, high = (middle, high) if met[middle] > accuracy else (low, middle)
    if high == grid.cells:
        return math.inf
    # The lowest edge is never visited: there the accuracy is taken to be the clean one.
    above, below = met.get(low, clean), met[high]
    part = (above - accuracy) / (above - below)
    return math.exp(math.log(edges[low]) + part * math.log(edges[high] / edges[low]))


def summarize_weights(
    radii: Tensor,
    trail: Trail,
    accuracy: float,
    clean: float,
    floor: float,
    forwards: float,
    per_layer: dict[str, float] | None,
) -> BasinResult:
    """From radii on rays and the accuracies met on the way to the result."""
    low, high, level = median_interval(radii)
    sigma = torch.tensor(trail.sigma or [1.0], dtype=torch.float64)
    curve = falling_curve(clean, sigma, torch.tensor(trail.accuracy or [clean], dtype=torch.float64))
    target = trail.walk.target
    size = class_counts(torch.ones_like(target, dtype=torch.bool), target, trail.num_classes)
    per_class = torch.full((trail.num_classes,), torch.nan, dtype=torch.float64)
    for k in range(trail.num_classes):
        if size[k]:
            met = torch.stack(trail.classes)[:, k] / size[k] if trail.classes else (trail.clean[k] / size[k])[None]
            per_class[k] = falling_curve(float(trail.clean[k] / size[k]), sigma, met).crossing(accuracy)
    return BasinResult(
        radii=radii.double(),
        radius=median(radii),
        interval=(low, high),
        level=level,
        accuracy=accuracy,
        clean=clean,
        floor=floor,
        censored=float(radii.isinf().double().mean()),
        reentry=0.0,
        per_class=per_class,
        per_layer=per_layer,
        forwards=forwards,
        curve=curve,
    )
