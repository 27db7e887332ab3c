"""Softmax of rows in one pass each way, with float32 maxima and sums. Rival of `ops.softmax`."""

from __future__ import annotations

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.runtime import WARP, blocks, covers_dtype, launch, settled
from minivit.ops.registry import Rival, register_rival
from minivit.ops.shapes import expect_gradient, same_dtype
from minivit.ops.softmax import SoftmaxCache

_TALL = 8  # rows of a block


class CudaSoftmaxCache(SoftmaxCache):
    """What the backward pass reads, as in the op."""


def scaled_softmax(x: Array, scale: float, y: Array, rows: int, columns: int, stride: int) -> None:
    """Set rows of `y`, which may be `x`, to the softmax of ``scale * x``; the rows of both are `stride` apart."""
    launch("softmax", "softmax", x, (blocks(rows, _TALL),), (WARP, _TALL), x, scale, y, rows, columns, stride)


def scaled_softmax_backward(dy: Array, y: Array, scale: float, dx: Array, rows: int, columns: int, stride: int) -> None:
    """Set rows of `dx`, which may be `dy`, to the gradient of x for the softmax `y` of ``scale * x``."""
    launch("softmax", "softmax_backward", y, (blocks(rows, _TALL),), (WARP, _TALL), dy, y, scale, dx, rows, columns,
           stride)  # fmt: skip


def _covers(x: Array, *, keep: bool = True) -> bool:
    return covers_dtype(x) and x.ndim > 0


def _forward(x: Array, *, keep: bool = True) -> tuple[Array, CudaSoftmaxCache | None]:
    xp = namespace(x)
    same_dtype("softmax", x=x)
    C = x.shape[-1]
    y = xp.empty(x.shape, dtype=x.dtype)
    scaled_softmax(settled(x), 1.0, y, x.size // C, C, C)
    return y, CudaSoftmaxCache(y) if keep else None


def _backward(dy: Array, cache: CudaSoftmaxCache) -> Array:
    (y,) = cache
    expect_gradient("softmax", dy, y.shape, y.dtype)
    C = y.shape[-1]
    dx = namespace(dy, y).empty(y.shape, dtype=y.dtype)
    scaled_softmax_backward(settled(dy), y, 1.0, dx, y.size // C, C, C)
    return dx


def register(library: str) -> None:
    """Let the kernels compete on `library`."""
    register_rival("softmax", Rival(library, _covers, _forward, _backward, CudaSoftmaxCache))
