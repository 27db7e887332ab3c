"""Softmax of rows in one pass forward and one backward, with float32 maxima and sums. Kernel of `ops.softmax`."""

from __future__ import annotations

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.runtime import TALL, WARP, Lanes, aligned, blocks, covers_dtype, launch, shared_rows
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient, same_dtype
from minivit.ops.softmax import SoftmaxCache


class CudaSoftmaxCache(SoftmaxCache):
    """The fields of the op's cache."""


def _shared(y: Array, columns: int) -> tuple[int, Lanes | None, tuple[int]]:
    """Return the number of rows of `y`, how lanes share a row, and the grid; the last pack of a row may be padded."""
    rows = y.size // y.shape[-1]
    lanes, at_a_time = shared_rows(columns, y.dtype, y.shape[-1])
    return rows, lanes, (blocks(rows, TALL * at_a_time),)


def scaled_softmax(x: Array, scale: float, y: Array, columns: int) -> None:
    """Set the first `columns` of the rows of `y` to the softmax of ``scale * x``.

    `x` may be `y`, or have `acc_dtype` of the dtype of `y`. The columns after these are undefined.
    """
    rows, lanes, grid = _shared(y, columns)
    launch("softmax", "softmax" if x.dtype == y.dtype else "softmax_scores", y, grid, (WARP, TALL), x, scale, y, rows,
           columns, y.shape[-1], lanes=lanes)  # fmt: skip


def scaled_softmax_backward(dy: Array, y: Array, scale: float, dx: Array, columns: int) -> None:
    """Set `dx`, which may be `dy`, to the gradient of `x` for `y`, the softmax of ``scale * x`` (`scaled_softmax`)."""
    rows, lanes, grid = _shared(y, columns)
    launch("softmax", "softmax_backward" if dy.dtype == y.dtype else "softmax_scores_backward", y, grid, (WARP, TALL),
           dy, y, scale, dx, rows, columns, y.shape[-1], lanes=lanes)  # fmt: skip


def _covers(x: Array, *, keep: bool = True) -> bool:
    return covers_dtype(x) and x.ndim > 0


def _forward(x: Array, *, keep: bool = True) -> tuple[Array, CudaSoftmaxCache | None]:
    xp = namespace(x)
    same_dtype("softmax", x=x)
    C = x.shape[-1]
    y = xp.empty(x.shape, dtype=x.dtype)
    scaled_softmax(aligned(x), 1.0, y, C)
    return y, CudaSoftmaxCache(y) if keep else None


def _backward(dy: Array, cache: CudaSoftmaxCache) -> Array:
    (y,) = cache
    expect_gradient("softmax", dy, y.shape, y.dtype)
    C = y.shape[-1]
    dx = namespace(dy, y).empty(y.shape, dtype=y.dtype)
    scaled_softmax_backward(aligned(dy), y, 1.0, dx, C)
    return dx


def register(library: str) -> None:
    """Register the kernels for the array library called `library`."""
    register_kernel("softmax", Kernel(library, _covers, _forward, _backward, CudaSoftmaxCache))
