"""Softmax over the last axis.

    y = exp(x - max(x)) / sum(exp(x - max(x)))

    dx = y * (dy - sum(dy * y))

The shift by the maximum cancels; it keeps exp from overflowing. The steps are in
docs/derivations/softmax_cross_entropy.md.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect_gradient, expect_rows, same_dtype


class SoftmaxCache(NamedTuple):
    """What the backward pass of `softmax` reads."""

    y: Array  # (..., C)


@op
def softmax(x: Array, *, keep: bool = True) -> tuple[Array, SoftmaxCache | None]:
    """Return the softmax of `x` (..., C) over its last axis, and the cache that `softmax_backward` reads."""
    xp = namespace(x)
    same_dtype("softmax", x=x)
    expect_rows("softmax", "x", x)
    y = x - x.real.max(axis=-1, keepdims=True)
    xp.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y, SoftmaxCache(y) if keep else None


@op_backward
def softmax_backward(dy: Array, cache: SoftmaxCache) -> Array:
    """Return ``dx`` for the gradient `dy` (..., C) of `softmax`'s result."""
    (y,) = cache
    expect_gradient("softmax", dy, y.shape, y.dtype)
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))
