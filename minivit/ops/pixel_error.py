"""The error of a reconstruction for each image: the mean of the squares, or of the absolute values, of differences.

    loss[b] = sum of |x[b] - target[b]|**power / S      power is 2 or 1, S the number of elements of an image

    dx[b] = dloss[b] * 2 * (x[b] - target[b]) / S       or dloss[b] * sign(x[b] - target[b]) / S
    dtarget = -dx

Masked autoencoders use squares, SimMIM absolute values. The sign of 0 is 0. The steps are in
docs/derivations/masking.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect_gradient, same_dtype

POWERS = (1, 2)


class PixelErrorCache(NamedTuple):
    """What the backward pass of `pixel_error` reads."""

    slope: Array  # (B, ...), the derivative of the loss of each image


@op
def pixel_error(x: Array, target: Array, power: int = 2, *, keep: bool = True) -> tuple[Array, PixelErrorCache | None]:
    """Return the mean error of each image.

    Parameters
    ----------
    x, target : Array
        (B, ...), floating, of one shape and dtype, with at least one element for each image.
    power : int
        2 for squares, 1 for absolute values.
    keep : bool
        Whether to return the cache that `pixel_error_backward` reads.

    Returns
    -------
    loss : Array
        (B,), of the dtype of `x`.
    cache : PixelErrorCache or None
    """
    xp = namespace(x, target)
    same_dtype("pixel_error", x=x, target=target)
    if x.ndim < 2 or x.shape != target.shape or 0 in x.shape[1:]:
        raise ValueError(f"pixel_error: x has shape {x.shape} and target {target.shape}; expected one shape (B, ...)")
    if power not in POWERS:
        raise ValueError(f"pixel_error: power is {power}; expected 1 or 2")
    S = math.prod(x.shape[1:])
    difference = x - target
    slope = 2 * difference if power == 2 else xp.sign(difference.real).astype(x.dtype)
    axes = tuple(range(1, x.ndim))
    loss = (difference * (slope / power)).sum(axis=axes) / S
    return loss, PixelErrorCache(slope / S) if keep else None


@op_backward
def pixel_error_backward(dloss: Array, cache: PixelErrorCache) -> tuple[Array, Array]:
    """Return ``dx`` and ``dtarget`` (B, ...) for the gradient `dloss` (B,) of the losses."""
    (slope,) = cache
    expect_gradient("pixel_error", dloss, slope.shape[:1], slope.dtype)
    dx = slope * dloss.reshape(-1, *(1,) * (slope.ndim - 1))
    return dx, -dx
