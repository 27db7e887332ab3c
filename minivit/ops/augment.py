"""Normalisation, random crop and random flip, on the library and the device of the images.

The crop and the flip of an image depend on its key (seed, step, sample) alone, so they are the same in every
micro-batch. Both keep the dtype, and are fastest on uint8, before `normalize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minivit.arrays import Array, namespace, native
from minivit.ops.registry import op
from minivit.ops.some_images import keep_black_out
from minivit.random import Key


def normalize(images: Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any) -> Array:
    """Return (images / 255 - mean) / std.

    Parameters
    ----------
    images : Array
        uint8 (B, height, width, C).
    mean, std : tuple of float
        One number for each channel, for images in [0, 1].
    dtype : dtype
        The float type of the result and of the computation.

    Raises
    ------
    TypeError
        `images` are not uint8.
    ValueError
        `mean` or `std` does not have one number for each channel.
    """
    images = native(images)
    namespace(images)
    if not len(mean) == len(std) == images.shape[-1]:
        channels = images.shape[-1]
        raise ValueError(f"images have {channels} channels, but mean has {len(mean)} and std {len(std)} numbers")
    return normalized(images, *channel_scale(mean, std, dtype, namespace(images)), dtype)


def channel_scale(mean: Sequence[float], std: Sequence[float], dtype: Any, library: Any) -> tuple[Array, Array]:
    """Return scale and shift (C,) such that ``images * scale + shift`` is normalised, as arrays of `library`.

    This copies to the device; a training run does it once.
    """
    scale, shift = [1.0 / (255.0 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    return library.asarray(scale, dtype=dtype), library.asarray(shift, dtype=dtype)


@np.errstate(under="ignore")
def normalized(images: Array, scale: Array, shift: Array, dtype: Any) -> Array:
    """Return ``images * scale + shift`` for uint8 `images` (B, height, width, C), as `dtype`.

    The computation has the dtype of `scale` and `shift` (C,), which come from `channel_scale`.
    """
    xp = namespace(images, scale, shift)
    if images.dtype != xp.uint8:
        raise TypeError(f"normalize got images of {images.dtype}; expected uint8, 0 to 255")
    # Scale and shift are repeated along the width: rows of that length are 5 times as fast as rows of 3 channels.
    width = images.shape[-2]
    rows = images.reshape(-1, width * images.shape[-1]).astype(scale.dtype)
    rows *= xp.tile(scale, width)
    rows += xp.tile(shift, width)
    return rows.reshape(images.shape).astype(dtype, copy=False)


def random_crop(images: Array, padding: int, key: Key) -> Array:
    """Pad each image with `padding` zeros on every side and crop it to its own size at a random position.

    An image that would turn black stays as it is.

    Parameters
    ----------
    images : Array
        (B, height, width, C) of any dtype; not changed.
    padding : int
        The largest shift in each direction; less than the height and the width.
    key : Key
        The key of the B samples.

    Raises
    ------
    ValueError
        `padding` is negative, or so large that a crop could contain padding alone.
    """
    xp = namespace(images, key.sample_ids)
    B, height, width, C = images.shape
    if not 0 <= padding < min(height, width):
        raise ValueError(
            f"crop padding is {padding} for images of {height} x {width}; "
            f"expected 0 to {min(height, width) - 1}, so that every crop contains part of the image"
        )
    padded = xp.zeros((B, height + 2 * padding, width + 2 * padding, C), dtype=images.dtype)
    padded[:, padding : padding + height, padding : padding + width] = images
    # The upper 16 bits times the number of choices, divided by 2^16: uniform up to choices / 2^16, without overflow.
    offsets = ((key.bits((B, 2)) >> 16) * (2 * padding + 1)) >> 16
    if xp is np:
        result = _windows(padded, height, width, offsets)
    else:
        rows = offsets[:, 0, None].astype(xp.int64) + xp.arange(height)
        columns = offsets[:, 1, None].astype(xp.int64) + xp.arange(width)
        result = _pick(padded, rows, columns)
    keep_black_out(result, images)
    return result


def random_flip(images: Array, key: Key) -> Array:
    """Mirror each image left to right with probability one half; `images` (B, height, width, C) are not changed."""
    xp = namespace(images, key.sample_ids)
    B, height, width, _ = images.shape
    flipped = key.bits((B, 1)) >> 31 == 1
    if xp is np:
        result = images.copy()
        result[flipped[:, 0]] = _mirrored(images[flipped[:, 0]])
        return result
    rows = xp.zeros((B, 1), dtype=xp.int64) + xp.arange(height)
    columns = xp.where(flipped, xp.arange(width)[::-1], xp.arange(width))
    return _pick(images, rows, columns)


def _windows(images: Array, height: int, width: int, offsets: Array) -> Array:
    """Return windows of images on the host: a copy of rows, in a tenth of the time of `_pick`."""
    B, rows, columns, C = images.shape
    stride, of_row, of_pixel, _ = images.strides
    shape, strides = (B, rows - height + 1, columns - width + 1, height, width * C), (stride, of_row, of_pixel, of_row)
    every = np.lib.stride_tricks.as_strided(images, shape, (*strides, images.itemsize))
    chosen: Array = every[np.arange(B), offsets[:, 0], offsets[:, 1]]
    return chosen.reshape(B, height, width, C)


def _mirrored(images: Array) -> Array:
    """Return images on the host mirrored left to right: channel by channel, in a fifth of the time of `_pick`."""
    mirrored = np.empty_like(images)
    for i in range(images.shape[-1]):
        mirrored[..., i] = images[:, :, ::-1, i]
    return mirrored


def _pick(images: Array, rows: Array, columns: Array) -> Array:
    """Return images[b, rows[b, i], columns[b, j]] for rows (B, height) and columns (B, width), by one gather."""
    xp = namespace(images, rows, columns)
    B, height, width, C = images.shape
    first = xp.arange(B)[:, None, None] * (height * width)
    picked: Array = xp.take(images.reshape(-1, C), first + rows[:, :, None] * width + columns[:, None, :], axis=0)
    return picked


def augment(images: Array, key: Key, *, crop_padding: int, flip: bool) -> Array:
    """Return `images` (B, height, width, C) randomly cropped with `crop_padding` and, if `flip`, randomly flipped."""
    if crop_padding:
        images = random_crop(images, crop_padding, key.fold("augment.crop"))
    if flip:
        images = random_flip(images, key.fold("augment.flip"))
    return images


@op
def training_images(
    images: Array, key: Key, *, crop_padding: int, flip: bool, scale: Array, shift: Array, dtype: Any
) -> Array:
    """Return a batch of training images: selected, augmented and normalised.

    Parameters
    ----------
    images : Array
        uint8 (n, height, width, C): all training images.
    key : Key
        The key whose `sample_ids` (B,) are the indices of the batch's images.
    crop_padding, flip
        See `augment`.
    scale, shift : Array
        (C,) from `channel_scale`; the computation has their dtype.
    dtype : dtype
        The dtype of the result.

    Returns
    -------
    Array
        (B, height, width, C); the same bits on every library.
    """
    xp = namespace(images, key.sample_ids, scale, shift)
    picked = xp.take(images, key.sample_ids, axis=0)
    return normalized(augment(picked, key, crop_padding=crop_padding, flip=flip), scale, shift, dtype)
