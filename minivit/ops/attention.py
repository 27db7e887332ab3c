"""Multi-head self-attention between the tokens of an image (Vaswani et al. 2017; Dosovitskiy et al. 2020, appendix A).

    scores = q @ k.T * scale        scale = 1 / sqrt(K)
    weights = softmax(scores)       dropped = weights * mask
    y = dropped @ v                 concatenated over the heads

    ddropped = dy @ v.T             dv = dropped.T @ dy
    dweights = ddropped * mask      dscores = weights * (dweights - sum(dweights * weights))
    dproducts = dscores * scale     the gradient of the products q @ k.T
    dq = dproducts @ k              dk = dproducts.T @ q

With `queries`, a slice of M query tokens, q, scores, y and dq have the rows of these tokens alone. The products run
over the last two axes of (B, H, N, K) views of qkv, whose columns are q, k, v, each head by head. The steps are in
docs/derivations/attention.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype, same_precision
from minivit.ops.softmax import SoftmaxCache, softmax, softmax_backward

ALL = slice(None)


class AttentionCache(NamedTuple):
    """What the backward pass of `attention` reads."""

    qkv: Array  # (B, N, 3 D)
    softmax: SoftmaxCache  # (B, H, M, N): the weights
    mask: Array | None  # (B, H, M, N)
    queries: slice


def heads(qkv: Array, num_heads: int, parts: int = 3) -> Array:
    """Return views (parts, B, H, N, K) of the queries, keys and values in the columns of `qkv` (B, N, parts H K)."""
    B, N, columns = qkv.shape
    return qkv.reshape(B, N, parts, num_heads, columns // (parts * num_heads)).transpose(2, 0, 3, 1, 4)


def check_attention(qkv: Array, num_heads: int, mask: Array | None, queries: slice, name: str = "attention") -> Any:
    """Return the array library of the arguments of the op `name`, or raise if they are invalid."""
    xp = namespace(qkv) if mask is None else namespace(qkv, mask)
    same_dtype(name, qkv=qkv)
    expect(name, "qkv", qkv, ("B", "N", "3 D"))
    B, N, D3 = qkv.shape
    if N == 0 or D3 == 0:
        raise ValueError(f"{name}: qkv has shape {qkv.shape}; expected at least one token and one column")
    if num_heads < 1 or D3 % (3 * num_heads):
        raise ValueError(f"{name}: qkv has {D3} columns; expected a multiple of 3 * {num_heads}, q, k and v by head")
    if mask is not None:
        expect(name, "mask", mask, (B, num_heads, len(range(N)[queries]), N))
        same_precision(name, "mask", mask, qkv)
    return xp


def weighted_values(products: Array, v: Array, mask: Array | None, keep: bool) -> tuple[Array, SoftmaxCache | None]:
    """Return ``softmax(products / sqrt(K)) * mask @ v``, (B, M, H K), and the cache of the softmax.

    The `products` ``q @ k.T`` (B, H, M, N) are changed in place. This is what all forms of attention have in common.
    """
    xp = namespace(products)
    B, H, M, _ = products.shape
    K = v.shape[-1]
    products *= K**-0.5  # the scores
    weights, softmax_cache = softmax(products, keep=keep)
    dropped = weights if mask is None else weights * mask
    y = xp.empty((B, M, H, K), dtype=v.dtype)
    xp.matmul(dropped, v, out=y.transpose(0, 2, 1, 3))
    return y.reshape(B, M, H * K), softmax_cache


def products_derivative(dy: Array, v: Array, mask: Array | None, softmax_cache: SoftmaxCache, dv: Array) -> Array:
    """Return ``dproducts`` for the gradient `dy` of the result of `weighted_values`, and write `dv`."""
    xp = namespace(dy)
    weights = softmax_cache.y
    B, H, M, _ = weights.shape
    K = v.shape[-1]
    dy = dy.reshape(B, M, H, K).transpose(0, 2, 1, 3)
    dropped = weights if mask is None else weights * mask
    xp.matmul(dropped.swapaxes(-1, -2), dy, out=dv)
    dweights = dy @ v.swapaxes(-1, -2)
    if mask is not None:
        dweights *= mask
    dproducts = softmax_backward(dweights, softmax_cache)  # dscores
    dproducts *= K**-0.5
    return dproducts


@op
def attention(
    qkv: Array, num_heads: int, mask: Array | None = None, queries: slice = ALL, *, keep: bool = True
) -> tuple[Array, AttentionCache | None]:
    """Return for each query token the mean of all values, weighted by the softmax of its scores, in each head.

    Parameters
    ----------
    qkv : Array
        (B, N, 3 D), floating: the columns of q, then of k, then of v, each head by head.
    num_heads : int
        H, a divisor of D.
    mask : Array, optional
        (B, H, M, N): factors for the attention weights, 0 or 1 / (1 - rate), from `ops.keep_mask`.
    queries : slice
        The M query tokens; all N by default.
    keep : bool
        Whether to return the cache that `attention_backward` reads.

    Returns
    -------
    y : Array
        (B, M, D), of the dtype of `qkv`.
    cache : AttentionCache or None
    """
    check_attention(qkv, num_heads, mask, queries)
    q, k, v = heads(qkv, num_heads)
    products = q[:, :, queries] @ k.swapaxes(-1, -2)
    y, softmax_cache = weighted_values(products, v, mask, keep)
    return y, None if softmax_cache is None else AttentionCache(qkv, softmax_cache, mask, queries)


@op_backward
def attention_backward(dy: Array, cache: AttentionCache) -> Array:
    """Return ``dqkv`` (B, N, 3 D) for the gradient `dy` (B, M, D) of `attention`'s result."""
    qkv, softmax_cache, mask, queries = cache
    B, H, M, _ = softmax_cache.y.shape
    expect_gradient("attention", dy, (B, M, qkv.shape[2] // 3), qkv.dtype)
    xp = namespace(dy, qkv)
    q, k, v = heads(qkv, H)
    dqkv = xp.zeros(qkv.shape, dtype=qkv.dtype)
    dq, dk, dv = heads(dqkv, H)
    dproducts = products_derivative(dy, v, mask, softmax_cache, dv)
    xp.matmul(dproducts, k, out=dq[:, :, queries])
    xp.matmul(dproducts.swapaxes(-1, -2), q[:, :, queries], out=dk)
    return dqkv
