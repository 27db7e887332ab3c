"""GELU and its derivative in float32, with one tanh and one exponential, in cache. Kernel of `ops.gelu`, exact form.

    Phi(x) = (1 + tanh(x g(x²))) / 2        g(u) = atanh(erf(sqrt(u / 2))) / sqrt(u)
    dy/dx  = Phi(x) + x exp(-x² / 2) / sqrt(2 pi)

g is a polynomial of degree 6, fitted by minimax so that the error of Phi is at most 2.9e-8, half an ulp of float32 just
below 1 (docs/derivations/fit_erf.py computes the coefficients). Its leading coefficient is positive, so it grows
outside of the fitted range, where tanh rounds to 1.
"""

from __future__ import annotations

import math

import numpy as np

from minivit.arrays import Array
from minivit.kernels.numpy.pieces import pieces
from minivit.ops.gelu import GELUCache
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient

_G = (1.75617565e-9, -1.32263462e-7, 3.96474536e-6, -5.53061943e-5, -3.25949908e-5, 0.0363330846, 0.797884941)
_FLAT = 15.0  # for larger |x|, Phi and the derivative round to 0 or 1
_DENSITY = 1.0 / math.sqrt(2.0 * math.pi)


def covers_gelu(x: Array, approximate: str) -> bool:
    """Return whether `fast_gelu` computes this GELU of `x`."""
    return x.dtype == np.float32 and approximate == "none" and x.size > 0 and x.flags.c_contiguous


def fast_gelu(x: Array, y: Array, slope: Array | None) -> None:
    """Set `y`, which may be `x` itself, to GELU and `slope` to its derivative; all are contiguous and of one shape."""
    x, y = x.reshape(-1), y.reshape(-1)
    slope = None if slope is None else slope.reshape(-1)
    for piece in pieces(x.size, 6 * x.itemsize):
        part = x[piece]
        bounded = np.clip(part, -_FLAT, _FLAT)
        square = bounded * bounded
        phi = square * _G[0]
        for coefficient in _G[1:-1]:
            phi += coefficient
            phi *= square
        phi += _G[-1]
        phi *= bounded
        np.tanh(phi, out=phi)
        phi *= 0.5
        phi += 0.5
        np.multiply(part, phi, out=y[piece])
        if slope is not None:
            _derivative(bounded, square, phi, slope[piece])


def _derivative(x: Array, square: Array, phi: Array, out: Array) -> None:
    """Set `out` to the derivative of GELU; `square` is overwritten."""
    square *= -0.5
    np.exp(square, out=square)
    square *= x
    square *= _DENSITY
    np.add(phi, square, out=out)


class FastGELUCache(GELUCache):
    """The fields of the op's cache."""


def _covers(x: Array, approximate: str = "none", *, keep: bool = True) -> bool:
    return covers_gelu(x, approximate)


def _forward(x: Array, approximate: str = "none", *, keep: bool = True) -> tuple[Array, FastGELUCache | None]:
    y = np.empty_like(x)
    slope = np.empty_like(x) if keep else None
    fast_gelu(x, y, slope)
    return y, None if slope is None else FastGELUCache(slope)


def _backward(dy: Array, cache: FastGELUCache) -> Array:
    expect_gradient("gelu", dy, cache.slope.shape, cache.slope.dtype)
    return dy * cache.slope


register_kernel("gelu", Kernel("numpy", _covers, _forward, _backward, FastGELUCache))
