"""Attention with few passes over the scores, in cache. Kernel of `ops.attention` without a mask.

    e = exp(q @ (k.T * scale))      s = sum(e)                 the weights e / s are not computed
    y = (e @ v) / s

    dy_s = dy / s                   delta = sum(dy_s * y)      since sum(dweights * weights) = sum(dy * y)
    dv = e.T @ dy_s                 dproducts = e * (dy_s @ (v.T * scale) - delta * scale)
    dq = dproducts @ k              dk = dproducts.T @ q

The scale and the division are applied to the (N, K) operands, and the row sums of the softmax gradient are computed
from the (N, K) results (Dao et al. 2022, appendix B); delta is one more column of the product. The passes over the
scores are one exponential and one sum forward, and one elementwise product backward. k.T and v.T are copied because
BLAS is up to twice as fast when both operands are row-major. The shift by the maximum, which only keeps exp in range,
is applied if the sums show that it is needed.

Where a softmax is saturated, dq and dk are differences of two rounded products. Their error is some eps |dy| |v| |k|;
that of the reference can be smaller.

Backward, dproducts comes first: it reads the exponentials in order, and the product with their transpose finds them in
cache. The other way round a step takes 2 % longer.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array
from minivit.kernels.numpy.pieces import FAST_DTYPES, filled, pieces
from minivit.ops.attention import ALL, check_attention, heads
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient

# Sums outside of these limits need the shift: the exponentials, times v or dy, could overflow or become subnormal in
# float32.
_SMALLEST, _LARGEST = 1e-12, 1e12


class FastAttentionCache(NamedTuple):
    """What the backward pass reads."""

    qkv: Array  # (B, N, 3 D)
    e: Array  # (B, H, M, N)
    inverse: Array  # (B, M, H): 1 / s
    y: Array  # (B, M, H, K), a view of the result
    queries: slice


def _covers(qkv: Array, num_heads: int, mask: Array | None = None, queries: slice = ALL, *, keep: bool = True) -> bool:
    return mask is None and qkv.dtype in FAST_DTYPES and qkv.ndim == 3 and qkv[:, queries].size > 0


def exp_scores(q: Array, k_t: Array, e: Array) -> Array:
    """Set `e` (..., M, N) to the exponentials of the scores, each row up to a factor, and return the row sums."""
    np.matmul(q, k_t, out=e)
    with np.errstate(over="ignore"):
        np.exp(e, out=e)
        sums = _row_sums(e)
    if not (sums.min() >= _SMALLEST and sums.max() <= _LARGEST):
        np.matmul(q, k_t, out=e)
        e -= e.max(axis=-1, keepdims=True)
        np.exp(e, out=e)
        sums = _row_sums(e)
    return sums


def _row_sums(e: Array) -> Array:
    # The product of OpenBLAS for AVX-512 reads the stack beside rows of 5 numbers: the sums are right, but a signalling
    # NaN there sets the flag. Sums of positive numbers are never invalid themselves.
    with np.errstate(invalid="ignore"):
        sums: Array = e.reshape(-1, e.shape[-1]) @ filled(e.shape[-1:], 1.0, e.dtype)
    return sums


def _forward(
    qkv: Array, num_heads: int, mask: Array | None = None, queries: slice = ALL, *, keep: bool = True
) -> tuple[Array, FastAttentionCache | None]:
    check_attention(qkv, num_heads, mask, queries)
    q, k, v = heads(qkv, num_heads)
    q = q[:, :, queries]
    B, H, M, K = q.shape
    N = k.shape[2]
    k_t = np.multiply(k.swapaxes(-1, -2), K**-0.5, order="C")
    groups = list(pieces(B, H * M * N * qkv.itemsize))
    e = np.empty((B if keep else groups[0].stop, H, M, N), qkv.dtype)
    inverse = np.empty((B, M, H), qkv.dtype)
    y = np.empty((B, M, H, K), qkv.dtype)
    for group in groups:
        e_group = e[group] if keep else e[: group.stop - group.start]
        sums = exp_scores(q[group], k_t[group], e_group)
        np.reciprocal(sums.reshape(-1, H, M).swapaxes(1, 2), out=inverse[group])
        np.matmul(e_group, v[group], out=y[group].swapaxes(1, 2))
    y *= inverse.repeat(K).reshape(y.shape)  # a broadcast takes longer
    return y.reshape(B, M, H * K), FastAttentionCache(qkv, e, inverse, y, queries) if keep else None


@functools.cache
def _sums_of_heads(H: int, K: int, factor: float, dtype: Any) -> Array:
    """Return the matrix (H K, H) by which a row becomes the sum of each head, times `factor`."""
    return np.repeat(np.eye(H, dtype=dtype) * dtype.type(factor), K, axis=0)


def _backward(dy: Array, cache: FastAttentionCache) -> Array:
    qkv, e, inverse, y, queries = cache
    B, M, H, K = y.shape
    expect_gradient("attention", dy, (B, M, H * K), qkv.dtype)
    scale = K**-0.5
    q, k, v = heads(qkv, H)
    q = q[:, :, queries]
    dqkv = np.empty_like(qkv)
    dq, dk, dv = heads(dqkv, H)
    if dq.shape[2] > M:
        dq[...] = 0
    dq = dq[:, :, queries]
    dy_s = np.multiply(dy, inverse.repeat(K).reshape(dy.shape))
    delta = (dy_s * y.reshape(dy.shape)).reshape(B * M, H * K) @ _sums_of_heads(H, K, -scale, qkv.dtype)
    dy_s = dy_s.reshape(B, M, H, K)
    # With one more column in each operand, -delta and 1, the product is (dy_s @ v.T - delta) * scale.
    left = np.empty((B, M, H, K + 1), qkv.dtype)
    np.multiply(dy_s, scale, out=left[..., :K])
    left[..., K] = delta.reshape(B, M, H)
    right = np.empty((B, H, K + 1, k.shape[2]), qkv.dtype)
    right[:, :, :K] = v.swapaxes(-1, -2)
    right[:, :, K] = 1
    dy_s, left = dy_s.swapaxes(1, 2), left.swapaxes(1, 2)
    for group in pieces(B, H * M * k.shape[2] * qkv.itemsize):
        e_group = e[group]
        dproducts = left[group] @ right[group]
        dproducts *= e_group
        np.matmul(e_group.swapaxes(-1, -2), dy_s[group], out=dv[group])  # when e is in cache
        np.matmul(dproducts, k[group], out=dq[group])
        np.matmul(dproducts.swapaxes(-1, -2), q[group], out=dk[group])
    return dqkv


register_kernel("attention", Kernel("numpy", _covers, _forward, _backward, FastAttentionCache))
