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
import operator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from minivit.arrays import Array, namespace, real_dtype
from minivit.errors import UserError


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

    def __post_init__(self) -> None:
        if type(self.seed) is not int or self.seed < 0:
            object.__setattr__(self, "seed", checked_seed(self.seed))
        if type(self.step) is not int:
            object.__setattr__(self, "step", operator.index(self.step))  # 1.0 would have other bits than 1
        if not hasattr(self.sample_ids, "dtype"):
            object.__setattr__(self, "sample_ids", np.asarray(self.sample_ids))
        if self.sample_ids.ndim != 1 or self.sample_ids.dtype.kind not in "iu":
            raise UserError(
                f"sample_ids are {self.sample_ids.dtype} {self.sample_ids.shape}; expected (B,) integers, one for each "
                "sample, such as np.arange(B)"
            )

    def __repr__(self) -> str:
        place = f", place={self.place!r}" if self.place else ""
        return f"Key(seed={self.seed}, step={self.step}, {len(self.sample_ids)} samples{place})"

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
        expect_rate(rate)
        mask = drawn_mask(self.sample_ids, self.words(), math.prod(shape[1:]), rate, real_dtype(dtype))
        return mask.reshape(shape)

    def expect_samples(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the first axis of `shape` has one entry for each sample."""
        if len(self.sample_ids) != shape[0]:
            raise ValueError(f"the key has {len(self.sample_ids)} samples, but bits of shape {shape} were requested")


def expect_rate(rate: float) -> None:
    """Raise ValueError unless `rate` is a dropout rate."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"a dropout rate is at least 0 and below 1, got {rate}")


RngLike: TypeAlias = Key | int | np.integer | np.random.Generator | None  # what `as_key` takes


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
    """Return ``rng.fold(name)``, or None in evaluation, where `rng` is None.

    Raises
    ------
    UserError
        `rng` is a generator, a seed or anything else but a key; the message says how to make one.
    """
    if rng is None:
        return None
    if not isinstance(rng, Key):
        _ = as_key(rng, 0, np)  # refuses what is not a seed either
        seed = "int(generator.integers(2**63))" if isinstance(rng, np.random.Generator) else repr(rng)
        raise UserError(
            f"rng is {_named(rng)}, and a layer alone needs a key for each of its B samples: "
            f"minivit.Key({seed}, step=0, sample_ids=np.arange(B))"
        )
    return rng.fold(name)


def as_key(rng: RngLike, count: int, library: Any) -> Key | None:
    """Return `rng` if it is a key or None; for a seed or a NumPy generator, return a key of `count` samples.

    Parameters
    ----------
    rng : RngLike
        A seed gives the same bits at each call. From a generator a seed is drawn.
    count : int
        The number of samples B; they are numbered from 0.
    library : module
        The array library of the numbers of the samples.

    Raises
    ------
    UserError
        `rng` is none of these.
    """
    if rng is None or isinstance(rng, Key):
        return rng
    return Key(checked_seed(rng, "rng"), 0, library.arange(count))


def checked_seed(seed: Any, name: str = "seed") -> int:
    """Return `seed` as an int of at least 0; a NumPy generator draws one.

    Raises
    ------
    UserError
        `seed`, called `name` in the message, is of another type or negative.
    """
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(2**63))
    try:
        number = -1 if isinstance(seed, bool | np.bool_) else operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        also = ", a minivit.Key" if name == "rng" else ""
        raise UserError(f"{name} is {_named(seed)}; expected an integer of at least 0{also} or a NumPy Generator")
    return number


def _named(value: Any) -> str:
    plain = value is None or isinstance(value, bool | int | float | str | np.generic)
    return repr(value)[:60] if plain else f"a {type(value).__name__}"
