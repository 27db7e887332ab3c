"""The layer that does nothing: the place of an optional layer that a configuration leaves out."""

from __future__ import annotations

from typing import Any

from minivit.arrays import Array
from minivit.nn.layer import Layer
from minivit.ops.shapes import expect_gradient
from minivit.random import Key


class Identity(Layer):
    """``y = x``."""

    is_shown = False

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return `x`."""
        return x, (x.shape, x.dtype) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return `dy`."""
        shape, dtype = self.kept(cache)
        expect_gradient("Identity", dy, shape, dtype)
        return dy
