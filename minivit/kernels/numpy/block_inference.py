"""An encoder block in inference, on the tokens of an image that a worker has. Part of the kernel of `EncoderBlock`.

With so few rows, the weights are larger than what they are multiplied with. Then it takes less time to scale and shift
the rows after each layer norm than to fold scale and shift into the weights, and no copy of the keys is made for
attention.
"""

from __future__ import annotations

import numpy as np

from minivit.arrays import Array
from minivit.kernels.numpy.attention import exp_scores
from minivit.kernels.numpy.gelu import covers_gelu, fast_gelu
from minivit.kernels.numpy.layer_norm import mean_column, normalize
from minivit.ops.attention import ALL, heads
from minivit.ops.encoder_block import BlockLike, Gather, LinearLike, NormLike
from minivit.ops.registry import disabled_kernels


def covers_inference(x: Array, block: BlockLike) -> bool:
    """Return whether `infer` computes a block for the tokens `x` (B, N, D)."""
    B, N, D = x.shape
    return B * N < 3 * D and covers_gelu(x, block.mlp.act.approximate) and "attention" not in disabled_kernels()


def infer(x: Array, block: BlockLike, queries: slice, gather: Gather) -> Array:
    """Return the result (B, M, D) of a block for the tokens `x` (B, N, D)."""
    attn, mlp = block.attn, block.mlp
    B, N, D = x.shape
    residual = x[:, queries]
    qkv = _qkv(_normed(x.reshape(B * N, D), block.norm1).reshape(x.shape), attn.qkv, queries)
    qkv, queries = gather(qkv, queries)
    y = _linear(_attended(qkv, attn.num_heads, queries), attn.proj)
    y += residual.reshape(-1, D)
    h = _linear(_normed(y, block.norm2), mlp.fc1)
    fast_gelu(h, h, None)
    out = _linear(h, mlp.fc2)
    out += y
    return out.reshape(residual.shape)


def _linear(x: Array, linear: LinearLike) -> Array:
    y = x @ linear.weight.value
    y += linear.bias.value
    return y


def _qkv(x: Array, linear: LinearLike, queries: slice) -> Array:
    """Return the keys and values of all tokens and the queries of `queries`, (B, N, 3 D); other queries are not set."""
    B, N, D = x.shape
    weight, bias = linear.weight.value, linear.bias.value
    qkv = np.empty((B, N, 3 * D), x.dtype)
    rows, first = qkv.reshape(B * N, 3 * D), 0 if queries == ALL else D
    np.matmul(x.reshape(B * N, D), weight[:, first:], out=rows[:, first:])
    if first:
        qkv[:, queries, :D] = x[:, queries] @ weight[:, :D]
        qkv[:, queries, :D] += bias[:D]
    rows[:, first:] += bias[first:]
    return qkv


def _normed(x: Array, norm: NormLike) -> Array:
    """Return the layer norm of `x` (rows, D)."""
    y = np.empty_like(x)
    normalize(x, mean_column(x.shape[1], x.dtype), norm.eps, y, np.empty((len(x), 1), x.dtype))
    y *= norm.weight.value
    y += norm.bias.value
    return y


def _attended(qkv: Array, num_heads: int, queries: slice) -> Array:
    """Return the result of attention (B * M, D)."""
    q, k, v = heads(qkv, num_heads)
    K = q.shape[-1]
    q = np.multiply(q[:, :, queries], K**-0.5)
    B, H, M, _ = q.shape
    e = np.empty((B, H, M, k.shape[2]), qkv.dtype)
    inverse = np.reciprocal(exp_scores(q, k.swapaxes(-1, -2), e).reshape(B, H, M, 1))
    y = np.empty((B, M, H, K), qkv.dtype)
    by_head = y.swapaxes(1, 2)
    np.matmul(e, v, out=by_head)
    by_head *= inverse
    return y.reshape(B * M, H * K)
