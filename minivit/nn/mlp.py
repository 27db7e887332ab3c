"""The MLP of a block: two linear maps with an activation between them."""

from __future__ import annotations

from typing import Any, cast

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.nn.activations import GELU, MLP_ACTIVATIONS, activation
from minivit.nn.cost import Cost, total_cost
from minivit.nn.dropout import Dropout
from minivit.nn.initializers import scheme_named
from minivit.nn.layer import Layer
from minivit.nn.linear import Linear
from minivit.random import Key, fold


class MLP(Layer):
    """Two linear maps with an activation between them: (..., D) to (..., F) to (..., D).

    Parameters
    ----------
    dim, hidden_dim : int
        Widths D and F.
    act_layer : str
        "gelu", "gelu_tanh", "quick_gelu" or "relu".
    drop_rate : float
        Dropout rate after the activation and after the second map.
    init : str
        "timm" or "jax": the initialisation of the parameters.
    bias : bool
        Whether the two maps have biases.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        act_layer: str = "gelu",
        drop_rate: float = 0.0,
        init: str = "jax",
        bias: bool = True,
    ) -> None:
        if act_layer not in MLP_ACTIVATIONS:
            raise UserError(f"act_layer is {act_layer!r}; expected 'gelu', 'gelu_tanh', 'quick_gelu' or 'relu'")
        scheme = scheme_named(init)
        self.fc1 = Linear(dim, hidden_dim, scheme.weight, scheme.mlp_bias, bias=bias)
        self.act = cast(GELU, activation(act_layer))  # or another; typed as what it nearly always is
        self.drop1 = Dropout(drop_rate)
        self.fc2 = Linear(hidden_dim, dim, scheme.weight, scheme.mlp_bias, bias=bias)
        self.drop2 = Dropout(drop_rate)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Map each token independently of the others."""
        h, cache1 = self.fc1.forward(x, fold(rng, "fc1"), keep)
        h, cache2 = self.act.forward(h, fold(rng, "act"), keep)
        h, cache3 = self.drop1.forward(h, fold(rng, "drop1"), keep)
        h, cache4 = self.fc2.forward(h, fold(rng, "fc2"), keep)
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
