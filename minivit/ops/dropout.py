"""Dropout (Srivastava et al. 2014), and stochastic depth when whole samples share a mask (Huang et al. 2016).

    y = x * mask            mask is 0 with probability rate, else 1 / (1 - rate)

    dx = dy * mask

The mask comes from a key (keys.py): it is drawn where it is used and is the same for the same sample, step and place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect_gradient, same_dtype, same_precision


class DropoutCache(NamedTuple):
    """What the backward pass of `dropout` reads."""

    mask: Array  # the shape of x, or (B, 1, ...)
    shape: tuple[int, ...]  # of x


def check_dropout(x: Array, mask: Array) -> Any:
    """Return the array library of the arguments of `dropout`, or raise if they do not fit together."""
    xp = namespace(x, mask)
    same_dtype("dropout", x=x)
    if mask.ndim != x.ndim or any(m not in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)):
        raise ValueError(f"dropout: mask has shape {mask.shape}; expected {x.shape}, or 1 on axes that share it")
    same_precision("dropout", "mask", mask, x)
    return xp


@op
def dropout(x: Array, mask: Array, *, keep: bool = True) -> tuple[Array, DropoutCache | None]:
    """Return ``x * mask`` and the cache that `dropout_backward` reads.

    Parameters
    ----------
    x : Array
        (B, ...), floating.
    mask : Array
        The shape of `x`, or (B, 1, ...) to keep or drop whole samples; from `Key.keep_mask`, of the dtype of `x`.
    """
    check_dropout(x, mask)
    return x * mask, DropoutCache(mask, x.shape) if keep else None


@op_backward
def dropout_backward(dy: Array, cache: DropoutCache) -> Array:
    """Return ``dx`` for the gradient `dy` of `dropout`'s result."""
    expect_gradient("dropout", dy, cache.shape, cache.mask.dtype)
    return dy * cache.mask
