"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): each image of a batch is mixed with another one.

The partner of an image is the one at its place in the reverse order of the batch. The share of the image itself, of
which the partner's is the rest, is drawn once for a batch from the distribution Beta(alpha, alpha):

    mixup:   images = share * images + (1 - share) * partners
    cutmix:  a rectangle of (1 - share) of the area, cut off at the border, comes from the partner;
             share becomes that of the area which is left
    targets = share * one_hot(labels) + (1 - share) * one_hot(labels of the partners)

The number is drawn on the host from a key alone, so that no device waits.
"""

from __future__ import annotations

import math
from itertools import count
from typing import Any

import numpy as np

from minivit.arrays import Array, namespace
from minivit.ops.some_images import uniform
from minivit.random import Key

LARGEST_ALPHA = 4.0  # above it Jöhnk's method rejects nearly all draws
_AT_ONCE = 64  # pairs


def mixup(images: Array, share: float) -> Array:
    """Return ``share * images + (1 - share) * images[::-1]`` for images (B, H, W, C) of a float dtype.

    Images of 16 bits are mixed in float32.
    """
    xp = namespace(images)
    x = images.astype(xp.float32) if images.dtype.itemsize == 2 else images
    mixed = x * share
    mixed += x[::-1] * (1.0 - share)
    return mixed.astype(images.dtype, copy=False)


def cutmix(images: Array, box: tuple[int, int, int, int]) -> Array:
    """Return images (B, H, W, C) with a rectangle of ``images[::-1]``: `box` is its top, bottom, left and right."""
    namespace(images)
    top, bottom, left, right = box
    result = images.copy()
    result[:, top:bottom, left:right] = images[::-1, top:bottom, left:right]
    return result


def mixed_targets(labels: Array, classes: int, share: float, dtype: Any) -> Array:
    """Return the soft targets (B, classes) of `labels` (B,), of which those of ``labels[::-1]`` have ``1 - share``."""
    xp = namespace(labels)
    one_hot = (labels[:, None] == xp.arange(classes)).astype(dtype)
    return one_hot * share + one_hot[::-1] * (1.0 - share)


def cutmix_box(height: int, width: int, share: float, key: Key) -> tuple[tuple[int, int, int, int], float]:
    """Return the rectangle for `cutmix`, with its middle anywhere, and the share of the area that is left."""
    side = math.sqrt(1.0 - share)
    rows, columns = int(height * side), int(width * side)
    y, x = (int(u * size) for u, size in zip(uniform(key, 2)[0].tolist(), (height, width), strict=True))
    top, left = max(y - rows // 2, 0), max(x - columns // 2, 0)
    bottom, right = min(y - rows // 2 + rows, height), min(x - columns // 2 + columns, width)
    return (top, bottom, left, right), 1.0 - (bottom - top) * (right - left) / (height * width)


def beta(key: Key, alpha: float) -> float:
    """Return a number of Beta(alpha, alpha), 0 < alpha <= 4, for the first sample of a key on the host.

    This is Jöhnk's method: of uniform u and v, x = u^(1/alpha) and y = v^(1/alpha), the first x / (x + y) with
    0 < x + y <= 1.
    """
    for i in count():
        x, y = np.power(uniform(key.fold(str(i)), 2 * _AT_ONCE)[0].reshape(2, _AT_ONCE), 1.0 / alpha)
        fits = np.flatnonzero((x + y <= 1.0) & (x + y > 0.0))
        if len(fits):
            return float(x[fits[0]] / (x[fits[0]] + y[fits[0]]))
    raise AssertionError("unreachable")
