"""Random numbers as functions of keys and places: nothing is drawn in turn, so that nothing depends on an order.

Each row of numbers has two keys of 64 bits, made from a seed, a ray, a sample's content and the place where the noise
falls. Number j of a row is a function of the keys and of j alone: whichever rows are made together, in whatever order,
on whatever device, each comes out the same. Everything is calculated in whole numbers on the device of the keys.

Layout: digests and keys int64 ``[rows, 2]``, numbers ``[rows, count]``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from netdyn._utils.trees import Inputs, samples_first, tensors

#: The odd number nearest to 2^64 over the golden ratio: the step from one place to the next.
STEP = 0x9E3779B97F4A7C15
#: Multipliers of David Stafford's 13th variant of MurmurHash3's finaliser, as in SplitMix64.
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
#: Pairs of numbers made at a time: on a CPU few enough to stay in a core's cache.
BLOCK = {"cpu": 1 << 15}
BLOCK_ELSEWHERE = 1 << 24


def digests(inputs: Inputs, by_sample: Sequence[bool] | None = None) -> Tensor:
    """A digest of each sample's content: equal samples have equal digests, wherever they stand in a batch.

    Words of 64 bits are mixed with their places in two ways and summed up.

    Args:
        inputs: Samples first.
        by_sample: Which of the tensors have the samples first; None: found here.
    """
    found: Tensor | None = None
    for number, (tensor, own) in enumerate(
        zip(tensors(inputs), samples_first(inputs) if by_sample is None else by_sample, strict=True)
    ):
        if own:
            raw = tensor.detach().contiguous().reshape(len(tensor), -1)
            octets = raw.to(torch.uint8) if raw.dtype == torch.bool else raw.view(torch.uint8)
            words = F.pad(octets, (0, -octets.shape[1] % 8)).view(torch.int64)
            sums = torch.stack([_summed(words, 2 * number), _summed(words, 2 * number + 1)], dim=1)
            found = sums if found is None else found + sums.to(found.device)
    assert found is not None  # a tensor with the samples first has been counted
    return _mixed(found)


def _summed(words: Tensor, way: int) -> Tensor:
    """Σ_j mix(word_j + place_j), the places being other ones for each ``way``; a few rows at a time."""
    places = _mixed(torch.arange(words.shape[1], device=words.device) + (way << 40))
    rows = max(BLOCK.get(words.device.type, BLOCK_ELSEWHERE) // max(words.shape[1], 1), 1)
    sums = [_mixed(part + places).sum(dim=1) for part in torch.split(words, rows)]
    return torch.cat(sums)


@dataclass(frozen=True)
class Contents:
    """What seeds the noise of some samples, and which of them are copies of one another.

    Attributes:
        digests: A digest of each sample's content and of its occurrence among samples of equal content, int64
            ``[samples, 2]``.
        clusters: The number of its content, int64 ``[samples]`` on the CPU.

    Example:
        >>> found = Contents.of(torch.tensor([[1.0], [0.0], [1.0]]))
        >>> bool(found.clusters[0] == found.clusters[2]), bool((found.digests[0] == found.digests[2]).all())
        (True, False)
    """

    digests: Tensor
    clusters: Tensor

    @classmethod
    def of(cls, inputs: Inputs, by_sample: Sequence[bool] | None = None) -> Contents:
        """Those of inputs, samples first; ``by_sample`` as for :func:`digests`."""
        digest = digests(inputs, by_sample)
        cluster: Tensor = torch.unique(digest, dim=0, return_inverse=True)[1]
        order = torch.argsort(cluster, stable=True)
        place, ordered = torch.arange(len(order), device=order.device), cluster[order]
        begins = torch.ones_like(ordered, dtype=torch.bool)
        begins[1:] = ordered[1:] != ordered[:-1]
        occurrence = torch.empty_like(cluster)
        occurrence[order] = place - torch.where(begins, place, 0).cummax(dim=0).values
        return cls(digest + _mixed(occurrence)[:, None], cluster.cpu())

    def chosen(self, index: Tensor) -> Contents:
        """Those of some of the samples."""
        return Contents(self.digests[index.to(self.digests.device)], self.clusters[index])

    def first(self, number: int) -> Tensor:
        """A choice of so many samples that depends on contents alone: indices on the CPU."""
        return torch.argsort(self.digests[:, 0]).cpu()[:number]


def keys(digest: Tensor, seed: int, rays: int | Tensor, place: str) -> Tensor:
    """Two keys for each row: of its digest, its ray (or one for all), the seed and the place.

    The digest spreads contents evenly over 128 bits, and another one spreads seed and place; each half goes through
    the finaliser on a way of its own. Two rows that differ in anything share both keys with a probability of 2^-128.
    """
    own = hashlib.blake2b(f"{seed}|{place}".encode(), digest_size=16).digest()
    spread = torch.from_numpy(np.frombuffer(own, dtype="<i8").astype(np.int64)).to(digest.device)
    # Rays are counted upward from any number: modulo 2^64.
    turn = torch.as_tensor(rays, dtype=torch.int64, device=digest.device).reshape(-1, 1) * _signed(STEP)
    return _mixed(digest + _mixed(spread + turn))


def uniforms(key: Tensor) -> Tensor:
    """Two numbers in [0, 1) from each row's keys, float64 ``[rows, 2]`` on the CPU."""
    return ((_mixed(key).cpu() >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def normals(key: Tensor, count: int) -> Tensor:
    """Standard normal numbers float32 ``[rows, count]``, independent within a row and between rows.

    Bits are SplitMix64's for the state key₁ + (j + 1)·STEP, with key₂ added half-way: a counter behind a hash, which
    can be asked at any place. Two numbers of 32 bits give by Box and Muller's formula the pair r·cos φ, r·sin φ with r
    = √(−2 ln u): its largest value is 6.66, which normal numbers exceed once in 4·10¹⁰. The bits are the same on every
    device; logarithm, root and sine may differ in the last digit.

    Source:
        G. Steele, D. Lea, C. Flood, Fast splittable pseudorandom number generators (2014); G. Box, M. Muller, A note
        on the generation of random normal deviates (1958). The second key is netdyn's convention.

    Example:
        >>> key = keys(torch.tensor([[1, 2]]), seed=0, rays=torch.tensor([0, 1]), place="")
        >>> bool((normals(key, 5)[1:] == normals(key[1:], 5)).all())
        True
    """
    half = -(-count // 2)
    made = torch.empty(len(key), count, device=key.device)
    block = BLOCK.get(key.device.type, BLOCK_ELSEWHERE)
    pairs = _pairs_on_cpu if key.device.type == "cpu" else _pairs
    columns = min(half, block) or 1
    rows = max(block // columns, 1)
    for row in range(0, len(key), rows):
        for first in range(0, half, columns):
            last = min(first + columns, half)
            cosine, sine = pairs(key[row : row + rows], first, last)
            made[row : row + rows, first:last] = cosine
            made[row : row + rows, half + first : half + last] = sine[:, : count - half - first]
    return made


def _pairs(key: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Both halves of the pairs from number ``first`` to before ``last``: float32 ``[rows, last − first]`` each."""
    places = torch.arange(first + 1, last + 1, device=key.device) * _signed(STEP)
    bits = _mixed_by_torch(key[:, :1] + places, key[:, 1:])
    # As signed numbers: the magnitude keeps all bits where it is small, which is where the tail of the normal is.
    parts = bits.view(torch.int32).to(torch.float32).view(*bits.shape, 2)
    radius = parts[..., 0].abs().mul_(2.0**-31).add_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = parts[..., 1].mul(math.pi * 2.0**-31)
    return angle.cos().mul_(radius), angle.sin_().mul_(radius)


def _pairs_on_cpu(key: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """:func:`_pairs` by NumPy, which is twice as fast there: torch multiplies whole numbers of 64 bits one by one."""
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
    """Seed a private generator from any mixture of numbers, names and digests."""
    text = b"|".join(part if isinstance(part, bytes) else str(part).encode() for part in parts)
    return generator.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1)


def _mixed(state: Tensor) -> Tensor:
    """SplitMix64's finaliser of some states, as new ones."""
    if state.device.type != "cpu":
        return _mixed_by_torch(state, 0)
    mixed = state.numpy().view(np.uint64).copy()
    _mix_by_numpy(mixed, np.uint64(0))
    return torch.from_numpy(mixed.view(np.int64))


def _mixed_by_torch(z: Tensor, halfway: Tensor | int) -> Tensor:
    """The finaliser, with something added half-way. torch's numbers of 64 bits have a sign, which is masked away."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _signed(FIRST) + halfway
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _signed(SECOND)
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def _mix_by_numpy(z: NDArray[np.uint64], halfway: NDArray[np.uint64] | np.uint64) -> None:
    """The same, in place."""
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
    """A number of 64 bits as torch has it, with a sign."""
    return constant - (1 << 64) if constant >> 63 else constant
