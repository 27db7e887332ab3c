"""A random rectangle of an image, resized to the size of the image (Szegedy et al. 2015), by bilinear interpolation.

The area of the rectangle is uniform in a range of shares of the image, the logarithm of its ratio uniform between those
of 3/4 and 4/3; a rectangle that is longer than a side is cut off there. Rows are interpolated first, then columns:

    source of row i: y = clip((i + 1/2) height' / height - 1/2, 0, height' - 1) for a rectangle of height' rows
    row i = (1 - w) * row[floor(y)] + w * row[min(floor(y) + 1, height' - 1)], with w = y - floor(y)
"""

from __future__ import annotations

import math

from minivit.arrays import Array, namespace
from minivit.ops.some_images import keep_black_out, uniform
from minivit.random import Key

_RATIO = 4 / 3


def random_resized_crop(images: Array, key: Key, scale: tuple[float, float]) -> Array:
    """Return a random rectangle of each of `images` (B, H, W, C), uint8, with the size of the image.

    Its share of the area is between the two numbers of `scale`, in (0, 1]. An image that would turn black stays
    as it is.
    """
    xp = namespace(images, key.sample_ids)
    _, height, width, _ = images.shape
    u = uniform(key, 4)
    area = (scale[0] + (scale[1] - scale[0]) * u[:, 0]) * (height * width)
    ratio = xp.exp((2.0 * u[:, 1] - 1.0) * math.log(_RATIO))
    rows = xp.clip(xp.rint(xp.sqrt(area / ratio)), 1, height)
    columns = xp.clip(xp.rint(xp.sqrt(area * ratio)), 1, width)
    top, left = xp.floor(u[:, 2] * (height - rows + 1)), xp.floor(u[:, 3] * (width - columns + 1))
    result = crop_resized(images, xp.stack([top, left, rows, columns], axis=1).astype(xp.int64))
    keep_black_out(result, images)
    return result


def crop_resized(images: Array, box: Array) -> Array:
    """Return the rectangle `box` (B, 4), top, left, height and width, of each image, with the size of the image."""
    xp = namespace(images, box)
    B, height, width, C = images.shape
    above, below, down = _sources(box[:, 0], box[:, 2], height)
    first = xp.arange(B, dtype=xp.int64)[:, None] * height
    lines = images.reshape(B * height, width * C)
    rows = _between(xp.take(lines, first + above, axis=0), xp.take(lines, first + below, axis=0), down[..., None])
    left, right, across = _sources(box[:, 1], box[:, 3], width)
    first = xp.arange(B * height, dtype=xp.int64).reshape(B, height, 1) * width
    pixels = rows.reshape(-1, C)
    near, far = (xp.take(pixels, first + place[:, None], axis=0).reshape(B, height, -1) for place in (left, right))
    # Weights repeated for each channel: arithmetic over rows is several times as fast as over pixels.
    result = _between(near, far, across.repeat(C, axis=1)[:, None])
    result += 0.5
    return result.astype(xp.uint8).reshape(images.shape)


def _sources(start: Array, length: Array, size: int) -> tuple[Array, Array, Array]:
    """Return the two places between which each of `size` places lies, and the weight of the second: (B, size)."""
    xp = namespace(start, length)
    last = (length - 1)[:, None]
    place = (xp.arange(size, dtype=xp.float64) + 0.5) * length.astype(xp.float64)[:, None] / size - 0.5
    place = xp.clip(place, 0.0, last.astype(xp.float64))
    low = xp.floor(place).astype(xp.int64)
    weight = (place - low).astype(xp.float32)
    return start[:, None] + low, start[:, None] + xp.minimum(low + 1, last), weight


def _between(a: Array, b: Array, weight: Array) -> Array:
    xp = namespace(a, b, weight)
    a, b = a.astype(xp.float32, copy=False), b.astype(xp.float32, copy=False)
    return (b - a) * weight + a
