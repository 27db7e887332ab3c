"""Attention pooling: the MAP head of big_vision (Zhai et al. 2022), which timm calls AttentionPoolLatent."""

from __future__ import annotations

from typing import Any

from minivit import ops
from minivit.arrays import Array
from minivit.nn.cost import Cost, total_cost
from minivit.nn.initializers import scheme_named
from minivit.nn.layer import Layer
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.linear import Linear
from minivit.nn.mlp import MLP
from minivit.nn.parameters import Parameter
from minivit.random import Key, fold


class AttentionPool(Layer):
    """One learned query attends to all tokens of an image, and an MLP follows: (B, N, D) to (B, D).

    Parameters
    ----------
    dim, num_heads : int
        Width D, and the number of heads, a divisor of D.
    hidden_dim : int
        Width F of the MLP.
    eps : float
        Of the layer norm before the MLP.
    act : str
        The activation of the MLP, one of `nn.activations.ACTIVATION_LAYERS`.
    init : str
        "timm" or "jax": the initialisation of the parameters.
    """

    def __init__(
        self, dim: int, num_heads: int, hidden_dim: int, eps: float = 1e-6, act: str = "gelu", init: str = "jax"
    ) -> None:
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"a width of {dim} cannot be split evenly among {num_heads} heads")
        scheme = scheme_named(init)
        self.num_heads = num_heads
        self.latent = Parameter((1, 1, dim), scheme.latent)
        self.q = Linear(dim, dim, scheme.weight, scheme.bias)
        self.kv = Linear(dim, 2 * dim, scheme.kv_weight, scheme.bias, parts=("k", "v"))
        self.proj = Linear(dim, dim, scheme.weight, scheme.bias)
        self.norm = LayerNorm(dim, eps)
        self.mlp = MLP(dim, hidden_dim, act, init=init)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return one vector for each image, (B, D)."""
        q, cache1 = self.q.forward(self.latent.value, fold(rng, "q"), keep)
        kv, cache2 = self.kv.forward(x, fold(rng, "kv"), keep)
        h, cache3 = ops.cross_attention(q, kv, self.num_heads, keep=keep)
        h, cache4 = self.proj.forward(h, fold(rng, "proj"), keep)
        branch, cache5 = self.norm.forward(h, fold(rng, "norm"), keep)
        branch, cache6 = self.mlp.forward(branch, fold(rng, "mlp"), keep)
        y = (h + branch)[:, 0]
        return y, (cache1, cache2, cache3, cache4, cache5, cache6) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        cache1, cache2, cache3, cache4, cache5, cache6 = self.kept(cache)
        dy = dy[:, None]  # (B, 1, D)
        dbranch = self.mlp.backward(dy, cache6)
        dh = dy + self.norm.backward(dbranch, cache5)
        dh = self.proj.backward(dh, cache4)
        dq, dkv = ops.cross_attention_backward(dh, cache3)
        dlatent = self.q.backward(dq, cache1)
        # The gradient is float32 where dlatent has 16 bits.
        self.latent.add_grad(dlatent.astype(self.latent.grad.dtype, copy=False))
        return self.kv.backward(dkv, cache2)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image's tokens (N, D)."""
        N, D = shape
        one = (1, D)
        attention = Cost(4 * N * D, D + 2 * N * D + self.num_heads * N)  # q, kv and the weights are kept
        layers = [self.q, self.proj, self.norm, self.mlp]
        return total_cost([self.kv.cost(shape), attention, *(layer.cost(one) for layer in layers)])
