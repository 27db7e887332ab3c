"""A Transformer block: attention and MLP, each behind a layer norm and beside a residual path."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from minivit.arrays import Array
from minivit.nn.attention import Attention
from minivit.nn.dropout import Dropout, DropPath
from minivit.nn.gelu import GELU
from minivit.nn.layer import Layer, untouched
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.linear import Linear
from minivit.nn.mlp import MLP
from minivit.ops.attention import ALL
from minivit.ops.registry import declare, find_kernel, kernel_of_cache
from minivit.random import Key, fold

declare("EncoderBlock")


class EncoderBlock(Layer):
    """A pre-norm Transformer block: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))`` (equations 2 and 3)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        eps: float = 1e-6,
        approximate: str = "none",
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        init: str = "jax",
    ) -> None:
        self.norm1 = LayerNorm(dim, eps)
        self.attn = Attention(dim, num_heads, attn_drop_rate, proj_drop_rate, init)
        self.drop_path1 = DropPath(drop_path_rate)
        self.norm2 = LayerNorm(dim, eps)
        self.mlp = MLP(dim, hidden_dim, approximate, proj_drop_rate, init)
        self.drop_path2 = DropPath(drop_path_rate)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True, queries: slice = ALL) -> tuple[Array, Any]:
        """Pass (B, N, D) tokens through the block.

        Parameters
        ----------
        queries : slice
            The M tokens whose result (B, M, D) is wanted. The others are read as keys and values alone: what they
            would become is not computed.
        """
        kernel = find_kernel("EncoderBlock", x, self, rng, queries)  # kernels/encoder_block.py
        if kernel is not None:
            result: tuple[Array, Any] = kernel.forward(x, self, queries, keep)
            return result
        h, cache1 = self.norm1.forward(x, keep=keep)
        h, cache2 = self.attn.forward(h, fold(rng, "attn"), keep, queries)
        h, cache3 = self.drop_path1.forward(h, fold(rng, "drop_path1"), keep)
        x = x[:, queries] + h
        h, cache4 = self.norm2.forward(x, keep=keep)
        h, cache5 = self.mlp.forward(h, fold(rng, "mlp"), keep)
        h, cache6 = self.drop_path2.forward(h, fold(rng, "drop_path2"), keep)
        return x + h, (cache1, cache2, cache3, cache4, cache5, cache6, queries) if keep else None

    def is_plain(self, rng: Key | None) -> bool:
        """Return whether a kernel may take it in one piece: it is as made, and with `rng` nothing in it is random."""
        drops = (attrgetter(name)(self) for name, kind in _MADE_OF.items() if issubclass(kind, Dropout))
        return self.as_made() and (rng is None or all(drop.rate == 0.0 for drop in drops))

    def as_made(self) -> bool:
        """Return whether what it computes stands in this file: nothing in it is another layer, or watched."""
        return untouched(self, EncoderBlock) and all(
            untouched(attrgetter(name)(self), kind) for name, kind in _MADE_OF.items()
        )

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx`` (B, N, D) for `dy` (B, M, D): through each branch, and past it."""
        kernel = kernel_of_cache("EncoderBlock", cache)
        if kernel is not None:
            dx: Array = kernel.backward(dy, cache, self)
            return dx
        cache1, cache2, cache3, cache4, cache5, cache6, queries = self.kept(cache)
        dh = self.drop_path2.backward(dy, cache6)
        dh = self.mlp.backward(dh, cache5)
        dh = self.norm2.backward(dh, cache4)
        dh += dy
        dx = self.drop_path1.backward(dh, cache3)
        dx = self.attn.backward(dx, cache2)
        dx = self.norm1.backward(dx, cache1)
        dx[:, queries] += dh
        return dx


_MADE_OF: dict[str, type[Layer]] = {
    "norm1": LayerNorm, "attn": Attention, "attn.qkv": Linear, "attn.attn_drop": Dropout, "attn.proj": Linear,
    "attn.proj_drop": Dropout, "drop_path1": DropPath, "norm2": LayerNorm, "mlp": MLP, "mlp.fc1": Linear,
    "mlp.act": GELU, "mlp.drop1": Dropout, "mlp.fc2": Linear, "mlp.drop2": Dropout, "drop_path2": DropPath,
}  # fmt: skip
