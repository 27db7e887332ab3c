"""Changes of the colour of uint8 images, one parameter for each image of a batch.

Most are a table of 256 values for each image (and channel), which one gather looks up. The arithmetic is that of
Pillow, to the bit, so that the results are those of torchvision's functions on Pillow's images:

    blend(a, b, factor) = a + factor * (b - a), in float32, clipped to 0 ... 255 and cut off to whole numbers
    brightness: a = 0           contrast: a = the mean grey of the image
    saturation: a = its grey    sharpness: a = its mean over 3 x 3 pixels, of which the middle counts 5 times

A factor of 1 changes nothing. Images are (B, H, W, C) with 1 or 3 channels, parameters (B,).
"""

from __future__ import annotations

import numpy as np

from minivit.arrays import Array, namespace
from minivit.ops.some_images import keep_black_out, uniform
from minivit.random import Key


def brightness(images: Array, factor: Array) -> Array:
    """Return `images` times `factor`."""
    xp = namespace(images, factor)
    return _lookup(images, _blend(xp.zeros(256, dtype=xp.int32), xp.arange(256, dtype=xp.int32), factor[:, None]))


def contrast(images: Array, factor: Array) -> Array:
    """Return `images` with the distance of each value from the mean grey of its image multiplied by `factor`."""
    xp = namespace(images, factor)
    B, height, width, _ = images.shape
    total = _grey(images).reshape(B, -1).sum(axis=1, dtype=xp.int64)
    mean = ((2 * total + height * width) // (2 * height * width)).astype(xp.int32)
    return _lookup(images, _blend(mean[:, None], xp.arange(256, dtype=xp.int32), factor[:, None]))


def saturation(images: Array, factor: Array) -> Array:
    """Return `images` with the distance of each colour from its grey multiplied by `factor`; grey images stay."""
    xp = namespace(images, factor)
    if images.shape[-1] == 1:
        return images
    B, _, _, C = images.shape
    grey = _grey(images).reshape(B, -1).repeat(C, axis=1)  # arithmetic over rows is faster than over pixels
    return _blend(grey, images.reshape(B, -1).astype(xp.int32), factor[:, None]).reshape(images.shape)


def sharpness(images: Array, factor: Array) -> Array:
    """Return `images`, blurred for a `factor` below 1 and sharpened above; pixels at the border stay."""
    xp = namespace(images, factor)
    _, height, width, _ = images.shape
    if min(height, width) < 3:
        return images
    values = images.astype(xp.int32)
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    inside = values[:, 1:-1, 1:-1]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inside
    result = images.copy()
    result[:, 1:-1, 1:-1] = _blend((2 * around + 13) // 26, inside, factor[:, None, None, None])
    return result


def posterize(images: Array, bits: Array) -> Array:
    """Return `images` with the upper `bits`, integers from 0 to 8, of each value; the others are zero."""
    xp = namespace(images, bits)
    mask = (256 - (1 << (8 - bits.astype(xp.int32)))).astype(xp.uint8)
    return images & mask[:, None, None, None]


def solarize(images: Array, threshold: Array) -> Array:
    """Return `images` with each value v that is at least `threshold` replaced by 255 - v."""
    xp = namespace(images, threshold)
    values = xp.arange(256, dtype=xp.int32)
    return _lookup(images, xp.where(values >= threshold[:, None], 255 - values, values).astype(xp.uint8))


def autocontrast(images: Array) -> Array:
    """Return `images` with the values of each channel stretched to 0 ... 255; a channel of one value stays."""
    xp = namespace(images)
    planes = _planes(images)
    low, high = (x.astype(xp.int32) for x in (planes.min(axis=2, keepdims=True), planes.max(axis=2, keepdims=True)))
    values = xp.arange(256, dtype=xp.int32)
    scale = 255.0 / xp.maximum(high - low, 1).astype(xp.float64)
    stretched = xp.clip(values * scale - low * scale, 0.0, 255.0).astype(xp.int32)
    return _lookup(images, xp.where(high > low, stretched, values).astype(xp.uint8))


def equalize(images: Array) -> Array:
    """Return `images` with the values of each channel spread so that about as many pixels have each."""
    xp = namespace(images)
    B, _, _, C = images.shape
    below, below_largest = _numbers_below(images)
    step = below_largest // 255
    spread = xp.minimum((step // 2 + below) // xp.maximum(step, 1), 255)
    values = xp.arange(256, dtype=xp.int32)
    return _lookup(images, xp.where(step > 0, spread, values).astype(xp.uint8).reshape(B, C, 256))


def _numbers_below(images: Array) -> tuple[Array, Array]:
    """Return the numbers of pixels below each value, and below the largest value: int32 (B C, 256) and (B C, 1)."""
    xp = namespace(images)
    B, height, width, C = images.shape
    pixels = height * width
    row = xp.arange(B * C, dtype=xp.int32)[:, None]
    if xp is np:  # a third of the time of a sort; on a device the host would wait for it
        numbers = np.bincount((images + 256 * row.reshape(B, 1, 1, C)).ravel(), minlength=256 * B * C)
        numbers = numbers.reshape(B * C, 256).astype(np.int32)
        below = np.cumsum(numbers, axis=1, dtype=np.int32) - numbers
        return below, np.where(numbers > 0, below, 0).max(axis=1, keepdims=True)
    values = xp.arange(256, dtype=xp.int32)
    # Each row adds 256 times its number, so that all rows are ordered at once, and one list.
    ordered = xp.sort((_planes(images).reshape(B * C, pixels) + 256 * row).ravel())
    found = xp.searchsorted(ordered, (values + 256 * row).ravel())
    below = found.reshape(B * C, 256).astype(xp.int32) - pixels * row
    largest = (ordered.reshape(B * C, pixels)[:, -1:] - 256 * row).astype(xp.int64)
    return below, xp.take_along_axis(below, largest, axis=1)


def color_jitter(images: Array, key: Key, strength: float) -> Array:
    """Return `images` with random brightness, contrast and saturation, in this fixed order.

    The ranges are those of timm's `color_jitter`, which draws the order too. Each factor is uniform from
    ``1 - strength`` to ``1 + strength``; none is below 0. An image that would turn black stays as it is.
    """
    namespace(images, key.sample_ids)
    factors = (2.0 * uniform(key, 3) - 1.0) * strength + 1.0
    factors = factors.clip(0.0, None)
    result = images
    for i, function in enumerate((brightness, contrast, saturation)):
        result = function(result, factors[:, i])
    result = result.copy() if result is images else result
    keep_black_out(result, images)
    return result


def _planes(images: Array) -> Array:
    """Return the values of each channel one after another, (B, C, H W): over these, reductions are fast."""
    xp = namespace(images)
    B, height, width, C = images.shape
    return xp.ascontiguousarray(xp.moveaxis(images, 3, 1)).reshape(B, C, height * width)


def _grey(images: Array) -> Array:
    """Return the luminance of Rec. 601 as int32 (B, H, W)."""
    xp = namespace(images)
    if images.shape[-1] == 1:
        return images[..., 0].astype(xp.int32)
    red, green, blue = (images[..., i].astype(xp.int32) for i in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _blend(a: Array, b: Array, factor: Array) -> Array:
    """Return ``a + factor * (b - a)`` as uint8, for int32 `a` and `b`."""
    xp = namespace(a, b, factor)
    mixed = (b - a).astype(xp.float32) * factor.astype(xp.float32) + a.astype(xp.float32)
    return xp.clip(mixed, 0.0, 255.0).astype(xp.uint8)


def _lookup(images: Array, tables: Array) -> Array:
    """Return each value of `images` looked up in the table of its image (B, 256), or of its channel (B, C, 256)."""
    xp = namespace(images, tables)
    first = xp.arange(tables.size // 256, dtype=xp.int64).reshape(len(images), 1, 1, -1) * 256
    return xp.take(tables.ravel(), images + first)
