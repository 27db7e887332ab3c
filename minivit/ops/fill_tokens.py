"""Tokens by index, with one learned token where there is none: what masked models feed their encoder or decoder.

    y[b, n] = x[b, index[b, n]] where index[b, n] >= 0, else token

    dx[b, m] = sum over n with index[b, n] = m of dy[b, n]
    dtoken = sum over b and n with index[b, n] < 0 of dy[b, n]

A token may be taken several times, as by BERT's corruption, or never. The steps are in docs/derivations/masking.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype


class FillTokensCache(NamedTuple):
    """What the backward pass of `fill_tokens` reads."""

    shape: tuple[int, int, int]  # (B, M, D)
    source: Array  # (B, N) integers: index
    dtype: Any


def check_fill_tokens(x: Array, token: Array, index: Array) -> Any:
    """Return the array library of the arguments of `fill_tokens`, or raise if they are invalid.

    The numbers in `index` are checked on the host alone, because on a device the host would have to wait.
    """
    xp = namespace(x, token, index)
    same_dtype("fill_tokens", x=x, token=token)
    expect("fill_tokens", "x", x, ("B", "M", "D"))
    expect("fill_tokens", "token", token, (1, 1, x.shape[2]))
    expect("fill_tokens", "index", index, (x.shape[0], "N"))
    if index.dtype.kind != "i":
        raise TypeError(f"fill_tokens: index has dtype {index.dtype}; expected signed integers")
    M = x.shape[1]
    if xp is np and index.size and not (index.min() >= -1 and index.max() < M):
        image, at = np.argwhere((index < -1) | (index >= M))[0]
        raise ValueError(
            f"fill_tokens: index has {index[image, at]} for image {image}; expected 0 to {M - 1}, or -1 for the token"
        )
    return xp


@op
def fill_tokens(x: Array, token: Array, index: Array, *, keep: bool = True) -> tuple[Array, FillTokensCache | None]:
    """Return the tokens that `index` names, and `token` where it is -1.

    Parameters
    ----------
    x : Array
        (B, M, D), floating.
    token : Array
        (1, 1, D).
    index : Array
        (B, N) signed integers from -1 to M - 1.
    keep : bool
        Whether to return the cache that `fill_tokens_backward` reads.

    Returns
    -------
    y : Array
        (B, N, D), of the dtype of `x`.
    cache : FillTokensCache or None
    """
    xp = check_fill_tokens(x, token, index)
    B, M, D = x.shape
    whole = xp.concatenate([x, xp.broadcast_to(token, (B, 1, D))], axis=1)  # -1 is the last
    return whole[xp.arange(B)[:, None], index], FillTokensCache((B, M, D), index, x.dtype) if keep else None


@op_backward
def fill_tokens_backward(dy: Array, cache: FillTokensCache) -> tuple[Array, Array]:
    """Return ``dx`` (B, M, D) and ``dtoken`` (1, 1, D) for the gradient `dy` (B, N, D) of `fill_tokens`' result."""
    (B, M, D), index, dtype = cache
    xp = namespace(dy, index)
    expect_gradient("fill_tokens", dy, (B, index.shape[1], D), dtype)
    taken = (index[:, None] == xp.arange(M)[:, None]).astype(dtype)  # (B, M, N)
    missing = (index < 0).astype(dtype)
    return taken @ dy, (missing[:, None] @ dy).sum(axis=0, keepdims=True)
