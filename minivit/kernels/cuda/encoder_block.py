"""A whole encoder block with its biases, residual sums and norms fused. Kernel of the layer `EncoderBlock`.

It covers blocks without dropout. Between two products there is one pass over memory: bias and splitting of the heads;
bias, residual sum and the second norm; bias and GELU; bias and the second residual sum. The gradients of the matrices
are written, or added, directly into the parameters' gradients, which are float32 for 16-bit arrays too.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.attention import CudaAttentionCache, attend, attend_backward
from minivit.kernels.cuda.columns import column_sums, column_totals
from minivit.kernels.cuda.gelu import bias_gelu, bias_gelu_backward
from minivit.kernels.cuda.heads import merge_heads, split_heads
from minivit.kernels.cuda.layer_norm import Statistics, covers_width, normalize, normalize_backward
from minivit.kernels.cuda.linear import add_bias
from minivit.kernels.cuda.products import product
from minivit.kernels.cuda.runtime import aligned, covers_dtype
from minivit.ops.attention import ALL
from minivit.ops.encoder_block import BlockLike, LinearLike, NormLike
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect, expect_gradient, same_dtype


class _Normed(NamedTuple):
    """The argument of a norm, its statistics and its result."""

    x: Array  # (rows, D)
    statistics: Statistics
    y: Array  # (rows, D)


_REPLACES = frozenset({"layer_norm", "linear", "attention", "gelu"})


class CudaBlockCache(NamedTuple):
    """What the backward pass reads."""

    queries: slice
    shape: tuple[int, int, int]
    norm1: _Normed
    attention: CudaAttentionCache
    gathered: Array  # (B * M, D), the result of attention before the projection
    norm2: _Normed
    h: Array  # (B * M, F), before its bias and GELU
    hidden: Array  # (B * M, F), after them


def _covers(x: Array, block: BlockLike, queries: slice) -> bool:
    return covers_dtype(x) and x.ndim == 3 and x[:, queries].size > 0 and covers_width(x.shape[-1], x.dtype)


def _forward(
    x: Array, block: BlockLike, queries: slice = ALL, keep: bool = True
) -> tuple[Array, CudaBlockCache | None]:
    attn, mlp = block.attn, block.mlp
    same_dtype("EncoderBlock", x=x, weight=attn.qkv.weight.value)
    expect("EncoderBlock", "x", x, ("B", "N", attn.qkv.weight.shape[0]))
    B, N, D = x.shape
    tokens = aligned(x).reshape(B * N, D)
    norm1 = _norm(tokens, block.norm1)
    qkv = _product(norm1.y, attn.qkv.weight.value).reshape(B, N, 3 * D)
    y, attention = attend(split_heads(qkv, attn.qkv.bias.value, 3, attn.num_heads), None, queries)
    gathered = y.reshape(-1, D)
    residual = tokens if queries == ALL else aligned(x[:, queries]).reshape(-1, D)
    norm2 = _norm(residual, block.norm2, _product(gathered, attn.proj.weight.value), attn.proj.bias.value)
    h = _product(norm2.y, mlp.fc1.weight.value)
    hidden = namespace(x).empty(h.shape, dtype=x.dtype) if keep else h
    bias_gelu(h, mlp.fc1.bias.value, mlp.act.approximate == "tanh", hidden)
    out = _product(hidden, mlp.fc2.weight.value)
    add_bias(out, mlp.fc2.bias.value, norm2.x, out)
    cache = CudaBlockCache(queries, (B, N, D), norm1, attention, gathered, norm2, h, hidden)
    return out.reshape(B, -1, D), cache if keep else None


def _product(x: Array, weight: Array) -> Array:
    y: Array = namespace(x).empty((len(x), weight.shape[1]), dtype=x.dtype)
    product(x, weight, y)
    return y


def _norm(x: Array, norm: NormLike, h: Array | None = None, h_bias: Array | None = None) -> _Normed:
    """Return the norm of `x`, or of ``x + h + h_bias``, a sum that is written to the memory of `h`."""
    y = namespace(x).empty(x.shape, dtype=x.dtype)
    residual = None if h is None or h_bias is None else (h, h_bias, h)
    statistics = normalize(x, norm.weight.value, norm.bias.value, norm.eps, y, residual)
    return _Normed(x if h is None else h, statistics, y)


def _backward(dy: Array, cache: CudaBlockCache, block: BlockLike) -> Array:
    queries, shape, norm1, attention, gathered, norm2, h, hidden = cache
    B, N, D = shape
    expect_gradient("EncoderBlock", dy, (B, len(range(N)[queries]), D), gathered.dtype)
    attn, mlp = block.attn, block.mlp
    d = aligned(dy).reshape(-1, D)
    dh = _linear_backward(d, hidden, mlp.fc2)
    partial = bias_gelu_backward(dh, h, mlp.fc1.bias.value, mlp.act.approximate == "tanh", dh)
    d = _norm_backward(_linear_backward(dh, norm2.y, mlp.fc1, partial), norm2, block.norm2, d)
    dgathered = _linear_backward(d, gathered, attn.proj).reshape(dy.shape)
    dqkv, partial = merge_heads(attend_backward(dgathered, attention), sums=True)
    residual = d if queries == ALL else None
    dnormed = _linear_backward(dqkv.reshape(B * N, 3 * D), norm1.y, attn.qkv, partial)
    dx = _norm_backward(dnormed, norm1, block.norm1, residual).reshape(shape)
    if residual is None:
        dx[:, queries] += d.reshape(dy.shape)
    return dx


def _linear_backward(dy: Array, x: Array, linear: LinearLike, partial: Array | None = None) -> Array:
    """Return ``dx`` of a linear map; `partial` holds each block's share of dbias, if it is known."""
    dweight, add = linear.weight.claim_grad()
    product(x.T, dy, dweight, add=add)
    dbias, add = linear.bias.claim_grad()
    if partial is None:
        column_sums(dy, dbias, add)
    else:
        column_totals(partial, dbias, add)
    return _product(dy, linear.weight.value.T)


def _norm_backward(dy: Array, normed: _Normed, norm: NormLike, residual: Array | None) -> Array:
    """Return ``dx`` of the norm, plus `residual`, the gradient of the path around it, in the memory of `dy`."""
    partial = normalize_backward(dy, normed.x, norm.weight.value, normed.statistics, residual, dy)
    for row, parameter in enumerate((norm.weight, norm.bias)):
        dvalue, add = parameter.claim_grad()
        column_totals(partial[:, row], dvalue, add)
    return dy


def register(library: str) -> None:
    """Register the kernels for the array library called `library`."""
    register_kernel("EncoderBlock", Kernel(library, _covers, _forward, _backward, CudaBlockCache, replaces=_REPLACES))
