"""Weight standardisation (Qiao et al. 2019): each output channel of a weight with mean 0 and variance 1.

    y = (weight - mean(weight)) * inv_std          inv_std = 1 / sqrt(var(weight) + eps)
    dweight = inv_std * (dy - mean(dy) - y * mean(dy * y))

The means run over the inputs of an output channel, a column of the weight. Layer norm is the same function of rows; the
steps are in docs/derivations/convolutions.md.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect_gradient, same_dtype


class StandardizeCache(NamedTuple):
    """What the backward pass of `standardize` reads."""

    y: Array  # (..., I, O)
    inv_std: Array  # (..., 1, O)


@op
def standardize(weight: Array, eps: float = 1e-6, *, keep: bool = True) -> tuple[Array, StandardizeCache | None]:
    """Return `weight` with mean 0 and variance 1 in each column, and the cache for `standardize_backward`.

    Parameters
    ----------
    weight : Array
        (..., I, O), floating: matrices that map I inputs to O outputs.
    eps : float
        Added to the (biased) variance.
    keep : bool
        Whether to return the cache.
    """
    xp = namespace(weight)
    same_dtype("standardize", weight=weight)
    if weight.ndim < 2 or weight.shape[-2] == 0:
        raise ValueError(f"standardize: weight has shape {weight.shape}; expected (..., I, O), with I at least 1")
    y = weight - weight.mean(axis=-2, keepdims=True)
    inv_std = 1.0 / xp.sqrt((y * y).mean(axis=-2, keepdims=True) + float(eps))
    y *= inv_std
    return y, StandardizeCache(y, inv_std) if keep else None


@op_backward
def standardize_backward(dy: Array, cache: StandardizeCache) -> Array:
    """Return ``dweight`` for the gradient `dy` (..., I, O) of `standardize`'s result."""
    y, inv_std = cache
    expect_gradient("standardize", dy, y.shape, y.dtype)
    through_mean = dy.mean(axis=-2, keepdims=True)
    through_variance = y * (dy * y).mean(axis=-2, keepdims=True)
    return inv_std * (dy - through_mean - through_variance)
