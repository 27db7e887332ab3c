"""Group normalisation: the parameters for `ops.group_norm`."""

from __future__ import annotations

import math
from typing import Any

from minivit import ops
from minivit.arrays import Array
from minivit.nn import initializers
from minivit.nn.cost import Cost
from minivit.nn.layer import Layer
from minivit.nn.parameters import Parameter
from minivit.random import Key


class GroupNorm(Layer):
    """Group normalisation of images (B, height, width, C), with a weight and a bias for each channel.

    Parameters
    ----------
    channels, num_groups : int
        C, and the number of groups, a divisor of C.
    eps : float
        Added to the variance.
    """

    def __init__(self, channels: int, num_groups: int = 32, eps: float = 1e-5) -> None:
        if num_groups < 1 or channels % num_groups:
            raise ValueError(f"{channels} channels cannot be split evenly into {num_groups} groups")
        self.weight = Parameter((channels,), initializers.ones)
        self.bias = Parameter((channels,), initializers.zeros)
        self.num_groups = num_groups
        self.eps = eps

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Normalise each group of channels of each image."""
        return ops.group_norm(x, self.weight.value, self.bias.value, self.num_groups, self.eps, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        dx, dweight, dbias = ops.group_norm_backward(dy, cache)
        self.weight.add_grad(dweight)
        self.bias.add_grad(dbias)
        return dx

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (height, width, C): the normalised image is kept."""
        return Cost(0, math.prod(shape) + self.num_groups)
