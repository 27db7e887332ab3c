"""Layer norm in place, piece by piece in cache, with row sums as dot products. Rival of `ops.layer_norm`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minivit.arrays import Array
from minivit.kernels.pieces import FAST_DTYPES, pieces
from minivit.ops.layer_norm import check_layer_norm
from minivit.ops.registry import Rival, register_rival
from minivit.ops.shapes import expect_gradient


class FastLayerNormCache(NamedTuple):
    """What the backward pass reads, over rows."""

    x_hat: Array  # (rows, D)
    inv_std: Array  # (rows, 1)
    weight: Array  # (D,)
    shape: tuple[int, ...]


def _covers(x: Array, weight: Array, bias: Array, eps: float = 1e-6, *, keep: bool = True) -> bool:
    return x.dtype.name in FAST_DTYPES and x.size > 0


def _forward(
    x: Array, weight: Array, bias: Array, eps: float = 1e-6, *, keep: bool = True
) -> tuple[Array, FastLayerNormCache | None]:
    check_layer_norm(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    count, D = len(rows), weight.size
    y = np.empty_like(rows)
    x_hat = np.empty_like(rows) if keep else y
    inv_std = np.empty((count, 1), rows.dtype)
    mean_of = np.full((D, 1), 1 / D, rows.dtype)
    for piece in pieces(count, 4 * D * x_hat.itemsize):
        z = x_hat[piece]
        np.subtract(rows[piece], rows[piece] @ mean_of, out=z)
        scale = np.vecdot(z, z, out=inv_std[piece, 0])
        scale *= 1 / D
        scale += eps
        np.sqrt(scale, out=scale)
        np.reciprocal(scale, out=scale)
        z *= inv_std[piece]
        np.multiply(z, weight, out=y[piece])
        y[piece] += bias
    return y.reshape(x.shape), FastLayerNormCache(x_hat, inv_std, weight, x.shape) if keep else None


def _backward(dy: Array, cache: FastLayerNormCache) -> tuple[Array, Array, Array]:
    x_hat, inv_std, weight, shape = cache
    expect_gradient("layer_norm", dy, shape, x_hat.dtype)
    dy = dy.reshape(x_hat.shape)
    count, D = len(dy), weight.size
    dx = np.empty_like(dy)
    dweight, dbias = np.zeros_like(weight), np.zeros_like(weight)
    mean_of = (weight / D)[:, None]
    for piece in pieces(count, 4 * D * x_hat.itemsize):
        d, z, out = dy[piece], x_hat[piece], dx[piece]
        dweight += np.einsum("ni,ni->i", d, z)
        dbias += np.ones(len(d), d.dtype) @ d
        through_mean = d @ mean_of
        np.multiply(d, weight, out=out)
        through_variance = np.vecdot(out, z)[:, None]
        through_variance *= 1 / D
        out -= z * through_variance
        out -= through_mean
        out *= inv_std[piece]
    return dx.reshape(shape), dweight, dbias


register_rival("layer_norm", Rival("numpy", _covers, _forward, _backward, FastLayerNormCache))
