"""Whether each row of a local field is its sample's own: it must not depend on which other samples run with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdyn._utils.trees import Inputs, evenly_spaced, numbers, tensors
from netdyn.tracing.names import is_quantised
from netdyn.tracing.site import Key, Unread

#: Sums that stand for a row: each over a part of its units, with random signs.
PARTS = 16
#: Rows of two runs are the same if they differ by less than this share of their size, or this many roundings.
SAME, ROUNDINGS = 1e-3, 16
#: Most samples per pass of the run in another order: the fewer there are, the more a mixture of them shows.
TOGETHER = 256
#: Number of samples whose rows are compared at evaluations after the first one.
FEW = 16
#: The key of the network's own outputs, among those of the local fields.
OUTPUTS: Key = ("output", "", 0)


class Rows:
    """What remains of all local fields of one run of some samples: a few numbers for each row."""

    def __init__(self, chosen: Tensor, unread: Unread | None = None) -> None:
        self.chosen = chosen  #: samples whose rows are kept, in ascending order, on the host
        self.sums: dict[Key, Tensor] = {}  #: ``[samples, PARTS + 2]``: sums, size and number of units; NaN: not seen
        self.unread = unread or Unread()  #: inputs of activations without a row for each sample
        self.precision: dict[Key, float] = {}  #: the coarsest rounding up to a local field
        self._coarsest = 0.0

    def add(self, key: Key, rows: Tensor, samples: Tensor) -> None:
        """Take the rows ``[batch, units]`` of some samples."""
        places = torch.searchsorted(self.chosen, samples).clamp(max=len(self.chosen) - 1)
        wanted = (self.chosen[places] == samples).nonzero()[:, 0]
        if len(wanted) == 0:
            return
        self._coarsest = max(self._coarsest, torch.finfo(rows.dtype).eps)
        self.precision[key] = self._coarsest
        kept = rows if len(wanted) == len(samples) else rows.index_select(0, wanted.to(rows.device))
        found = _sums(kept)
        if key not in self.sums:
            self.sums[key] = found.new_full((len(self.chosen), found.shape[1]), math.nan)
        self.sums[key][places[wanted].to(found.device)] = found

    def seen_apart(self, other: Rows) -> set[Key]:
        """The local fields that only one of two runs has."""
        return (self.sums.keys() ^ other.sums.keys()) - {OUTPUTS}

    def add_outputs(self, outputs: object, samples: Tensor) -> None:
        """Take the network's outputs for some samples, if they are one tensor."""
        if (
            isinstance(outputs, Tensor)
            and outputs.is_floating_point()
            and outputs.ndim
            and len(outputs) == len(samples)
        ):
            self.add(OUTPUTS, outputs.detach().reshape(len(outputs), -1), samples)


def _sums(rows: Tensor) -> Tensor:
    """Sums of the parts of each row, with random signs, its size, and its number of units."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32)).nan_to_num(0.0, 0.0, 0.0)
    width = rows.shape[1]
    generator = torch.Generator().manual_seed(width)
    signs = torch.randint(0, 2, (width,), generator=generator).to(wide.device) * 2 - 1
    parts = F.pad(wide * signs, (0, -width % PARTS)).reshape(len(rows), PARTS, -1).sum(dim=2)
    return torch.cat([parts, wide.norm(dim=1)[:, None], torch.full_like(parts[:, :1], width)], dim=1)


@dataclass(frozen=True)
class Verdict:
    """How the rows of two runs of the same samples, in another order and other company, differ."""

    refused: frozenset[Key] = frozenset()  #: local fields whose rows are not their samples' own
    moved: frozenset[Key] = frozenset()  #: those, and the outputs, that depend on the other samples of a batch

    def __or__(self, other: Verdict) -> Verdict:
        return Verdict(self.refused | other.refused, self.moved | other.moved)

    def without(self, other: Verdict) -> Verdict:
        """Only what is not in another verdict."""
        random = other.refused | other.moved
        return Verdict(self.refused - random, self.moved - random)


def compare(whole: Rows, other: Rows, coarsest: float = 0.0) -> Verdict:
    """How the rows of a run of the whole probe differ from those of the same samples in another run."""
    places = torch.searchsorted(whole.chosen, other.chosen)
    keys = [key for key in whole.sums if key in other.sums]
    counts = []
    for key in keys:
        rounding = max(coarsest, whole.precision[key], other.precision[key])
        counts.append(_differing(whole.sums[key], places, other.sums[key], max(SAME, ROUNDINGS * rounding)))
    found = dict(zip(keys, numbers(counts), strict=True))
    samples = len(other.chosen)
    # Reordering moves two samples at least, and almost never few. A tie that rounding breaks may move one.
    refused = {key for key, (_, far) in found.items() if far >= max(2, math.ceil(samples / 500))}
    moved = {key for key, (apart, _) in found.items() if apart >= max(2.0, 0.05 * samples)}
    return Verdict(frozenset(refused) - {OUTPUTS}, frozenset(moved | refused))


def _differing(whole: Tensor, places: Tensor, other: Tensor, same: float) -> Tensor:
    """Numbers of rows ``[2]`` that differ by more than rounding, and by as much as those of different samples do."""
    own = whole[places.to(whole.device)]
    # Rows of a batch that is cut to its longest sample have other units: they cannot be compared.
    known = ~((own[:, -1] != other[:, -1]) & own[:, -1].isfinite() & other[:, -1].isfinite())
    size = own[:, PARTS] + own[:, PARTS].nanmedian()
    difference = (own[:, :PARTS] - other[:, :PARTS]).abs()
    beyond = difference > (same * size)[:, None]
    usual = (whole[:, :PARTS] - whole[:, :PARTS].nanmedian(dim=0).values).abs().nanmedian(dim=0).values
    missing = own[:, 0].isnan() | other[:, 0].isnan()
    apart = known & (beyond.any(dim=1) | missing)
    far = known & ((beyond & (difference > usual)).any(dim=1) | missing)
    return torch.stack([apart.sum(), far.sum()])


def other_parts(samples: int, batch_size: int | None, few: bool = False) -> list[Tensor]:
    """Batches of all samples, or of a few, in another order and company than in the reading; none of one alone."""
    if few:
        chosen = evenly_spaced(samples, FEW)
        return [chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]]
    size = min(TOGETHER, math.ceil(min(batch_size or samples, samples) / 2))
    pieces = max(1, min(math.ceil(samples / size), samples // 2))
    return list(torch.tensor_split(torch.randperm(samples, generator=torch.Generator().manual_seed(0)), pieces))


def coarsest_rounding(model: nn.Module, inputs: Inputs) -> float:
    """The relative rounding that the types of the local fields do not show: of int8 layers, and of TF32 on a GPU."""
    if any(is_quantised(module) for module in model.modules()):
        return 2.0**-7
    return 2.0**-10 if any(tensor.is_cuda for tensor in tensors(inputs)) else 0.0


class RowMemory:
    """What whole runs have shown about the rows of a network, so that later evaluations need not run it once more."""

    def __init__(self) -> None:
        self._signature: tuple[object, ...] = ()
        self._verdict: Verdict | None = None

    def recall(self, signature: tuple[object, ...]) -> Verdict | None:
        """The verdict on a survey with this signature, see :attr:`~netdyn.tracing.survey.Survey.signature`."""
        return self._verdict if signature == self._signature else None

    def keep(self, signature: tuple[object, ...], verdict: Verdict) -> None:
        """Remember a verdict, in place of the last one."""
        self._signature, self._verdict = signature, verdict
