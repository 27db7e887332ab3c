"""Self-attention with a learned vector for each distance of two tokens (Shaw et al. 2018; the ViT paper, D.4).

    scores = (q @ k.T + relative) / sqrt(K)        relative[i, j] = by_distance[i, i - j + N - 1]
    by_distance = q @ rel_pos.T                    row d of rel_pos belongs to the distance i - j = d - (N - 1)

    dby_distance[i, i - j + N - 1] = dproducts[i, j]        0 for a distance that row i does not have
    dq = dproducts @ k + dby_distance @ rel_pos             dk = dproducts.T @ q
    drel_pos = sum of dby_distance.T @ q over images and heads

dproducts = dscores / sqrt(K) is the gradient of q @ k.T + relative. The vectors are keys that depend on the distance
alone; all heads share them. The rest is as in attention.py; the steps are in docs/derivations/attention.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.attention import ALL, check_attention, heads, products_derivative, weighted_values
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype
from minivit.ops.softmax import SoftmaxCache


class RelativeAttentionCache(NamedTuple):
    """What the backward pass of `relative_attention` reads."""

    qkv: Array  # (B, N, 3 D)
    rel_pos: Array  # (2 N - 1, K)
    softmax: SoftmaxCache  # (B, H, M, N): the weights
    mask: Array | None  # (B, H, M, N)
    queries: slice


def _entries(xp: Any, N: int, queries: slice) -> tuple[Array, Array]:
    """Return the indices (M, 1) of the query tokens, and the rows (M, N) of rel_pos for each of them and each key."""
    tokens = xp.arange(N)
    i = tokens[queries][:, None]
    return xp.arange(i.shape[0])[:, None], i - tokens + (N - 1)


@op
def relative_attention(
    qkv: Array, rel_pos: Array, num_heads: int, mask: Array | None = None, queries: slice = ALL, *, keep: bool = True
) -> tuple[Array, RelativeAttentionCache | None]:
    """Return what `attention` returns, with scores that also depend on the distance of query and key.

    Parameters
    ----------
    qkv : Array
        (B, N, 3 D), floating: the columns of q, then of k, then of v, each head by head.
    rel_pos : Array
        (2 N - 1, K): a vector for each distance from -(N - 1) to N - 1, of the query's index minus the key's.
    num_heads : int
        H, a divisor of D.
    mask : Array, optional
        (B, H, M, N): factors for the attention weights, 0 or 1 / (1 - rate), from `ops.keep_mask`.
    queries : slice
        The M query tokens; all N by default.
    keep : bool
        Whether to return the cache that `relative_attention_backward` reads.

    Returns
    -------
    y : Array
        (B, M, D), of the dtype of `qkv`.
    cache : RelativeAttentionCache or None
    """
    xp = check_attention(qkv, num_heads, mask, queries, "relative_attention")
    namespace(qkv, rel_pos)
    same_dtype("relative_attention", qkv=qkv, rel_pos=rel_pos)
    N = qkv.shape[1]
    expect("relative_attention", "rel_pos", rel_pos, (2 * N - 1, qkv.shape[2] // (3 * num_heads)))
    q, k, v = heads(qkv, num_heads)
    q = q[:, :, queries]
    rows, distances = _entries(xp, N, queries)
    products = q @ k.swapaxes(-1, -2)
    products += (q @ rel_pos.T)[:, :, rows, distances]
    y, softmax_cache = weighted_values(products, v, mask, keep)
    return y, None if softmax_cache is None else RelativeAttentionCache(qkv, rel_pos, softmax_cache, mask, queries)


@op_backward
def relative_attention_backward(dy: Array, cache: RelativeAttentionCache) -> tuple[Array, Array]:
    """Return ``dqkv, drel_pos`` for the gradient `dy` (B, M, D) of `relative_attention`'s result."""
    qkv, rel_pos, softmax_cache, mask, queries = cache
    B, H, M, N = softmax_cache.y.shape
    expect_gradient("relative_attention", dy, (B, M, qkv.shape[2] // 3), qkv.dtype)
    xp = namespace(dy, qkv)
    q, k, v = heads(qkv, H)
    q = q[:, :, queries]
    dqkv = xp.zeros(qkv.shape, dtype=qkv.dtype)
    dq, dk, dv = heads(dqkv, H)
    dproducts = products_derivative(dy, v, mask, softmax_cache, dv)
    rows, distances = _entries(xp, N, queries)
    dby_distance = xp.zeros((B, H, M, len(rel_pos)), dtype=qkv.dtype)
    dby_distance[:, :, rows, distances] = dproducts
    dq[:, :, queries] = dproducts @ k + dby_distance @ rel_pos
    xp.matmul(dproducts.swapaxes(-1, -2), q, out=dk)
    drel_pos = dby_distance.reshape(-1, len(rel_pos)).T @ q.reshape(-1, q.shape[-1])
    return dqkv, drel_pos
