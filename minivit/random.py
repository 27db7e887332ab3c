"""Randomness as keys: the same random bits for the same (seed, step, sample, place).

Training uses no generator with a hidden state. A `Key` holds the seed, the step and the samples, `fold` adds the place
in the model, and `bits` hashes these and a counter to 32-bit words:

    h = (index * 0x9E3779B9) ^ s1(sample);  h ^= h >> 16;  h *= 0x21F0AAAD;  h ^= h >> 15
    h += s2(sample);  h *= 0xD35A2D97;  h ^= h >> 15

where the words s1 and s2 mix (seed, step, place) with the number of the sample. The multipliers are those of a 32-bit
integer hash that was found by search (hash-prospector, 2018 to 2022). The bits of a sample are the same in every
micro-batch, on every array library and for every dtype.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

from minivit.arrays import Array, namespace, real_dtype


def _mix(h: Array) -> Array:
    h ^= h >> 16
    h *= 0x21F0AAAD
    h ^= h >> 15
    h *= 0xD35A2D97
    h ^= h >> 15
    return h


@dataclass(frozen=True, eq=False)
class Key:
    """The name of a stream of random bits for each sample of a batch.

    Parameters
    ----------
    seed, step : int
        The seed of the run, and the training step.
    sample_ids : Array
        (B,) integers below 2**32, the indices of the samples in the data set, on the device where bits are drawn.
    place : str
        The place in the computation; set by `fold`.
    """

    seed: int
    step: int
    sample_ids: Array
    place: str = ""

    def fold(self, name: str) -> Key:
        """Return the key for the place `name` inside this place."""
        return replace(self, place=f"{self.place}.{name}" if self.place else name)

    def __getitem__(self, samples: slice) -> Key:
        """Return the key for some of the samples, such as those of a micro-batch."""
        return replace(self, sample_ids=self.sample_ids[samples])

    def words(self) -> tuple[int, int]:
        """Return two 32-bit words that are a hash of seed, step and place."""
        name = f"{self.seed}/{self.step}/{self.place}".encode()
        digest = hashlib.blake2s(name, digest_size=8).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")

    def bits(self, shape: tuple[int, ...]) -> Array:
        """Return uint32 random bits of `shape`, whose first axis is the batch: (B, ...)."""
        self.expect_samples(shape)
        return hashed(self.sample_ids, self.words(), math.prod(shape[1:])).reshape(shape)

    def keep_mask(self, shape: tuple[int, ...], rate: float, dtype: Any) -> Array:
        """Return a mask of `shape` (B, ...) and the real dtype: 0 with probability `rate`, otherwise 1 / (1 - rate).

        `ops.keep_mask` draws the same numbers, with a kernel on a device.
        """
        self.expect_samples(shape)
        mask = drawn_mask(self.sample_ids, self.words(), math.prod(shape[1:]), rate, real_dtype(dtype))
        return mask.reshape(shape)

    def expect_samples(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the first axis of `shape` has one entry for each sample."""
        if len(self.sample_ids) != shape[0]:
            raise ValueError(f"the key has {len(self.sample_ids)} samples, but bits of shape {shape} were requested")


def hashed(sample_ids: Array, words: tuple[int, int], count: int) -> Array:
    """Return `count` words of random bits for each sample: (B, count) uint32."""
    xp = namespace(sample_ids)
    s1 = _mix(sample_ids.astype(xp.uint32) ^ words[0])
    s2 = _mix(s1 ^ words[1])
    index = xp.arange(count, dtype=xp.uint32)
    index *= 0x9E3779B9
    h: Array = index ^ s1[:, None]
    h ^= h >> 16
    h *= 0x21F0AAAD
    h ^= h >> 15
    h += s2[:, None]
    h *= 0xD35A2D97
    h ^= h >> 15
    return h


def drawn_mask(sample_ids: Array, words: tuple[int, int], count: int, rate: float, dtype: Any) -> Array:
    """Return (B, count) numbers of `dtype`, 0 with probability `rate` and 1 / (1 - rate) otherwise."""
    mask: Array = (hashed(sample_ids, words, count) >= round(rate * 2**32)).astype(dtype)
    mask *= 1.0 / (1.0 - rate)
    return mask


def fold(rng: Key | None, name: str) -> Key | None:
    """Return ``rng.fold(name)``, or None in evaluation, where `rng` is None."""
    return None if rng is None else rng.fold(name)
