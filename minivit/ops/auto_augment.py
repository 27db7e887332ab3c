"""TrivialAugment (Müller and Hutter 2021) and RandAugment (Cubuk et al. 2020) with torchvision's ops and ranges.

Each image draws one of 14 ops. TrivialAugment draws its magnitude too, one of 31 from 0 to the end of a wide range, and
applies it once. RandAugment has one magnitude for all, a narrower range, and applies several ops one after another.
Translations are a fraction of the side: torchvision's 32 pixels are those of an image of 224. They are rounded to the
nearest pixel, where torchvision truncates them; solarize at magnitude 0 changes nothing, where torchvision inverts
white. The images of a batch are grouped by their op, and each op runs once, the affine maps all in one. An image that
would turn black stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.affine import affine, rotation, shear, translation
from minivit.ops.color import autocontrast, brightness, contrast, equalize, posterize, saturation, sharpness, solarize
from minivit.ops.some_images import apply_to_some, keep_black_out
from minivit.random import Key

BINS = 31  # magnitudes from 0 to 1


class Ranges(NamedTuple):
    """What an op does at the magnitude 1."""

    shear: float  # columns a row
    translate: float  # share of the side
    rotate: float  # degrees
    enhance: float  # distance of a factor from 1
    posterize: int  # bits that are lost


TRIVIAL = Ranges(0.99, 32 / 224, 135.0, 0.99, 6)
RAND = Ranges(0.3, 150 / 331, 30.0, 0.9, 4)

Op = Callable[[Array, Array, Ranges], Array]  # of images (B, H, W, C), magnitudes (B,) from -1 to 1, ranges


def _solarize(images: Array, magnitude: Array, ranges: Ranges) -> Array:
    size = abs(magnitude)
    return solarize(images, 255.0 - 255.0 * size + (size == 0.0))  # at 0 not even white is inverted


def _posterize(images: Array, magnitude: Array, ranges: Ranges) -> Array:
    xp = namespace(images, magnitude)
    return posterize(images, 8 - xp.rint(abs(magnitude) * ranges.posterize).astype(xp.int32))


# The maps (B, 6) of `affine` for magnitudes (B,), ranges, height and width.
MAPS: dict[str, Callable[[Array, Ranges, int, int], Array]] = {
    "shear_x": lambda m, ranges, height, width: shear(m * ranges.shear, 0.0 * m),
    "shear_y": lambda m, ranges, height, width: shear(0.0 * m, m * ranges.shear),
    "translate_x": lambda m, ranges, height, width: translation(m * ranges.translate * width, 0.0 * m),
    "translate_y": lambda m, ranges, height, width: translation(0.0 * m, m * ranges.translate * height),
    "rotate": lambda m, ranges, height, width: rotation(m * ranges.rotate, height, width),
}


def _mapped(name: str) -> Op:
    return lambda images, m, ranges: affine(images, MAPS[name](m, ranges, images.shape[1], images.shape[2]))


# Their order is that of the random numbers.
OPS: dict[str, Op] = {
    "identity": lambda images, m, ranges: images,
    **{name: _mapped(name) for name in MAPS},
    "brightness": lambda images, m, ranges: brightness(images, 1.0 + m * ranges.enhance),
    "color": lambda images, m, ranges: saturation(images, 1.0 + m * ranges.enhance),
    "contrast": lambda images, m, ranges: contrast(images, 1.0 + m * ranges.enhance),
    "sharpness": lambda images, m, ranges: sharpness(images, 1.0 + m * ranges.enhance),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": lambda images, m, ranges: autocontrast(images),
    "equalize": lambda images, m, ranges: equalize(images),
}


def trivial_augment(images: Array, key: Key, strength: float = 1.0) -> Array:
    """Return `images` after one random op with a random magnitude each.

    Parameters
    ----------
    images : Array
        uint8 (B, H, W, C) with 1 or 3 channels; not changed.
    key : Key
        The key of the B samples.
    strength : float
        A factor of the magnitudes, from 0 to 1. At 0 the images are returned as they are.
    """
    xp = namespace(images, key.sample_ids)
    if strength == 0.0:
        return images
    bits = key.bits((len(images), 3))
    size = (((bits[:, 1] >> 16) * BINS) >> 16).astype(xp.float64) * (strength / (BINS - 1))
    return _augmented(images, bits, size, TRIVIAL)


def rand_augment(images: Array, key: Key, count: int, magnitude: int, strength: float = 1.0) -> Array:
    """Return `images` after `count` random ops each, all of `magnitude`, an integer from 0 to 30.

    The other arguments are those of `trivial_augment`.
    """
    xp = namespace(images, key.sample_ids)
    size = magnitude / (BINS - 1) * strength
    for i in range(count if strength else 0):
        bits = key.fold(str(i)).bits((len(images), 3))
        images = _augmented(images, bits, xp.full(len(images), size, dtype=xp.float64), RAND)
    return images


def _augmented(images: Array, bits: Array, size: Array, ranges: Ranges) -> Array:
    """Apply the op that the first of the `bits` (B, 3) choose, with magnitudes of `size` (B,), the last their sign."""
    xp = namespace(images, bits, size)
    chosen = ((bits[:, 0] >> 16) * len(OPS)) >> 16
    magnitude = xp.where(bits[:, 2] >> 31 == 1, size, -size)
    result = images.copy()
    maps = xp.zeros((len(images), 6), dtype=xp.float64)
    moves = xp.zeros(len(images), dtype=xp.bool_)
    for i, (name, function) in enumerate(OPS.items()):
        if name in MAPS:
            moves |= chosen == i
            apply_to_some(
                lambda _, m, name=name: MAPS[name](m, ranges, *images.shape[1:3]), maps, chosen == i, magnitude
            )
        elif name != "identity":
            apply_to_some(lambda x, m, function=function: function(x, m, ranges), result, chosen == i, magnitude)
    apply_to_some(affine, result, moves, maps)  # one gather for all of them
    keep_black_out(result, images)
    return result
