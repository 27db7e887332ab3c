"""Cutting large arrays into pieces that stay in a core's cache while a chain of elementwise steps passes over them."""

from __future__ import annotations

from collections.abc import Iterator

FAST_DTYPES = ("float32", "float64")
_CACHE = 1 << 20  # bytes: second-level caches have 1 to 2 MiB a core


def pieces(rows: int, row_bytes: int) -> Iterator[slice]:
    """Yield slices that cover `rows`, each of as many as fit in cache; `row_bytes` counts all arrays of the chain."""
    step = max(1, _CACHE // row_bytes)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
