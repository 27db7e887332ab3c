"""Group normalisation of images (Wu and He 2018): over the pixels and the channels of each group, for each image.

    x_hat = (x - mean(x)) * inv_std           inv_std = 1 / sqrt(var(x) + eps)         mean, var: of a group
    y = x_hat * weight + bias                 weight and bias: a number for each channel

    dx_hat = dy * weight
    dx = inv_std * (dx_hat - mean(dx_hat) - x_hat * mean(dx_hat * x_hat))
    dweight = sum of dy * x_hat, dbias = sum of dy, over images and pixels

This is layer norm with another set of numbers that are normalised together; the steps are in
docs/derivations/convolutions.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, expect_last, same_dtype
from minivit.ops.sums import sum_of_rows

_OF_A_GROUP = (1, 3)  # the axes of pixels and of the channels of a group, in (B, pixels, groups, channels of a group)


class GroupNormCache(NamedTuple):
    """What the backward pass of `group_norm` reads."""

    x_hat: Array  # (B, height, width, C)
    inv_std: Array  # (B, 1, groups, 1)
    weight: Array  # (C,)


def check_group_norm(x: Array, weight: Array, bias: Array, num_groups: int) -> Any:
    """Return the array library of the arguments of `group_norm`, or raise if they are invalid."""
    xp = namespace(x, weight, bias)
    same_dtype("group_norm", x=x, weight=weight, bias=bias)
    expect("group_norm", "weight", weight, ("C",))
    expect("group_norm", "bias", bias, weight.shape)
    expect("group_norm", "x", x, ("B", "height", "width", "C"))
    expect_last("group_norm", "x", x, weight.shape[0], "weight")
    if 0 in x.shape[1:3]:
        raise ValueError(f"group_norm: x has shape {x.shape}; expected images with at least one pixel")
    if num_groups < 1 or weight.shape[0] % num_groups or not weight.shape[0]:
        raise ValueError(f"group_norm: {weight.shape[0]} channels cannot be split evenly into {num_groups} groups")
    return xp


@op
def group_norm(
    x: Array, weight: Array, bias: Array, num_groups: int, eps: float = 1e-5, *, keep: bool = True
) -> tuple[Array, GroupNormCache | None]:
    """Return `x` with mean 0 and variance 1 in each group of channels of an image, scaled and shifted by channel.

    Parameters
    ----------
    x : Array
        (B, height, width, C), floating.
    weight, bias : Array
        (C,).
    num_groups : int
        A divisor of C; a group is C / `num_groups` neighbouring channels.
    eps : float
        Added to the (biased) variance.
    keep : bool
        Whether to return the cache that `group_norm_backward` reads.

    Returns
    -------
    y : Array
        The shape and dtype of `x`.
    cache : GroupNormCache or None
    """
    xp = check_group_norm(x, weight, bias, num_groups)
    groups = _grouped(x, num_groups)
    x_hat = groups - groups.mean(axis=_OF_A_GROUP, keepdims=True)
    inv_std = 1.0 / xp.sqrt((x_hat * x_hat).mean(axis=_OF_A_GROUP, keepdims=True) + float(eps))
    x_hat *= inv_std
    x_hat = x_hat.reshape(x.shape)
    y = x_hat * weight
    y += bias
    return y, GroupNormCache(x_hat, inv_std, weight) if keep else None


@op_backward
def group_norm_backward(dy: Array, cache: GroupNormCache) -> tuple[Array, Array, Array]:
    """Return ``dx, dweight, dbias`` for the gradient `dy` (B, height, width, C) of `group_norm`'s result."""
    x_hat, inv_std, weight = cache
    expect_gradient("group_norm", dy, x_hat.shape, x_hat.dtype)
    dweight = sum_of_rows(dy * x_hat)
    dbias = sum_of_rows(dy)
    x_hat = _grouped(x_hat, inv_std.shape[2])
    dx_hat = _grouped(dy * weight, inv_std.shape[2])
    through_mean = dx_hat.mean(axis=_OF_A_GROUP, keepdims=True)
    through_variance = x_hat * (dx_hat * x_hat).mean(axis=_OF_A_GROUP, keepdims=True)
    dx = inv_std * (dx_hat - through_mean - through_variance)
    return dx.reshape(dy.shape), dweight, dbias


def _grouped(x: Array, num_groups: int) -> Array:
    """Return `x` (B, height, width, C) as (B, height * width, groups, channels of a group)."""
    B, height, width, C = x.shape
    return x.reshape(B, height * width, num_groups, C // num_groups)
