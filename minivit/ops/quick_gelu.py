"""Quick GELU: GELU with a sigmoid in place of the normal distribution function (Hendrycks and Gimpel 2016; CLIP).

    y = x * s        s = sigmoid(a * x) = 1 / (1 + exp(-a * x)),  a = 1.702

    dx = dy * (s + a * x * s * (1 - s))

It differs from GELU by up to 0.02. The exponential is that of -a * abs(x), which cannot overflow:
tail = sigmoid(-a * abs(x)) is s for a negative x, else 1 - s. The steps are in docs/derivations/activations.md.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.erf import clip_real, magnitude
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect_gradient, same_dtype

_A = 1.702
_FLAT = 500.0  # exp(-1.702 * 500) is 0 in every dtype


class QuickGELUCache(NamedTuple):
    """What the backward pass of `quick_gelu` reads."""

    slope: Array  # dy/dx, the shape of x


@op
def quick_gelu(x: Array, *, keep: bool = True) -> tuple[Array, QuickGELUCache | None]:
    """Return ``x * sigmoid(1.702 * x)`` for each element of `x`.

    Parameters
    ----------
    x : Array
        Any shape, floating.
    keep : bool
        Whether to return the cache that `quick_gelu_backward` reads.
    """
    xp = namespace(x)
    same_dtype("quick_gelu", x=x)
    bounded = clip_real(xp, x, _FLAT)
    e = xp.exp(-_A * magnitude(xp, bounded))
    tail = e / (1.0 + e)
    s = magnitude(xp, (x.real >= 0) - tail)  # 1 - tail for x >= 0, else tail
    return x * s, QuickGELUCache(_derivative(bounded, s, tail)) if keep else None


def _derivative(x: Array, s: Array, tail: Array) -> Array:
    return s + _A * x * tail * (1.0 - tail)


@op_backward
def quick_gelu_backward(dy: Array, cache: QuickGELUCache) -> Array:
    """Return ``dx`` for the gradient `dy` of `quick_gelu`'s result."""
    expect_gradient("quick_gelu", dy, cache.slope.shape, cache.slope.dtype)
    return dy * cache.slope
