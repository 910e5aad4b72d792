"""Whether each row of a local field is its sample's own: it must not depend on which other samples run with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdyn._utils.trees import Inputs, evenly_spaced, tensors
from netdyn.tracing.names import is_quantised
from netdyn.tracing.site import Key, Unread

#: Sums that stand for a row: each over a part of its units, with random signs.
PARTS = 4
#: Rows of two runs are the same if they differ by less than this share of their size, or this many roundings.
SAME, ROUNDINGS = 1e-3, 16
#: What is left of that for two runs of the same batch, which take the same operations.
ALIKE = 0.01
#: Most samples per pass of the run in another order: the fewer there are, the more a mixture of them shows.
TOGETHER = 256
#: Number of samples whose rows are compared at evaluations after the first one.
FEW = 16
#: Numbers of a run that are compared at a time.
AT_ONCE = 1 << 17
#: The key of the network's own outputs, among those of the local fields.
OUTPUTS: Key = ("output", "", 0)


class Rows:
    """What remains of all local fields of one run of some samples: a few numbers for each row."""

    def __init__(self, chosen: Tensor, unread: Unread | None = None) -> None:
        self.chosen = chosen  #: samples whose rows are kept, in ascending order, on the host
        self.unread = unread or Unread()  #: inputs of activations without a row for each sample
        self.precision: dict[Key, float] = {}  #: the coarsest rounding up to a local field
        self._coarsest = 0.0
        self._batches: list[Tensor] = []  # kept samples of each batch that has any
        self._rows: Tensor | None = None  # of the present batch: which rows are kept; None for all
        self._samples = 0  # in the present batch
        self._sums: dict[Key, list[Tensor]] = {}
        self._signs: dict[int, Tensor] = {}

    def begin(self, samples: Tensor) -> None:
        """Tell which samples, on the host, the next batch holds."""
        kept, self._samples = torch.isin(samples, self.chosen), len(samples)
        self._rows = None if bool(kept.all()) else kept.nonzero()[:, 0]
        if self._rows is None or len(self._rows):
            self._batches.append(samples[kept])

    def add(self, key: Key, rows: Tensor) -> None:
        """Take the rows ``[batch, units]`` of the present batch."""
        if self._rows is not None:
            if len(self._rows) == 0:
                return
            rows = rows.index_select(0, self._rows.to(rows.device))
        self._coarsest = max(self._coarsest, torch.finfo(rows.dtype).eps)
        self.precision[key] = self._coarsest
        self._sums.setdefault(key, []).append(self._reduced(rows))

    def add_outputs(self, outputs: object) -> None:
        """Take the network's outputs for the present batch, if they are one tensor."""
        one = isinstance(outputs, Tensor) and outputs.ndim > 0 and outputs.is_floating_point()
        if isinstance(outputs, Tensor) and one and len(outputs) == self._samples:
            self.add(OUTPUTS, outputs.detach().reshape(len(outputs), -1))

    def _reduced(self, rows: Tensor) -> Tensor:
        """Sums of the parts of each row, with random signs, its size and its number of units: ``[rows, PARTS + 2]``."""
        width = rows.shape[1]
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32)).nan_to_num(0.0, 0.0, 0.0)
        if width not in self._signs:
            generator = torch.Generator().manual_seed(width)
            self._signs[width] = (torch.randint(0, 2, (width,), generator=generator) * 2 - 1).to(wide)
        parts = F.pad(wide * self._signs[width], (0, -width % PARTS)).reshape(len(rows), PARTS, -1).sum(dim=2)
        return torch.cat([parts, wide.norm(dim=1)[:, None], torch.full_like(parts[:, :1], width)], dim=1)

    @property
    def keys(self) -> list[Key]:
        """The local fields that every batch has shown, and the outputs."""
        return [key for key, sums in self._sums.items() if len(sums) == len(self._batches)]

    def seen_apart(self, other: Rows) -> set[Key]:
        """The local fields that only some batches, or only one of two runs, have shown."""
        both = {*self.keys} & {*other.keys}
        return (self._sums.keys() | other._sums.keys()) - both - {OUTPUTS}

    def table(self, keys: Sequence[Key], chosen: Tensor) -> Tensor:
        """The numbers of some samples, ``[keys, samples, PARTS + 2]``, on one device."""
        order = torch.cat(self._batches).argsort()[torch.searchsorted(self.chosen, chosen)]
        device = self._sums[keys[0]][0].device
        found = torch.stack([torch.cat([part.to(device, torch.float32) for part in self._sums[key]]) for key in keys])
        return found.index_select(1, order.to(device))


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


def compare(whole: Rows, other: Rows, coarsest: float = 0.0, alike: bool = False) -> Verdict:
    """How the rows of a run of the whole probe differ from those of the same samples in another run.

    Runs that are ``alike``, of the same batch, may not even differ in the rounding of a single row.
    """
    keys = [key for key in whole.keys if key in other.keys]
    if not keys:
        return Verdict()
    rounding = [max(coarsest, whole.precision[key], other.precision[key]) for key in keys]
    part, found = ALIKE if alike else 1.0, []
    step = max(1, AT_ONCE // (len(whole.chosen) * (PARTS + 2)))
    for first in range(0, len(keys), step):
        some = keys[first : first + step]
        everything = whole.table(some, whole.chosen)
        own = everything if len(other.chosen) == len(whole.chosen) else whole.table(some, other.chosen)
        same = torch.tensor([part * max(SAME, ROUNDINGS * each) for each in rounding[first : first + step]]).to(own)
        found.append(_differing(everything, own, other.table(some, other.chosen), same[:, None]))
    counts = torch.cat(found, dim=1)
    (apart, far), samples = counts.tolist(), len(other.chosen)
    # Reordering moves two samples at least, and almost never few. A tie that rounding breaks may move one.
    refused = {key for key, count in zip(keys, far, strict=True) if count >= max(2, math.ceil(samples / 500))}
    moved = {key for key, count in zip(keys, apart, strict=True) if count >= (1 if alike else max(2.0, 0.05 * samples))}
    return Verdict(frozenset(refused) - {OUTPUTS}, frozenset(moved | refused))


def _differing(everything: Tensor, own: Tensor, other: Tensor, same: Tensor) -> Tensor:
    """Numbers of rows ``[2, keys]`` that differ by more than rounding, and by as much as different samples do."""
    # Rows of a batch that is cut to its longest sample have other units: they cannot be compared.
    known = own[..., -1] == other[..., -1]
    size = own[..., PARTS] + own[..., PARTS].median(dim=1, keepdim=True).values
    difference = (own[..., :PARTS] - other[..., :PARTS]).abs()
    beyond = difference > (same * size)[..., None]
    sums = everything[..., :PARTS]
    usual = (sums - sums.median(dim=1, keepdim=True).values).abs().median(dim=1, keepdim=True).values
    apart, far = beyond.any(dim=2), (beyond & (difference > usual)).any(dim=2)
    return torch.stack([(known & apart).sum(dim=1), (known & far).sum(dim=1)])


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


@dataclass
class RowMemory:
    """What whole runs have shown about the rows of a network, so that later evaluations need not run it once more."""

    _signature: tuple[object, ...] = ()
    _verdict: Verdict | None = None

    def recall(self, signature: tuple[object, ...]) -> Verdict | None:
        """The verdict on a survey with this signature, see :attr:`~netdyn.tracing.survey.Survey.signature`."""
        return self._verdict if signature == self._signature else None

    def keep(self, signature: tuple[object, ...], verdict: Verdict) -> None:
        """Remember a verdict, in place of the last one."""
        self._signature, self._verdict = signature, verdict
