"""Multi-head self-attention between the tokens of an image (Vaswani et al. 2017; Dosovitskiy et al. 2020, appendix A).

    scores = q @ k.T * scale        scale = 1 / sqrt(K)
    weights = softmax(scores)       dropped = weights * mask
    y = dropped @ v                 concatenated over the heads

    ddropped = dy @ v.T             dv = dropped.T @ dy
    dweights = ddropped * mask      dscores = weights * (dweights - sum(dweights * weights))
    dq = dscores @ k * scale        dk = dscores.T @ q * scale

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


def heads(qkv: Array, num_heads: int) -> tuple[Array, Array, Array]:
    """Return views (B, H, N, K) of the queries, keys and values in `qkv` (B, N, 3 D)."""
    B, N, D3 = qkv.shape
    q, k, v = qkv.reshape(B, N, 3, num_heads, D3 // (3 * num_heads)).transpose(2, 0, 3, 1, 4)
    return q, k, v


def check_attention(qkv: Array, num_heads: int, mask: Array | None, queries: slice) -> Any:
    """Return the array library of the arguments of `attention`, or raise if they are invalid."""
    xp = namespace(qkv) if mask is None else namespace(qkv, mask)
    same_dtype("attention", qkv=qkv)
    expect("attention", "qkv", qkv, ("B", "N", "3 D"))
    B, N, D3 = qkv.shape
    if num_heads < 1 or D3 % (3 * num_heads):
        raise ValueError(f"attention: qkv has {D3} columns; expected a multiple of 3 * {num_heads}, q, k and v by head")
    if mask is not None:
        expect("attention", "mask", mask, (B, num_heads, len(range(N)[queries]), N))
        same_precision("attention", "mask", mask, qkv)
    return xp


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
    xp = check_attention(qkv, num_heads, mask, queries)
    q, k, v = heads(qkv, num_heads)
    q = q[:, :, queries]
    B, H, M, K = q.shape
    scores = q @ k.swapaxes(-1, -2)
    scores *= K**-0.5
    weights, softmax_cache = softmax(scores, keep=keep)
    dropped = weights if mask is None else weights * mask
    y = xp.empty((B, M, H, K), dtype=qkv.dtype)
    xp.matmul(dropped, v, out=y.transpose(0, 2, 1, 3))
    return y.reshape(B, M, H * K), AttentionCache(
        qkv, softmax_cache, mask, queries
    ) if softmax_cache is not None else None


@op_backward
def attention_backward(dy: Array, cache: AttentionCache) -> Array:
    """Return ``dqkv`` (B, N, 3 D) for the gradient `dy` (B, M, D) of `attention`'s result."""
    qkv, softmax_cache, mask, queries = cache
    weights = softmax_cache.y
    B, H, M, _ = weights.shape
    expect_gradient("attention", dy, (B, M, qkv.shape[2] // 3), qkv.dtype)
    xp = namespace(dy, qkv)
    q, k, v = heads(qkv, H)
    K = q.shape[-1]
    dy = dy.reshape(B, M, H, K).transpose(0, 2, 1, 3)
    dqkv = xp.zeros(qkv.shape, dtype=qkv.dtype)
    dq, dk, dv = heads(dqkv, H)
    dropped = weights if mask is None else weights * mask
    xp.matmul(dropped.swapaxes(-1, -2), dy, out=dv)
    dweights = dy @ v.swapaxes(-1, -2)
    if mask is not None:
        dweights *= mask
    dscores = softmax_backward(dweights, softmax_cache)
    dscores *= K**-0.5
    xp.matmul(dscores, k, out=dq[:, :, queries])
    xp.matmul(dscores.swapaxes(-1, -2), q[:, :, queries], out=dk)
    return dqkv
