"""Random numbers as functions of keys and positions: the same in any batch, in any order and on any process."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from netdyn._utils.trees import Inputs, samples_first, tensors

#: The odd number nearest to 2^64 over the golden ratio: the step from one position to the next.
STEP = 0x9E3779B97F4A7C15
#: Multipliers of David Stafford's 13th variant of MurmurHash3's finaliser, as in SplitMix64.
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
#: Bytes of random numbers that a run keeps between evaluations.
MOST_KEPT = 32 << 20
#: Pairs of numbers made at a time: on a CPU few enough to fit in a core's cache.
BLOCK = {"cpu": 1 << 15}
BLOCK_ELSEWHERE = 1 << 24

T = TypeVar("T")


def digests(inputs: Inputs, by_sample: Sequence[bool] | None = None) -> Tensor:
    """A digest of each sample's content, int64 ``[samples, 2]``: the same wherever the sample is in a batch."""
    by_sample = samples_first(inputs) if by_sample is None else by_sample
    found: list[Tensor] = []
    for number, (tensor, own) in enumerate(zip(tensors(inputs), by_sample, strict=True)):
        if own:
            # A sample may have no components.
            raw = tensor.detach().contiguous().reshape(len(tensor), math.prod(tensor.shape[1:]))
            octets = raw.to(torch.uint8) if raw.dtype == torch.bool else raw.view(torch.uint8)
            missing = -octets.shape[1] % 8 if octets.shape[1] else 8
            words = F.pad(octets, (0, missing)).view(torch.int64)
            found.append(torch.stack([_summed(words, 2 * number), _summed(words, 2 * number + 1)], dim=1))
    return _mixed(torch.stack([sums.to(found[0].device) for sums in found]).sum(dim=0))


