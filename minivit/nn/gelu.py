"""GELU as a layer without parameters."""

from __future__ import annotations

import math
from typing import Any

from minivit import ops
from minivit.arrays import Array
from minivit.nn.cost import Cost
from minivit.nn.layer import Layer
from minivit.random import Key


class GELU(Layer):
    """GELU, exact or with the tanh approximation."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Apply GELU to each element."""
        return ops.gelu(x, self.approximate, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        return ops.gelu_backward(dy, cache)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image's array of `shape`: the derivative is kept."""
        return Cost(0, math.prod(shape))
