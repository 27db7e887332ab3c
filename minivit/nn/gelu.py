"""GELU as a layer without parameters."""

from __future__ import annotations

from typing import Any

from minivit import ops
from minivit.arrays import Array
from minivit.nn.layer import Layer
from minivit.random import Key


class GELU(Layer):
    """GELU, exact or by tanh."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Apply GELU to each element."""
        return ops.gelu(x, self.approximate, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        return ops.gelu_backward(dy, cache)
