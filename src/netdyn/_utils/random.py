"""Standard normal numbers as a function of keys and places: nothing is drawn in turn, so that nothing has an order.

Each row of numbers has two keys of 64 bits, made from a seed, a ray, a sample's content and the place where the noise
falls. Number j of a row is a function of the keys and of j alone: whichever rows are made together, in whatever order,
by whatever process, each comes out the same. Everything is calculated on whole arrays on the CPU.

Layout: keys ``[rows, 2]``, numbers ``[rows, count]``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from netdyn._utils.trees import Inputs, sample_tensors, tensors

Keys = NDArray[np.uint64]

#: The odd number nearest to 2^64 over the golden ratio: the step from one place to the next.
STEP = np.uint64(0x9E3779B97F4A7C15)
#: Multipliers and shifts of David Stafford's 13th variant of MurmurHash3's finaliser, as in SplitMix64.
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
#: Pairs of numbers made at a time: few enough to stay in the processor's cache.
BLOCK = 1 << 15


def keys(prints: Sequence[bytes], seed: int, rays: int | Sequence[int], place: str) -> Keys:
    """Two keys for each row: of its digest of 16 bytes, its ray (or one for all), the seed and the place.

    The digest spreads contents evenly over 128 bits, and another one spreads seed and place; each half goes through
    the finaliser on a way of its own. Two rows that differ in anything share both keys with a probability of 2^-128.
    """
    content = np.frombuffer(b"".join(prints), dtype="<u8").reshape(-1, 2).astype(np.uint64)
    own = hashlib.blake2b(f"{seed}|{place}".encode(), digest_size=16).digest()
    # Rays are counted upward from any number: modulo 2^64.
    turn = np.asarray(rays, dtype=np.int64).reshape(-1, 1).astype(np.uint64)
    return _mixed(content + _mixed(np.frombuffer(own, dtype="<u8").astype(np.uint64) + turn * STEP))


def normals(key: Keys, count: int) -> NDArray[np.float32]:
    """Standard normal numbers float32 ``[rows, count]``, independent within a row and between rows.

    Bits are SplitMix64's for the state key₁ + (j + 1)·STEP, with key₂ added half-way: a counter behind a hash, which
    can be asked at any place. Two numbers of 32 bits give by Box and Muller's formula the pair r·cos φ, r·sin φ with r
    = √(−2 ln u): its largest value is 6.66, which normal numbers exceed once in 4·10¹⁰.

    Source:
        G. Steele, D. Lea, C. Flood, Fast splittable pseudorandom number generators (2014); G. Box, M. Muller, A note
        on the generation of random normal deviates (1958). The second key is netdyn's convention.

    Example:
        >>> key = keys([b"sample of 16 b.."], seed=0, rays=[0, 1], place="")
        >>> bool((normals(key, 5)[1:] == normals(key[1:], 5)).all())
        True
    """
    half = -(-count // 2)
    made = np.empty((len(key), count), dtype=np.float32)
    columns = min(half, BLOCK) or 1
    rows = max(BLOCK // columns, 1)
    for row in range(0, len(key), rows):
        block = key[row : row + rows]
        for first in range(0, half, columns):
            last = min(first + columns, half)
            cosine, sine = _pairs(block, first, last)
            made[row : row + rows, first:last] = cosine
            made[row : row + rows, half + first : half + last] = sine[:, : count - half - first]
    return made


def _pairs(key: Keys, first: int, last: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both halves of the pairs from number ``first`` to before ``last``: float32 ``[rows, last − first]`` each."""
    bits = key[:, :1] + np.arange(first + 1, last + 1, dtype=np.uint64) * STEP
    _mix(bits, key[:, 1:])
    # As signed numbers: the magnitude keeps all bits where it is small, which is where the tail of the normal is.
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


def _mixed(state: Keys) -> Keys:
    """SplitMix64's finaliser of some states, as new ones."""
    mixed = state.copy()
    _mix(mixed, None)
    return mixed


def _mix(state: Keys, halfway: Keys | None) -> None:
    """The finaliser in place, with something added half-way."""
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
