"""A linear map of the last axis: parameters for `ops.linear`."""

from __future__ import annotations

import math
from typing import Any

from minivit import ops
from minivit.arrays import Array
from minivit.nn import initializers
from minivit.nn.layer import Cost, Layer
from minivit.nn.parameters import Initializer, Parameter
from minivit.random import Key


class Linear(Layer):
    """``x @ weight + bias`` on the last axis: (..., in) to (..., out)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        weight_init: Initializer = initializers.xavier_uniform,
        bias_init: Initializer = initializers.zeros,
        parts: tuple[str, ...] = (),
    ) -> None:
        self.weight = Parameter((in_features, out_features), weight_init, decay=True, parts=parts)
        self.bias = Parameter((out_features,), bias_init, parts=parts)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Map the last axis of `x`."""
        return ops.linear(x, self.weight.value, self.bias.value, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        dx, dweight, dbias = ops.linear_backward(dy, cache)
        self.weight.add_grad(dweight)
        self.bias.add_grad(dbias)
        return dx

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image's array of `shape` (..., in)."""
        size = math.prod(shape)
        return Cost(2 * size * self.weight.shape[1], size)
