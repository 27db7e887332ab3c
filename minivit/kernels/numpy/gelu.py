"""GELU and its derivative in float32, with one tanh and one exponential, in cache. Kernel of `ops.gelu`, exact form.

    Phi(x) = (1 + tanh(x g(x²))) / 2        g(u) = atanh(erf(sqrt(u / 2))) / sqrt(u)
    dy/dx  = Phi(x) + x exp(-x² / 2) / sqrt(2 pi)

g is a polynomial of degree 6, fitted by minimax so that the error of Phi is at most 2.9e-8, half an ulp of float32 just
below 1 (docs/derivations/fit_erf.py computes the coefficients). Its leading coefficient is positive, so it grows
outside of the fitted range, up to infinity, where tanh is 1: no bounds are needed.

An element takes 1.8 ns with the derivative, and 2.1 with bounds, Python numbers and arrays that begin anywhere.
"""

from __future__ import annotations

import math

import numpy as np

from minivit.arrays import Array
from minivit.kernels.numpy.pieces import pieces, scratch
from minivit.ops.gelu import GELUCache
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient

_G = (1.75617565e-9, -1.32263462e-7, 3.96474536e-6, -5.53061943e-5, -3.25949908e-5, 0.0363330846, 0.797884941)

# NumPy takes a 0-d array faster than a number: a call on few elements takes 0.2 us in place of 0.4.
_LEADING, *_OTHERS, _LAST = (np.array(c, np.float32) for c in _G)
_HALF, _MINUS_HALF, _DENSITY = (np.array(c, np.float32) for c in (0.5, -0.5, 1.0 / math.sqrt(2.0 * math.pi)))


def covers_gelu(x: Array, approximate: str) -> bool:
    """Return whether `fast_gelu` computes this GELU of `x`."""
    return x.dtype == np.float32 and approximate == "none" and x.size > 0 and x.flags.c_contiguous


@np.errstate(over="ignore")  # of the square of a large x, whose tanh is 1
def fast_gelu(x: Array, y: Array, slope: Array | None, bias: Array | None = None) -> None:
    """Set `y`, which may be `x` itself, to GELU and `slope` to its derivative; all are contiguous and of one shape.

    A `bias` (F,) is added to `x` (rows, F) first, in place.
    """
    row = 1 if bias is None else bias.size
    cut = [slice(rows.start * row, rows.stop * row) for rows in pieces(x.size // row, 6 * row * x.itemsize)]
    x, y = x.reshape(-1), y.reshape(-1)
    slope = None if slope is None else slope.reshape(-1)
    squares, values = scratch(cut[0].stop, x.dtype), scratch(cut[0].stop, x.dtype)
    if bias is not None:
        biases = scratch(cut[0].stop, x.dtype)
        biases.reshape(-1, row)[...] = bias
    multiply, add = np.multiply, np.add
    for piece in cut:
        part = x[piece]
        if bias is not None:
            add(part, biases[: part.size], part)
        square, phi = squares[: part.size], values[: part.size]
        multiply(part, part, square)
        multiply(square, _LEADING, phi)
        for coefficient in _OTHERS:
            add(phi, coefficient, phi)
            multiply(phi, square, phi)
        add(phi, _LAST, phi)
        multiply(phi, part, phi)
        np.tanh(phi, phi)
        multiply(phi, _HALF, phi)
        add(phi, _HALF, phi)
        if slope is not None:
            multiply(square, _MINUS_HALF, square)
            np.exp(square, square)
            multiply(square, part, square)
            multiply(square, _DENSITY, square)
            add(phi, square, slope[piece])
        multiply(part, phi, y[piece])


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
