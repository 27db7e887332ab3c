"""Dropout (Srivastava et al. 2014), and stochastic depth when whole samples share a mask (Huang et al. 2016).

    y = x * mask            mask is 0 with probability rate, else 1 / (1 - rate)

    dx = dy * mask

`keep_mask` draws the mask from a key (random.py) on the device where it is used. It is the same for the same seed,
step, sample and place. The steps are in docs/derivations/dropout.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from minivit import random
from minivit.arrays import Array, namespace, real_dtype
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect_gradient, same_dtype, same_precision
from minivit.random import Key


class DropoutCache(NamedTuple):
    """What the backward pass of `dropout` reads."""

    mask: Array  # the shape of x, or (B, 1, ...)
    shape: tuple[int, ...]  # of x
    dtype: Any  # of x


def check_dropout(x: Array, mask: Array) -> Any:
    """Return the array library of the arguments of `dropout`, or raise if they are invalid."""
    xp = namespace(x, mask)
    same_dtype("dropout", x=x)
    if mask.ndim != x.ndim or any(m not in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)):
        raise ValueError(f"dropout: mask has shape {mask.shape}; expected {x.shape}, or 1 on axes that broadcast")
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
        The shape of `x`, or (B, 1, ...) to keep or drop whole samples; from `keep_mask`, for the dtype of `x`.
    """
    check_dropout(x, mask)
    return x * mask, DropoutCache(mask, x.shape, x.dtype) if keep else None


@op_backward
def dropout_backward(dy: Array, cache: DropoutCache) -> Array:
    """Return ``dx`` for the gradient `dy` of `dropout`'s result."""
    expect_gradient("dropout", dy, cache.shape, cache.dtype)
    return dy * cache.mask


def keep_mask(key: Key, shape: tuple[int, ...], rate: float, dtype: Any) -> Array:
    """Return a mask for an array of `dtype`: 0 with probability `rate`, otherwise 1 / (1 - rate).

    Parameters
    ----------
    key : Key
        The key of the B samples and of the place where the mask is used.
    shape : tuple of int
        (B, ...).
    rate : float
        At least 0 and below 1.
    dtype : dtype
        The dtype of the array; the mask has the real dtype of this precision.
    """
    key.expect_samples(shape)
    random.expect_rate(rate)
    mask = drawn_mask(key.sample_ids, key.words(), math.prod(shape[1:]), rate, real_dtype(dtype))
    return mask.reshape(shape)


@op
def drawn_mask(sample_ids: Array, words: tuple[int, int], count: int, rate: float, dtype: Any) -> Array:
    """Return (B, count) numbers of `dtype`, 0 with probability `rate` and 1 / (1 - rate) otherwise."""
    return random.drawn_mask(sample_ids, words, count, rate, dtype)
