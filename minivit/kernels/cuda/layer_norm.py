"""Layer norm in one pass forward and one backward. Kernel of `ops.layer_norm`.

The cache holds x, which the layer before keeps anyway, and two numbers for each row. In an encoder block the residual
sum before the norm and the gradient of the residual path are fused in. For 16-bit arrays dweight and dbias are float32.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.columns import column_totals
from minivit.kernels.cuda.runtime import TALL, WARP, acc_dtype, aligned, blocks, covers_dtype, launch, shared_rows
from minivit.ops.layer_norm import check_layer_norm
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient

_SHARED = 48 * 1024  # bytes of shared memory of a block
_MAX_BLOCKS = 512  # blocks that share the rows in the backward pass


class Statistics(NamedTuple):
    """The mean and 1 / std of each row."""

    mean: Array  # (rows,)
    inv_std: Array  # (rows,)


class CudaLayerNormCache(NamedTuple):
    """What the backward pass reads."""

    x: Array  # (..., D)
    statistics: Statistics
    weight: Array  # (D,)


def covers_width(columns: int, dtype: object) -> bool:
    """Return whether two sums for each column fit into the shared memory of a block."""
    return 2 * columns * acc_dtype(dtype).itemsize <= _SHARED


def normalize(
    x: Array, weight: Array, bias: Array, eps: float, y: Array, residual: tuple[Array, Array, Array] | None = None
) -> Statistics:
    """Set `y` to the norm of the rows of `x`.

    With `residual`, a tuple (h, h_bias, total), set `total`, which may be `h`, to ``x + h + h_bias`` and `y` to the
    norm of that.
    """
    rows, columns = x.shape
    xp, dtype = namespace(x), acc_dtype(x.dtype)
    statistics = Statistics(xp.empty(rows, dtype=dtype), xp.empty(rows, dtype=dtype))
    h, h_bias, total = residual or (None, None, None)
    lanes, at_a_time = shared_rows(columns, x.dtype)
    launch("layer_norm", "layer_norm", x, (blocks(rows, TALL * at_a_time),), (WARP, TALL), x, h, h_bias, weight, bias,
           float(eps), total, y, *statistics, rows, columns, lanes=lanes)  # fmt: skip
    return statistics


def normalize_backward(
    dy: Array, x: Array, weight: Array, statistics: Statistics, residual: Array | None, dx: Array
) -> Array:
    """Set `dx`, which may be `dy` or `residual`, to the gradient of the norm of the rows of `x`, plus `residual`.

    Returns
    -------
    partial : Array
        (blocks, 2, D), the shares of dweight and dbias from the rows of each block.
    """
    rows, columns = x.shape
    dtype = acc_dtype(x.dtype)
    lanes, at_a_time = shared_rows(columns, x.dtype)
    warp_bytes = 2 * columns * dtype.itemsize * at_a_time
    tall = max(1, min(TALL, _SHARED // warp_bytes))
    count = min(blocks(rows, tall * at_a_time), _MAX_BLOCKS)
    partial = namespace(x).empty((count, 2, columns), dtype=dtype)
    launch("layer_norm", "layer_norm_backward", x, (count,), (WARP, tall), dy, x, weight, *statistics, residual, dx,
           partial, rows, columns, shared=tall * warp_bytes, lanes=lanes)  # fmt: skip
    return partial


def _covers(x: Array, weight: Array, bias: Array, eps: float = 1e-6, *, keep: bool = True) -> bool:
    return covers_dtype(x) and x.ndim > 0 and covers_width(x.shape[-1], x.dtype)


def _forward(
    x: Array, weight: Array, bias: Array, eps: float = 1e-6, *, keep: bool = True
) -> tuple[Array, CudaLayerNormCache | None]:
    xp = check_layer_norm(x, weight, bias)
    x, weight = aligned(x), aligned(weight)
    y = xp.empty(x.shape, dtype=x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    statistics = normalize(rows, weight, aligned(bias), eps, y)
    return y, CudaLayerNormCache(x, statistics, weight) if keep else None


def _backward(dy: Array, cache: CudaLayerNormCache) -> tuple[Array, Array, Array]:
    x, statistics, weight = cache
    expect_gradient("layer_norm", dy, x.shape, x.dtype)
    xp = namespace(dy, x)
    D = x.shape[-1]
    dx = xp.empty(x.shape, dtype=x.dtype)
    partial = normalize_backward(aligned(dy), x.reshape(-1, D), weight, statistics, None, dx)
    sums = xp.empty((2, D), dtype=partial.dtype)
    column_totals(partial.reshape(len(partial), -1), sums)
    return dx, sums[0], sums[1]


def register(library: str) -> None:
    """Register the kernels for the array library called `library`."""
    register_kernel("layer_norm", Kernel(library, _covers, _forward, _backward, CudaLayerNormCache))
