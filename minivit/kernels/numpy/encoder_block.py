"""A whole encoder block, fused. Kernel of the layer `EncoderBlock` without dropout.

Each layer norm is followed by a linear map, so its scale and shift are folded into that map's weights, once for all
tokens:

    layer_norm(x) @ W + c = x_hat @ W' + c'         W' = weight[:, None] * W      c' = bias @ W + c
    dW = weight[:, None] * dW' + outer(bias, dc')   dc = dc'
    dweight = sum of dW' * W over the columns       dbias = W @ dc'

This saves three passes over the tokens forward and four backward, and the norm's result is not stored. The residual
sums and the slopes of GELU are applied in place to the products. Attention calls the op.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minivit import ops
from minivit.arrays import Array
from minivit.kernels.numpy.block_inference import covers_inference, infer
from minivit.kernels.numpy.gelu import covers_gelu, fast_gelu
from minivit.kernels.numpy.layer_norm import mean_column, mean_columns, normalize, normalize_backward
from minivit.kernels.numpy.pieces import FAST_DTYPES, column_sums, pieces, scratch
from minivit.ops.attention import ALL
from minivit.ops.encoder_block import BlockLike, Gather, LinearLike, NormLike
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect, expect_gradient, same_dtype


class _Normed(NamedTuple):
    """What the backward pass of a norm and of the linear map after it reads."""

    x_hat: Array  # (rows, D)
    inv_std: Array  # (rows, 1)


class FastBlockCache(NamedTuple):
    """What the backward pass reads."""

    queries: slice
    shape: tuple[int, int, int]
    to_qkv: _Normed
    attention: Any
    y: Array  # (B * M, D), the result of attention before the projection
    to_hidden: _Normed
    slope: Any  # (B * M, F), the derivative of GELU
    hidden: Array  # (B * M, F), after GELU


def _covers(x: Array, block: BlockLike, queries: slice) -> bool:
    return x.dtype in FAST_DTYPES and x.ndim == 3 and x[:, queries].size > 0


def _forward(
    x: Array, block: BlockLike, queries: slice = ALL, keep: bool = True, gather: Gather | None = None
) -> tuple[Array, FastBlockCache | None]:
    if gather is not None and covers_inference(x, block):
        return infer(x, block, queries, gather), None
    attn, mlp = block.attn, block.mlp
    same_dtype("EncoderBlock", x=x, weight=attn.qkv.weight.value)
    expect("EncoderBlock", "x", x, ("B", "N", attn.qkv.weight.shape[0]))
    B, N, D = x.shape
    h, shift, to_qkv = _norm_linear(x.reshape(B * N, D), block.norm1, attn.qkv)
    h += shift
    qkv, of_all = h.reshape(B, N, 3 * D), queries
    if gather is not None:
        qkv, of_all = gather(qkv, queries)
    gathered, attention = ops.attention(qkv, attn.num_heads, None, of_all, keep=keep)
    y = gathered.reshape(-1, D)
    x1 = y @ attn.proj.weight.value
    x1 += attn.proj.bias.value
    residual = x1.reshape(gathered.shape)
    residual += x[:, queries]
    h, shift, to_hidden = _norm_linear(x1, block.norm2, mlp.fc1)
    hidden, slope = _gelu_in_place(h, shift, mlp.act.approximate, keep)
    out = hidden @ mlp.fc2.weight.value
    out += mlp.fc2.bias.value
    out += x1
    cache = FastBlockCache(queries, x.shape, to_qkv, attention, y, to_hidden, slope, hidden)
    return out.reshape(gathered.shape), cache if keep else None


def _norm_linear(x: Array, norm: NormLike, linear: LinearLike) -> tuple[Array, Array, _Normed]:
    """Return the linear map of the layer norm of `x` (rows, D) as a product and what is to be added to its rows."""
    rows, D = x.shape
    x_hat, inv_std = np.empty_like(x), np.empty((rows, 1), x.dtype)
    mean_of = mean_column(D, x.dtype)
    for piece in pieces(rows, 3 * D * x.itemsize):
        normalize(x[piece], mean_of, norm.eps, x_hat[piece], inv_std[piece])
    folded = norm.weight.value[:, None] * linear.weight.value
    shift = norm.bias.value @ linear.weight.value
    shift += linear.bias.value
    return x_hat @ folded, shift, _Normed(x_hat, inv_std)


def _gelu_in_place(h: Array, bias: Array, approximate: str, keep: bool) -> tuple[Array, Array | None]:
    """Return GELU of ``h + bias`` and its derivative."""
    if not covers_gelu(h, approximate):
        h += bias
        y, cache = ops.gelu(h, approximate, keep=keep)
        return y, None if cache is None else cache.slope
    slope = np.empty_like(h) if keep else None
    fast_gelu(h, h, slope, bias)  # the bias in cache
    return h, slope


def _backward(dy: Array, cache: FastBlockCache, block: BlockLike) -> Array:
    queries, shape, to_qkv, attention, y, to_hidden, slope, hidden = cache
    B, N, D = shape
    expect_gradient("EncoderBlock", dy, (B, len(range(N)[queries]), D), y.dtype)
    d = dy.reshape(-1, D)
    dhidden = _linear_backward(d, hidden, block.mlp.fc2)
    dhidden *= slope
    d = _norm_linear_backward(dhidden, to_hidden, block.norm2, block.mlp.fc1, d)
    dgathered = _linear_backward(d, y, block.attn.proj).reshape(dy.shape)
    dqkv = ops.attention_backward(dgathered, attention).reshape(B * N, 3 * D)
    dx = _norm_linear_backward(dqkv, to_qkv, block.norm1, block.attn.qkv, d if queries == ALL else None).reshape(shape)
    if queries != ALL:
        dx[:, queries] += d.reshape(dy.shape)
    return dx


def _linear_backward(dy: Array, x: Array, linear: LinearLike) -> Array:
    linear.weight.add_product(x.T, dy)
    linear.bias.add_grad(column_sums(dy))
    return dy @ linear.weight.value.T


def _norm_linear_backward(
    dy: Array, cache: _Normed, norm: NormLike, linear: LinearLike, residual: Array | None
) -> Array:
    """Return ``dx`` of the norm, plus `residual`, the gradient of the path around it."""
    x_hat, inv_std = cache
    weight = linear.weight.value
    dfolded = x_hat.T @ dy
    dshift = column_sums(dy)
    norm.weight.add_grad(np.vecdot(dfolded, weight))
    norm.bias.add_grad(weight @ dshift)
    dweight, add = linear.weight.claim_grad()
    product = np.multiply(dfolded, norm.weight.value[:, None], out=dfolded if add else dweight)
    product += np.multiply.outer(norm.bias.value, dshift)
    if add:
        dweight += dfolded
    linear.bias.add_grad(dshift)
    dx = dy @ (norm.weight.value[:, None] * weight).T
    rows, D = dx.shape
    mean_of = mean_columns(D, dx.dtype)
    cut = list(pieces(rows, 3 * D * dx.itemsize))
    broadcast = scratch(cut[0].stop * D, dx.dtype).reshape(-1, D)
    for piece in cut:
        d = dx[piece]
        normalize_backward(d, d @ mean_of, x_hat[piece], inv_std[piece], broadcast[: len(d)])
        if residual is not None:
            d += residual[piece]
    return dx


register_kernel(
    "EncoderBlock",
    Kernel("numpy", _covers, _forward, _backward, FastBlockCache, replaces=frozenset({"layer_norm", "gelu"})),
)
