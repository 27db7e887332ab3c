"""A learned factor of each feature (LayerScale, Touvron et al. 2021, "Going deeper with Image Transformers").

    y = x * gamma

    dx = dy * gamma        dgamma = sum of dy * x over the rows

The steps are in docs/derivations/layer_scale.md.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, expect_last, same_dtype
from minivit.ops.sums import sum_of_rows


class LayerScaleCache(NamedTuple):
    """What the backward pass of `layer_scale` reads."""

    x: Array  # (..., D)
    gamma: Array  # (D,)


@op
def layer_scale(x: Array, gamma: Array, *, keep: bool = True) -> tuple[Array, LayerScaleCache | None]:
    """Return ``x * gamma``.

    Parameters
    ----------
    x : Array
        (..., D), floating.
    gamma : Array
        (D,).
    keep : bool
        Whether to return the cache that `layer_scale_backward` reads.
    """
    namespace(x, gamma)
    same_dtype("layer_scale", x=x, gamma=gamma)
    expect("layer_scale", "gamma", gamma, ("D",))
    expect_last("layer_scale", "x", x, gamma.shape[0], "gamma")
    return x * gamma, LayerScaleCache(x, gamma) if keep else None


@op_backward
def layer_scale_backward(dy: Array, cache: LayerScaleCache) -> tuple[Array, Array]:
    """Return ``dx, dgamma`` for the gradient `dy` (..., D) of `layer_scale`'s result."""
    x, gamma = cache
    expect_gradient("layer_scale", dy, x.shape, x.dtype)
    return dy * gamma, sum_of_rows(dy * x)
