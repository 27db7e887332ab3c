"""Multi-head self-attention with its input and output maps."""

from __future__ import annotations

from typing import Any

from minivit import ops
from minivit.arrays import Array
from minivit.nn.dropout import Dropout
from minivit.nn.initializers import SCHEMES
from minivit.nn.layer import Layer
from minivit.nn.linear import Linear
from minivit.ops.attention import ALL
from minivit.random import Key, fold


class Attention(Layer):
    """Multi-head self-attention with its input and output maps: (B, N, D) to (B, N, D)."""

    def __init__(
        self, dim: int, num_heads: int, attn_drop_rate: float = 0.0, proj_drop_rate: float = 0.0, init: str = "jax"
    ) -> None:
        if dim % num_heads:
            raise ValueError(f"a width of {dim} cannot be split evenly among {num_heads} heads")
        scheme = SCHEMES[init]
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, scheme.qkv_weight, scheme.bias, parts=("q", "k", "v"))
        self.attn_drop = Dropout(attn_drop_rate)
        self.proj = Linear(dim, dim, scheme.weight, scheme.bias)
        self.proj_drop = Dropout(proj_drop_rate)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True, queries: slice = ALL) -> tuple[Array, Any]:
        """Let each token, or the M tokens of `queries`, gather from all tokens of its image: (B, M, D)."""
        B, N, _ = x.shape
        qkv, cache1 = self.qkv.forward(x, keep=keep)
        mask = self.attn_drop.mask((B, self.num_heads, N, N), fold(rng, "attn_drop"), x.dtype)
        mask = None if mask is None else mask[:, :, queries]
        h, cache2 = ops.attention(qkv, self.num_heads, mask, queries, keep=keep)
        h, cache3 = self.proj.forward(h, keep=keep)
        y, cache4 = self.proj_drop.forward(h, fold(rng, "proj_drop"), keep)
        return y, (cache1, cache2, cache3, cache4) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        cache1, cache2, cache3, cache4 = self.kept(cache)
        dh = self.proj_drop.backward(dy, cache4)
        dh = self.proj.backward(dh, cache3)
        dqkv = ops.attention_backward(dh, cache2)
        return self.qkv.backward(dqkv, cache1)
