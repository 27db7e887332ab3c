"""A whole stem of convolutions, channels first. Kernel of the layer `ConvStem`.

Arrays are (C, F, F, rows, columns, B). F is the product of the strides that follow, and [:, f, g, r, c] holds the pixel
(F r + f, F c + g). So a window of any stride is copied in runs of columns * B values; in (B, height, width, C) the runs
would be C values. The sums of layer norm, over channels, are then matrix products.

Layer norm subtracts the mean over the channels. Here that mean is subtracted from the weight, so that each row of W'
sums to 0:

    W' = W - mean(W)        dW = dW' - mean(dW')        means over the columns

A convolution of stride 1 with many channels uses Winograd tiles in place of windows (`minivit.kernels.numpy.winograd`).
Tiles need an input and an output in 2 x 2 parts. After the last stride they would be in one part; then every F is
doubled, if the numbers of rows and columns are even.

A training step leaves out the gradient of the images. Without this kernel a step takes 1.03 to 1.05 times as long,
measured before there were tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np

from minivit.arrays import Array
from minivit.kernels.numpy import winograd
from minivit.kernels.numpy.pieces import FAST_DTYPES
from minivit.ops.conv_stem import ConvStemLike, ConvUnitLike
from minivit.ops.registry import Kernel, register_kernel
from minivit.ops.shapes import expect_gradient

# Tiles take less time than windows from 64 channels on, both in and out, and from runs of 32 values on. A run is
# columns * B values, with the columns of tiles. With 32 channels, or 4 images of 8 x 8 pixels, they take the same time.
_CHANNELS, _RUN = 64, 32
_PIECE = 1024  # pixels, of all images together, that one product multiplies at least


class _UnitCache(NamedTuple):
    """What the backward pass of a convolution with its norm and ReLU reads; P values a channel."""

    shape: tuple[int, ...]  # of the unit's input (C, F, F, rows, columns, B)
    tiled: bool
    windows: Array  # (9 C, P); the tiles V (16, C, P / 4) if `tiled`
    weight: Array  # (9 C, O), of mean 0; its U (16, C, O) if `tiled`
    x_hat: Array  # (O, P)
    inv_std: Array  # (P,)
    y: Array  # (O, P), before ReLU; after it in the last unit


class FastStemCache(NamedTuple):
    """What the backward pass reads."""

    units: list[_UnitCache]
    G: int  # the result of the last unit is in G x G parts


def _strides(stem: ConvStemLike) -> list[int]:
    """Return the product of the strides from each convolution on, and 1."""
    strides = [1]
    for unit in reversed(stem.convs):
        strides.insert(0, strides[0] * unit.conv.stride[0])
    return strides


def _parts_of(stem: ConvStemLike, B: int, height: int, width: int) -> list[int]:
    """Return F of the input and of the result of each convolution, for B images of this size."""
    strides = _strides(stem)
    rows, columns = height // strides[0], width // strides[0]
    units = zip(stem.convs, strides[1:], strict=True)
    tiled = any(stride == 1 and _takes_tiles(unit, columns // 2 * B) for unit, stride in units)
    return [2 * stride for stride in strides] if tiled and rows % 2 == columns % 2 == 0 else strides


def _takes_tiles(unit: ConvUnitLike, run: int) -> bool:
    """Return whether a convolution whose result is in 2 x 2 parts takes tiles, for runs of so many values."""
    of_windows, channels = unit.conv.weight.shape
    return unit.conv.stride[0] == 1 and min(of_windows // 9, channels) >= _CHANNELS and run >= _RUN


def _covers(x: Array, stem: ConvStemLike) -> bool:
    if x.dtype not in FAST_DTYPES or x.dtype != stem.proj.weight.value.dtype or x.ndim != 4 or x.size == 0:
        return False
    first = _strides(stem)[0]
    return 9 * x.shape[3] == stem.convs[0].conv.weight.shape[0] and x.shape[1] % first == x.shape[2] % first == 0


def _forward(x: Array, stem: ConvStemLike, keep: bool = True) -> tuple[Array, FastStemCache | None]:
    B, height, width, C = x.shape
    F, *of_results = _parts_of(stem, B, height, width)
    rows, columns = height // F, width // F
    padded = np.zeros((C, F, F, rows + 2, columns + 2, B), x.dtype)
    padded[:, :, :, 1:-1, 1:-1] = x.reshape(B, rows, F, columns, F, C).transpose(5, 2, 4, 1, 3, 0)
    units = []
    for unit, G in zip(stem.convs[:-1], of_results[:-1], strict=True):
        own = _unit(padded, unit, G)
        padded = np.zeros((len(own.y), G, G, rows + 2, columns + 2, B), x.dtype)
        _relu(own.y, padded[:, :, :, 1:-1, 1:-1])
        units.append(own if keep else None)
    G = of_results[-1]
    last = _unit(padded, stem.convs[-1], G)
    _relu(last.y, last.y)
    projected = (last.y.T @ stem.proj.weight.value).reshape(G, G, rows, columns, B, -1)
    tokens = np.empty((B, rows, G, columns, G, projected.shape[-1]), x.dtype)
    np.add(projected.transpose(4, 2, 0, 3, 1, 5), stem.proj.bias.value, out=tokens)
    return tokens.reshape(B, -1, tokens.shape[-1]), FastStemCache([*filter(None, units), last], G) if keep else None


def _relu(x: Array, out: Array) -> None:
    """Set `out`, of the same size, to the larger of 0 and `x`: with two bounds, 3 times as fast as a maximum with 0."""
    np.clip(x.reshape(out.shape), 0, np.inf, out=out)


def _unit(padded: Array, unit: ConvUnitLike, G: int) -> _UnitCache:
    """Return what a convolution and its norm make of `padded`, in G x G parts."""
    C, F, _, *size, B = padded.shape
    rows, columns = (count - 2 for count in size)
    weight = unit.conv.weight.value - _mean_of_columns(unit.conv.weight.value)
    channels, P = weight.shape[1], G * G * rows * columns * B
    tiled = G == 2 and _takes_tiles(unit, columns * B)
    if tiled:
        weight, windows = winograd.filter_transform(weight), winograd.input_transform(padded)
        x_hat = winograd.output_transform(weight.swapaxes(1, 2) @ windows).reshape(channels, P)
    else:
        windows, x_hat = np.empty((9 * C, P), padded.dtype), np.empty((channels, P), padded.dtype)
        pixels = windows.reshape(3, 3, C, G, G, rows, columns, B)
        for places, piece in _pieces(G, rows * columns * B):
            for place in places:
                for window, part, (r, c) in _windows(place, F // G, G):
                    shifted = padded[:, *part, 1 + r : 1 + r + rows, 1 + c : 1 + c + columns]
                    pixels[(*window, slice(None), *place)] = shifted
            np.matmul(weight.T, windows[:, piece], out=x_hat[:, piece])
    y = x_hat * x_hat
    inv_std = np.full(channels, 1 / channels, y.dtype) @ y
    inv_std += unit.norm.eps
    np.sqrt(inv_std, out=inv_std)
    np.reciprocal(inv_std, out=inv_std)
    x_hat *= inv_std
    np.multiply(x_hat, unit.norm.weight.value[:, None], out=y)
    y += unit.norm.bias.value[:, None]
    return _UnitCache((C, F, F, rows, columns, B), tiled, windows, weight, x_hat, inv_std, y)


def _pieces(G: int, size: int) -> Iterator[tuple[list[tuple[int, int]], slice]]:
    """Yield groups of the G x G parts of the result, of `size` pixels each, and the columns that hold their pixels."""
    places, count = list(product(range(G), range(G))), -(-_PIECE // size)
    for first in range(0, G * G, count):
        yield places[first : first + count], slice(first * size, (first + count) * size)


def _mean_of_columns(weight: Array) -> Array:
    return (weight @ np.full(weight.shape[1], 1 / weight.shape[1], weight.dtype))[:, None]


Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@cache
def _windows(place: tuple[int, int], stride: int, G: int) -> list[Window]:
    """Return where the result's part `place` reads, for each of the 9 positions (i, j) in a window.

    A position comes with the part (f, g) of the input, and with the shift (r, c) of rows and columns in that part.
    """
    found = []
    for i, j in product(range(3), range(3)):
        (r, f), (c, g) = (divmod(stride * p + k - 1, stride * G) for p, k in zip(place, (i, j), strict=True))
        found.append(((i, j), (f, g), (r, c)))
    return found


def _backward(dy: Array, kept: FastStemCache, stem: ConvStemLike, images: bool = True) -> Array | None:
    """Add to the gradients; return that of the images, or None if it is not wanted."""
    units, G, proj = kept.units, kept.G, stem.proj
    y, D = units[-1].y, proj.weight.shape[1]
    C, F, _, rows, columns, B = units[0].shape
    expect_gradient("ConvStem", dy, (B, G * rows * G * columns, D), y.dtype)
    d = np.ascontiguousarray(dy.reshape(B, rows, G, columns, G, D).transpose(2, 4, 1, 3, 0, 5)).reshape(-1, D)
    proj.weight.add_product(y, d)
    proj.bias.add_grad(np.ones(len(d), d.dtype) @ d)
    dx: Array | None = proj.weight.value @ d.T
    for unit, own in zip(reversed(stem.convs), reversed(units), strict=True):
        assert dx is not None
        dx = _unit_backward(dx.reshape(own.y.shape), own, unit, images or own is not units[0])
    return None if dx is None else dx.transpose(5, 3, 1, 4, 2, 0).reshape(B, rows * F, columns * F, C)


def _unit_backward(dy: Array, kept: _UnitCache, unit: ConvUnitLike, wants_dx: bool) -> Array | None:
    """Add to the gradients of a unit for `dy` (O, P); return that of its input, or None if it is not wanted."""
    shape, tiled, windows, weight, x_hat, inv_std, y = kept
    ones, scale = np.ones(len(inv_std), dy.dtype), unit.norm.weight.value
    d = dy * (y > 0)
    through_scale = d * x_hat
    unit.norm.weight.add_grad(through_scale @ ones)
    unit.norm.bias.add_grad(d @ ones)
    through_variance = (scale / len(scale)) @ through_scale
    d *= scale[:, None]
    d -= np.multiply(x_hat, through_variance, out=through_scale)
    d *= inv_std
    C, F, _, rows, columns, B = shape
    if tiled:
        d = winograd.output_transform_backward(d.reshape(len(d), 2, 2, -1))
        dweight = winograd.filter_transform_backward(windows @ d.swapaxes(1, 2))
    else:
        dweight = windows @ d.T
    dweight -= _mean_of_columns(dweight)
    unit.conv.weight.add_grad(dweight)
    if not wants_dx:
        return None
    if tiled:
        return winograd.input_transform_backward(weight @ d, rows, columns)
    stride = unit.conv.stride[0]
    G = F // stride
    dx = np.zeros(shape, dy.dtype)
    for places, piece in _pieces(G, rows * columns * B):
        dwindows = (weight @ d[:, piece]).reshape(3, 3, C, len(places), rows, columns, B)
        for i, place in enumerate(places):
            for window, part, (r, c) in _windows(place, stride, G):
                (to_rows, of_rows), (to_columns, of_columns) = _overlap(r, rows), _overlap(c, columns)
                dx[:, *part, to_rows, to_columns] += dwindows[window][:, i, of_rows, of_columns]
    return dx


@cache
def _overlap(shift: int, count: int) -> tuple[slice, slice]:
    """Return the pixels of an image that windows moved by `shift` cover, and the windows, of `count` in a row."""
    return slice(max(0, shift), count + min(0, shift)), slice(max(0, -shift), count - max(0, shift))


register_kernel(
    "ConvStem",
    Kernel("numpy", _covers, _forward, _backward, FastStemCache, replaces=frozenset({"layer_norm", "unfold"})),
)
