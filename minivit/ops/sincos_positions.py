"""Fixed positions of patches: sines and cosines of their columns and rows, at D / 4 frequencies each.

    y = x + [sin(column * f); cos(column * f); sin(row * f); cos(row * f)]

    f[i] = 10000 ** (-i / (D / 4 - 1))      "simple": SimpleViT (Beyer et al. 2022; big_vision), so 1 to 1 / 10000
    f[i] = 10000 ** (-i / (D / 4))          "mae": MAE (He et al. 2021), so 1 to just above 1 / 10000

    dx = dy

The table is computed in float64 on the host, and is copied to a device once. See docs/derivations/embeddings.md.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array, library_name, namespace, on_device_of, real_dtype, to_backend
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype

FORMS = ("simple", "mae")


class SincosPositionsCache(NamedTuple):
    """What the backward pass of `sincos_positions` reads."""

    shape: tuple[int, int, int]  # (B, N, D)
    dtype: Any


def sincos_table(grid: tuple[int, int], D: int, form: str = "simple") -> Array:
    """Return the positions (N, D) in float64 of a grid of (rows, columns), row by row.

    Raises
    ------
    ValueError
        There is no such form, or no such width: it is a multiple of 4, and at least 8 for "simple".
    """
    if form not in FORMS:
        raise ValueError(f"sincos_positions: form is {form!r}; expected 'simple' or 'mae'")
    count, least = D // 4, 2 if form == "simple" else 1
    if D % 4 or count < least:
        raise ValueError(
            f"sincos_positions: the width is {D}; expected a multiple of 4 that is at least {4 * least} for {form!r}"
        )
    frequencies = np.power(10000.0, -np.arange(count) / (count - 1 if form == "simple" else count))
    row, column = (of.reshape(-1, 1) * frequencies for of in np.mgrid[: grid[0], : grid[1]])
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1)


@functools.lru_cache(maxsize=64)
def _table_on(library: str, device: Any, dtype: Any, grid: tuple[int, int], D: int, form: str) -> Array:
    """Return the table on the current device, which is `device`."""
    return to_backend(sincos_table(grid, D, form).astype(dtype), library)


@op
def sincos_positions(
    x: Array, grid: tuple[int, int], form: str = "simple", *, keep: bool = True
) -> tuple[Array, SincosPositionsCache | None]:
    """Return patch tokens with the sines and cosines of their positions added.

    Parameters
    ----------
    x : Array
        (B, N, D), floating, row by row; D is a multiple of 4, at least 8 for "simple".
    grid : tuple of int
        Numbers of rows and columns.
    form : str
        "simple" or "mae".
    keep : bool
        Whether to return the cache that `sincos_positions_backward` reads.

    Returns
    -------
    y : Array
        (B, N, D), of the dtype of `x`.
    cache : SincosPositionsCache or None
    """
    xp = namespace(x)
    same_dtype("sincos_positions", x=x)
    expect("sincos_positions", "x", x, ("B", "N", "D"))
    B, N, D = x.shape
    if grid[0] * grid[1] != N:
        raise ValueError(f"sincos_positions: x has {N} tokens; expected {grid[0]} * {grid[1]}")
    device = getattr(getattr(x, "device", None), "id", None)
    with on_device_of(x):
        table = _table_on(library_name(xp), device, real_dtype(x.dtype), (grid[0], grid[1]), D, form)
    return x + table, SincosPositionsCache((B, N, D), x.dtype) if keep else None


@op_backward
def sincos_positions_backward(dy: Array, cache: SincosPositionsCache) -> Array:
    """Return ``dx`` (B, N, D) for the gradient `dy` of `sincos_positions`' result."""
    expect_gradient("sincos_positions", dy, cache.shape, cache.dtype)
    return dy
