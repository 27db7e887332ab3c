"""From patches to tokens, and from tokens to one vector for each image (Dosovitskiy et al. 2020, equations 1 and 4).

embed:  y = [cls_token; reg_token; x] + pos_embed          (equation 1; every part but x is optional)
        dx = dy at the patches;  dcls_token, dreg_token, dpos_embed = sums of dy over the batch, at their tokens

        pos_embed has a vector for each token, or for the patches alone: y = [cls_token; reg_token; x + pos_embed].
        Register tokens: Darcet et al. 2023.

pool:   y = x[0], the class token (equation 4), or y = mean of the patch tokens
        dx = dy at the class token, or dy / count at every patch token, and 0 elsewhere

The steps are in docs/derivations/embeddings.md.
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
    registers: int  # number of register tokens
    positions: int  # number of tokens with a position, the last ones


def check_embed(
    x: Array, pos_embed: Array | None = None, cls_token: Array | None = None, reg_token: Array | None = None
) -> Any:
    """Return the array library of the arguments of `embed`, or raise if they are invalid."""
    xp = namespace(x, *(other for other in (pos_embed, cls_token, reg_token) if other is not None))
    same_dtype("embed", x=x, pos_embed=pos_embed, cls_token=cls_token, reg_token=reg_token)
    expect("embed", "x", x, ("B", "N", "D"))
    _, N, D = x.shape
    if cls_token is not None:
        expect("embed", "cls_token", cls_token, (1, 1, D))
    if reg_token is not None:
        expect("embed", "reg_token", reg_token, (1, "R", D))
        if reg_token.shape[1] == 0:
            raise ValueError("embed: reg_token has no tokens; leave it out")
    prefix = (cls_token is not None) + (0 if reg_token is None else reg_token.shape[1])
    if pos_embed is not None and pos_embed.shape not in ((1, N, D), (1, prefix + N, D)):
        or_patches = f", or {(1, N, D)} for the patches alone" if prefix else ""
        raise ValueError(f"embed: pos_embed has shape {pos_embed.shape}; expected {(1, prefix + N, D)}{or_patches}")
    return xp


@op
def embed(
    x: Array,
    pos_embed: Array | None = None,
    cls_token: Array | None = None,
    reg_token: Array | None = None,
    *,
    keep: bool = True,
) -> tuple[Array, EmbedCache | None]:
    """Return the tokens with class token and register tokens in front and a learned position embedding added.

    Parameters
    ----------
    x : Array
        (B, N, D), the projected patches.
    pos_embed : Array, optional
        (1, R' + N, D) for all tokens, of which R' are in front of the patches, or (1, N, D) for the patches alone.
    cls_token : Array, optional
        (1, 1, D).
    reg_token : Array, optional
        (1, R, D).
    keep : bool
        Whether to return the cache that `embed_backward` reads.

    Returns
    -------
    y : Array
        (B, R' + N, D).
    cache : EmbedCache or None
    """
    xp = check_embed(x, pos_embed, cls_token, reg_token)
    B, N, D = x.shape
    first = 0 if cls_token is None else 1
    start = first + (0 if reg_token is None else reg_token.shape[1])
    y = xp.empty((B, start + N, D), dtype=x.dtype)
    if cls_token is not None:
        y[:, :first] = cls_token
    if reg_token is not None:
        y[:, first:start] = reg_token
    y[:, start:] = x
    positions = 0 if pos_embed is None else pos_embed.shape[1]
    if pos_embed is not None:
        y[:, -positions:] += pos_embed
    return y, EmbedCache((B, start + N, D), cls_token is not None, start - first, positions) if keep else None


@op_backward
def embed_backward(dy: Array, cache: EmbedCache) -> tuple[Array, Array | None, Array | None, Array | None]:
    """Return ``dx, dpos_embed, dcls_token, dreg_token`` for the gradient `dy` of `embed`'s result.

    The gradient of an argument that was None is None.
    """
    _, has_cls_token, registers, positions = cache
    expect_gradient("embed", dy, cache.shape)
    first = int(has_cls_token)
    start = first + registers
    dpos_embed = dy[:, -positions:].sum(axis=0, keepdims=True) if positions else None
    dcls_token = dy[:, :first].sum(axis=0, keepdims=True) if has_cls_token else None
    dreg_token = dy[:, first:start].sum(axis=0, keepdims=True) if registers else None
    return dy[:, start:], dpos_embed, dcls_token, dreg_token


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
    if x.shape[1] == 0:
        raise ValueError(f"pool: x has shape {x.shape}; expected at least one token")
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
        The number of tokens that the mean leaves out: those in front of the patches, or 0 to include them.
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
