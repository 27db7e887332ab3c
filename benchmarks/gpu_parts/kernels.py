"""The bandwidth of each kernel beside that of a copy on the device that moves as many bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu_parts.errors import answered
from benchmarks.gpu_parts.passes import Pass, passes

SIZE = 1 << 28  # bytes of the largest array: five times a cache of 50 MB


def copying(xp: Any, size: int) -> Callable[[], object]:
    """Return a copy on the device of CuPy, as imported, that reads and writes `size` bytes together."""
    half = max(1, size // 2)
    source, target = (xp.zeros(half, dtype=np.uint8) for _ in range(2))
    return lambda: target.data.copy_from_device_async(source.data, half)


def measure_passes(
    xp: Any,
    dtype: Any,
    seconds: Callable[..., list[list[float]]],
    copy: Callable[[Any, int], Callable[[], object]] = copying,
    size: int = SIZE,
) -> list[dict[str, Any]]:
    """Return a row for each pass; one that fails has an ``error`` in place of figures.

    Parameters
    ----------
    xp, dtype, size
        See `passes.passes`.
    seconds : callable
        Returns samples of the seconds of each call that it is given, as `clock.DeviceClock.seconds` does.
    copy : callable
        Returns a copy that moves a number of bytes.
    """

    def figures(make: Callable[[], Pass]) -> dict[str, Any]:
        one = make()
        mine, copys = seconds(one.run, copy(xp, one.bytes))
        rate, copy_rate = (one.bytes / statistics.median(times) for times in (mine, copys))
        return {
            "bytes": one.bytes,
            "seconds": mine,
            "copy_seconds": copys,
            "bytes_a_second": rate,
            "copy_bytes_a_second": copy_rate,
            "of_copy": rate / copy_rate,
        }

    return [{"name": name, **answered(partial(figures, make))} for name, make in passes(xp, dtype, size)]
