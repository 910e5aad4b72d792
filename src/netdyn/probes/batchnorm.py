"""Does batch normalisation lie: how much better is the network with the statistics of a batch than with its own?

The network runs as it is, in eval mode. A :class:`~torch.overrides.TorchFunctionMode` sees every call of batch
normalisation, whatever module or function made it, and lets it use the statistics of the batch. The module's own
statistics are not even handed over, so that nothing can be updated, and no flag is set that would have to be set back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from netdyn._utils.transit import sent
from netdyn.probes.evaluator import Walk


class _BatchStatistics(TorchFunctionMode):
    """Batch normalisation uses the batch's mean and variance; ``met`` says whether there was any."""

    def __init__(self) -> None:
        super().__init__()
        self.met = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        self.met = True
        return _with_batch_statistics(*args, **kwargs)


def _with_batch_statistics(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    return F.batch_norm(input, None, None, weight, bias, training=True, momentum=momentum, eps=eps)


def shuffled_batches(samples: int, batch_size: int | None, seed: int) -> Iterator[Tensor]:
    """All samples in random order, in as many batches of at least ``batch_size`` as there can be (None: in one).

    Sizes differ by one at most: a small last batch would have statistics of its own. A batch holds two samples at
    least, since one has none.

    >>> [len(batch) for batch in shuffled_batches(11, 3, seed=0)]
    [4, 4, 3]
    """
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    number = max(samples // max(batch_size, 2), 1) if batch_size else 1
    yield from order.tensor_split(number)


def right_answers_gained(walk: Walk, batch_size: int | None, seed: int) -> Tensor | None:
    """How many more samples are right with the statistics of a batch; None where nothing is batch-normalised.

    Works on a network that is isolated already. Both runs use the same batches, so that a normalisation without
    statistics of its own, which always takes its batch's, adds nothing to the difference.

    Raises:
        ValueError: If there are fewer than two samples.
    """
    if walk.samples < 2:
        raise ValueError(
            f"`inputs` must hold at least two samples, of which a batch can have statistics, got {walk.samples}."
        )
    statistics = _BatchStatistics()
    with statistics:
        # Two samples show whether there is anything to normalise.
        walk.outputs(walk.batch(slice(0, 2))[0])
    if not statistics.met:
        return None
    gained = torch.zeros((), dtype=torch.int64, device=walk.target.device)
    for index in shuffled_batches(walk.samples, batch_size, seed):
        index = sent(index, walk.target.device)
        with statistics:
            gained += walk.right(*walk.batch(index)).sum()
        gained -= walk.right(*walk.batch(index)).sum()
    return gained


def batchnorm_gap(walk: Walk, batch_size: int | None = None, seed: int = 0) -> float:
    """The gap of a network that is isolated already, see :func:`netdyn.functional.batchnorm_gap`.

    Every process of a crew asks the whole probe, since statistics belong to whole batches; the first one's answer
    counts for all.
    """

    def gained() -> int | None:
        found = right_answers_gained(walk, batch_size, seed)
        return None if found is None else int(found)

    first = walk.crew.share(gained)[0]
    return math.nan if first is None else first / walk.samples
