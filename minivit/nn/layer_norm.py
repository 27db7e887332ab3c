"""Layer normalisation of the last axis: parameters for `ops.layer_norm`."""

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


class LayerNorm(Layer):
    """Layer normalisation of the last axis, with a weight and a bias."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        self.weight = Parameter((dim,), initializers.ones)
        self.bias = Parameter((dim,), initializers.zeros)
        self.eps = eps

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Normalise the last axis of `x`."""
        return ops.layer_norm(x, self.weight.value, self.bias.value, self.eps, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        dx, dweight, dbias = ops.layer_norm_backward(dy, cache)
        self.weight.add_grad(dweight)
        self.bias.add_grad(dbias)
        return dx

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image's array of `shape` (..., D): x_hat and inv_std are kept."""
        return Cost(0, math.prod(shape) + math.prod(shape[:-1]))
