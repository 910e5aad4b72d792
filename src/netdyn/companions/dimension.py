"""How many dimensions the local fields of a layer fill: participation ratio and entropy of their spectrum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from netdyn._utils.checks import matrix, warn
from netdyn.modes.ranks import statistic_dtype


def effective_dimension(fields: Tensor) -> float:
    """Participation ratio (Σλ)²/Σλ² of the covariance's eigenvalues λ, without the bias of few samples.

    The eigenvalues of few samples are more unequal than those of the distribution: of N samples from D equal
    directions, the plain ratio is about D/(1 + D/N) and can never exceed N − 1. Here (Σλ)² and Σλ² are each estimated
    without bias, for fields of any distribution: as means over all sets of four different samples of
    |x₁ − x₂|²·|x₃ − x₄|²/4 and ((x₁ − x₂)·(x₃ − x₄))²/4. No eigenvalue is computed.

    Args:
        fields: Local fields ``[samples, units]``. Samples that are not finite are left out.

    Returns:
        1 (one direction) to the number of units (all alike). NaN for fewer than four samples, for constant fields, and
        where the samples are too few for an estimate.

    Raises:
        TypeError: If ``fields`` is no tensor.
        ValueError: If it does not have two dimensions.

    Source:
        The ratio: arXiv:2006.04791 and many before. The estimates are the U-statistics of both quantities; that of Σλ²
        is the unbiased HSIC of Song et al. (2012) with a linear kernel.

    Examples:
        >>> import torch
        >>> directions = torch.eye(3).repeat(2, 1) * torch.tensor([1.0] * 3 + [-1.0] * 3)[:, None]
        >>> round(effective_dimension(directions.repeat(1000, 1)), 3)  # plus and minus each of three directions
        3.0
    """
    x, n = _centred(fields)
    if n < 4:
        return math.nan
    # With centred samples: q_i = |x_i|², Q their sum, G the Gram matrix, whose rows sum to 0.
    q = x.square().sum(dim=1)
    total, squares = q.sum(), q.square().sum()
    gram = _gram(x).square().sum()
    sum_of_squares = (gram - squares + (total.square() / (n - 1) - 2 * squares) / (n - 2)) / (n * (n - 3))
    # Squared distances d_ij = q_i + q_j − 2G_ij; over sets of four: (Σd)² − 4Σ_i(Σ_j d_ij)² + 2Σd².
    apart = (2 * n * total).square() - 4 * (n * q + total).square().sum()
    apart = apart + 4 * n * squares + 4 * total.square() + 8 * gram
    square_of_sum = apart / (4.0 * n * (n - 1) * (n - 2) * (n - 3))
    if not float(total) > 0 or not float(sum_of_squares) > 0 or not float(square_of_sum) > 0:
        return math.nan
    return min(max(float(square_of_sum / sum_of_squares), 1.0), float(x.shape[1]))


def effective_rank(fields: Tensor) -> float:
    """Exponential of the entropy of the spectrum: exp(−Σ p·ln p), p = s/Σs, s the singular values of centred fields.

    N samples span N − 1 directions at most, so that the rank of few samples is too low, and no estimate of an entropy
    repairs that. Where there are no more samples than units, a warning names that bound;
    :func:`effective_dimension` has none.

    Args:
        fields: Local fields ``[samples, units]``. Samples that are not finite are left out.

    Returns:
        1 to the smaller of units and samples − 1; NaN for constant fields.

    Raises:
        TypeError: If ``fields`` is no tensor.
        ValueError: If it does not have two dimensions.

    Warns:
        DynamicsWarning: If there are no more samples than units.

    Source:
        Roy and Vetterli, *The effective rank* (EUSIPCO 2007). With the eigenvalues in place of the singular values it
        is the effective dimension of arXiv:2006.04791.

    Examples:
        >>> import torch
        >>> round(effective_rank(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])), 3)
        2.0
    """
    x, n = _centred(fields)
    units = x.shape[1]
    if n <= units:
        warn(
            f"The effective rank of {n} samples of {units} units is at most {max(n - 1, 0)}, whatever the network: "
            "pass more samples than units, or take `effective_dimension`, which is corrected for few samples."
        )
    values = torch.linalg.eigvalsh(_gram(x)).clamp(min=0).sqrt() if n and units else x.new_zeros(1)
    # Rounding leaves directions that are not there.
    values = values[values > values.max() * 1e-6]
    share = values / values.sum()
    return math.exp(float(-torch.special.xlogy(share, share).sum())) if len(share) else math.nan


def _centred(fields: Tensor) -> tuple[Tensor, int]:
    """The finite samples, without their mean and on a scale of 1, and their number; units that are never finite go."""
    x = matrix("fields", fields, "[samples, units]")
    finite = x.isfinite()
    x = x[:, finite.any(dim=0)]
    x = x[x.isfinite().all(dim=1)].to(statistic_dtype(x.device))
    x = x - x.mean(dim=0)
    scale = x.abs().max() if x.numel() else x.new_ones(())
    return x / torch.where(scale > 0, scale, 1.0), len(x)


def _gram(x: Tensor) -> Tensor:
    """xxᵀ or xᵀx, whichever is smaller: both have the same eigenvalues beside 0."""
    return x @ x.t() if len(x) < x.shape[1] else x.t() @ x
