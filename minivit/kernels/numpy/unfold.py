"""The windows of images in one copy of overlapping views, and their sum by windows that do not overlap.

Kernel of `ops.unfold`. In the padded images every row of a window is one piece of Q * C numbers, and a view with the
strides of the windows is copied at once. Windows whose distance is at least their size do not overlap: those of each
phase are added at once.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minivit.arrays import Array
from minivit.kernels.numpy.pieces import FAST_DTYPES
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient
from minivit.ops.unfold import Padding, Pair, UnfoldCache, check_unfold, sides, windows


class FastUnfoldCache(UnfoldCache):
    """What the backward pass reads: the same as the op's, in a class that says who made it."""

    __slots__ = ()


def _covers(x: Array, kernel: Pair, stride: Pair, padding: Padding = (0, 0), *, keep: bool = True) -> bool:
    return x.dtype in FAST_DTYPES


def _forward(
    x: Array, kernel: Pair, stride: Pair, padding: Padding = (0, 0), *, keep: bool = True
) -> tuple[Array, FastUnfoldCache | None]:
    check_unfold(x, kernel, stride, padding)
    B, height, width, C = x.shape
    cache = FastUnfoldCache((B, height, width, C), kernel, stride, sides(padding), x.dtype)
    padded = x
    if cache.padding != ((0, 0), (0, 0)):
        padded, inner = _padded(cache)
        inner[...] = x
    y = _windows(padded, cache).copy()
    _, rows, columns, P, Q, _ = y.shape
    return y.reshape(B, rows * columns, P * Q * C), cache if keep else None


def _backward(dy: Array, cache: FastUnfoldCache) -> Array:
    (B, height, width, C), kernel, stride, padding, dtype = cache
    rows, columns = windows((height, width), kernel, stride, padding)
    expect_gradient("unfold", dy, (B, rows * columns, kernel[0] * kernel[1] * C), dtype)
    dpadded, dx = _padded(cache)
    of_windows, dy = _windows(dpadded, cache), dy.reshape(B, rows, columns, *kernel, C)
    down, across = (-(-k // s) for k, s in zip(kernel, stride, strict=True))  # phases
    for i in range(min(down, rows)):
        for j in range(min(across, columns)):
            of_windows[:, i::down, j::across] += dy[:, i::down, j::across]
    return dx


def _padded(cache: FastUnfoldCache) -> tuple[Array, Array]:
    """Return zeros in the size of the padded images, and the view of the images in them."""
    (B, height, width, C), _, _, ((top, bottom), (left, right)), dtype = cache
    padded = np.zeros((B, top + height + bottom, left + width + right, C), dtype)
    return padded, padded[:, top : top + height, left : left + width]


def _windows(padded: Array, cache: FastUnfoldCache) -> Array:
    """Return the view (B, rows, columns, P, Q, C) of the windows of padded images."""
    S, T = cache.stride
    every: Array = sliding_window_view(padded, cache.kernel, (1, 2), writeable=True)
    return every[:, ::S, ::T].transpose(0, 1, 2, 4, 5, 3)


register_kernel("unfold", Kernel("numpy", _covers, _forward, _backward, FastUnfoldCache))
