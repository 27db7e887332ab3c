"""Arrays on a device for what is timed alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minivit.arrays import Array

_NUMBERS = 4096


def numbers(xp: Any, dtype: Any, *shape: int) -> Array:
    """Return normal numbers of `dtype` in an array of `xp`, the same 4096 again and again."""
    some = xp.asarray(np.random.default_rng(0).standard_normal(_NUMBERS, dtype=np.float32))
    count = math.prod(shape)
    many = xp.empty((-(-count // _NUMBERS), _NUMBERS), dtype=np.float32)
    many[...] = some
    found: Array = many.reshape(-1)[:count].reshape(shape).astype(dtype)
    return found


def bytes_of(*arrays: Array) -> int:
    """Return how many bytes the numbers of `arrays` have, without gaps between them."""
    return sum(x.size * x.dtype.itemsize for x in arrays)
