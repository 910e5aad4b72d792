"""Standard normal numbers as a function of keys and positions, instead of numbers drawn one after the other.

Each row of numbers has two keys of 64 bits, made from a seed, a ray, a sample's content and the place where the noise
falls. Number j of a row depends on the keys and on j alone. A row is therefore the same in any batch, in any order and
on any process. Everything is calculated on whole arrays on the CPU.

Layout: keys ``[rows, 2]``, numbers ``[rows, count]``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from netdyn._utils.trees import Inputs, samples_first, tensors

Keys = NDArray[np.uint64]

#: The odd number nearest to 2^64 over the golden ratio: the step from one position to the next.
STEP = np.uint64(0x9E3779B97F4A7C15)
#: Multipliers and shifts of David Stafford's 13th variant of MurmurHash3's finaliser, as in SplitMix64.
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
#: Pairs of numbers made at a time: few enough to fit in the processor's cache.
BLOCK = 1 << 15


def keys(digests: Sequence[bytes], seed: int, rays: int | Sequence[int], place: str) -> Keys:
    """Two keys for each row, made from its digest of 16 bytes, its ray (or one ray for all), the seed and the place.

    The digest spreads the content evenly over 128 bits; a second digest does the same for seed and place. Each half
    goes through the finaliser separately. Two different rows share both keys with a probability of 2^-128.
    """
    content = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2).astype(np.uint64)
    seed_and_place = hashlib.blake2b(f"{seed}|{place}".encode(), digest_size=16).digest()
    # A ray may be any whole number, also a negative one: modulo 2^64.
    ray = np.asarray(rays, dtype=np.int64).reshape(-1, 1).astype(np.uint64)
    return splitmix64(content + splitmix64(np.frombuffer(seed_and_place, dtype="<u8").astype(np.uint64) + ray * STEP))


def normals(key: Keys, count: int, block: int = BLOCK) -> NDArray[np.float32]:
    """Standard normal numbers float32 ``[rows, count]``, independent within a row and between rows.

    The bits are SplitMix64's for the state key₁ + (j + 1)·STEP, with key₂ added half-way: a hash of a counter, which
    can be evaluated at any position. Box and Muller's formula turns two numbers of 32 bits into the pair r·cos φ,
    r·sin φ with r = √(−2 ln u). The largest r is 6.66; normal numbers exceed it once in 4·10¹⁰.

    Args:
        key: Keys ``[rows, 2]``, see :func:`keys`.
        count: Numbers per row.
        block: Pairs of numbers made at a time.

    Source:
        G. Steele, D. Lea, C. Flood, Fast splittable pseudorandom number generators (2014); G. Box, M. Muller, A note
        on the generation of random normal deviates (1958). The second key is netdyn's convention.

    Example:
        >>> key = keys([b"sample of 16 b.."], seed=0, rays=[0, 1], place="")
        >>> bool((normals(key, 5)[1:] == normals(key[1:], 5)).all())
        True
    """
    half = -(-count // 2)
    numbers = np.empty((len(key), count), dtype=np.float32)
    columns = min(half, block) or 1
    rows = max(block // columns, 1)
    for row in range(0, len(key), rows):
        some = key[row : row + rows]
        for first in range(0, half, columns):
            last = min(first + columns, half)
            bits = some[:, :1] + np.arange(first + 1, last + 1, dtype=np.uint64) * STEP
            _mix(bits, some[:, 1:])
            cosine, sine = box_muller(bits)
            numbers[row : row + rows, first:last] = cosine
            numbers[row : row + rows, half + first : half + last] = sine[:, : count - half - first]
    return numbers


def box_muller(bits: Keys) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A pair of independent normal numbers from each word of 64 random bits: two float32 arrays of the same shape."""
    # As signed numbers: where the magnitude is small, which gives the tail of the normal, it keeps all of its bits.
    parts = bits.view(np.int32).reshape(*bits.shape, 2)
    radius = parts[..., 0].astype(np.float32)
    np.abs(radius, out=radius)
    radius *= np.float32(2.0**-31)
    radius += np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = parts[..., 1].astype(np.float32)
    angle *= np.float32(np.pi * 2.0**-31)
    cosine = np.cos(angle)
    cosine *= radius
    np.sin(angle, out=angle)
    angle *= radius
    return cosine, angle


def splitmix64(state: Keys) -> Keys:
    """SplitMix64's finaliser, as a new array."""
    mixed = state.copy()
    _mix(mixed, None)
    return mixed


def _mix(state: Keys, halfway: Keys | None) -> None:
    """SplitMix64's finaliser in place, with ``halfway`` added half-way."""
    shifted = state >> SHIFTS[0]
    state ^= shifted
    state *= FIRST
    if halfway is not None:
        state += halfway
    np.right_shift(state, SHIFTS[1], out=shifted)
    state ^= shifted
    state *= SECOND
    np.right_shift(state, SHIFTS[2], out=shifted)
    state ^= shifted


def sample_digests(inputs: Inputs, by_sample: Sequence[bool] | None = None) -> list[bytes]:
    """A digest of 16 bytes of each sample's content. Equal samples have equal digests, anywhere in a batch."""
    by_sample = samples_first(inputs) if by_sample is None else by_sample
    samples = next(len(tensor) for tensor, own in zip(tensors(inputs), by_sample, strict=True) if own)
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(samples)]
    for tensor, own in zip(tensors(inputs), by_sample, strict=True):
        if own:
            raw = tensor.detach().cpu().contiguous().reshape(samples, -1)
            rows = raw.view(torch.uint8).numpy() if raw.dtype != torch.bool else raw.to(torch.uint8).numpy()
            for hashed, row in zip(hashes, rows, strict=True):
                hashed.update(row)
    return [hashed.digest() for hashed in hashes]


def seeded(generator: torch.Generator, *parts: bytes | int | str) -> torch.Generator:
    """Seed a private generator from numbers, names and digests, and return it."""
    text = b"|".join(part if isinstance(part, bytes) else str(part).encode() for part in parts)
    return generator.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1)
