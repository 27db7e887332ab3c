"""Position embeddings for another grid of patches, by the conventions of timm and of the original code.

Both treat rows and columns apart: ``grid'[i, j] = sum_kl A[i, k] B[j, l] grid[k, l]``, with one matrix for each axis.

    "timm"    PyTorch's antialiased bicubic interpolation without aligned corners: Keys' cubic with a = -1/2, which is
              stretched where the new grid is smaller. timm.layers.resample_abs_pos_embed.
    "google"  scipy.ndimage.zoom of order 1: linear, and the corners are aligned. vit_jax/checkpoint.py,
              interpolate_posembed. Where scipy rounds the last coordinate up, it puts zeros in the last row (from 15 to
              26, for one); here it is the last row of the old grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minivit.arrays import Array

CONVENTIONS = ("timm", "google")


def resampled(grid: Array, size: tuple[int, int], convention: str) -> Array:
    """Return the grid (rows, columns, D) as (*size, D); it is computed in float64 and keeps its dtype."""
    rows, columns = (resampling_matrix(*pair, convention) for pair in zip(grid.shape[:2], size, strict=True))
    values: Array = np.einsum("ik,jl,kld->ijd", rows, columns, grid.astype(np.float64), optimize=True)
    return values.astype(grid.dtype)


def resampling_matrix(old: int, new: int, convention: str) -> NDArray[np.float64]:
    """Return the matrix (new, old) whose product with values at `old` places gives those at `new` places."""
    return _bicubic(old, new) if convention == "timm" else _linear(old, new)


def _bicubic(old: int, new: int) -> NDArray[np.float64]:
    # Places and weights are rounded to float32 where PyTorch rounds them: exact ones differ from its by up to 3e-6.
    step = np.float32(old) / np.float32(new)
    stretch = max(step, np.float32(1.0))
    inverse = float(np.float32(1.0) / stretch)
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = np.float32(float(step) * (i + 0.5))
        ends = (int(float(centre) + side * float(2 * stretch) + 0.5) for side in (-1.0, 1.0))
        places = np.arange(max(next(ends), 0), min(next(ends), old))
        distances = np.abs((places.astype(np.float32) - centre).astype(np.float64) + 0.5) * inverse
        weights = _cubic(distances.astype(np.float32))
        matrix[i, places] = weights / weights.sum()
    return matrix


def _cubic(x: NDArray[np.float32]) -> NDArray[np.float32]:
    near = _multiplied_and_added(_multiplied_and_added(1.5, x, -2.5) * x, x, 1.0)
    far = _multiplied_and_added(_multiplied_and_added(_multiplied_and_added(-0.5, x, 2.5), x, -4.0), x, 2.0)
    return np.where(x < 1.0, near, np.where(x < 2.0, far, np.float32(0.0)))


def _multiplied_and_added(a: NDArray[np.float32] | float, x: NDArray[np.float32], b: float) -> NDArray[np.float32]:
    """Return a x + b with one rounding to float32, as processors compute it."""
    product = np.asarray(a, np.float64) * x.astype(np.float64)
    return (product + b).astype(np.float32)


def _linear(old: int, new: int) -> NDArray[np.float64]:
    places = np.arange(new) * ((old - 1) / max(new - 1, 1))
    return np.maximum(0.0, 1.0 - np.abs(np.minimum(places, old - 1)[:, None] - np.arange(old)))
