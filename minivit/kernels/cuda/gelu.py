"""GELU in one pass forward and one backward, optionally with the bias before it. Kernel of `ops.gelu`.

The backward pass recomputes the derivative from x. It reads as much memory as for a stored derivative, and the forward
pass writes less.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.columns import grid_of
from minivit.kernels.cuda.runtime import acc_dtype, aligned, covers_dtype, launch
from minivit.ops.gelu import check_gelu
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient


class CudaGELUCache(NamedTuple):
    """What the backward pass reads."""

    x: Array
    by_tanh: bool


def bias_gelu(x: Array, bias: Array | None, by_tanh: bool, y: Array) -> None:
    """Set `y` (rows, columns) to GELU of ``x + bias``."""
    rows, columns = x.shape
    grid = grid_of(rows, columns, x.dtype)
    launch("gelu", "gelu", x, grid, grid.block, x, bias, y, rows, columns, int(by_tanh))


def bias_gelu_backward(dy: Array, x: Array, bias: Array | None, by_tanh: bool, dx: Array) -> Array | None:
    """Set `dx`, which may be `dy`, to the gradient of ``x + bias``.

    Return each block's share of dbias, (blocks, columns), or None without a bias.
    """
    rows, columns = x.shape
    grid = grid_of(rows, columns, x.dtype, sums=bias is not None)
    partial = None if bias is None else namespace(x).empty((grid.down, columns), dtype=acc_dtype(x.dtype))
    launch("gelu", "gelu_backward", x, grid, grid.block, dy, x, bias, dx, partial, rows, columns, int(by_tanh))
    return partial


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1] if x.ndim else 1)


def _covers(x: Array, approximate: str = "none", *, keep: bool = True) -> bool:
    return covers_dtype(x)


def _forward(x: Array, approximate: str = "none", *, keep: bool = True) -> tuple[Array, CudaGELUCache | None]:
    xp = check_gelu(x, approximate)
    x = aligned(x)
    y = xp.empty(x.shape, dtype=x.dtype)
    by_tanh = approximate == "tanh"
    bias_gelu(_rows(x), None, by_tanh, y)
    return y, CudaGELUCache(x, by_tanh) if keep else None


def _backward(dy: Array, cache: CudaGELUCache) -> Array:
    x, by_tanh = cache
    expect_gradient("gelu", dy, x.shape, x.dtype)
    dx = namespace(dy, x).empty(x.shape, dtype=x.dtype)
    bias_gelu_backward(aligned(dy), _rows(x), None, by_tanh, dx)
    return dx


def register(library: str) -> None:
    """Register the kernels for the array library called `library`."""
    register_kernel("gelu", Kernel(library, _covers, _forward, _backward, CudaGELUCache))
