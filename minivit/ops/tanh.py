"""The hyperbolic tangent.

    y = tanh(x)        dx = dy * (1 - y * y)

The steps are in docs/derivations/activations.md.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect_gradient, same_dtype


class TanhCache(NamedTuple):
    """What the backward pass of `tanh` reads."""

    y: Array  # the shape of x


@op
def tanh(x: Array, *, keep: bool = True) -> tuple[Array, TanhCache | None]:
    """Return the tanh of each element of `x` (any shape, floating), and the cache that `tanh_backward` reads."""
    xp = namespace(x)
    same_dtype("tanh", x=x)
    y = xp.tanh(x)
    return y, TanhCache(y) if keep else None


@op_backward
def tanh_backward(dy: Array, cache: TanhCache) -> Array:
    """Return ``dx`` for the gradient `dy` of `tanh`'s result."""
    (y,) = cache
    expect_gradient("tanh", dy, y.shape, y.dtype)
    return dy * (1.0 - y * y)
