"""Attention of some query vectors to the tokens of an image, as in attention pooling (Lee et al. 2019).

    scores = q @ k.T / sqrt(K)        weights = softmax(scores)        y = weights @ v

    dv = weights.T @ dy               dscores = weights * (dy @ v.T - sum(dy @ v.T * weights))
    dproducts = dscores / sqrt(K)     dq = dproducts @ k        dk = dproducts.T @ q

Queries that all images share, (1, M, H K), get the sum of dq over the images. The rest is as in attention.py; the steps
are in docs/derivations/attention.md.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.attention import heads, products_derivative, weighted_values
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype
from minivit.ops.softmax import SoftmaxCache


class CrossAttentionCache(NamedTuple):
    """What the backward pass of `cross_attention` reads."""

    q: Array  # (B, M, H K) or (1, M, H K)
    kv: Array  # (B, N, 2 H K)
    softmax: SoftmaxCache  # (B, H, M, N): the weights


@op
def cross_attention(
    q: Array, kv: Array, num_heads: int, *, keep: bool = True
) -> tuple[Array, CrossAttentionCache | None]:
    """Return for each query the mean of all values, weighted by the softmax of its scores, in each head.

    Parameters
    ----------
    q : Array
        (B, M, H K), floating: the M queries of each image, or (1, M, H K), the same for all images. The columns are
        head by head.
    kv : Array
        (B, N, 2 H K): the columns of k, then of v, each head by head.
    num_heads : int
        H.
    keep : bool
        Whether to return the cache that `cross_attention_backward` reads.

    Returns
    -------
    y : Array
        (B, M, H K), of the dtype of `q`.
    cache : CrossAttentionCache or None
    """
    namespace(q, kv)
    same_dtype("cross_attention", q=q, kv=kv)
    expect("cross_attention", "q", q, ("B", "M", "H K"))
    columns = q.shape[2]
    if num_heads < 1 or columns == 0 or columns % num_heads:
        raise ValueError(f"cross_attention: q has {columns} columns; expected a multiple of {num_heads}, head by head")
    expect("cross_attention", "kv", kv, ("B" if q.shape[0] == 1 else q.shape[0], "N", 2 * columns))
    if kv.shape[1] == 0:
        raise ValueError(f"cross_attention: kv has shape {kv.shape}; expected at least one token")
    (q_heads,), (k, v) = heads(q, num_heads, 1), heads(kv, num_heads, 2)
    y, softmax_cache = weighted_values(q_heads @ k.swapaxes(-1, -2), v, None, keep)
    return y, None if softmax_cache is None else CrossAttentionCache(q, kv, softmax_cache)


@op_backward
def cross_attention_backward(dy: Array, cache: CrossAttentionCache) -> tuple[Array, Array]:
    """Return ``dq, dkv`` for the gradient `dy` (B, M, H K) of `cross_attention`'s result."""
    q, kv, softmax_cache = cache
    B, H, M, _ = softmax_cache.y.shape
    expect_gradient("cross_attention", dy, (B, M, q.shape[2]), q.dtype)
    xp = namespace(dy, q)
    (q_heads,), (k, v) = heads(q, H, 1), heads(kv, H, 2)
    dq, dkv = xp.empty(dy.shape, dtype=q.dtype), xp.empty(kv.shape, dtype=kv.dtype)
    (dq_heads,), (dk, dv) = heads(dq, H, 1), heads(dkv, H, 2)
    dproducts = products_derivative(dy, v, None, softmax_cache, dv)
    xp.matmul(dproducts, k, out=dq_heads)
    xp.matmul(dproducts.swapaxes(-1, -2), q_heads, out=dk)
    return dq.sum(axis=0, keepdims=True) if len(q) == 1 else dq, dkv
