"""A stem of convolutions in place of patches (Xiao et al. 2021, "Early Convolutions Help Transformers See Better")."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minivit import ops
from minivit.arrays import Array, native
from minivit.nn.activations import ReLU
from minivit.nn.cost import Cost, total_cost
from minivit.nn.initializers import patch_initializers
from minivit.nn.layer import Layer
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.linear import Linear
from minivit.nn.parameters import Parameter
from minivit.nn.structure import structure_version
from minivit.ops.conv_stem import ConvStemLike
from minivit.ops.registry import Kernel, find_kernel, kernel_of_cache
from minivit.ops.unfold import windows
from minivit.random import Key, fold

_KERNEL, _PADDING = (3, 3), (1, 1)


class Convolution(Layer):
    """A 3 x 3 convolution without bias, with a padding of 1: (B, h, w, C) to (B, rows, columns, O).

    There are h / stride rows and w / stride columns, rounded up. The weight is (3 * 3 * C, O), in the order row,
    column, channel.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1, init: str = "jax") -> None:
        fan_in = _KERNEL[0] * _KERNEL[1] * in_chans
        self.stride = (stride, stride)
        self.weight = Parameter((fan_in, out_chans), patch_initializers(init, fan_in)[0], decay=True)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the numbers of rows and columns of the result for images of this size."""
        return windows((height, width), _KERNEL, self.stride, _PADDING)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Convolve `x`: one matrix product with all its windows."""
        h, cache1 = ops.unfold(x, _KERNEL, self.stride, _PADDING, keep=keep)
        h, cache2 = ops.linear(h, self.weight.value, keep=keep)
        y = h.reshape(len(x), *self.grid(*x.shape[1:3]), h.shape[-1])
        return y, (cache1, cache2) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        cache1, cache2 = self.kept(cache)
        dh, dweight, _ = ops.linear_backward(dy.reshape(len(dy), math.prod(dy.shape[1:-1]), dy.shape[-1]), cache2)
        self.weight.add_grad(dweight)
        return ops.unfold_backward(dh, cache1)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (h, w, C): its windows are kept."""
        fan_in, out_chans = self.weight.shape
        size = math.prod(self.grid(*shape[:2])) * fan_in
        return Cost(2 * size * out_chans, size)


class ConvUnit(Layer):
    """A 3 x 3 convolution, layer norm over the channels, and ReLU: (B, h, w, C) to (B, rows, columns, O)."""

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1, init: str = "jax", eps: float = 1e-6) -> None:
        self.conv = Convolution(in_chans, out_chans, stride, init)
        self.norm = LayerNorm(out_chans, eps)
        self.act = ReLU()

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the activations (B, rows, columns, O)."""
        h, cache1 = self.conv.forward(x, fold(rng, "conv"), keep)
        h, cache2 = self.norm.forward(h, fold(rng, "norm"), keep)
        y, cache3 = self.act.forward(h, fold(rng, "act"), keep)
        return y, (cache1, cache2, cache3) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        cache1, cache2, cache3 = self.kept(cache)
        dh = self.act.backward(dy, cache3)
        dh = self.norm.backward(dh, cache2)
        return self.conv.backward(dh, cache1)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (h, w, C)."""
        result = (*self.conv.grid(*shape[:2]), self.conv.weight.shape[1])
        return total_cost([self.conv.cost(shape), self.norm.cost(result), self.act.cost(result)])


class ConvStem(Layer):
    """3 x 3 convolutions, then a projection to tokens of width D: (B, height, width, C) to (B, N, D).

    Parameters
    ----------
    patch_size : tuple of int
        Height and width in pixels that a token stands for: (P, P), with P a power of 2.
    channels : tuple of int
        Number of channels after each convolution. The first log2(P) convolutions have a stride of 2, the others of 1.
    in_chans, embed_dim : int
        C and D.
    init : str
        "timm" or "jax": the initialisation of the parameters.
    eps : float
        Of the layer norms.

    Notes
    -----
    The paper normalises over the batch. Layer norm over the channels of each pixel needs no statistics of the batch.
    """

    _derived = frozenset({"_made_of", "_standard", "_version"})

    def __init__(
        self,
        patch_size: tuple[int, int],
        channels: tuple[int, ...],
        in_chans: int,
        embed_dim: int,
        init: str = "jax",
        eps: float = 1e-6,
    ) -> None:
        P, Q = patch_size
        halvings = P.bit_length() - 1
        if P != Q or 1 << halvings != P:
            raise ValueError(f"patch_size is {patch_size}; convolutions of stride 2 lead to (2**n, 2**n)")
        if len(channels) < max(halvings, 1):
            raise ValueError(
                f"channels are {channels}; expected at least {max(halvings, 1)}: for patch_size {patch_size}, "
                f"{halvings} convolutions have a stride of 2"
            )
        inputs = (in_chans, *channels)
        self.convs = [
            ConvUnit(inputs[i], inputs[i + 1], 2 if i < halvings else 1, init, eps) for i in range(len(channels))
        ]
        self.proj = Linear(channels[-1], embed_dim, *patch_initializers(init, channels[-1]))
        self._made_of = self._classes()
        self._standard = False
        self._version: tuple[int, ...] = ()  # the `structure_version`, and the units, for which it was set

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the numbers of rows and columns of tokens for images of this size in pixels."""
        for unit in self.convs:
            height, width = unit.conv.grid(height, width)
        return height, width

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the tokens of images."""
        x = native(x)
        if (kernel := self._kernel(x)) is not None:
            with np.errstate(under="ignore"):
                return kernel.forward(x, self, keep)
        caches = []
        for i, unit in enumerate(self.convs):
            x, cache = unit.forward(x, fold(rng, f"convs.{i}"), keep)
            caches.append(cache)
        B, rows, columns, C = x.shape
        y, cache1 = self.proj.forward(x.reshape(B, rows * columns, C), fold(rng, "proj"), keep)
        return y, (caches, cache1, (rows, columns)) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return the gradient of the images."""
        if (kernel := kernel_of_cache("ConvStem", cache)) is not None:
            with np.errstate(under="ignore"):
                return kernel.backward(native(dy), cache, self)
        caches, cache1, (rows, columns) = self.kept(cache)
        dx = self.proj.backward(dy, cache1)
        dx = dx.reshape(len(dx), rows, columns, dx.shape[-1])
        for unit, unit_cache in zip(reversed(self.convs), reversed(caches), strict=True):
            dx = unit.backward(dx, unit_cache)
        return dx

    def add_gradients(self, dy: Array, cache: Any) -> None:
        """Do what `backward` does for the `cache` of a kernel, without the gradient of the images."""
        kernel = kernel_of_cache("ConvStem", cache)
        assert kernel is not None
        with np.errstate(under="ignore"):
            kernel.backward(native(dy), cache, self, images=False)

    def _kernel(self, x: Array) -> Kernel | None:
        version = structure_version(), *map(id, self.convs)  # a unit may be replaced in the list
        if self._version != version:  # once after each change of any layer
            standard = type(self) is ConvStem and self._classes() == self._made_of and self.proj.bias is not None
            standard = standard and all(len(set(unit.conv.stride)) == 1 for unit in self.convs)
            # The version is set last: a thread that sees it sees the other one.
            vars(self).update(_standard=standard, _version=version)
        stem: ConvStemLike = self
        return find_kernel("ConvStem", x, stem) if self._standard else None

    def _classes(self) -> list[tuple[str, type[Layer]]]:
        return [(name, type(layer)) for name, layer in self.named_layers()]

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (height, width, C)."""
        costs = []
        for unit in self.convs:
            costs.append(unit.cost(shape))
            shape = (*unit.conv.grid(*shape[:2]), unit.conv.weight.shape[1])
        return total_cost([*costs, Cost(self.proj.cost(shape).flops)])  # the last activation keeps its result
