"""Multi-head self-attention with its input and output maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from minivit import ops
from minivit.arrays import Array
from minivit.nn.dropout import Dropout
from minivit.nn.initializers import SCHEMES
from minivit.nn.layer import Cost, Layer, total_cost
from minivit.nn.linear import Linear
from minivit.ops.attention import ALL
from minivit.random import Key, fold

# ``qkv, queries = gather(qkv, queries)``: from some tokens of an image to all of them.
Gather: TypeAlias = Callable[[Array, slice], tuple[Array, slice]]


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

    def forward(
        self,
        x: Array,
        rng: Key | None = None,
        keep: bool = True,
        queries: slice = ALL,
        gather: Gather | None = None,
    ) -> tuple[Array, Any]:
        """Let each token, or each of the M tokens `queries`, attend to all tokens of its image: (B, M, D).

        Parameters
        ----------
        gather : callable, optional
            For inference where `x` holds some of an image's tokens and other workers have the others:
            ``gather(qkv, queries)`` is given the queries, keys and values of the tokens of `x` and the slice `queries`
            of them. It returns those of all tokens, and where the query tokens are among them.
        """
        qkv, cache1 = self.qkv.forward(x, keep=keep)
        if gather is not None:
            qkv, queries = gather(qkv, queries)
        B, N, _ = qkv.shape
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

    def cost(self, shape: tuple[int, ...], queries: slice = ALL) -> Cost:
        """Return the cost for one image's tokens (N, D); FLOPs are those of all tokens, as papers count them."""
        N, D = shape
        M, H = len(range(N)[queries]), self.num_heads
        # qkv and the exponentials of the scores with the inverse of their sums; or the weights and their mask.
        kept = 3 * N * D + H * M * N + (H * N * N if self.attn_drop.rate else H * M)
        parts = [self.qkv.cost(shape), Cost(4 * N * N * D, kept)]
        return total_cost([*parts, Cost(self.proj.cost(shape).flops, M * D), self.proj_drop.cost((M, D))])
