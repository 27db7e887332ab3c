"""Activations as layers without parameters, and the table of their names."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from minivit import ops
from minivit.arrays import Array
from minivit.errors import UserError, did_you_mean
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


class QuickGELU(Layer):
    """Quick GELU, ``x * sigmoid(1.702 x)``."""

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Apply quick GELU to each element."""
        return ops.quick_gelu(x, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        return ops.quick_gelu_backward(dy, cache)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image's array of `shape`: the derivative is kept."""
        return Cost(0, math.prod(shape))


class ReLU(Layer):
    """ReLU, the larger of 0 and each element."""

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Apply ReLU to each element."""
        return ops.relu(x, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        return ops.relu_backward(dy, cache)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image's array of `shape`: the result is kept."""
        return Cost(0, math.prod(shape))


class Tanh(Layer):
    """The hyperbolic tangent of each element."""

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Apply tanh to each element."""
        return ops.tanh(x, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        return ops.tanh_backward(dy, cache)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image's array of `shape`: the result is kept."""
        return Cost(0, math.prod(shape))


MLP_ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu")
ACTIVATION_LAYERS: dict[str, Callable[[], Layer]] = {
    "gelu": GELU,
    "gelu_tanh": partial(GELU, "tanh"),
    "quick_gelu": QuickGELU,
    "relu": ReLU,
    "tanh": Tanh,
}


def activation(name: str) -> Layer:
    """Return a new layer for the activation `name`, one of `ACTIVATION_LAYERS`.

    Raises
    ------
    UserError
        There is no activation of this name.
    """
    if name not in ACTIVATION_LAYERS:
        near, known = did_you_mean(name, ACTIVATION_LAYERS), ", ".join(ACTIVATION_LAYERS)
        raise UserError(f"there is no activation {name!r}:{near} expected one of {known}")
    return ACTIVATION_LAYERS[name]()
