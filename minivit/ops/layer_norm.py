"""Layer normalisation over the features of each token (Ba et al. 2016).

    x_hat = (x - mean(x)) * inv_std           inv_std = 1 / sqrt(var(x) + eps)
    y = x_hat * weight + bias

    dx_hat = dy * weight
    dx = inv_std * (dx_hat - mean(dx_hat) - x_hat * mean(dx_hat * x_hat))
    dweight = sum of dy * x_hat, dbias = sum of dy, over the tokens

The two subtracted terms are the gradient through the mean and through the variance; the steps are in
docs/derivations/layer_norm.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, expect_last, same_dtype
from minivit.ops.sums import sum_of_rows


class LayerNormCache(NamedTuple):
    """What the backward pass of `layer_norm` reads."""

    x_hat: Array  # (..., D)
    inv_std: Array  # (..., 1)
    weight: Array  # (D,)


def check_layer_norm(x: Array, weight: Array, bias: Array) -> Any:
    """Return the array library of the arguments of `layer_norm`, or raise if they are invalid."""
    xp = namespace(x, weight, bias)
    same_dtype("layer_norm", x=x, weight=weight, bias=bias)
    expect("layer_norm", "weight", weight, ("D",))
    if weight.size == 0:
        raise ValueError("layer_norm: weight has shape (0,); expected at least one feature")
    expect("layer_norm", "bias", bias, weight.shape)
    expect_last("layer_norm", "x", x, weight.shape[0], "weight")
    return xp


@op
def layer_norm(
    x: Array, weight: Array, bias: Array, eps: float = 1e-6, *, keep: bool = True
) -> tuple[Array, LayerNormCache | None]:
    """Return `x` with mean 0 and variance 1 in its last axis, scaled by `weight` and shifted by `bias`.

    Parameters
    ----------
    x : Array
        (..., D), floating.
    weight, bias : Array
        (D,).
    eps : float
        Added to the (biased) variance; 1e-6 in the published weights.
    keep : bool
        Whether to return the cache that `layer_norm_backward` reads.

    Returns
    -------
    y : Array
        (..., D), of the dtype of `x`.
    cache : LayerNormCache or None
    """
    xp = check_layer_norm(x, weight, bias)
    x_hat = x - x.mean(axis=-1, keepdims=True)
    inv_std = 1.0 / xp.sqrt((x_hat * x_hat).mean(axis=-1, keepdims=True) + float(eps))
    x_hat *= inv_std
    y = x_hat * weight
    y += bias
    return y, LayerNormCache(x_hat, inv_std, weight) if keep else None


@op_backward
def layer_norm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """Return ``dx, dweight, dbias`` for the gradient `dy` (..., D) of `layer_norm`'s result."""
    x_hat, inv_std, weight = cache
    expect_gradient("layer_norm", dy, x_hat.shape, x_hat.dtype)
    dweight = sum_of_rows(dy * x_hat)
    dbias = sum_of_rows(dy)
    dx_hat = dy * weight
    through_mean = dx_hat.mean(axis=-1, keepdims=True)
    through_variance = x_hat * (dx_hat * x_hat).mean(axis=-1, keepdims=True)
    dx = inv_std * (dx_hat - through_mean - through_variance)
    return dx, dweight, dbias
