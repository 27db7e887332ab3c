"""Attention by batched products over all heads of all images, and one softmax pass. Rival of `ops.attention`.

The heads are taken apart, so that one product serves them all; with the bias of the linear map before, that costs no
pass of its own (encoder_block.py). Rows of scores start at multiples of 16 bytes, which tensor cores need; softmax
takes its maxima and sums in float32.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.elementwise import multiply
from minivit.kernels.cuda.heads import merge_heads, split_heads
from minivit.kernels.cuda.products import product
from minivit.kernels.cuda.runtime import covers_dtype, pack, settled
from minivit.kernels.cuda.softmax import scaled_softmax, scaled_softmax_backward
from minivit.ops.attention import ALL, check_attention
from minivit.ops.registry import Rival, register_rival
from minivit.ops.shapes import expect_gradient


class CudaAttentionCache(NamedTuple):
    """What the backward pass reads."""

    qkv: Array  # (3, B, H, N, K)
    weights: Array  # (B * H, M, N), whose rows may lie apart
    mask: Array | None  # (B * H, M, N)
    queries: slice


def _scores(like: Array, heads: int, M: int, N: int, padded: bool) -> tuple[Array, Array]:
    """Return memory for scores, and the (heads, M, N) of it that are scores."""
    step = pack(like.dtype) if padded else 1
    memory = namespace(like).empty((heads, M, -(-N // step) * step), dtype=like.dtype)
    return memory, memory[..., :N]


def attend(qkv: Array, mask: Array | None, queries: slice) -> tuple[Array, CudaAttentionCache]:
    """Return (B, M, D) for `qkv` (3, B, H, N, K), and what the backward pass reads."""
    _, B, H, N, K = qkv.shape
    q, k, v = qkv.reshape(3, B * H, N, K)
    q = q[:, queries]
    M = q.shape[1]
    mask = None if mask is None else settled(mask).reshape(B * H, M, N)
    memory, weights = _scores(qkv, B * H, M, N, mask is None)
    product(q, k.swapaxes(1, 2), weights, scale=K**-0.5)
    scaled_softmax(memory, 1.0, memory, B * H * M, N, memory.shape[2])
    y = namespace(qkv).empty((1, B, H, M, K), dtype=qkv.dtype)
    product(weights if mask is None else multiply(weights, mask), v, y.reshape(B * H, M, K))
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
    dy = split_heads(settled(dy), None, 1, H).reshape(B * H, M, K)
    dqkv: Array = (xp.empty if M == N else xp.zeros)(qkv.shape, dtype=qkv.dtype)
    dq, dk, dv = dqkv.reshape(3, B * H, N, K)
    product((weights if mask is None else multiply(weights, mask)).swapaxes(1, 2), dy, dv)
    memory, dweights = _scores(qkv, B * H, M, N, mask is None)
    product(dy, v.swapaxes(1, 2), dweights)
    if mask is not None:
        memory = dweights = multiply(dweights, mask)
    scaled_softmax_backward(memory, weights, K**-0.5, memory, B * H * M, N, memory.shape[2])
    product(dweights, k, dq[:, queries])
    product(dweights.swapaxes(1, 2), q, dk)
    return dqkv


def _covers(qkv: Array, num_heads: int, mask: Array | None = None, queries: slice = ALL, *, keep: bool = True) -> bool:
    return covers_dtype(qkv) and qkv.ndim == 3 and qkv[:, queries].size > 0


def _forward(
    qkv: Array, num_heads: int, mask: Array | None = None, queries: slice = ALL, *, keep: bool = True
) -> tuple[Array, CudaAttentionCache | None]:
    check_attention(qkv, num_heads, mask, queries)
    y, cache = attend(split_heads(settled(qkv), None, 3, num_heads), mask, queries)
    return y, cache if keep else None


def _backward(dy: Array, cache: CudaAttentionCache) -> Array:
    return merge_heads(attend_backward(dy, cache))[0]


def register(library: str) -> None:
    """Let the kernels compete on `library`."""
    register_rival("attention", Rival(library, _covers, _forward, _backward, CudaAttentionCache))
