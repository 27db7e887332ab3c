"""A whole stem of convolutions, channels first. Kernel of the layer `ConvStem`.

A value of every pixel of every image is one row: an array is (C, F, F, rows, columns, B), where F is the product of the
strides that follow and pixel (F r + f, F c + g) stands at [:, f, g, r, c]. So a convolution of any stride copies windows
in runs of columns * B values (stride 2 would leave runs of B values, and (B, height, width, C) runs of C), and all that
the norm does is a row or a number times rows. Each of the F x F parts goes through product, norm and ReLU in cache.

Layer norm subtracts the mean of the channels. Here the weight does, whose rows sum to 0 after

    W' = W - mean(W)        dW = dW' - mean(dW')        means over the columns

On two cores a step of 128 images takes GAIN of the time without this kernel (see docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array
from minivit.kernels.numpy.pieces import FAST_DTYPES
from minivit.ops.conv_stem import ConvStemLike, ConvUnitLike
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient


class _UnitCache(NamedTuple):
    """What the backward pass of a convolution with its norm and ReLU reads; G x G parts of P values a channel."""

    shape: tuple[int, ...]  # of the unit's input (C, F, F, rows, columns, B)
    windows: Array  # (G, G, 9 C, P)
    weight: Array  # (9 C, O), of mean 0
    x_hat: Array  # (G, G, O, P)
    inv_std: Array  # (G, G, P)
    positive: Array  # (G, G, O, P) bool


class FastStemCache(NamedTuple):
    """What the backward pass reads."""

    units: list[_UnitCache]
    y: Array  # (O, P), which the projection reads


def _strides(stem: ConvStemLike) -> list[int]:
    """Return the product of the strides from each convolution on, and 1."""
    strides = [1]
    for unit in reversed(stem.convs):
        strides.insert(0, strides[0] * unit.conv.stride[0])
    return strides


def _covers(x: Array, stem: ConvStemLike) -> bool:
    if x.dtype.name not in FAST_DTYPES or x.dtype != stem.proj.weight.value.dtype or x.ndim != 4 or x.size == 0:
        return False
    first = _strides(stem)[0]
    return 9 * x.shape[3] == stem.convs[0].conv.weight.shape[0] and x.shape[1] % first == x.shape[2] % first == 0


def _forward(x: Array, stem: ConvStemLike, keep: bool = True) -> tuple[Array, FastStemCache | None]:
    B, height, width, C = x.shape
    F, *strides = _strides(stem)
    rows, columns = height // F, width // F
    padded = np.zeros((C, F, F, rows + 2, columns + 2, B), x.dtype)
    padded[:, :, :, 1:-1, 1:-1] = x.reshape(B, rows, F, columns, F, C).transpose(5, 2, 4, 1, 3, 0)
    units = []
    y = padded
    for unit, G in zip(stem.convs, strides, strict=True):
        O, edge = unit.conv.weight.shape[1], 0 if unit is stem.convs[-1] else 1  # the projection needs no padding
        following = np.zeros((O, G, G, rows + 2 * edge, columns + 2 * edge, B), x.dtype)
        y = following[:, :, :, edge : edge + rows, edge : edge + columns]
        cache = _unit(padded, unit, y, keep)
        padded = following
        units.append(cache)
    y = y.reshape(len(y), -1)
    projected = y.T @ stem.proj.weight.value
    tokens = np.empty((B, rows * columns, projected.shape[1]), x.dtype)
    np.add(projected.reshape(rows * columns, B, -1).swapaxes(0, 1), stem.proj.bias.value, out=tokens)
    return tokens, FastStemCache([unit for unit in units if unit], y) if keep else None


def _unit(padded: Array, unit: ConvUnitLike, y: Array, keep: bool) -> _UnitCache | None:
    """Set `y` (O, G, G, rows, columns, B) to what a convolution, its norm and ReLU make of `padded`."""
    weight, stride, dtype = unit.conv.weight.value, unit.conv.stride[0], y.dtype
    weight = weight - _mean_of_columns(weight)
    (C, *_), (O, G, _, rows, columns, B) = padded.shape, y.shape
    parts, P = (G, G) if keep else (1, 1), rows * columns * B
    windows, x_hat = np.empty((*parts, 9 * C, P), dtype), np.empty((*parts, O, P), dtype)
    inv_std, positive = np.empty((*parts, P), dtype), np.empty((*parts, O, P), bool)
    scaled = np.empty((O, P), dtype)
    for place in product(range(G), repeat=2):
        at = place if keep else (0, 0)
        pixels = windows[at].reshape(3, 3, C, rows, columns, B)
        for window, phases, (r, c) in _windows(place, stride, G):
            pixels[window] = padded[:, *phases, 1 + r : 1 + r + rows, 1 + c : 1 + c + columns]
        z, scale = np.matmul(weight.T, windows[at], out=x_hat[at]), inv_std[at]
        np.einsum("op,op->p", z, z, out=scale)
        scale *= 1 / O
        scale += unit.norm.eps
        np.sqrt(scale, out=scale)
        np.reciprocal(scale, out=scale)
        z *= scale
        np.multiply(z, unit.norm.weight.value[:, None], out=scaled)
        scaled += unit.norm.bias.value[:, None]
        if keep:
            np.greater(scaled, 0, out=positive[at])
        # A third of the time of a maximum with the number 0.
        np.clip(scaled.reshape(O, rows, columns, B), 0, np.inf, out=y[:, *place])
    shape = C, *padded.shape[1:3], padded.shape[3] - 2, padded.shape[4] - 2, B
    return _UnitCache(shape, windows, weight, x_hat, inv_std, positive) if keep else None


def _mean_of_columns(weight: Array) -> Array:
    return (weight @ np.full(weight.shape[1], 1 / weight.shape[1], weight.dtype))[:, None]


def _windows(place: tuple[int, int], stride: int, G: int) -> Iterator[tuple[tuple[int, int], tuple[int, int], Any]]:
    """Yield, for each pixel of a window of part `place`, its place in the window, its part, and its shift there."""
    F = stride * G
    for i, j in product(range(3), repeat=2):
        (r, f), (c, g) = (divmod(stride * p + k - 1, F) for p, k in zip(place, (i, j), strict=True))
        yield (i, j), (f, g), (r, c)


def _backward(dy: Array, cache: FastStemCache, stem: ConvStemLike, images: bool = True) -> Array | None:
    """Add to the gradients; return that of the images, or None if it is not wanted."""
    units, y = cache
    *_, rows, columns, B = units[-1].shape
    D, proj = stem.proj.weight.shape[1], stem.proj
    expect_gradient("ConvStem", dy, (B, y.shape[1] // B, D), y.dtype)
    d = np.ascontiguousarray(dy.swapaxes(0, 1)).reshape(-1, D)
    proj.weight.add_product(y, d)
    proj.bias.add_grad(np.ones(len(d), d.dtype) @ d)
    dx: Array | None = proj.weight.value @ d.T
    for unit, own in zip(reversed(stem.convs), reversed(units), strict=True):
        assert dx is not None
        dx = _unit_backward(dx, own, unit, images or own is not units[0])
    if dx is None:
        return None
    C, F, _, rows, columns, B = units[0].shape
    return dx.transpose(5, 3, 1, 4, 2, 0).reshape(B, rows * F, columns * F, C)


def _unit_backward(dy: Array, cache: _UnitCache, unit: ConvUnitLike, wants_dx: bool) -> Array | None:
    shape, windows, weight, x_hat, inv_std, positive = cache
    G, (O, P), stride = len(x_hat), x_hat.shape[2:], unit.conv.stride[0]
    C, F, _, rows, columns, B = shape
    rows, columns = rows * F // (stride * G), columns * F // (stride * G)
    dy = dy.reshape(O, G, G, P)
    scale, mean_of, ones = unit.norm.weight.value, unit.norm.weight.value / O, np.ones(P, dy.dtype)
    dweight, dscale, dbias = np.zeros_like(weight), np.zeros_like(scale), np.zeros_like(scale)
    dx = np.zeros(shape, dy.dtype) if wants_dx else None
    for place in product(range(G), repeat=2):
        z = x_hat[place]
        d = dy[:, *place] * positive[place]
        through_scale = d * z
        dscale += through_scale @ ones
        dbias += d @ ones
        through_variance = mean_of @ through_scale
        d *= scale[:, None]
        d -= np.multiply(z, through_variance, out=through_scale)
        d *= inv_std[place]
        dweight += windows[place] @ d.T
        if dx is None:
            continue
        dwindows = (weight @ d).reshape(3, 3, C, rows, columns, B)
        for window, phases, shifts in _windows(place, stride, G):
            to, of = zip(*map(_overlap, shifts, (rows, columns)), strict=True)
            dx[:, *phases, *to] += dwindows[(*window, slice(None), *of)]
    dweight -= _mean_of_columns(dweight)
    unit.conv.weight.add_grad(dweight)
    unit.norm.weight.add_grad(dscale)
    unit.norm.bias.add_grad(dbias)
    return dx


def _overlap(shift: int, count: int) -> tuple[slice, slice]:
    """Return the pixels of an image that windows moved by `shift` cover, and the windows, of `count` in a row."""
    return slice(max(0, shift), count + min(0, shift)), slice(max(0, -shift), count - max(0, shift))


register_kernel("ConvStem", Kernel("numpy", _covers, _forward, _backward, FastStemCache))
