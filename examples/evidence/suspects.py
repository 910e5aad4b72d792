"""The usual suspects of generalisation, measured beside netdyn's numbers; none of these uses netdyn."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: Samples for the Hessian, its power iterations, and the sizes of a small and a large batch for the noise of gradients.
HESSIAN_SAMPLES, ITERATIONS, SMALL, LARGE = 128, 12, 8, 128
#: Most samples that are asked for their nearest neighbour.
ASKED = 1000


def norms(network: nn.Module) -> dict[str, float]:
    """Sums of the logarithms of spectral and of Frobenius norms of all weights, as matrices ``[outputs, rest]``.

    >>> net = nn.Linear(2, 2)
    >>> net.weight.data = torch.diag(torch.tensor([2.0, 1.0]))
    >>> norms(net)["spectral"] == math.log(2), round(norms(net)["frobenius"], 3) == round(math.log(5) / 2, 3)
    (True, True)
    """
    weights = [p.detach().flatten(1).double() for p in network.parameters() if p.ndim >= 2]
    spectral = sum(math.log(float(torch.linalg.matrix_norm(w, 2))) for w in weights)
    return {"spectral": spectral, "frobenius": sum(math.log(float(w.norm())) for w in weights)}


def margin(network: nn.Module, x: Tensor, y: Tensor, spectral: float) -> float:
    """Median margin of the logits over the product of the spectral norms, as the logarithm; −inf if not positive."""
    with torch.no_grad():
        logits = network(x).double()
    own = logits.gather(1, y[:, None])[:, 0]
    middle = float((own - logits.scatter(1, y[:, None], -math.inf).max(dim=1).values).median())
    return math.log(middle) - spectral if middle > 0 else -math.inf


def _gradient(network: nn.Module, x: Tensor, y: Tensor, again: bool = False) -> list[Tensor]:
    loss = nn.functional.cross_entropy(network(x), y)
    return list(torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad], create_graph=again))


def top_eigenvalue(network: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> float:
    """Largest eigenvalue, in size, of the loss's Hessian on the first samples, by power iteration."""
    gradient = _gradient(network, x[:HESSIAN_SAMPLES], y[:HESSIAN_SAMPLES], again=True)
    weights = [p for p in network.parameters() if p.requires_grad]
    draw = torch.Generator().manual_seed(seed)
    vector, value = [torch.randn(p.shape, generator=draw) for p in weights], math.nan
    for _ in range(ITERATIONS):
        size = math.sqrt(sum(float(v.square().sum()) for v in vector))
        vector = [v / max(size, 1e-30) for v in vector]
        along = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True))
        product = torch.autograd.grad(along, weights, retain_graph=True, materialize_grads=True)
        value = sum(float((p * v).sum()) for p, v in zip(product, vector, strict=True))
        vector = [p.detach() for p in product]
    return value


def noise_scale(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Gradient noise: the trace of the covariance of the samples' gradients over the squared gradient.

    From squared gradients of batches of 8 and of 128, as McCandlish et al. (2018) estimate it.
    """
    x, y = x[:LARGE], y[:LARGE]
    whole = sum(float(g.square().sum()) for g in _gradient(network, x, y))
    parts = zip(x.split(SMALL), y.split(SMALL), strict=True)
    small = [sum(float(g.square().sum()) for g in _gradient(network, a, b)) for a, b in parts]
    trace = (sum(small) / len(small) - whole) / (1 / SMALL - 1 / len(x))
    return trace / whole if whole > 0 else math.nan


def neighbour_error(x: Tensor, y: Tensor) -> float:
    """Leave-one-out error of the nearest neighbour on the training data: what the data say without any network.

    >>> neighbour_error(torch.tensor([[0.0], [0.1], [5.0], [5.2]]), torch.tensor([0, 0, 1, 0]))
    0.5
    """
    distances = torch.cdist(x[:ASKED], x)
    distances[torch.arange(len(distances)), torch.arange(len(distances))] = math.inf
    return float((y[distances.argmin(dim=1)] != y[:ASKED]).float().mean())


def distance_to_others(x: Tensor, y: Tensor) -> float:
    """Median distance, RMS per component, to the nearest sample of another class."""
    distances = torch.cdist(x, x) / math.sqrt(x.shape[1])
    distances[y[:, None] == y[None]] = math.inf
    return float(distances.min(dim=1).values.median())
