"""Choosing some tokens of each image, as in patch dropout (Liu et al. 2022, arXiv:2208.07220).

    y[b, m] = x[b, index[b, m]]

    dx[b, index[b, m]] = dy[b, m], and 0 at the tokens that were not taken

No token is taken twice, so no two entries of dy meet. The steps are in docs/derivations/embeddings.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype


class TakeTokensCache(NamedTuple):
    """What the backward pass of `take_tokens` reads."""

    shape: tuple[int, int, int]  # (B, N, D)
    tokens: Array  # (B, M) integers: index
    dtype: Any


def check_take_tokens(x: Array, index: Array) -> Any:
    """Return the array library of the arguments of `take_tokens`, or raise if they are invalid.

    The numbers in `index` are checked on the host alone, because on a device the host would have to wait.
    """
    xp = namespace(x, index)
    same_dtype("take_tokens", x=x)
    expect("take_tokens", "x", x, ("B", "N", "D"))
    expect("take_tokens", "index", index, (x.shape[0], "M"))
    if index.dtype.kind not in "iu":
        raise TypeError(f"take_tokens: index has dtype {index.dtype}; expected integers, such as index.astype('int64')")
    if xp is not np:
        return xp
    N = x.shape[1]
    if index.size and not (index.min() >= 0 and index.max() < N):
        image, at = np.argwhere((index < 0) | (index >= N))[0]
        raise ValueError(
            f"take_tokens: index has {index[image, at]} for image {image}; {N} tokens have the numbers 0 to {N - 1}"
        )
    order = np.sort(index, axis=1)
    if (order[:, 1:] == order[:, :-1]).any():
        image, at = np.argwhere(order[:, 1:] == order[:, :-1])[0]
        raise ValueError(
            f"take_tokens: index has token {order[image, at]} of image {image} twice; expected different tokens"
        )
    return xp


@op
def take_tokens(x: Array, index: Array, *, keep: bool = True) -> tuple[Array, TakeTokensCache | None]:
    """Return the tokens of each image that `index` names, in its order.

    Parameters
    ----------
    x : Array
        (B, N, D), floating.
    index : Array
        (B, M) integers, the numbers of different tokens of each image.
    keep : bool
        Whether to return the cache that `take_tokens_backward` reads.

    Returns
    -------
    y : Array
        (B, M, D), of the dtype of `x`.
    cache : TakeTokensCache or None
    """
    xp = check_take_tokens(x, index)
    B, N, D = x.shape
    return x[xp.arange(B)[:, None], index], TakeTokensCache((B, N, D), index, x.dtype) if keep else None


@op_backward
def take_tokens_backward(dy: Array, cache: TakeTokensCache) -> Array:
    """Return ``dx`` (B, N, D) for the gradient `dy` (B, M, D) of `take_tokens`' result."""
    (B, N, D), index, dtype = cache
    xp = namespace(dy, index)
    expect_gradient("take_tokens", dy, (B, index.shape[1], D), dtype)
    dx = xp.zeros((B, N, D), dtype=dy.dtype)
    dx[xp.arange(B)[:, None], index] = dy
    return dx
