"""Random erasing (Zhong et al. 2020): a rectangle of an image is filled with one random colour.

Its area is 2 to 33 % of the image, its ratio of height to width 0.3 to 3.3, as in torchvision; a rectangle that is
longer than a side is cut off there.
"""

from __future__ import annotations

import math

import numpy as np

from minivit.arrays import Array, namespace
from minivit.ops.some_images import apply_to_some, keep_black_out, uniform
from minivit.random import Key

_AREA = (0.02, 0.33)  # share of the image
_RATIO = (0.3, 3.3)


def random_erasing(images: Array, key: Key, probability: float) -> Array:
    """Return uint8 `images` (B, H, W, C) with a rectangle of some erased, each image with `probability`.

    An image that would turn black stays as it is. `images` are not changed.
    """
    xp = namespace(images, key.sample_ids)
    B, height, width, C = images.shape
    u = uniform(key.fold("box"), 5)
    area = (_AREA[0] + (_AREA[1] - _AREA[0]) * u[:, 1]) * (height * width)
    ratio = xp.exp(math.log(_RATIO[0]) + math.log(_RATIO[1] / _RATIO[0]) * u[:, 2])
    rows = xp.clip(xp.rint(xp.sqrt(area * ratio)), 1, height)
    columns = xp.clip(xp.rint(xp.sqrt(area / ratio)), 1, width)
    top, left = xp.floor(u[:, 3] * (height - rows + 1)), xp.floor(u[:, 4] * (width - columns + 1))
    box = xp.stack([top, left, rows, columns], axis=1).astype(xp.int64)
    color = (key.fold("color").bits((B, C)) >> 24).astype(xp.uint8)
    result = images.copy()
    apply_to_some(erased, result, u[:, 0] < probability, box, color)
    keep_black_out(result, images)
    return result


def erased(images: Array, box: Array, color: Array) -> Array:
    """Return `images` with the rectangle `box` (B, 4) of each, top, left, height and width, in `color` (B, C)."""
    xp = namespace(images, box, color)
    _, height, width, _ = images.shape
    if xp is np:  # a tenth of the time of the mask
        result = images.copy()
        for image, (first, left, rows, columns), fill in zip(result, box.tolist(), color, strict=True):
            image[first : first + rows, left : left + columns] = fill
        return result
    top, left, rows, columns = (box[:, i, None] for i in range(4))
    y, x = xp.arange(height), xp.arange(width)
    inside = ((y >= top) & (y < top + rows))[:, :, None] & ((x >= left) & (x < left + columns))[:, None, :]
    return xp.where(inside[..., None], color[:, None, None, :], images)
