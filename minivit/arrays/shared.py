"""Host memory that a process shares with the processes it forks."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from typing import Any

import numpy as np

from minivit.arrays import Array

FORKS = sys.platform == "linux"  # elsewhere workers are threads, and ordinary memory serves them


def shared_zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an array of zeros that this process and those forked from it later read and write together."""
    if not FORKS:
        return np.zeros(shape, dtype)
    count = math.prod(shape)
    try:
        memory = mmap(-1, max(1, count * np.dtype(dtype).itemsize))
    except OSError as error:
        raise MemoryError(f"no shared memory for an array of shape {shape} and dtype {np.dtype(dtype)}") from error
    return np.frombuffer(memory, dtype, count).reshape(shape)


def is_shared(x: Array) -> bool:
    """Return whether `x` is an array of `shared_zeros`, or a view of one."""
    base: Any = x
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, memoryview) and isinstance(base.obj, mmap)


_starts_worker = False


@contextmanager
def starting_a_worker() -> Iterator[None]:
    """Let a process that is forked in the block go on with the shared arrays, and not with copies."""
    global _starts_worker
    before, _starts_worker = _starts_worker, True
    try:
        yield
    finally:
        _starts_worker = before


def is_worker_starting() -> bool:
    """Return whether a fork now starts a worker of this process."""
    return _starts_worker
