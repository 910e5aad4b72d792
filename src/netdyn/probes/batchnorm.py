"""The batch-norm gap: how much more accurate a network is with the statistics of a batch than with running ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from netdyn._utils import checks
from netdyn._utils.trees import Inputs, usable
from netdyn.isolation.adapter import isolated_network
from netdyn.modes.ranks import statistic_dtype
from netdyn.probes.criteria import Criterion
from netdyn.probes.evaluator import Evaluator
from netdyn.probes.tasks import prepare

#: Training batch size that is assumed if it is not known.
USUAL_BATCH = 128


def batchnorm_gap(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    criterion: Criterion | None = None,
) -> float:
    """Accuracy with batch statistics in batch normalisation, minus accuracy with running statistics.

    Everything else stays in eval mode (dropout is off), and nothing is updated. Above 0 the running statistics do not
    fit the data: the network is more accurate than its eval mode shows.

    It replaces the statistics in all calls of ``torch.nn.functional.batch_norm``, in modules of any kind.
    ``SyncBatchNorm`` takes the statistics of its own process's batch. A normalisation without running statistics always
    uses its batch's, and adds nothing to the gap. Instance, group and layer normalisation take no statistics over
    samples, and stay as they are.

    Args:
        model: Any PyTorch module; called with the inputs as its ``forward`` takes them, in eval mode.
        inputs: A tensor, or a sequence or mapping of tensors, samples first: held-out data, two samples or more.
        target: Class labels ``[samples]`` (or what ``criterion`` takes).
        batch_size: Least number of samples per shuffled batch, for instance the training's batch size; None: all in
            one batch.
        seed: Seed of the shuffle.
        criterion: As in :func:`netdyn.functional.sample_basin`.

    Returns:
        The difference of the two accuracies, in [−1, 1]; NaN if there is no batch normalisation.

    Raises:
        TypeError: If an argument has the wrong type, or the labels are not whole numbers.
        ValueError: If an argument lies outside its range, there are fewer than two samples or the output is not
            ``[samples, classes]``.

    Source:
        P1: in deep networks grokking is largely the closing of this gap. The batches are netdyn's convention.

    Examples:
        >>> import torch
        >>> net = nn.BatchNorm1d(2, affine=False)  # untrained: mean 0, variance 1, so that class 1 always wins
        >>> batchnorm_gap(net, torch.tensor([[2.0, 10.0], [0.0, 12.0]]), torch.tensor([0, 1]))
        0.5
    """
    if batch_size is not None:
        checks.whole("batch_size", batch_size, minimum=2)
    checks.whole("seed", seed, minimum=0)
    checks.function("criterion", criterion)
    with isolated_network(model) as network:
        return measure_gap(prepare(network, inputs, target, criterion, None), batch_size, seed)


class BatchStatistics(TorchFunctionMode):
    """Batch normalisation, wherever it is called, uses the batch's statistics; the running ones are not updated."""

    found = False  # whether there was any batch normalisation
    fixed = True  # whether all of them have running statistics

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        self.found = True
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        self.fixed &= given["running_mean"] is not None and not given.get("training")
        return func(**given | {"running_mean": None, "running_var": None, "training": True})


def shuffled_batches(samples: int, batch_size: int | None, seed: int) -> Iterator[Tensor]:
    """All samples in random order, in as many batches of at least ``batch_size`` (and two) as fit (None: in one)."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    number = max(samples // max(batch_size, 2), 1) if batch_size else 1
    # Sizes differ by one at most: a small last batch would have different statistics.
    yield from order.tensor_split(number)


def right_answers_gained(
    evaluator: Evaluator, batch_size: int | None, seed: int, right: Tensor | None = None
) -> Tensor | None:
    """How many more samples an isolated network gets right with batch statistics; None without batch normalisation.

    ``right`` says which samples are right with running statistics, if that is known.
    """
    if evaluator.samples < 2:
        raise ValueError(
            f"`inputs` must hold at least two samples, since a single one has no variance, got {evaluator.samples}."
        )
    statistics = BatchStatistics()
    with statistics:
        evaluator.outputs(evaluator.batch(slice(0, 2))[0])
    if not statistics.found:
        return None
    if not statistics.fixed:
        # Both runs must use the same batches, so that a normalisation that always takes its batch's adds nothing.
        right = None
    gained = torch.zeros((), dtype=statistic_dtype(evaluator.target.device), device=evaluator.target.device)
    weight = torch.ones(evaluator.samples) if evaluator.weight is None else evaluator.weight
    weight = weight.to(gained)
    for index in shuffled_batches(evaluator.samples, batch_size, seed):
        index = index.to(evaluator.target.device)
        with statistics:
            gained += (evaluator.right(*evaluator.batch(index)) * weight[index]).sum()
        before = evaluator.right(*evaluator.batch(index)) if right is None else right[index]
        gained -= (before * weight[index]).sum()
    return gained


def measure_gap(evaluator: Evaluator, batch_size: int | None, seed: int, right: Tensor | None = None) -> float:
    """The gap of an isolated network; NaN if there is no batch normalisation; ``right`` as above.

    Samples that hold NaN are left out: they would be in the statistics of all.
    """
    index = usable(evaluator.inputs)
    if index is not None and len(index) > 1:
        evaluator, right = evaluator.only(index), None if right is None else right[index.to(right.device)]
    gained = right_answers_gained(evaluator, batch_size, seed, right)
    return math.nan if gained is None else float(gained) / evaluator.samples
