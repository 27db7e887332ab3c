"""Patches of images, each mapped to a token."""

from __future__ import annotations

import math
from typing import Any

from minivit import ops
from minivit.arrays import Array
from minivit.nn.initializers import patch_initializers
from minivit.nn.layer import Cost, Layer
from minivit.nn.linear import Linear
from minivit.random import Key


class PatchEmbed(Layer):
    """Patches of images, each mapped to a token of width D: (B, height, width, C) to (B, N, D)."""

    def __init__(self, patch_size: tuple[int, int], in_chans: int, embed_dim: int, init: str = "jax") -> None:
        fan_in = patch_size[0] * patch_size[1] * in_chans
        self.patch_size = patch_size
        self.proj = Linear(fan_in, embed_dim, *patch_initializers(init, fan_in))

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Cut images into patches and project them."""
        h, cache1 = ops.patches(x, self.patch_size, keep=keep)
        y, cache2 = self.proj.forward(h, keep=keep)
        return y, (cache1, cache2) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return the gradient of the images."""
        cache1, cache2 = self.kept(cache)
        return ops.patches_backward(self.proj.backward(dy, cache2), cache1)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (height, width, C)."""
        fan_in = self.proj.weight.shape[0]
        return self.proj.cost((math.prod(shape) // fan_in, fan_in))
