"""One batch of model inputs as a tree of tensors: count it, cut it, hash it, disturb it.

Inputs are a tensor, a sequence or a mapping of them, handed to the model as one argument. A tensor whose first
dimension is the number of samples is cut with the samples; any other leaf travels whole. Noise falls on floating
tensors only: token ids and masks stay as they are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from netdyn._utils.random import Keys, keys, normals
from netdyn._utils.transit import sent

Inputs = Any
"""A tensor, or a (nested) sequence or mapping of tensors."""


def map_tensors(
    function: Callable[..., Any], inputs: Inputs, *others: Inputs, other: Callable[[Any], Any] | None = None
) -> Inputs:
    """Apply ``function`` to every tensor of ``inputs`` (with its twins in ``others``), keeping the structure.

    What is neither a tensor nor a sequence or mapping is kept, or handed to ``other``.
    """
    if isinstance(inputs, Tensor):
        return function(inputs, *others)
    if isinstance(inputs, Mapping):
        mapped = {k: map_tensors(function, v, *(o[k] for o in others), other=other) for k, v in inputs.items()}
        return mapped if type(inputs) is dict else _rebuild(inputs, mapped)
    if isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes):
        items = [map_tensors(function, v, *(o[i] for o in others), other=other) for i, v in enumerate(inputs)]
        if hasattr(inputs, "_fields"):
            return type(inputs)(*items)
        return _rebuild(inputs, items)
    return inputs if other is None else other(inputs)


def _rebuild(like: Any, content: Any) -> Any:
    """A container of the type of ``like``, or a plain one where its constructor takes something else."""
    try:
        return type(like)(content)
    except TypeError:
        return content


def tensors(inputs: Inputs) -> list[Tensor]:
    """All tensors of the tree, in order."""
    found: list[Tensor] = []
    map_tensors(lambda tensor: found.append(tensor), inputs)
    return found


def leaf_names(inputs: Inputs, path: str = "") -> list[str]:
    """The path to each tensor, in order: keys and positions, joined by dots; empty for a tensor alone.

    >>> leaf_names({"a": torch.zeros(1), "b": [torch.zeros(1), torch.ones(1)]})
    ['a', 'b.0', 'b.1']
    """
    if isinstance(inputs, Tensor):
        return [path]
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(inputs, Mapping):
        items = inputs.items()
    elif isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes):
        items = enumerate(inputs)
    return [name for key, value in items for name in leaf_names(value, f"{path}.{key}" if path else str(key))]


def count(inputs: Inputs) -> int:
    """Number of samples: the first dimension of the first tensor.

    Raises:
        TypeError: If there is no tensor with a sample dimension.
    """
    for tensor in tensors(inputs):
        if tensor.ndim:
            return len(tensor)
    raise TypeError(
        "`inputs` must be a tensor, or a sequence or mapping of tensors, with samples first; "
        f"got {type(inputs).__name__}."
    )


def sample_tensors(inputs: Inputs) -> tuple[bool, ...]:
    """Which tensors have the samples first, in order.

    In a part of the samples a tensor of another meaning may happen to have their number of rows: whoever cuts, hashes
    or disturbs parts asks the whole once, and hands the answer on as ``cut``.
    """
    samples = count(inputs)
    return tuple(bool(tensor.ndim) and len(tensor) == samples for tensor in tensors(inputs))


def take(inputs: Inputs, index: Tensor | slice, cut: Sequence[bool] | None = None) -> Inputs:
    """The chosen samples: copies for numbers or flags, views for a slice."""
    turn = iter(sample_tensors(inputs) if cut is None else cut)
    return map_tensors(lambda tensor: _rows(tensor, index) if next(turn) else tensor, inputs)


def _rows(tensor: Tensor, index: Tensor | slice) -> Tensor:
    if isinstance(index, slice) or index.dtype != torch.int64 or tensor.layout != torch.strided:
        return tensor[index]
    # Several times faster than indexing where rows are long.
    return tensor.index_select(0, sent(index, tensor.device))


def consecutive(index: Tensor) -> Tensor | slice:
    """Numbers on the CPU as a slice, where each is one more than the last, so that nothing need be copied.

    >>> consecutive(torch.tensor([3, 4, 5])), consecutive(torch.tensor([3, 5]))
    (slice(3, 6, None), tensor([3, 5]))
    """
    if len(index) and bool((index.diff() == 1).all()):
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def copied(inputs: Inputs) -> Inputs:
    """A copy of every tensor, outside of any graph."""
    return map_tensors(lambda tensor: tensor.detach().clone(), inputs)


class Scratch:
    """Memory for one batch of inputs, used again for the next one: to allocate it anew costs more than to fill it.

    What it held before is lost; a smaller batch lies in the memory of a larger one.
    """

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}
        self._filled: dict[int, tuple[Tensor, Any, int]] = {}
        self._sound: dict[int, bool] = {}

    def like(self, place: int, tensor: Tensor) -> Tensor:
        """Memory of the shape and type of a tensor, the ``place``-th of its batch; its content is arbitrary."""
        held = self._held.get(place)
        if not tensor.ndim or tensor.layout != torch.strided:
            return torch.empty_like(tensor)
        if (
            held is None
            or len(held) < len(tensor)
            or (held.shape[1:], held.dtype, held.device) != (tensor.shape[1:], tensor.dtype, tensor.device)
        ):
            held = self._held[place] = torch.empty_like(tensor, requires_grad=False)
        return held[: len(tensor)]

    def filled(self, inputs: Inputs) -> Inputs:
        """A copy of every tensor, outside of any graph, good until the next one is asked for."""
        place = iter(range(len(tensors(inputs))))
        return map_tensors(lambda tensor: self._copy(next(place), tensor), inputs)

    def _copy(self, place: int, tensor: Tensor) -> Tensor:
        """The copy of the last time, if the same is wanted again and nobody has written over it.

        A tensor's version tells of writing to it, but not of writing through ``.data`` or NumPy. Whether a network does
        that is seen by comparing once, after the first pass.
        """
        room = self.like(place, tensor)
        wanted = None
        # On another device a comparison would have to be waited for, and a copy takes next to no time.
        if not tensor.is_inference() and tensor.device.type == "cpu":
            wanted = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version)
        if wanted is not None and self._filled.get(place, ())[1:] == (wanted, room._version):
            if place not in self._sound:
                self._sound[place] = torch.equal(room, tensor)
            if self._sound[place]:
                return room
        room.copy_(tensor.detach())
        # With the tensor itself, so that its memory is not meanwhile another's.
        self._filled[place] = (tensor.detach(), wanted, room._version)
        return room


def blocks(samples: int, batch_size: int | None) -> Iterator[slice]:
    """Consecutive slices of at most ``batch_size`` samples (None: one slice)."""
    size = batch_size or max(samples, 1)
    for start in range(0, samples, size):
        yield slice(start, min(start + size, samples))


def spread(samples: int, wanted: int) -> Tensor:
    """Indices of ``wanted`` samples at even distances (all, if there are fewer)."""
    wanted = min(samples, wanted)
    return torch.div(torch.arange(wanted) * samples, max(wanted, 1), rounding_mode="floor")


def has_floating(inputs: Inputs) -> bool:
    """Whether there is a tensor that noise can disturb: floating, with the samples first."""
    return any(own and t.is_floating_point() for t, own in zip(tensors(inputs), sample_tensors(inputs), strict=True))


def finite(inputs: Inputs) -> Tensor:
    """Whether all floating tensors are finite, bool scalar, on the device of the first."""
    found = [tensor.isfinite().all() for tensor in tensors(inputs) if tensor.is_floating_point()]
    return torch.stack([each.to(found[0].device) for each in found]).all() if found else torch.tensor(True)


def fingerprints(inputs: Inputs, cut: Sequence[bool] | None = None) -> list[bytes]:
    """A digest of each sample's content; equal samples have equal digests, wherever they stand in a batch."""
    cut = sample_tensors(inputs) if cut is None else cut
    samples = next(len(tensor) for tensor, own in zip(tensors(inputs), cut, strict=True) if own)
    digests = [hashlib.blake2b(digest_size=16) for _ in range(samples)]
    for tensor, own in zip(tensors(inputs), cut, strict=True):
        if own:
            raw = tensor.detach().cpu().contiguous().reshape(samples, -1)
            rows = raw.view(torch.uint8).numpy() if raw.dtype != torch.bool else raw.to(torch.uint8).numpy()
            for digest, row in zip(digests, rows, strict=True):
                digest.update(row)
    return [digest.digest() for digest in digests]


