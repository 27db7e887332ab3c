"""Patches of the features of a ResNet, each mapped to a token: the hybrid models of the ViT paper."""

from __future__ import annotations

import math
from typing import Any

from minivit import ops
from minivit.arrays import Array
from minivit.nn.cost import Cost, total_cost
from minivit.nn.initializers import patch_initializers
from minivit.nn.layer import Layer
from minivit.nn.linear import Linear
from minivit.nn.resnet import CHANNELS, STEM_CHANNELS, ResNetFeatures
from minivit.ops.unfold import Pair
from minivit.random import Key, fold


def feature_stride(depths: tuple[int, ...]) -> int:
    """Return the pixels of an image that a pixel of the features of a ResNet stands for."""
    return 4 << max(0, len(depths) - 1)


def feature_patch(patch_size: Pair, depths: tuple[int, ...]) -> Pair:
    """Return the height and width, in pixels of the features, of a patch of `patch_size` pixels of the image."""
    stride = feature_stride(depths)
    return patch_size[0] // stride, patch_size[1] // stride


class HybridEmbed(Layer):
    """Patches of the features of a ResNet, each mapped to a token: (B, height, width, C) to (B, N, D).

    Parameters
    ----------
    patch_size : tuple of int
        Height and width in pixels of the image that a token stands for, multiples of `feature_stride`.
    depths : tuple of int
        Numbers of blocks of the stages of the ResNet; () for its stem alone.
    in_chans, embed_dim : int
        C and D.
    init : str
        "timm" or "jax": the initialisation of the projection.
    bias : bool
        Whether the projection has a bias.
    """

    def __init__(
        self,
        patch_size: Pair,
        depths: tuple[int, ...],
        in_chans: int,
        embed_dim: int,
        init: str = "jax",
        bias: bool = True,
    ) -> None:
        stride = feature_stride(depths)
        if patch_size[0] % stride or patch_size[1] % stride:
            raise ValueError(f"patch_size is {patch_size}; expected multiples of {stride}, the stride of the ResNet")
        self.patch_size = feature_patch(patch_size, depths)  # of the features
        self.backbone = ResNetFeatures(in_chans, depths)
        fan_in = math.prod(self.patch_size) * (STEM_CHANNELS, *CHANNELS)[len(depths)]
        self.proj = Linear(fan_in, embed_dim, *patch_initializers(init, fan_in), bias=bias)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the tokens of images."""
        x, cache1 = self.backbone.forward(x, fold(rng, "backbone"), keep)
        x, cache2 = ops.patches(x, self.patch_size, keep=keep)
        y, cache3 = self.proj.forward(x, fold(rng, "proj"), keep)
        return y, (cache1, cache2, cache3) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return the gradient of the images."""
        cache1, cache2, cache3 = self.kept(cache)
        dx = self.proj.backward(dy, cache3)
        dx = ops.patches_backward(dx, cache2)
        return self.backbone.backward(dx, cache1)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (height, width, C)."""
        rows, columns, C = self.backbone.result(shape)
        P, Q = self.patch_size
        return total_cost([self.backbone.cost(shape), self.proj.cost((rows // P * (columns // Q), P * Q * C))])
