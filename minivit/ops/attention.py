"""Multi-head self-attention between the tokens of an image (Vaswani et al. 2017; Dosovitskiy et al. 2020, appendix A).

    scores = q @ k.T * scale        scale = 1 / sqrt(K)
    weights = softmax(scores)       dropped = weights * mask
    y = dropped @ v                 the heads side by side

    ddropped = dy @ v.T             dv = dropped.T @ dy
    dweights = ddropped * mask      dscores = weights * (dweights - sum(dweights * weights))
    dq = dscores @ k * scale        dk = dscores.T @ q * scale

The products run over the last two axes of (B, H, N, K) views of qkv, whose columns are q, k, v, each head by head. The
steps are in docs/derivations/attention.md.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype, same_precision
from minivit.ops.softmax import SoftmaxCache, softmax, softmax_backward


class AttentionCache(NamedTuple):
    """What the backward pass of `attention` reads."""

    qkv: Array  # (B, N, 3 D)
    weights: Array  # (B, H, N, N)
    mask: Array | None  # (B, H, N, N)


def _heads(x: Array, num_heads: int) -> tuple[Array, Array, Array]:
    B, N, D3 = x.shape
    q, k, v = x.reshape(B, N, 3, num_heads, D3 // (3 * num_heads)).transpose(2, 0, 3, 1, 4)  # each (B, H, N, K)
    return q, k, v


@op
def attention(
    qkv: Array, num_heads: int, mask: Array | None = None, *, keep: bool = True
) -> tuple[Array, AttentionCache | None]:
    """Return what each token gathers from all tokens, head by head.

    Parameters
    ----------
    qkv : Array
        (B, N, 3 D), floating: queries, keys and values side by side, each with its heads side by side.
    num_heads : int
        H, a divisor of D.
    mask : Array, optional
        (B, H, N, N): factors for the attention weights, 0 or 1 / (1 - rate), from `Key.keep_mask`.
    keep : bool
        Whether to return the cache that `attention_backward` reads.

    Returns
    -------
    y : Array
        (B, N, D), of the dtype of `qkv`.
    cache : AttentionCache or None
    """
    xp = namespace(qkv) if mask is None else namespace(qkv, mask)
    same_dtype("attention", qkv=qkv)
    expect("attention", "qkv", qkv, ("B", "N", "3 D"))
    B, N, D3 = qkv.shape
    if D3 % (3 * num_heads):
        raise ValueError(f"attention: qkv has {D3} columns, which {num_heads} heads of q, k and v cannot share evenly")
    if mask is not None:
        expect("attention", "mask", mask, (B, num_heads, N, N))
        same_precision("attention", "mask", mask, qkv)
    q, k, v = _heads(qkv, num_heads)
    scores = q @ k.swapaxes(-1, -2)
    scores *= (D3 // (3 * num_heads)) ** -0.5
    weights, _ = softmax(scores, keep=False)
    dropped = weights if mask is None else weights * mask
    y = xp.empty((B, N, num_heads, v.shape[-1]), dtype=qkv.dtype)
    xp.matmul(dropped, v, out=y.transpose(0, 2, 1, 3))
    return y.reshape(B, N, D3 // 3), AttentionCache(qkv, weights, mask) if keep else None


@op_backward
def attention_backward(dy: Array, cache: AttentionCache) -> Array:
    """Return ``dqkv`` (B, N, 3 D) for the gradient `dy` (B, N, D) of `attention`'s result."""
    qkv, weights, mask = cache
    expect_gradient("attention", dy, (*qkv.shape[:2], qkv.shape[2] // 3), qkv.dtype)
    xp = namespace(dy, qkv)
    num_heads = weights.shape[1]
    q, k, v = _heads(qkv, num_heads)
    B, H, N, K = q.shape
    dy = dy.reshape(B, N, H, K).transpose(0, 2, 1, 3)
    dqkv = xp.empty(qkv.shape, dtype=qkv.dtype)
    dq, dk, dv = _heads(dqkv, num_heads)

    dropped = weights if mask is None else weights * mask
    xp.matmul(dropped.swapaxes(-1, -2), dy, out=dv)
    dweights = dy @ v.swapaxes(-1, -2)
    if mask is not None:
        dweights *= mask
    dscores = softmax_backward(dweights, SoftmaxCache(weights))
    dscores *= K**-0.5
    xp.matmul(dscores, k, out=dq)
    xp.matmul(dscores.swapaxes(-1, -2), q, out=dk)
    return dqkv
