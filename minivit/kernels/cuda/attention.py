"""Attention with batched products over all heads of all images, and one softmax pass. Kernel of `ops.attention`.

The heads are split, so that one batched product computes all of them. In an encoder block the split is fused with the
bias of the linear map before it (encoder_block.py). Rows of scores start at multiples of 16 bytes, which tensor cores
require. For 16-bit arrays the scores and their gradients are float32; the weights have 16 bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.elementwise import multiply
from minivit.kernels.cuda.heads import merge_heads, split_heads
from minivit.kernels.cuda.products import product
from minivit.kernels.cuda.runtime import acc_dtype, aligned, covers_dtype, whole_packs
from minivit.kernels.cuda.softmax import scaled_softmax, scaled_softmax_backward
from minivit.ops.attention import ALL, check_attention
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient


class CudaAttentionCache(NamedTuple):
    """What the backward pass reads."""

    qkv: Array  # (3, B, H, N, K)
    weights: Array  # (B * H, M, N), with N rounded up to whole packs if there is no mask
    mask: Array | None  # (B * H, M, N)
    queries: slice


def _like_scores(qkv: Array, M: int, mask: Array | None) -> Array:
    """Return memory for scores: padded and in the dtype of sums, or in the mask's shape and dtype if there is one."""
    _, B, H, N, _ = qkv.shape
    width, dtype = (whole_packs(N, qkv.dtype), acc_dtype(qkv.dtype)) if mask is None else (N, qkv.dtype)
    memory: Array = namespace(qkv).empty((B * H, M, width), dtype=dtype)
    return memory


def _rounded(scores: Array, dtype: Any) -> Array:
    """Return memory of `dtype` for a result in the shape of `scores`: `scores` itself, if it has that dtype."""
    return scores if scores.dtype == dtype else namespace(scores).empty(scores.shape, dtype=dtype)


def attend(qkv: Array, mask: Array | None, queries: slice) -> tuple[Array, CudaAttentionCache]:
    """Return the result (B, M, D) of attention for `qkv` (3, B, H, N, K), and the cache."""
    _, B, H, N, K = qkv.shape
    q, k, v = qkv.reshape(3, B * H, N, K)
    q = q[:, queries]
    M = q.shape[1]
    mask = None if mask is None else aligned(mask).reshape(B * H, M, N)
    scores = _like_scores(qkv, M, mask)
    product(q, k.swapaxes(1, 2), scores[..., :N], scale=K**-0.5)
    weights = _rounded(scores, qkv.dtype)
    scaled_softmax(scores, 1.0, weights, N)
    y = namespace(qkv).empty((1, B, H, M, K), dtype=qkv.dtype)
    product((weights if mask is None else multiply(weights, mask))[..., :N], v, y.reshape(B * H, M, K))
    return merge_heads(y)[0], CudaAttentionCache(qkv, weights, mask, queries)


def attend_backward(dy: Array, cache: CudaAttentionCache) -> Array:
    """Return ``dqkv`` (3, B, H, N, K) for the gradient `dy` (B, M, D)."""
    qkv, weights, mask, queries = cache
    _, B, H, N, K = qkv.shape
    M = weights.shape[1]
    expect_gradient("attention", dy, (B, M, H * K), qkv.dtype)
    xp = namespace(dy, qkv)
    q, k, v = qkv.reshape(3, B * H, N, K)
    q = q[:, queries]
    dy = split_heads(aligned(dy), None, 1, H).reshape(B * H, M, K)
    dqkv: Array = (xp.empty if M == N else xp.zeros)(qkv.shape, dtype=qkv.dtype)
    dq, dk, dv = dqkv.reshape(3, B * H, N, K)
    dropped = weights if mask is None else multiply(weights, mask)
    product(dropped[..., :N].swapaxes(1, 2), dy, dv)
    dweights = _like_scores(qkv, M, mask)
    product(dy, v.swapaxes(1, 2), dweights[..., :N])
    if mask is not None:
        dweights = multiply(dweights, mask)
    dproducts = _rounded(dweights, qkv.dtype)
    scaled_softmax_backward(dweights, weights, K**-0.5, dproducts, N)
    dproducts = dproducts[..., :N]
    product(dproducts, k, dq[:, queries])
    product(dproducts.swapaxes(1, 2), q, dk)
    return dqkv


def _covers(qkv: Array, num_heads: int, mask: Array | None = None, queries: slice = ALL, *, keep: bool = True) -> bool:
    return covers_dtype(qkv) and qkv.ndim == 3 and queries.step in (None, 1) and qkv[:, queries].size > 0


def _forward(
    qkv: Array, num_heads: int, mask: Array | None = None, queries: slice = ALL, *, keep: bool = True
) -> tuple[Array, CudaAttentionCache | None]:
    check_attention(qkv, num_heads, mask, queries)
    y, cache = attend(split_heads(aligned(qkv), None, 3, num_heads), mask, queries)
    return y, cache if keep else None


def _backward(dy: Array, cache: CudaAttentionCache) -> Array:
    return merge_heads(attend_backward(dy, cache))[0]


def register(library: str) -> None:
    """Register the kernels for the array library called `library`."""
    register_kernel("attention", Kernel(library, _covers, _forward, _backward, CudaAttentionCache))
