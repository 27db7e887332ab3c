"""Standardised convolutions and max pooling of a ResNet, with the padding of TensorFlow or of PyTorch."""

from __future__ import annotations

import math
from typing import Any

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.nn.cost import Cost
from minivit.nn.initializers import lecun_normal
from minivit.nn.layer import Layer
from minivit.nn.parameters import Parameter
from minivit.ops.unfold import Pair, windows
from minivit.random import Key


def padding_of(size: Pair, kernel: int, stride: int, form: str) -> tuple[Pair, Pair]:
    """Return the padding (above, below), (left, right) for images of `size`.

    "same" is TensorFlow's: as many rows and columns as give ceil(n / stride) windows, one more at the end where their
    number is odd. "half" is half of the kernel on every side.
    """
    if form not in ("same", "half"):
        raise ValueError(f"padding is {form!r}; expected 'same' or 'half'")
    if form == "half":
        return (kernel // 2, kernel // 2), (kernel // 2, kernel // 2)
    totals = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in size)
    rows, columns = ((total // 2, total - total // 2) for total in totals)
    return rows, columns


class StdConvolution(Layer):
    """A convolution whose weight is standardised, without bias: (B, h, w, C) to (B, rows, columns, O).

    Parameters
    ----------
    in_chans, out_chans : int
        C and O.
    kernel, stride : int
        Side of the kernel; distance of windows.
    padding : str
        "same" or "half"; see `padding_of`.
    eps : float
        Added to the variance of the weight.
    """

    def __init__(
        self, in_chans: int, out_chans: int, kernel: int, stride: int = 1, padding: str = "same", eps: float = 1e-8
    ) -> None:
        self.weight = Parameter((kernel * kernel * in_chans, out_chans), lecun_normal, decay=True)
        self.kernel, self.stride, self.padding, self.eps = kernel, stride, padding, eps

    def grid(self, height: int, width: int) -> Pair:
        """Return the numbers of rows and columns of the result for images of this size."""
        return windows((height, width), (self.kernel,) * 2, (self.stride,) * 2, self._padding(height, width))

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Convolve `x`: one matrix product with all its windows, which are its pixels where they have one each."""
        weight, cache1 = ops.standardize(self.weight.value, self.eps, keep=keep)
        height, width = x.shape[1:3]
        if self._takes_pixels:
            h, cache2 = x.reshape(len(x), height * width, x.shape[3]), None
        else:
            kernel, stride = (self.kernel,) * 2, (self.stride,) * 2
            h, cache2 = ops.unfold(x, kernel, stride, self._padding(height, width), keep=keep)
        h, cache3 = ops.linear(h, weight, keep=keep)
        y = h.reshape(len(x), *self.grid(height, width), h.shape[-1])
        return y, (cache1, cache2, cache3) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        cache1, cache2, cache3 = self.kept(cache)
        dh, dweight, _ = ops.linear_backward(dy.reshape(len(dy), math.prod(dy.shape[1:-1]), dy.shape[-1]), cache3)
        self.weight.add_grad(ops.standardize_backward(dweight, cache1))
        return dh.reshape(*dy.shape[:-1], dh.shape[-1]) if self._takes_pixels else ops.unfold_backward(dh, cache2)

    @property
    def _takes_pixels(self) -> bool:
        return self.kernel == self.stride == 1

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (h, w, C): its windows are kept."""
        fan_in, out_chans = self.weight.shape
        size = math.prod(self.grid(*shape[:2])) * fan_in
        return Cost(2 * size * out_chans, size)

    def result(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape (rows, columns, O) of the result for an image of `shape`."""
        return (*self.grid(*shape[:2]), self.weight.shape[1])

    def _padding(self, height: int, width: int) -> tuple[Pair, Pair]:
        return padding_of((height, width), self.kernel, self.stride, self.padding)


class MaxPool(Layer):
    """The largest value of each channel in windows: (B, h, w, C) to (B, rows, columns, C).

    With the padding "same", pixels outside of the image are never the largest; with "half" they are zeros, as in BiT.
    """

    def __init__(self, kernel: int = 3, stride: int = 2, padding: str = "same") -> None:
        if kernel < 2:
            raise ValueError(f"kernel is {kernel}; expected at least 2")
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the largest values."""
        padding = padding_of(x.shape[1:3], self.kernel, self.stride, self.padding)
        kernel, stride = (self.kernel,) * 2, (self.stride,) * 2
        zeros = 0
        if self.padding == "half":
            zeros = self.kernel // 2
            B, height, width, C = x.shape
            padded = namespace(x).zeros((B, height + 2 * zeros, width + 2 * zeros, C), dtype=x.dtype)
            padded[:, zeros:-zeros, zeros:-zeros] = x
            x, padding = padded, ((0, 0), (0, 0))
        y, cache = ops.max_pool(x, kernel, stride, padding, keep=keep)
        return y, (cache, zeros) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        cache1, zeros = self.kept(cache)
        dx = ops.max_pool_backward(dy, cache1)
        return dx[:, zeros:-zeros, zeros:-zeros] if zeros else dx

    def result(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape (rows, columns, C) of the result for an image of `shape`."""
        height, width, C = shape
        padding = padding_of((height, width), self.kernel, self.stride, self.padding)
        return (*windows((height, width), (self.kernel,) * 2, (self.stride,) * 2, padding), C)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (h, w, C): the numbers of the largest pixels are kept."""
        return Cost(0, math.prod(self.result(shape)))
