"""Affine maps of images by one gather of the nearest pixels, one map for each image of a batch.

The map of an image says from where the pixel at (x, y) of the result comes, with pixel centres at halves:

    x' = a (x + 1/2) + b (y + 1/2) + c
    y' = d (x + 1/2) + e (y + 1/2) + f

A pixel from outside is black. The numbers are rounded to multiples of 2^-16, as in Pillow, whose results these are.
"""

from __future__ import annotations

import math

import numpy as np

from minivit.arrays import Array, namespace

_ONE = 65536


def affine(images: Array, maps: Array) -> Array:
    """Return `images` (B, H, W, C) under `maps` (B, 6) of float64: a, b, c, d, e, f of each image."""
    xp = namespace(images, maps)
    B, height, width, C = images.shape
    a, b, c, d, e, f = (maps[:, i] for i in range(6))
    numbers = _fixed(xp.stack([a, b, c + 0.5 * a + 0.5 * b, d, e, f + 0.5 * d + 0.5 * e]))
    if xp is np:  # on the host half as wide where they fit, which takes half the time
        sizes = np.array([width, height, 1] * 2)[:, None]
        numbers = numbers.astype(np.int32 if (abs(numbers) * sizes).sum(axis=0).max(initial=0) < 1 << 31 else np.int64)
    a, b, c, d, e, f = numbers[:, :, None, None]
    x, y = (xp.arange(size, dtype=numbers.dtype) for size in (width, height))
    column = xp.clip((a * x + (b * y[:, None] + c)) >> 16, -1, width)
    row = xp.clip((d * x + (e * y[:, None] + f)) >> 16, -1, height)
    # A border of one black pixel stands for all that is outside.
    bordered = xp.zeros((B, height + 2, width + 2, C), dtype=images.dtype)
    bordered[:, 1:-1, 1:-1] = images
    first = xp.arange(B, dtype=xp.int64)[:, None, None] * ((height + 2) * (width + 2)) + (width + 3)
    picked: Array = xp.take(bordered.reshape(-1, C), row * (width + 2) + column + first, axis=0)
    return picked


def shear(x: Array, y: Array) -> Array:
    """Return the maps (B, 6) that move each row left by `x` (B,) times its number, and each column up by `y`."""
    return _maps(x, 1, x, 0, y, 1, 0)


def translation(x: Array, y: Array) -> Array:
    """Return the maps (B, 6) that move images by `x` (B,) pixels to the right and by `y` down."""
    return _maps(x, 1, 0, -x, 0, 1, -y)


def rotation(degrees: Array, height: int, width: int) -> Array:
    """Return the maps (B, 6) that turn images of `height` x `width` about their middle, counterclockwise."""
    xp = namespace(degrees)
    angle = degrees * (math.pi / 180.0)
    cos, sin = xp.cos(angle), xp.sin(angle)
    x, y = 0.5 * width, 0.5 * height
    return _maps(angle, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _maps(like: Array, *numbers: Array | float) -> Array:
    """Return the maps (B, 6) of six numbers or arrays (B,) of the library and shape of `like`."""
    xp = namespace(like)
    maps = xp.empty((len(like), 6), dtype=xp.float64)
    for i, number in enumerate(numbers):
        maps[:, i] = number
    return maps


def _fixed(number: Array) -> Array:
    """Return the multiple of 2^-16 next to `number`, as an integer."""
    xp = namespace(number)
    return xp.floor(number * _ONE + 0.5).astype(xp.int64)
