"""Mid-ranks, class tuning and rank distributions of local fields."""

from __future__ import annotations

import torch
from torch import Tensor

from netdyn._utils.checks import class_labels, matrix, same_units, whole
from netdyn.modes.sorting import ranks_from, sort_rows, unit_blocks, unit_rows


def statistic_dtype(device: torch.device) -> torch.dtype:
    """Float64, or float32 on a device without it (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def doubled_midranks(fields: Tensor) -> Tensor:
    """Twice the mid-rank of each field among its unit's samples, whole for ties too: int64 ``[units, samples]``."""
    rows = unit_rows(fields)
    ranks = torch.empty(rows.shape, dtype=torch.int64, device=rows.device)
    for part in unit_blocks(rows):
        ranks[part] = ranks_from(*sort_rows(rows[part]))
    return ranks


def midranks(x: Tensor) -> Tensor:
    """Mid-ranks along the samples: 1 for the smallest value, S for the largest; ties share their mean rank.

    The normalised mid-rank of netdyn's other statistics is u = (midrank − ½)/S, which lies in (0, 1).

    Args:
        x: ``[samples]`` or ``[samples, units]``, any real dtype.

    Returns:
        float64 of the same shape, exact for ties of any number. A unit that holds NaN is NaN throughout.

    Raises:
        TypeError: If ``x`` is not a real tensor.
        ValueError: If ``x`` does not have one or two dimensions.

    Source:
        P1 ranks the local fields; the treatment of ties is netdyn's convention (the Mann–Whitney one).

    Examples:
        >>> midranks(torch.tensor([30.0, 10.0, 10.0]))
        tensor([3.0000, 1.5000, 1.5000], dtype=torch.float64)
    """
    if not isinstance(x, Tensor) or x.is_complex():
        raise TypeError(f"`x` must be a real tensor, got {getattr(x, 'dtype', type(x).__name__)}.")
    if x.ndim not in (1, 2):
        raise ValueError(f"`x` must have shape [samples] or [samples, units], got shape {list(x.shape)}.")
    fields = x[:, None] if x.ndim == 1 else x
    ranks = doubled_midranks(fields).to(statistic_dtype(x.device)).div_(2).t()
    return ranks.masked_fill_(fields.isnan().any(dim=0), torch.nan).reshape(x.shape)


def occurrences(values: Tensor, number: int) -> Tensor:
    """How often each whole number below ``number`` occurs; unlike ``bincount`` this does not wait for the device."""
    counts = torch.zeros(number, dtype=torch.int64, device=values.device)
    return counts.scatter_add_(0, values, torch.ones_like(values))


def tuning_from_ranks(doubled: Tensor, target: Tensor, size: Tensor) -> Tensor:
    """Class tuning ``[classes, units]`` from doubled mid-ranks ``[units, samples]`` and the classes' sizes."""
    # With R_k the rank sum of class k and n_k its size, Mann–Whitney's U = R_k − n_k(n_k + 1)/2 and
    # AUC = U/(n_k(S − n_k)), so that 2·AUC − 1 = (2R_k − n_k(S + 1)) / (n_k(S − n_k)): whole until the division.
    # An absent class, or one that leaves no other sample, divides zero by zero: NaN.
    units, samples = doubled.shape
    dtype, size = statistic_dtype(doubled.device), size[:, None]
    rank_sum = torch.zeros(units, len(size), dtype=torch.int64, device=doubled.device).index_add_(1, target, doubled)
    return (rank_sum.t() - size * (samples + 1)).to(dtype) / (size * (samples - size)).to(dtype)


def label_tuning_from_ranks(doubled: Tensor, labels: Tensor) -> Tensor:
    """Tuning ``[labels, units]`` to zeros and ones ``[samples, labels]``: each label is a class of its own."""
    dtype, samples = statistic_dtype(doubled.device), doubled.shape[1]
    wide = labels.to(dtype)
    size = wide.sum(dim=0)[:, None]
    rank_sum: Tensor = wide.t() @ doubled.to(dtype).t()
    return (rank_sum - size * (samples + 1)) / (size * (samples - size))


