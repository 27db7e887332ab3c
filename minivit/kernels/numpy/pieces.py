"""Pieces of large arrays that stay in a core's cache during a chain of elementwise steps."""

from __future__ import annotations

from collections.abc import Iterator

FAST_DTYPES = ("float32", "float64")
_CACHE = 1 << 20  # bytes; a second-level cache has 1 to 2 MiB


def pieces(rows: int, row_bytes: int) -> Iterator[slice]:
    """Yield slices that cover `rows` and fit in cache; `row_bytes` is the size of a row in all arrays of the chain."""
    step = max(1, _CACHE // row_bytes)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
