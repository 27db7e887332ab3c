"""A Transformer block: attention and MLP, each after a layer norm and with a residual connection."""

from __future__ import annotations

from typing import Any

from minivit.arrays import Array
from minivit.nn.attention import Attention, Gather
from minivit.nn.dropout import Dropout, DropPath
from minivit.nn.layer import Cost, Layer, structure_version
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.mlp import MLP
from minivit.ops.attention import ALL
from minivit.ops.encoder_block import BlockLike
from minivit.ops.registry import Kernel, find_kernel, kernel_of_cache
from minivit.random import Key, fold


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
        self._made_of = self._classes()
        self._standard = self._random = False
        self._version = -1  # the `structure_version` for which these two were set

    def forward(
        self,
        x: Array,
        rng: Key | None = None,
        keep: bool = True,
        queries: slice = ALL,
        gather: Gather | None = None,
    ) -> tuple[Array, Any]:
        """Pass (B, N, D) tokens through the block.

        Parameters
        ----------
        queries : slice
            The M tokens whose result (B, M, D) is computed. The others serve only as keys and values.
        gather : callable, optional
            See `Attention.forward`.
        """
        if gather is None and (kernel := self._kernel(x, rng, queries)) is not None:
            return kernel.forward(x, self, queries, keep)
        h, cache1 = self.norm1.forward(x, keep=keep)
        h, cache2 = self.attn.forward(h, fold(rng, "attn"), keep, queries, gather)
        h, cache3 = self.drop_path1.forward(h, fold(rng, "drop_path1"), keep)
        x = x[:, queries] + h
        h, cache4 = self.norm2.forward(x, keep=keep)
        h, cache5 = self.mlp.forward(h, fold(rng, "mlp"), keep)
        h, cache6 = self.drop_path2.forward(h, fold(rng, "drop_path2"), keep)
        return x + h, (cache1, cache2, cache3, cache4, cache5, cache6, queries) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx`` (B, N, D) for `dy` (B, M, D): through each branch and its residual connection."""
        if (kernel := kernel_of_cache("EncoderBlock", cache)) is not None:
            return kernel.backward(dy, cache, self)
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

    def is_standard(self) -> bool:
        """Return whether the block consists of the layers that `__init__` made, so that a kernel can compute it."""
        self._refresh()
        return self._standard

    def _kernel(self, x: Array, rng: Key | None, queries: slice) -> Kernel | None:
        self._refresh()
        if not self._standard or (self._random and rng is not None):
            return None
        block: BlockLike = self
        return find_kernel("EncoderBlock", x, block, queries)

    def _refresh(self) -> None:
        """Set `_standard` and `_random` from the layers in the block, once after each change of any layer."""
        version = structure_version()
        if self._version == version:
            return
        layers = [layer for _, layer in self.named_layers()]
        standard = type(self) is EncoderBlock and self._classes() == self._made_of
        random = any(isinstance(layer, Dropout) and layer.rate > 0 for layer in layers)
        # The version is set last: a thread that sees it sees the other two.
        vars(self).update(_standard=standard, _random=random, _version=version)

    def _classes(self) -> list[tuple[str, type[Layer]]]:
        return [(name, type(layer)) for name, layer in self.named_layers()]

    def costs(self, shape: tuple[int, int], queries: slice = ALL) -> dict[str, Cost]:
        """Return the cost of each part for an image's tokens (N, D): a norm, or a branch with its drop path.

        FLOPs are those of all tokens, as papers count them.
        """
        N, D = shape
        results = len(range(N)[queries]), D
        self._refresh()
        # A kernel does not keep what the norms return; it computes the block where nothing in it is random.
        x1, x2 = (0, 0) if self._random else (N * D, results[0] * D)
        attn, mlp = self.attn.cost(shape, queries), self.mlp.cost(results)
        return {
            "norm1": self.norm1.cost(shape),
            "attn": Cost(attn.flops, attn.kept - x1 + self.drop_path1.cost(results).kept),
            "norm2": self.norm2.cost(results),
            "mlp": Cost(self.mlp.cost(shape).flops, mlp.kept - x2 + self.drop_path2.cost(results).kept),
        }
