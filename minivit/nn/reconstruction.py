"""What a masked model reconstructs: its predictions in the places of their patches, as images."""

from __future__ import annotations

from typing import NamedTuple

from minivit import ops
from minivit.arrays import Array, namespace


class Reconstruction(NamedTuple):
    """Images without the patches that are predicted, and with the predictions in their places.

    The images are in the units of the model's input. The patches that are not predicted have the bits of the input.
    """

    masked: Array  # (B, height, width, C), the predicted patches filled with the mean of each channel of the image
    predicted: Array  # (B, height, width, C), the predicted patches filled with their predictions
    is_predicted: Array  # (B, N) bool


def reconstruction(x: Array, patches: Array, masked: Array, patch_size: tuple[int, int]) -> Reconstruction:
    """Return the reconstruction of images from the pixels that are predicted.

    Parameters
    ----------
    x : Array
        (B, height, width, C), floating.
    patches : Array
        (B, m, P * Q * C), of the dtype of `x`.
    masked : Array
        (B, m) integers, the numbers of the patches.
    patch_size : tuple of int
        P and Q.
    """
    xp = namespace(x, patches, masked)
    _, height, width, _ = x.shape
    P, Q = patch_size
    fill = xp.tile(x.mean(axis=(1, 2))[:, None], (1, 1, P * Q))  # (B, 1, P * Q * C)
    marks = marked(masked, height // P * (width // Q))
    return Reconstruction(
        with_patches(x, fill, masked, patch_size), with_patches(x, patches, masked, patch_size), marks
    )


def with_patches(x: Array, patches: Array, index: Array, patch_size: tuple[int, int]) -> Array:
    """Return a copy of images `x` (B, height, width, C) with `patches` (B, m, P * Q * C) at the places `index` (B, m).

    Of `patches` (B, 1, P * Q * C), the one of an image is put at all of its places.
    """
    xp = namespace(x, patches, index)
    y, cache = ops.patches(x, patch_size)
    y = y.copy()  # patches as wide as the image are a view of it
    y[xp.arange(len(x))[:, None], index] = patches
    return ops.patches_backward(y, cache)  # the inverse permutation


def marked(index: Array, N: int) -> Array:
    """Return for each of N patches (B, N) whether it is among the numbers `index` (B, m)."""
    xp = namespace(index)
    marks: Array = xp.zeros((len(index), N), dtype=bool)
    marks[xp.arange(len(index))[:, None], index] = True
    return marks


def bin_centres(classes: Array, bins: int, C: int) -> Array:
    """Return the colours (..., C), from 0 to 1, in the middle of their bins.

    Parameters
    ----------
    classes : Array
        Integers of any shape below ``bins ** C``; the first channel has the largest factor.
    bins : int
        The number of bins of a channel.
    C : int
        The number of channels.
    """
    xp = namespace(classes)
    digits = [classes // bins ** (C - 1 - c) % bins for c in range(C)]
    return (xp.stack(digits, axis=-1) + 0.5) / bins
