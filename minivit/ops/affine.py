"""Affine maps of images by one gather of the nearest pixels, one map for each image of a batch.

The map of an image says from where the pixel at (x, y) of the result comes, with pixel centres at halves:

    x' = a (x + 1/2) + b (y + 1/2) + c
    y' = d (x + 1/2) + e (y + 1/2) + f

A pixel from outside is black. The numbers are rounded to multiples of 2^-16, as in Pillow, whose results these are.
"""

from __future__ import annotations

import math

from minivit.arrays import Array, namespace

_ONE = 65536


def affine(images: Array, maps: Array) -> Array:
    """Return `images` (B, H, W, C) under `maps` (B, 6) of float64: a, b, c, d, e, f of each image."""
    xp = namespace(images, maps)
    B, height, width, C = images.shape
    a, b, c, d, e, f = (maps[:, i, None, None] for i in range(6))
    x, y = xp.arange(width, dtype=xp.int64), xp.arange(height, dtype=xp.int64)[:, None]
    column = (_fixed(a) * x + _fixed(b) * y + _fixed(c + 0.5 * a + 0.5 * b)) >> 16
    row = (_fixed(d) * x + _fixed(e) * y + _fixed(f + 0.5 * d + 0.5 * e)) >> 16
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = xp.arange(B, dtype=xp.int64)[:, None, None] * (height * width) + row * width + column
    picked = xp.take(images.reshape(-1, C), xp.where(inside, place, 0), axis=0)
    picked *= inside[..., None].astype(xp.uint8)
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