def _summed(words: Tensor, way: int) -> Tensor:
    """Σ_j mix(word_j + mix(position j)), with different positions for each ``way``; a few rows at a time."""
    positions = _mixed(torch.arange(words.shape[1], device=words.device) + (way << 40))
    rows = max(BLOCK.get(words.device.type, BLOCK_ELSEWHERE) // max(words.shape[1], 1), 1)
    return torch.cat([_mixed(part + positions).sum(dim=1) for part in torch.split(words, rows)])


@dataclass(frozen=True)
class Contents:
    """What seeds the noise of some samples: copies have the same cluster (on the CPU), but different digests."""

    digests: Tensor
    clusters: Tensor

    @classmethod
    def of(cls, inputs: Inputs, by_sample: Sequence[bool] | None = None) -> Contents:
        """The contents of inputs, samples first; ``by_sample`` as for :func:`digests`."""
        digest = digests(inputs, by_sample)
        # One half of the digest tells contents apart: two of a million share it with a probability of 3·10⁻⁸. Unique
        # rows would take a hundred times longer.
        _, cluster, sizes = torch.unique(digest[:, 0], return_inverse=True, return_counts=True)
        order = torch.argsort(cluster, stable=True)
        first = sizes.cumsum(0) - sizes
        copy = torch.empty_like(cluster)
        copy[order] = torch.arange(len(order), device=order.device) - first[cluster[order]]
        return cls(digest + _mixed(copy)[:, None], cluster.cpu())

    @cached_property
    def key(self) -> bytes:
        """What tells these contents, in this order, from others."""
        return self.digests.cpu().numpy().tobytes()

    def chosen(self, index: Tensor) -> Contents:
        """The contents of some of the samples."""
        return Contents(self.digests[index.to(self.digests.device)], self.clusters[index])

    def first(self, number: int | None) -> Tensor:
        """Indices of a fixed choice of ``number`` samples (None: all) by contents alone; on the CPU."""
        return torch.argsort(self.digests[:, 0]).cpu()[:number]


@dataclass
class Kept:
    """Random numbers that every evaluation of a run asks for, since they depend on seeds alone: kept up to a limit.

    A small network's are drawn in a tenth of its evaluation.
    """

    room: int = MOST_KEPT  # bytes that are left
    _found: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def get(self, key: Hashable, draw: Callable[[], T]) -> T:
        """The numbers that ``draw`` gives for a key, a tree of tensors that must not be written to."""
        if key in self._found:
            return self._found[key]  # type: ignore[no-any-return]
        drawn = draw()
        size = sum(tensor.nbytes for tensor in tensors(drawn))
        if size <= self.room:
            self.room -= size
            self._found[key] = drawn
        return drawn


def keys(digest: Tensor, seed: int, rays: int | Tensor, place: str) -> Tensor:
    """Two keys for each row, int64 ``[rows, 2]``, from its digest, its ray (or one ray for all), seed and place."""
    # Two digests spread the content, and seed and place, evenly over 128 bits. Each half is mixed separately, so that
    # two different rows share both keys with a probability of 2^-128.
    hashed = hashlib.blake2b(f"{seed}|{place}".encode(), digest_size=16).digest()
    seed_and_place = torch.from_numpy(np.frombuffer(hashed, dtype="<i8").astype(np.int64)).to(digest.device)
    # A ray may be any whole number, also a negative one: modulo 2^64.
    ray = torch.as_tensor(rays, dtype=torch.int64, device=digest.device).reshape(-1, 1) * _signed(STEP)
    return _mixed(digest + _mixed(seed_and_place + ray))


def uniforms(key: Tensor) -> Tensor:
    """Two numbers in [0, 1) from each row's keys, float64 ``[rows, 2]`` on the CPU."""
    return ((_mixed(key).cpu() >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def normals(key: Tensor, count: int) -> Tensor:
    """Standard normal numbers float32 ``[rows, count]``, independent within a row and between rows.

    The bits are SplitMix64's (G. Steele, D. Lea, C. Flood, 2014) for the state key₁ + (j + 1)·STEP, with key₂ added
    half-way, netdyn's convention: a hash of a counter. Box and Muller's formula turns two numbers of 32 bits into the
    pair r·cos φ, r·sin φ with r = √(−2 ln u). The largest r is 6.66; normal numbers exceed it once in 4·10¹⁰. The bits
    are the same on all devices; logarithm, root and sine may differ in the last digit.
    """
    half = -(-count // 2)
    numbers = torch.empty(len(key), count, device=key.device)
    block = BLOCK.get(key.device.type, BLOCK_ELSEWHERE)
    pairs = pairs_by_numpy if key.device.type == "cpu" else pairs_by_torch
    columns = min(half, block) or 1
    rows = max(block // columns, 1)
    for row in range(0, len(key), rows):
        for first in range(0, half, columns):
            last = min(first + columns, half)
            cosine, sine = pairs(key[row : row + rows], first, last)
            numbers[row : row + rows, first:last] = cosine
            numbers[row : row + rows, half + first : half + last] = sine[:, : count - half - first]
    return numbers


def pairs_by_torch(key: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Both halves of the pairs from number ``first`` to before ``last``: float32 ``[rows, last − first]`` each."""
    steps = torch.arange(first + 1, last + 1, device=key.device) * _signed(STEP)
    bits = _mixed_by_torch(key[:, :1] + steps, key[:, 1:])
    # As signed numbers: where the magnitude is small, which gives the tail of the normal, it keeps all of its bits.
    parts = bits.view(torch.int32).to(torch.float32).view(*bits.shape, 2)
    radius = parts[..., 0].abs().mul_(2.0**-31).add_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = parts[..., 1].mul(math.pi * 2.0**-31)
    return angle.cos().mul_(radius), angle.sin_().mul_(radius)


def pairs_by_numpy(key: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """:func:`pairs_by_torch` on the CPU, twice as fast: torch multiplies whole numbers of 64 bits one by one."""
    words = key.numpy().view(np.uint64)
    bits = words[:, :1] + np.arange(first + 1, last + 1, dtype=np.uint64) * np.uint64(STEP)
    _mix_by_numpy(bits, words[:, 1:])
    parts = bits.view(np.int32).reshape(*bits.shape, 2)
    radius = np.abs(parts[..., 0].astype(np.float32))
    radius *= np.float32(2.0**-31)
    radius += np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = parts[..., 1].astype(np.float32)
    angle *= np.float32(math.pi * 2.0**-31)
    cosine = np.cos(angle)
    cosine *= radius
    np.sin(angle, out=angle)
    angle *= radius
    return torch.from_numpy(cosine), torch.from_numpy(angle)


def seeded(generator: torch.Generator, *parts: bytes | int | str) -> torch.Generator:
    """Seed a private generator from numbers, names and digests, and return it."""
    text = b"|".join(part if isinstance(part, bytes) else str(part).encode() for part in parts)
    return generator.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1)


def _mixed(state: Tensor) -> Tensor:
    """SplitMix64's finaliser, as a new tensor."""
    if state.device.type != "cpu":
        return _mixed_by_torch(state, 0)
    mixed = state.clone()
    _mix_by_numpy(mixed.numpy().view(np.uint64), np.uint64(0))
    return mixed


def _mixed_by_torch(z: Tensor, halfway: Tensor | int) -> Tensor:
    """SplitMix64's finaliser with ``halfway`` added half-way. torch's int64 has a sign, whose copies are masked out."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _signed(FIRST) + halfway
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _signed(SECOND)
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def _mix_by_numpy(z: NDArray[np.uint64], halfway: NDArray[np.uint64] | np.uint64) -> None:
    """SplitMix64's finaliser in place, with ``halfway`` added half-way."""
    shifted = z >> np.uint64(30)
    z ^= shifted
    z *= np.uint64(FIRST)
    z += halfway
    np.right_shift(z, np.uint64(27), out=shifted)
    z ^= shifted
    z *= np.uint64(SECOND)
    np.right_shift(z, np.uint64(31), out=shifted)
    z ^= shifted


def _signed(constant: int) -> int:
    """A number of 64 bits as torch's int64, which has a sign."""
    return constant - (1 << 64) if constant >> 63 else constant
