"""Work on some images of a batch, and images that must not turn black."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from minivit.arrays import Array, namespace
from minivit.random import Key


def apply_to_some(function: Callable[..., Array], images: Array, chosen: Array, *parameters: Array) -> None:
    """Set the images (B, ...) where `chosen` (B,) is true to ``function(images, *parameters)``, in place.

    The first axis of each of `parameters` is that of the images. The result for an image must depend on nothing else.
    On the host `function` takes the chosen images alone. On a device, where their number is not known without waiting,
    it takes all of them.
    """
    xp = namespace(images, chosen, *parameters)
    if xp is np:
        at = np.flatnonzero(chosen)
        if len(at):
            images[at] = function(images[at], *(parameter[at] for parameter in parameters))
    else:
        each = chosen.reshape(-1, *(1,) * (images.ndim - 1))
        xp.copyto(images, function(images, *parameters), where=each)


def keep_black_out(images: Array, before: Array) -> None:
    """Set the images (B, H, W, C) that have become black altogether to what they were `before`, in place."""
    xp = namespace(images, before)
    black = xp.logical_not(images.reshape(len(images), math.prod(images.shape[1:])).any(axis=1))
    apply_to_some(lambda _, before: before, images, black, before)


def uniform(key: Key, count: int) -> Array:
    """Return `count` float64 numbers in [0, 1) for each sample of `key`: (B, count)."""
    return (key.bits((len(key.sample_ids), count)) >> 8).astype("float64") / (1 << 24)
