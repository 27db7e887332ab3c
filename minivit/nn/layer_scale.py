"""A learned factor of each feature (LayerScale): the parameter for `ops.layer_scale`."""

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


class LayerScale(Layer):
    """``x * gamma`` on the last axis; every element of gamma starts at `init_values`."""

    def __init__(self, dim: int, init_values: float = 1e-5) -> None:
        self.gamma = Parameter((dim,), initializers.constant(init_values))

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Multiply the last axis of `x`."""
        return ops.layer_scale(x, self.gamma.value, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        dx, dgamma = ops.layer_scale_backward(dy, cache)
        self.gamma.add_grad(dgamma)
        return dx

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image's array of `shape`: the input is kept."""
        return Cost(0, math.prod(shape))
