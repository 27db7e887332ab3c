"""Attention by strided products on qkv as it lies, and one softmax pass over the scores. Rival of `ops.attention`.

A product takes one head of all images, since only the images of a batch are evenly spaced in qkv and in the result.
Rows of scores start at multiples of 16 bytes, which tensor cores need; softmax takes its maxima and sums in float32.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.elementwise import multiply
from minivit.kernels.cuda.products import product
from minivit.kernels.cuda.runtime import covers_dtype, pack, settled
from minivit.kernels.cuda.softmax import scaled_softmax, scaled_softmax_backward
from minivit.ops.attention import ALL, check_attention, heads
from minivit.ops.registry import Rival, register_rival
from minivit.ops.shapes import expect_gradient


class CudaAttentionCache(NamedTuple):
    """What the backward pass reads."""

    qkv: Array  # (B, N, 3 D)
    weights: Array  # (B, H, M, N), the rows of memory that may be longer
    mask: Array | None  # (B, H, M, N)
    queries: slice


def _scores(like: Array, B: int, H: int, M: int, N: int, padded: bool) -> tuple[Array, Array, int]:
    """Return memory for scores, the (B, H, M, N) of it that are scores, and how far their rows lie apart."""
    step = pack(like.dtype) if padded else 1
    stride = -(-N // step) * step
    memory = namespace(like).empty((B, H, M, stride), dtype=like.dtype)
    return memory, memory[..., :N], stride


def _covers(qkv: Array, num_heads: int, mask: Array | None = None, queries: slice = ALL, *, keep: bool = True) -> bool:
    return covers_dtype(qkv) and qkv.ndim == 3 and qkv[:, queries].size > 0


def _forward(
    qkv: Array, num_heads: int, mask: Array | None = None, queries: slice = ALL, *, keep: bool = True
) -> tuple[Array, CudaAttentionCache | None]:
    xp = check_attention(qkv, num_heads, mask, queries)
    qkv = settled(qkv)
    q, k, v = heads(qkv, num_heads)
    q = q[:, :, queries]
    B, H, M, K = q.shape
    N = k.shape[2]
    mask = None if mask is None else settled(mask)
    memory, weights, stride = _scores(qkv, B, H, M, N, mask is None)
    for h in range(H):
        product(q[:, h], k[:, h].swapaxes(1, 2), weights[:, h], scale=K**-0.5)
    scaled_softmax(memory, 1.0, memory, B * H * M, N, stride)
    dropped = weights if mask is None else multiply(weights, mask)
    y = xp.empty((B, M, H, K), dtype=qkv.dtype)
    for h in range(H):
        product(dropped[:, h], v[:, h], y[:, :, h])
    return y.reshape(B, M, H * K), CudaAttentionCache(qkv, weights, mask, queries) if keep else None


def _backward(dy: Array, cache: CudaAttentionCache) -> Array:
    qkv, weights, mask, queries = cache
    B, H, M, N = weights.shape
    expect_gradient("attention", dy, (B, M, qkv.shape[2] // 3), qkv.dtype)
    xp = namespace(dy, qkv)
    q, k, v = heads(qkv, H)
    q, K = q[:, :, queries], q.shape[-1]
    dy = settled(dy).reshape(B, M, H, K)
    dqkv = (xp.empty if M == N else xp.zeros)(qkv.shape, dtype=qkv.dtype)
    dq, dk, dv = heads(dqkv, H)
    dq = dq[:, :, queries]
    dropped = weights if mask is None else multiply(weights, mask)
    memory, dweights, stride = _scores(qkv, B, H, M, N, mask is None)
    for h in range(H):
        product(dropped[:, h].swapaxes(1, 2), dy[:, :, h], dv[:, h])
        product(dy[:, :, h], v[:, h].swapaxes(1, 2), dweights[:, h])
    if mask is not None:
        memory = dweights = multiply(dweights, mask)
    scaled_softmax_backward(memory, weights, K**-0.5, memory, B * H * M, N, stride)
    for h in range(H):
        product(dweights[:, h], k[:, h], dq[:, h])
        product(dweights[:, h].swapaxes(1, 2), q[:, h], dk[:, h])
    return dqkv


def register(library: str) -> None:
    """Let the kernels compete on `library`."""
    register_rival("attention", Rival(library, _covers, _forward, _backward, CudaAttentionCache))