def class_tuning(fields: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """How far each unit's local field ranks the samples of a class above all others: 2·AUC − 1.

    AUC is P(h(μ) > h(ν)) + ½P(h(μ) = h(ν)) over μ in class k and ν outside it. 2·AUC − 1 is the rank-biserial
    correlation: 1 if all samples of the class lie above all others, −1 if they lie below, 0 for no order.

    Args:
        fields: Local fields ``[samples, units]``.
        target: Class labels ``[samples]``, whole numbers in ``[0, num_classes)``.
        num_classes: Number K of classes.

    Returns:
        float64 ``[num_classes, units]`` in [−1, 1]. A class that is absent, or the only one present, is a row of NaN; a
        constant unit is 0; a unit whose fields hold NaN is NaN.

    Raises:
        TypeError: If ``target`` does not hold whole numbers.
        ValueError: If a label lies outside the classes or the shapes do not fit.

    Source:
        netdyn's convention (Mann–Whitney U; rank-biserial correlation); P1 compares rank distributions of classes.

    Examples:
        >>> fields = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
        >>> class_tuning(fields, torch.tensor([0, 0, 1, 1]), num_classes=2)
        tensor([[-1.],
                [ 1.]], dtype=torch.float64)
    """
    fields = matrix("fields", fields, "[samples, units]")
    target = class_labels(target, num_classes, len(fields)).to(fields.device)
    rows, size = unit_rows(fields), occurrences(target, num_classes)
    ranks = (ranks_from(*sort_rows(rows[part])) for part in unit_blocks(rows))
    tuning = torch.cat([tuning_from_ranks(part, target, size) for part in ranks], dim=1)
    return tuning.masked_fill(fields.isnan().any(dim=0), torch.nan)


def rank_correlation(fields: Tensor, target: Tensor) -> Tensor:
    """Spearman's rank correlation of each unit's local field with each number to be predicted.

    It is Pearson's correlation of the mid-ranks. Doubled mid-ranks D have the mean S + 1 with any ties, so that it is
    Σ(D_h − S − 1)(D_y − S − 1) over the root of both sums of squares: whole numbers until the division.

    Args:
        fields: Local fields ``[samples, units]``.
        target: Numbers to be predicted ``[samples]`` or ``[samples, outputs]``.

    Returns:
        float64 ``[outputs, units]`` in [−1, 1]: the tuning of regression. A constant unit is 0. A unit whose fields
        hold NaN is NaN, and so is the row of a constant target.

    Raises:
        TypeError: If an argument is not a tensor.
        ValueError: If the shapes do not fit.

    Source:
        netdyn's convention, the counterpart of :func:`class_tuning` for regression.

    Examples:
        >>> rank_correlation(torch.tensor([[1.0], [4.0], [9.0]]), torch.tensor([0.1, 0.2, 0.3]))
        tensor([[1.]], dtype=torch.float64)
    """
    fields = matrix("fields", fields, "[samples, units]")
    target = target[:, None] if target.ndim == 1 else target
    target = matrix("target", target, "[samples, outputs]").to(fields.device)
    if len(target) != len(fields):
        raise ValueError(f"`target` must have one entry for each of the {len(fields)} samples, got {len(target)}.")
    tuning = correlation_from_ranks(doubled_midranks(fields), doubled_midranks(target))
    return tuning.masked_fill(fields.isnan().any(dim=0), torch.nan)


def correlation_from_ranks(doubled: Tensor, wanted: Tensor) -> Tensor:
    """Rank correlation ``[outputs, units]`` of units' doubled mid-ranks with those of numbers to be predicted."""
    dtype, middle = statistic_dtype(doubled.device), doubled.shape[1] + 1
    unit_ranks, wanted_ranks = ((ranks - middle).to(dtype) for ranks in (doubled, wanted))
    spread = wanted_ranks.square().sum(dim=1, keepdim=True)
    squares = spread * unit_ranks.square().sum(dim=1)
    tuning: Tensor = wanted_ranks @ unit_ranks.t() / squares.clamp(min=1).sqrt()
    # The ranks of a constant target are all the same.
    return tuning.masked_fill(spread == 0, torch.nan).clamp(-1, 1)


def centre_pathway(pathway: Tensor, num_classes: int, centre: bool = True) -> Tensor:
    """The pathway centred over classes, float64 ``[num_classes, units]``; a single logit m becomes (−m/2, +m/2)."""
    wide = pathway.to(statistic_dtype(pathway.device))
    if len(wide) == 1 and num_classes == 2:
        wide = torch.cat([-wide / 2, wide / 2])
    if not centre:
        return wide
    wide = wide - wide[:1]  # before the mean, so that equal rows give exactly zero
    centred = wide - wide.mean(dim=0, keepdim=True)
    # The sign of an entry within rounding of the mean (K·eps) is noise.
    noise = len(wide) * torch.finfo(wide.dtype).eps * wide.abs().amax(dim=0, keepdim=True)
    return centred.masked_fill(centred.abs() <= noise, 0.0)


def constant_units(fields: Tensor) -> Tensor:
    """Which units have one and the same local field for every sample, bool ``[units]``; none without a sample."""
    return (fields == fields[:1]).all(dim=0) & (len(fields) > 0)


def finite_samples(fields: Tensor) -> tuple[Tensor, Tensor | None]:
    """The fields without samples that hold NaN or inf, and which samples these are, bool ``[samples]``; None: all.

    Units without any finite field make no sample unusable: they are NaN throughout.
    """
    if bool(fields.sum().isfinite()):
        return fields, None
    finite = fields.isfinite()
    units = finite.any(dim=0)
    kept = (finite | ~units).all(dim=1)
    return fields[kept].masked_fill(~units, torch.nan), kept


def rank_distribution(
    fields: Tensor, target: Tensor, pathway: Tensor, num_classes: int, bins: int = 20, centre: bool = True
) -> Tensor:
    """Rank probability distribution (RPD) of each class: the density of the ranks that its samples take in a layer.

    For class k it is the density of the normalised mid-rank u, or of 1 − u for units wired against the class
    (M_ki < 0), over the samples of the class and all wired, live units. A flat density means no order. A rising one
    means that units rank the samples of a class high if they raise the class's logit: the order is preserved.

    Arguments and errors are those of :func:`class_tuning`, ``pathway`` and ``centre`` those of
    :func:`netdyn.functional.order_index`, and ``bins`` is the number of equal bins on [0, 1].

    Returns:
        float64 ``[num_classes, bins]``; each row has the mean 1. The layer's RPD is the mean over the rows. The row of
        a class that is absent, or has no wired, live unit, is NaN.

    Source:
        P1. netdyn's conventions are the normalisation of ranks, the centring, and that a rank on the edge of two bins
        counts half in each (which makes reflection exact).

    Examples:
        >>> fields = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> rank_distribution(fields, torch.tensor([0, 0, 1, 1]), torch.tensor([[-1.0], [1.0]]), num_classes=2, bins=2)
        tensor([[0., 2.],
                [0., 2.]], dtype=torch.float64)
    """
    fields = matrix("fields", fields, "[samples, units]")
    pathway = matrix("pathway", pathway, "[num_classes, units]").to(fields.device)
    target = class_labels(target, num_classes, len(fields)).to(fields.device)
    same_units("fields", fields, "pathway", pathway)
    rows_fit("pathway", pathway, num_classes)
    whole("bins", bins)
    unusable = constant_units(fields) | fields.isnan().any(dim=0)
    sign = centre_pathway(pathway, num_classes, centre).sign() * ~unusable
    rows = unit_rows(fields)
    counts = torch.zeros(num_classes, bins, dtype=torch.int64, device=fields.device)
    for part in unit_blocks(rows):
        counts += rank_counts(ranks_from(*sort_rows(rows[part])), target, sign[:, part], bins)
    return densities(counts)


def rows_fit(name: str, value: Tensor, num_classes: int) -> None:
    """Refuse a ``value`` without one row per class; a single row is enough for two classes."""
    if len(value) != num_classes and not (len(value) == 1 and num_classes == 2):
        raise ValueError(
            f"`{name}` must have a row for each of the {num_classes} classes (one row is enough for two), "
            f"got shape {list(value.shape)}."
        )


def rank_counts(doubled: Tensor, target: Tensor, sign: Tensor, bins: int) -> Tensor:
    """Twice the number of reflected normalised mid-ranks of each class in each bin: int64 ``[classes, bins]``."""
    # In whole numbers: u = D/(2S) with D = 2·midrank − 1, and reflection is D → 2S − D. With x = D·bins/(2S), the cell
    # ⌊x⌋ + ⌈x⌉ is 2b + 1 inside of bin b and 2b on the edge between b − 1 and b. The cell of a reflected rank is
    # 2·bins − cell. A rank adds two to its bin, or one to each of the two bins at whose edge it lies.
    (units, samples), classes, cells = doubled.shape, len(sign), 2 * bins + 1
    # There are far fewer different ranks than entries, so that the division is done once per rank.
    position = (torch.arange(2 * samples + 1, device=doubled.device) - 1) * bins
    most = max(2 * samples, 1)
    cell = -(-position // most) + position // most
    # Each class has three rows of cells: for units wired against it, not at all, and for it.
    row = torch.arange(1, 3 * classes, 3, device=doubled.device)[:, None] + sign.long()
    places = (row * cells).t().gather(1, target.expand(units, samples)).flatten()
    places += cell.index_select(0, doubled.flatten())
    against, _, along = occurrences(places, classes * 3 * cells).reshape(classes, 3, cells).unbind(1)
    both = along + against.flip(1)
    return 2 * both[:, 1::2] + both[:, :-1:2] + both[:, 2::2]


def densities(counts: Tensor) -> Tensor:
    """Counts ``[classes, bins]`` as densities on [0, 1]; a row without counts is NaN."""
    wide = counts.to(statistic_dtype(counts.device))
    return wide * counts.shape[1] / wide.sum(dim=1, keepdim=True)
