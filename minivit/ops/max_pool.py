"""The largest value of each channel in windows of an image.

    y[b, r, s, c] = the largest x[b, S r + i - p, T s + j - q, c] of the pixels (i, j) of a window
                    (S, T): the stride; p rows of padding above, q columns of padding at the left
    dx = the sum of dy over all windows whose largest value is the pixel

Of several equal values the first in the window, row by row, is the largest. Pixels outside of the image are chosen only
where all others in the window are -infinity. The steps are in docs/derivations/convolutions.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from minivit.arrays import Array, namespace, real_dtype
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype
from minivit.ops.unfold import Padding, Pair, sides, windows


class MaxPoolCache(NamedTuple):
    """What the backward pass of `max_pool` reads."""

    chosen: Array  # (B, rows, columns, C), int32: the number of the largest pixel in its window
    shape: tuple[int, int, int, int]  # (B, height, width, C)
    kernel: Pair
    stride: Pair
    padding: tuple[Pair, Pair]  # above and below, left and right
    dtype: Any


def check_max_pool(x: Array, kernel: Pair, stride: Pair, padding: Padding) -> Any:
    """Return the array library of the arguments of `max_pool`, or raise if they are invalid."""
    xp = namespace(x)
    same_dtype("max_pool", x=x)
    expect("max_pool", "x", x, ("B", "height", "width", "C"))
    (top, bottom), (left, right) = sides(padding)
    P, Q = kernel
    if min(*kernel, *stride) < 1 or min(top, bottom, left, right) < 0 or max(top, bottom) >= P or max(left, right) >= Q:
        raise ValueError(
            f"max_pool: kernel is {kernel}, stride {stride} and padding {padding}; expected at least 1, 1 and 0, and a "
            "padding that is smaller than the kernel"
        )
    _, height, width, _ = x.shape
    if min(windows((height, width), kernel, stride, padding)) < 1:
        raise ValueError(f"max_pool: images of {height} x {width} pixels have no window of {P} x {Q}")
    return xp


@op
def max_pool(
    x: Array, kernel: Pair, stride: Pair, padding: Padding = (0, 0), *, keep: bool = True
) -> tuple[Array, MaxPoolCache | None]:
    """Return the largest value of each window.

    Parameters
    ----------
    x : Array
        (B, height, width, C), floating.
    kernel, stride : pair of int
        Height and width of a window; vertical and horizontal distance of windows.
    padding : tuple of int
        The rows and columns around the image that windows may reach: (rows, columns) on both sides, or ((above, below),
        (left, right)); each smaller than the kernel.
    keep : bool
        Whether to return the cache that `max_pool_backward` reads.

    Returns
    -------
    y : Array
        (B, rows, columns, C), of the dtype of `x`.
    cache : MaxPoolCache or None
    """
    xp = check_max_pool(x, kernel, stride, padding)
    (B, height, width, C), ((top, bottom), (left, right)) = x.shape, sides(padding)
    size = height + top + bottom, width + left + right
    padded = x
    if size != (height, width):
        padded = xp.full((B, *size, C), -xp.inf, dtype=real_dtype(x.dtype)).astype(x.dtype)
        padded[:, top : top + height, left : left + width] = x
    y: Any = None
    chosen = xp.zeros((B, *windows(size, kernel, stride, (0, 0)), C), dtype=xp.int32)
    for number, pixels in enumerate(_pixels(padded, kernel, stride)):
        if y is None:
            y = pixels.copy()
            continue
        larger = (pixels.real > y.real) | xp.isnan(pixels.real)
        y = xp.where(larger, pixels, y)
        chosen += (number - chosen) * larger
    return y, MaxPoolCache(chosen, x.shape, kernel, stride, sides(padding), x.dtype) if keep else None


@op_backward
def max_pool_backward(dy: Array, cache: MaxPoolCache) -> Array:
    """Return ``dx`` (B, height, width, C) for the gradient `dy` (B, rows, columns, C) of `max_pool`'s result."""
    chosen, (B, height, width, C), kernel, stride, ((top, bottom), (left, right)), dtype = cache
    expect_gradient("max_pool", dy, chosen.shape, dtype)
    dpadded = namespace(dy).zeros((B, height + top + bottom, width + left + right, C), dtype=dy.dtype)
    for number, dpixels in enumerate(_pixels(dpadded, kernel, stride)):
        dpixels += dy * (chosen == number)
    return dpadded[:, top : top + height, left : left + width]


def _pixels(padded: Array, kernel: Pair, stride: Pair) -> Iterator[Array]:
    """Yield, for each pixel of a window, a view of these pixels of all windows: (B, rows, columns, C)."""
    (P, Q), (S, T) = kernel, stride
    rows, columns = windows(padded.shape[1:3], kernel, stride, (0, 0))
    for i in range(P):
        for j in range(Q):
            yield padded[:, i : i + S * (rows - 1) + 1 : S, j : j + T * (columns - 1) + 1 : T]
