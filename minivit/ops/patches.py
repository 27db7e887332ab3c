"""Cutting images into patches (Dosovitskiy et al. 2020, section 3.1).

    y[b, n] = the n-th patch of image b, row by row, flattened in the order row, column, channel

    dx = the entries of dy at the positions of their pixels

Every pixel is in exactly one patch. The map is a permutation, so the backward pass is the inverse permutation.
The steps are in docs/derivations/embeddings.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype


class PatchesCache(NamedTuple):
    """What the backward pass of `patches` reads."""

    shape: tuple[int, int, int, int]  # (B, height, width, C)
    patch_size: tuple[int, int]  # height and width of a patch


def check_patches(x: Array, patch_size: tuple[int, int]) -> Any:
    """Return the array library of the arguments of `patches`, or raise if they are invalid."""
    xp = namespace(x)
    same_dtype("patches", x=x)
    expect("patches", "x", x, ("B", "height", "width", "C"))
    _, height, width, _ = x.shape
    P, Q = patch_size
    if min(P, Q) < 1 or height % P or width % Q:
        raise ValueError(f"patches: images of {height} x {width} pixels cannot be cut into patches of {P} x {Q}")
    return xp


@op
def patches(x: Array, patch_size: tuple[int, int], *, keep: bool = True) -> tuple[Array, PatchesCache | None]:
    """Return the patches of images.

    Parameters
    ----------
    x : Array
        (B, height, width, C), floating.
    patch_size : tuple of int
        Height and width of a patch; they divide those of the images.
    keep : bool
        Whether to return the cache that `patches_backward` reads.

    Returns
    -------
    y : Array
        (B, N, P * P * C), of the dtype of `x`.
    cache : PatchesCache or None
    """
    check_patches(x, patch_size)
    B, height, width, C = x.shape
    P, Q = patch_size
    y = x.reshape(B, height // P, P, width // Q, Q, C).transpose(0, 1, 3, 2, 4, 5)  # (B, row, column, P, Q, C)
    return y.reshape(B, height // P * (width // Q), P * Q * C), PatchesCache(
        (B, height, width, C), (P, Q)
    ) if keep else None


@op_backward
def patches_backward(dy: Array, cache: PatchesCache) -> Array:
    """Return ``dx`` (B, height, width, C) for the gradient `dy` (B, N, P * P * C) of `patches`' result."""
    (B, height, width, C), (P, Q) = cache
    rows, columns = height // P, width // Q
    expect_gradient("patches", dy, (B, rows * columns, P * Q * C))
    dx = dy.reshape(B, rows, columns, P, Q, C).transpose(0, 1, 3, 2, 4, 5)  # (B, row, P, column, Q, C)
    return dx.reshape(B, height, width, C)
