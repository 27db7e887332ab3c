"""Linear maps as one product for all rows and one pass for the bias. Kernel of `ops.linear`.

For 16-bit arrays dweight and dbias, which are sums over the batch, are float32.
"""

from __future__ import annotations

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.columns import column_sums, grid_of
from minivit.kernels.cuda.products import product
from minivit.kernels.cuda.runtime import acc_dtype, aligned, covers_dtype, launch
from minivit.ops.linear import LinearCache, check_linear
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient


class CudaLinearCache(LinearCache):
    """The fields of the op's cache."""


def add_bias(x: Array, bias: Array, residual: Array | None, y: Array) -> None:
    """Set `y` (rows, columns), which may be `x`, to ``x + bias + residual``."""
    rows, columns = x.shape
    grid = grid_of(rows, columns, x.dtype)
    launch("elementwise", "add_bias", x, grid, grid.block, x, bias, residual, y, rows, columns)


def _covers(x: Array, weight: Array, bias: Array | None = None, *, keep: bool = True) -> bool:
    return covers_dtype(x) and weight.size > 0


def _forward(
    x: Array, weight: Array, bias: Array | None = None, *, keep: bool = True
) -> tuple[Array, CudaLinearCache | None]:
    xp = check_linear(x, weight, bias)
    x, weight = aligned(x), aligned(weight)
    rows = x.reshape(-1, x.shape[-1])
    y = xp.empty((len(rows), weight.shape[1]), dtype=x.dtype)
    product(rows, weight, y)
    if bias is not None:
        add_bias(y, aligned(bias), None, y)
    return y.reshape(*x.shape[:-1], -1), CudaLinearCache(x, weight, bias is not None) if keep else None


def _backward(dy: Array, cache: CudaLinearCache) -> tuple[Array, Array, Array | None]:
    x, weight, has_bias = cache
    xp = namespace(dy, x)
    expect_gradient("linear", dy, (*x.shape[:-1], weight.shape[1]), x.dtype)
    dy_rows, x_rows = aligned(dy).reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    sums = acc_dtype(x.dtype)
    dx = xp.empty(x_rows.shape, dtype=x.dtype)
    dweight = xp.empty(weight.shape, dtype=sums)
    product(dy_rows, weight.T, dx)
    product(x_rows.T, dy_rows, dweight)
    if not has_bias:
        return dx.reshape(x.shape), dweight, None
    dbias = xp.empty(weight.shape[1:], dtype=sums)
    column_sums(dy_rows, dbias)
    return dx.reshape(x.shape), dweight, dbias


def register(library: str) -> None:
    """Register the kernels for the array library called `library`."""
    register_kernel("linear", Kernel(library, _covers, _forward, _backward, CudaLinearCache))
