"""The MLP of a block: two linear maps with GELU between them."""

from __future__ import annotations

from typing import Any

from minivit.arrays import Array
from minivit.nn.dropout import Dropout
from minivit.nn.gelu import GELU
from minivit.nn.initializers import SCHEMES
from minivit.nn.layer import Cost, Layer, total_cost
from minivit.nn.linear import Linear
from minivit.random import Key, fold


class MLP(Layer):
    """Two linear maps with GELU between them: (..., D) to (..., F) to (..., D)."""

    def __init__(
        self, dim: int, hidden_dim: int, approximate: str = "none", drop_rate: float = 0.0, init: str = "jax"
    ) -> None:
        scheme = SCHEMES[init]
        self.fc1 = Linear(dim, hidden_dim, scheme.weight, scheme.mlp_bias)
        self.act = GELU(approximate)
        self.drop1 = Dropout(drop_rate)
        self.fc2 = Linear(hidden_dim, dim, scheme.weight, scheme.mlp_bias)
        self.drop2 = Dropout(drop_rate)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Map each token independently of the others."""
        h, cache1 = self.fc1.forward(x, keep=keep)
        h, cache2 = self.act.forward(h, keep=keep)
        h, cache3 = self.drop1.forward(h, fold(rng, "drop1"), keep)
        h, cache4 = self.fc2.forward(h, keep=keep)
        y, cache5 = self.drop2.forward(h, fold(rng, "drop2"), keep)
        return y, (cache1, cache2, cache3, cache4, cache5) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        cache1, cache2, cache3, cache4, cache5 = self.kept(cache)
        dh = self.drop2.backward(dy, cache5)
        dh = self.fc2.backward(dh, cache4)
        dh = self.drop1.backward(dh, cache3)
        dh = self.act.backward(dh, cache2)
        return self.fc1.backward(dh, cache1)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image's array of `shape` (..., D)."""
        hidden = (*shape[:-1], self.fc1.weight.shape[1])
        parts = [self.fc1.cost(shape), self.act.cost(hidden), self.drop1.cost(hidden)]
        return total_cost([*parts, self.fc2.cost(hidden), self.drop2.cost(shape)])
