"""ReLU, the rectified linear unit (Nair and Hinton 2010).

    y = max(x, 0)        dx = dy where x > 0, else 0

At 0 there are two one-sided derivatives, 0 and 1; the gradient uses 0, as is common. The steps are in
docs/derivations/activations.md.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect_gradient, same_dtype


class ReLUCache(NamedTuple):
    """What the backward pass of `relu` reads."""

    y: Array  # the shape of x; positive where x is


@op
def relu(x: Array, *, keep: bool = True) -> tuple[Array, ReLUCache | None]:
    """Return the larger of 0 and each element of `x` (any shape, floating), and the cache for `relu_backward`."""
    xp = namespace(x)
    same_dtype("relu", x=x)
    y = xp.where(x.real < 0, 0, x) if x.dtype.kind == "c" else xp.maximum(x, 0)
    return y, ReLUCache(y) if keep else None


@op_backward
def relu_backward(dy: Array, cache: ReLUCache) -> Array:
    """Return ``dx`` for the gradient `dy` of `relu`'s result."""
    (y,) = cache
    expect_gradient("relu", dy, y.shape, y.dtype)
    return dy * (y.real > 0)
