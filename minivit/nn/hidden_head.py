"""A hidden layer between the pooled vector and the head ("pre-logits")."""

from __future__ import annotations

from typing import Any

from minivit.arrays import Array
from minivit.nn.activations import activation
from minivit.nn.cost import Cost, total_cost
from minivit.nn.initializers import scheme_named
from minivit.nn.layer import Layer
from minivit.nn.linear import Linear
from minivit.random import Key, fold


class HiddenHead(Layer):
    """A linear map and an activation: (..., D) to (..., R).

    With tanh it is the "pre-logits" layer of the original ViT, with ReLU the hidden layer of labml's head.
    """

    def __init__(self, dim: int, hidden_dim: int, act: str = "tanh", init: str = "jax") -> None:
        scheme = scheme_named(init)
        self.fc = Linear(dim, hidden_dim, scheme.hidden_weight, scheme.bias)
        self.act = activation(act)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Map the last axis of `x`."""
        h, cache1 = self.fc.forward(x, fold(rng, "fc"), keep)
        y, cache2 = self.act.forward(h, fold(rng, "act"), keep)
        return y, (cache1, cache2) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        cache1, cache2 = self.kept(cache)
        dh = self.act.backward(dy, cache2)
        return self.fc.backward(dh, cache1)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image's array of `shape` (..., D)."""
        return total_cost([self.fc.cost(shape), self.act.cost((*shape[:-1], self.fc.weight.shape[1]))])
