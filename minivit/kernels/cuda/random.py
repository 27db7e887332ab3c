"""Dropout masks and augmented images from a key, in one pass.

Kernels of the ops `drawn_mask` and `training_images`; the results have the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.elementwise import THREADS, grid_of_all
from minivit.kernels.cuda.runtime import TYPES, acc_dtype, aligned, launch
from minivit.ops.registry import Kernel, register_kernel
from minivit.random import Key

_LINE = 96  # threads for a row of pixels: 32 pixels of three channels
_MAX_BLOCKS = 65536  # blocks


def _covers_mask(sample_ids: Array, words: tuple[int, int], count: int, rate: float, dtype: Any) -> bool:
    return sample_ids.dtype.kind in "iu" and dtype.name in TYPES and 0 < count * len(sample_ids) < 2**31


def _drawn_mask(sample_ids: Array, words: tuple[int, int], count: int, rate: float, dtype: Any) -> Array:
    mask: Array = namespace(sample_ids).empty((len(sample_ids), count), dtype=dtype)
    samples = aligned(sample_ids.astype(np.int64, copy=False))
    launch("random", "keep_mask", mask, grid_of_all(mask.size), (THREADS,), samples, *words,
           round(rate * 2**32), 1.0 / (1.0 - rate), mask, len(sample_ids), count)  # fmt: skip
    return mask


def _covers_images(
    images: Array, key: Key, *, crop_padding: int, flip: bool, scale: Array, shift: Array, dtype: Any
) -> bool:
    dtype = np.dtype(dtype)
    fits = dtype.name in TYPES and scale.dtype == shift.dtype == acc_dtype(dtype)
    some = images.size > 0 and len(key.sample_ids) > 0
    return fits and some and images.dtype == np.uint8 and images.ndim == 4 and key.sample_ids.dtype == np.int64


def _training_images(
    images: Array, key: Key, *, crop_padding: int, flip: bool, scale: Array, shift: Array, dtype: Any
) -> Array:
    xp = namespace(images, key.sample_ids, scale, shift)
    _, height, width, C = images.shape
    if not 0 <= crop_padding < min(height, width) or scale.shape != (C,) or shift.shape != (C,):
        raise ValueError(
            f"training_images: crop_padding is {crop_padding}, scale has shape {scale.shape} and shift {shift.shape}; "
            f"expected 0 to {min(height, width) - 1}, ({C},) and ({C},) for images of {images.shape[1:]}"
        )
    y: Array = xp.empty((len(key.sample_ids), height, width, C), dtype=dtype)
    lines = min(len(y) * height, _MAX_BLOCKS)
    launch("random", "training_images", y, (lines,), (_LINE,), aligned(images), aligned(key.sample_ids),
           *key.fold("augment.crop").words(), crop_padding, *key.fold("augment.flip").words(), int(flip),
           aligned(scale), aligned(shift), y, len(y), height, width, C)  # fmt: skip
    return y


def register(library: str) -> None:
    """Register the kernels for the array library called `library`."""
    register_kernel("drawn_mask", Kernel(library, _covers_mask, _drawn_mask))
    register_kernel("training_images", Kernel(library, _covers_images, _training_images))
