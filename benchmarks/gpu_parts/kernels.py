"""The bandwidth of each kernel beside that of a copy on the device that moves as many bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu_parts.passes import passes

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
    rows = []
    for name, make in passes(xp, dtype, size):
        row: dict[str, Any] = {"name": name}
        rows.append(row)
        try:
            one = make()
            mine, copys = seconds(one.run, copy(xp, one.bytes))
        except Exception as error:  # the others are measured all the same
            row["error"] = f"{type(error).__name__}: {error}"
            continue
        row |= {"bytes": one.bytes, "seconds": mine, "copy_seconds": copys}
        row |= {"bytes_a_second": one.bytes / statistics.median(mine)}
        row |= {"copy_bytes_a_second": one.bytes / statistics.median(copys)}
        row["of_copy"] = row["bytes_a_second"] / row["copy_bytes_a_second"]
        del one
    return rows