def seeded(generator: torch.Generator, *parts: bytes | int | str) -> torch.Generator:
    """Seed a private generator from any mixture of numbers, names and digests."""
    text = b"|".join(part if isinstance(part, bytes) else str(part).encode() for part in parts)
    return generator.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1)


def standard_noise(
    inputs: Inputs, prints: Sequence[bytes], seed: int, ray: int | Sequence[int], cut: Sequence[bool] | None = None
) -> Inputs:
    """Standard normal noise for every floating tensor, a function of (seed, ray, the sample's content) alone.

    It is calculated on the CPU, so that neither the order of the samples, nor how they are batched, nor the device
    changes it. Other tensors, and those that ``cut`` leaves out, have None in their place. ``inputs`` give the shapes;
    rows are drawn for ``prints``, with ``ray`` one for all, or one for each.
    """
    turn = iter(enumerate(sample_tensors(inputs) if cut is None else cut))

    def drawn(tensor: Tensor) -> Tensor | None:
        place, own = next(turn)
        if not (own and tensor.is_floating_point()):
            return None
        return noise_rows(keys(prints, seed, ray, str(place)), tensor.shape[1:], tensor.device)

    return map_tensors(drawn, inputs)


def noise_rows(key: Keys, shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal rows of some shape, float32 ``[rows, *shape]``, from their keys ``[rows, 2]``."""
    return sent(torch.from_numpy(normals(key, math.prod(shape))).reshape(len(key), *shape), device)


def disturb(inputs: Inputs, noise: Inputs, sigma: Tensor, scratch: Scratch | None = None) -> Inputs:
    """``inputs + sigma * noise`` with one noise level a sample, ``sigma [samples]``; computed in float32 or better.

    The result shares no memory with the inputs: the network may write over it, and they are needed again. With a
    ``scratch`` it lies there, until that is used again.
    """
    scratch = Scratch() if scratch is None else scratch
    place = iter(range(len(tensors(inputs))))

    def add(clean: Tensor, drawn: Tensor | None) -> Tensor:
        room = scratch.like(next(place), clean)
        if drawn is None:
            return room.copy_(clean.detach())
        level = sent(sigma, clean.device).reshape(-1, *[1] * (clean.ndim - 1))
        wide = torch.promote_types(clean.dtype, torch.float32)
        if clean.dtype != wide or clean.dtype != drawn.dtype:
            return room.copy_(clean.detach().to(wide) + level.to(wide) * drawn.to(wide))
        return torch.mul(drawn, level.to(wide), out=room).add_(clean.detach())

    return map_tensors(add, inputs, noise)
