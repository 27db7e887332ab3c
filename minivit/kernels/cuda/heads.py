"""Conversion between tokens (B, N, H * K), as linear maps have them, and heads (B, H, N, K), as batched products do."""

from __future__ import annotations

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.columns import grid_of
from minivit.kernels.cuda.runtime import acc_dtype, launch


def split_heads(x: Array, bias: Array | None, parts: int, num_heads: int) -> Array:
    """Return (parts, B, H, N, K) for ``x + bias``, where `x` is (B, N, parts * H * K)."""
    B, N, columns = x.shape
    K = columns // (parts * num_heads)
    y: Array = namespace(x).empty((parts, B, num_heads, N, K), dtype=x.dtype)
    grid = grid_of(B * N, columns, x.dtype, K)
    launch("heads", "split_heads", x, grid, grid.block, x, bias, y, B, N, parts, num_heads, K)
    return y


def merge_heads(x: Array, sums: bool = False) -> tuple[Array, Array | None]:
    """Return (B, N, parts * H * K) for `x` (parts, B, H, N, K), and with `sums` each block's sums over its tokens."""
    xp = namespace(x)
    parts, B, H, N, K = x.shape
    columns = parts * H * K
    y = xp.empty((B, N, columns), dtype=x.dtype)
    grid = grid_of(B * N, columns, x.dtype, K, sums)
    partial = xp.empty((grid.down, columns), dtype=acc_dtype(x.dtype)) if sums else None
    launch("heads", "merge_heads", x, grid, grid.block, x, y, partial, B, N, parts, H, K)
    return y, partial
