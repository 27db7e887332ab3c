"""A linear map of the last axis: parameters for `ops.linear`."""

from __future__ import annotations

import math
from typing import Any, cast

from minivit import ops
from minivit.arrays import Array
from minivit.nn import initializers
from minivit.nn.cost import Cost
from minivit.nn.layer import Layer
from minivit.nn.parameters import Initializer, Parameter
from minivit.random import Key


class Linear(Layer):
    """``x @ weight + bias`` on the last axis: (..., in) to (..., out); with ``bias=False``, ``x @ weight``."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        weight_init: Initializer = initializers.xavier_uniform,
        bias_init: Initializer = initializers.zeros,
        parts: tuple[str, ...] = (),
        bias: bool = True,
    ) -> None:
        self.weight = Parameter((in_features, out_features), weight_init, decay=True, parts=parts)
        # None without a bias; typed as what it nearly always is.
        self.bias = cast(Parameter, Parameter((out_features,), bias_init, parts=parts) if bias else None)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Map the last axis of `x`."""
        return ops.linear(x, self.weight.value, None if self.bias is None else self.bias.value, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        dx, dweight, dbias = ops.linear_backward(dy, cache)
        self.weight.add_grad(dweight)
        if self.bias is not None and dbias is not None:
            self.bias.add_grad(dbias)
        return dx

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image's array of `shape` (..., in)."""
        size = math.prod(shape)
        return Cost(2 * size * self.weight.shape[1], size)
