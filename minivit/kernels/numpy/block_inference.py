"""An encoder block in inference, on the tokens of an image that a worker has. Part of the kernel of `EncoderBlock`.

With so few rows, the weights are larger than what they are multiplied with. Then it takes less time to scale and shift
the rows after each layer norm than to fold scale and shift into the weights, and no copy of the keys is made for
attention. In GELU, y = x Phi(x), the function g of Phi(x) = (1 + tanh(x g(x²))) / 2 is

    g(u) = b u + a0 + c1 / (u + a1 + c2 / (u + a2))

a quotient of polynomials of degrees 3 and 2 as a continued fraction, which takes 4 array operations less than the
polynomial of `minivit.kernels.numpy.gelu`, and makes the error of Phi 1.6e-7 instead of 1.0e-7, of which the fit is
5.4e-8. The factor 1/2 is applied to the result of the next linear map, which has fewer columns.

GELU's form saves 3 % of a prediction, at 197 tokens, width 192 and two workers. This file, with what the engine
does for one image, saves 22 % (docs/performance.md).
"""

from __future__ import annotations

import numpy as np

from minivit.arrays import Array
from minivit.kernels.numpy.attention import exp_scores
from minivit.kernels.numpy.gelu import covers_gelu
from minivit.kernels.numpy.layer_norm import mean_column, normalize
from minivit.kernels.numpy.pieces import pieces
from minivit.ops.attention import ALL, heads
from minivit.ops.encoder_block import BlockLike, Gather, LinearLike, NormLike
from minivit.ops.registry import disabled_kernels

# The coefficients of g; docs/derivations/fit_erf.py computes them. NumPy takes a 0-d array faster than a number.
_B, _A0, _C1, _A1, _C2, _A2 = (
    np.array(c, np.float32) for c in (0.018137888, 1.18332251, -2.66711219, -23.5892132, 1382.29283, 45.3078287)
)
_HALF, _ONE = np.array(0.5, np.float32), np.array(1.0, np.float32)


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
    twice_gelu(h)
    out = h @ mlp.fc2.weight.value
    out *= _HALF
    out += mlp.fc2.bias.value
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


@np.errstate(over="ignore")  # of the square of a large x, whose tanh is 1
def twice_gelu(x: Array) -> None:
    """Replace `x`, which `covers_gelu` covers, by twice its GELU."""
    x = x.reshape(-1)
    for piece in pieces(x.size, 3 * x.itemsize):
        part = x[piece]
        square = np.multiply(part, part)
        g = np.add(square, _A2)
        np.divide(_C2, g, g)
        np.add(g, square, g)
        np.add(g, _A1, g)
        np.divide(_C1, g, g)
        np.add(g, _A0, g)
        np.multiply(square, _B, square)
        np.add(g, square, g)
        np.multiply(g, part, g)
        np.tanh(g, g)
        np.add(g, _ONE, g)
        np.multiply(part, g, part)
