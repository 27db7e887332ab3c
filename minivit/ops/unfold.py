"""Cutting images into windows that may overlap: what a convolution multiplies by its weight (im2col).

    y[b, n] = the n-th window of image b, row by row, flattened in the order row, column, channel

    dx = the sum of dy over all windows of a pixel, at its position in each (col2im)

Windows begin every `stride` pixels of the image with `padding` zeros around it, which may differ on opposite sides.
Then ``y @ weight`` is the convolution whose kernel is `weight` (kernel height * kernel width * C, channels). The steps
are in docs/derivations/embeddings.md.

The padded image is cut into cells of `stride` pixels, so that every window begins at a cell. The first cell of all
windows is then one strided view of the image, and so is the second, and so on: each is copied for all windows at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = tuple[int | Pair, int | Pair]  # rows and columns: on both sides, or (above, below), (left, right)


class UnfoldCache(NamedTuple):
    """What the backward pass of `unfold` reads."""

    shape: tuple[int, int, int, int]  # (B, height, width, C)
    kernel: Pair
    stride: Pair
    padding: tuple[Pair, Pair]  # above and below, left and right
    dtype: Any


def sides(padding: Padding) -> tuple[Pair, Pair]:
    """Return the padding as (above, below), (left, right)."""
    rows, columns = ((p, p) if isinstance(p, int) else p for p in padding)
    return rows, columns


def windows(size: Pair, kernel: Pair, stride: Pair, padding: Padding) -> Pair:
    """Return the number of rows and of columns of windows for images of `size`; 0 or less where none fits."""
    around = map(sum, sides(padding))
    rows, columns = ((n + p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, around, strict=True))
    return rows, columns


def check_unfold(x: Array, kernel: Pair, stride: Pair, padding: Padding) -> Any:
    """Return the array library of the arguments of `unfold`, or raise if they are invalid."""
    xp = namespace(x)
    same_dtype("unfold", x=x)
    expect("unfold", "x", x, ("B", "height", "width", "C"))
    (top, bottom), (left, right) = sides(padding)
    if min(*kernel, *stride) < 1 or min(top, bottom, left, right) < 0:
        raise ValueError(
            f"unfold: kernel is {kernel}, stride {stride} and padding {padding}; expected at least 1, 1 and 0"
        )
    _, height, width, _ = x.shape
    if min(windows((height, width), kernel, stride, padding)) < 1:
        raise ValueError(
            f"unfold: images of {height} x {width} pixels with a padding of {padding[0]} x {padding[1]} have no window "
            f"of {kernel[0]} x {kernel[1]}"
        )
    return xp


@op
def unfold(
    x: Array, kernel: Pair, stride: Pair, padding: Padding = (0, 0), *, keep: bool = True
) -> tuple[Array, UnfoldCache | None]:
    """Return the windows of images.

    Parameters
    ----------
    x : Array
        (B, height, width, C), floating.
    kernel : tuple of int
        Height and width of a window.
    stride : tuple of int
        Vertical and horizontal distance between windows. Pixels after the last whole window are in none.
    padding : tuple of int
        Numbers of rows of zeros above and below each image, and of columns at its left and right: (rows, columns) for
        both sides, or ((above, below), (left, right)).
    keep : bool
        Whether to return the cache that `unfold_backward` reads.

    Returns
    -------
    y : Array
        (B, rows * columns, kernel height * kernel width * C), of the dtype of `x`.
    cache : UnfoldCache or None
    """
    xp = check_unfold(x, kernel, stride, padding)
    (B, height, width, C), (P, Q) = x.shape, kernel
    cache = UnfoldCache((B, height, width, C), kernel, stride, sides(padding), x.dtype)
    (top, _), (left, _) = cache.padding
    rows, columns = windows((height, width), kernel, stride, padding)
    h, w = _padded_size(cache)
    padded = x
    if (h, w) != (height, width):
        padded = xp.zeros((B, h, w, C), dtype=x.dtype)
        padded[:, top : top + height, left : left + width] = x
    y = xp.empty((B, rows, columns, P, Q, C), dtype=x.dtype)
    for pixels, of_windows in _parts(padded, y, cache):
        of_windows[...] = pixels
    return y.reshape(B, rows * columns, P * Q * C), cache if keep else None


@op_backward
def unfold_backward(dy: Array, cache: UnfoldCache) -> Array:
    """Return ``dx`` (B, height, width, C) for the gradient `dy` of `unfold`'s result."""
    (B, height, width, C), (P, Q), stride, padding, dtype = cache
    (top, _), (left, _) = padding
    rows, columns = windows((height, width), (P, Q), stride, padding)
    expect_gradient("unfold", dy, (B, rows * columns, P * Q * C), dtype)
    dpadded = namespace(dy).zeros((B, *_padded_size(cache), C), dtype=dy.dtype)
    for pixels, of_windows in _parts(dpadded, dy.reshape(B, rows, columns, P, Q, C), cache):
        pixels += of_windows
    return dpadded[:, top : top + height, left : left + width]


def _padded_size(cache: UnfoldCache) -> Pair:
    """Return the smallest size of whole cells that has room for the padded image and for all cells of all windows."""
    (_, height, width, _), kernel, stride, padding, _ = cache
    counts = windows((height, width), kernel, stride, padding)
    h, w = (
        s * max(-(-(before + n) // s), count - 1 - (-k // s))
        for n, k, s, (before, _), count in zip((height, width), kernel, stride, padding, counts, strict=True)
    )
    return h, w


def _parts(padded: Array, y: Array, cache: UnfoldCache) -> Iterator[tuple[Array, Array]]:
    """Yield views of the same pixels in the padded images and in the windows `y` (B, rows, columns, P, Q, C).

    Each is (B, rows, height, columns, width, C), with the part of one cell that is in the windows.
    """
    _, (P, Q), (S, T), *_ = cache
    B, rows, columns, *_, C = y.shape
    cells = padded.reshape(B, padded.shape[1] // S, S, padded.shape[2] // T, T, C)
    y = y.transpose(0, 1, 3, 2, 4, 5)
    for i in range(0, P, S):
        for j in range(0, Q, T):
            h, w = min(S, P - i), min(T, Q - j)
            pixels = cells[:, i // S : i // S + rows, :h, j // T : j // T + columns, :w]
            yield pixels, y[:, :, i : i + h, :, j : j + w]
