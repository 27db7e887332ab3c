"""From patches to tokens, and from tokens to one vector for each image (Dosovitskiy et al. 2020, equations 1 and 4).

embed:  y = [cls_token; x] + pos_embed          (equation 1; without a class token, y = x + pos_embed)
        dx = dy[1:],  dcls_token = sum of dy[0],  dpos_embed = sum of dy,  sums over the batch

pool:   y = x[0], the class token (equation 4), or y = mean of the patch tokens
        dx = dy at the class token, or dy / count at every patch token, and 0 elsewhere
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype


class EmbedCache(NamedTuple):
    """What the backward pass of `embed` reads."""

    shape: tuple[int, int, int]  # (B, N, D) of the result
    has_cls_token: bool


def check_embed(x: Array, pos_embed: Array, cls_token: Array | None) -> Any:
    """Return the array library of the arguments of `embed`, or raise if they are invalid."""
    xp = namespace(x, pos_embed) if cls_token is None else namespace(x, pos_embed, cls_token)
    same_dtype("embed", x=x, pos_embed=pos_embed, cls_token=cls_token)
    expect("embed", "x", x, ("B", "N", "D"))
    _, N, D = x.shape
    expect("embed", "pos_embed", pos_embed, (1, N + (cls_token is not None), D))
    if cls_token is not None:
        expect("embed", "cls_token", cls_token, (1, 1, D))
    return xp


@op
def embed(
    x: Array, pos_embed: Array, cls_token: Array | None = None, *, keep: bool = True
) -> tuple[Array, EmbedCache | None]:
    """Return the tokens with the class token in front and a learned position embedding added.

    Parameters
    ----------
    x : Array
        (B, N, D), the projected patches.
    pos_embed : Array
        (1, N, D), or (1, N + 1, D) with a class token.
    cls_token : Array, optional
        (1, 1, D).
    keep : bool
        Whether to return the cache that `embed_backward` reads.

    Returns
    -------
    y : Array
        (B, N, D) or (B, N + 1, D).
    cache : EmbedCache or None
    """
    xp = check_embed(x, pos_embed, cls_token)
    B, N, D = x.shape
    start = 0 if cls_token is None else 1
    y = xp.empty((B, N + start, D), dtype=x.dtype)
    if cls_token is not None:
        y[:, :1] = cls_token
    y[:, start:] = x
    y += pos_embed
    return y, EmbedCache((B, N + start, D), cls_token is not None) if keep else None


@op_backward
def embed_backward(dy: Array, cache: EmbedCache) -> tuple[Array, Array, Array | None]:
    """Return ``dx, dpos_embed, dcls_token`` for the gradient `dy` of `embed`'s result.

    Without a class token, ``dcls_token`` is None.
    """
    expect_gradient("embed", dy, cache.shape)
    dpos_embed = dy.sum(axis=0, keepdims=True)
    if not cache.has_cls_token:
        return dy, dpos_embed, None
    return dy[:, 1:], dpos_embed, dy[:, :1].sum(axis=0, keepdims=True)


class PoolCache(NamedTuple):
    """What the backward pass of `pool` reads."""

    shape: tuple[int, int, int]  # (B, N, D)
    first: int
    stop: int


def check_pool(x: Array, mode: str, num_prefix_tokens: int) -> tuple[Any, int, int]:
    """Return the array library of the arguments of `pool` and the range of tokens to average, or raise."""
    xp = namespace(x)
    same_dtype("pool", x=x)
    expect("pool", "x", x, ("B", "N", "D"))
    if mode not in ("token", "avg"):
        raise ValueError(f"pool: mode is {mode!r}; expected 'token' or 'avg'")
    if mode == "avg" and not 0 <= num_prefix_tokens < x.shape[1]:
        raise ValueError(
            f"pool: num_prefix_tokens is {num_prefix_tokens}; expected 0 to {x.shape[1] - 1}, for {x.shape[1]} tokens"
        )
    return (xp, 0, 1) if mode == "token" else (xp, num_prefix_tokens, x.shape[1])


@op
def pool(x: Array, mode: str, num_prefix_tokens: int, *, keep: bool = True) -> tuple[Array, PoolCache | None]:
    """Return one vector for each image, (B, D), from the tokens `x` (B, N, D).

    Parameters
    ----------
    x : Array
        (B, N, D), floating.
    mode : str
        "token" for the first token, "avg" for the mean of the tokens after the first `num_prefix_tokens`.
    num_prefix_tokens : int
        The number of tokens in front of the patches: 1 with a class token, otherwise 0.
    keep : bool
        Whether to return the cache that `pool_backward` reads.
    """
    _, first, stop = check_pool(x, mode, num_prefix_tokens)
    B, N, D = x.shape
    return x[:, first:stop].mean(axis=1), PoolCache((B, N, D), first, stop) if keep else None


@op_backward
def pool_backward(dy: Array, cache: PoolCache) -> Array:
    """Return ``dx`` (B, N, D) for the gradient `dy` (B, D) of `pool`'s result."""
    xp = namespace(dy)
    expect_gradient("pool", dy, (cache.shape[0], cache.shape[2]))
    dx = xp.zeros(cache.shape, dtype=dy.dtype)
    dx[:, cache.first : cache.stop] = (dy / (cache.stop - cache.first))[:, None]
    return dx
