"""A Transformer block: attention and MLP, each after a layer norm and with a residual connection.

    h = x + attn(norm1(x))                 y = h + mlp(norm2(h))

    dh = dy + norm2_backward(mlp_backward(dy))                  dx = dh + norm1_backward(attn_backward(dh))

The steps are in docs/derivations/residual.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.arrays import Array, native
from minivit.nn.activations import GELU
from minivit.nn.attention import Attention
from minivit.nn.cost import Cost
from minivit.nn.dropout import Dropout, DropPath
from minivit.nn.identity import Identity
from minivit.nn.layer import Layer, arguments_of
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.layer_scale import LayerScale
from minivit.nn.mlp import MLP
from minivit.nn.structure import structure_version
from minivit.ops.attention import ALL
from minivit.ops.encoder_block import BlockLike, Gather
from minivit.ops.registry import Kernel, find_kernel, kernel_of_cache
from minivit.random import Key, fold


class EncoderBlock(Layer):
    """A pre-norm Transformer block: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))`` (equations 2 and 3).

    Parameters
    ----------
    dim, num_heads, hidden_dim : int
        Width D, number of heads H, width F of the MLP.
    eps : float
        Of the layer norms.
    act_layer : str
        The activation of the MLP: "gelu", "gelu_tanh", "quick_gelu" or "relu".
    attn_drop_rate, proj_drop_rate, drop_path_rate : float
        Rates of dropout and of stochastic depth.
    init : str
        "timm" or "jax": the initialisation of the parameters.
    mlp_bias : bool
        Whether the maps of the MLP have biases.
    init_values : float
        Initial factors of each branch (`LayerScale`); 0 for none.
    **attention
        Further options of `Attention`.
    """

    _derived = frozenset({"_made_of", "_standard", "_plain", "_random", "_by_token", "_version"})

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        eps: float = 1e-6,
        act_layer: str = "gelu",
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        init: str = "jax",
        mlp_bias: bool = True,
        init_values: float = 0.0,
        **attention: Any,
    ) -> None:
        self.norm1 = LayerNorm(dim, eps)
        self.attn = Attention(dim, num_heads, attn_drop_rate, proj_drop_rate, init, eps=eps, **attention)
        self.ls1 = LayerScale(dim, init_values) if init_values else Identity()
        self.drop_path1 = DropPath(drop_path_rate)
        self.norm2 = LayerNorm(dim, eps)
        self.mlp = MLP(dim, hidden_dim, act_layer, proj_drop_rate, init, mlp_bias)
        self.ls2 = LayerScale(dim, init_values) if init_values else Identity()
        self.drop_path2 = DropPath(drop_path_rate)
        self._made_of = [(name, type(layer)) for name, layer in self.named_layers()]
        self._standard = self._plain = self._random = self._by_token = False
        self._version = -1  # the `structure_version` for which these four were set

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
        x = native(x)
        if (kernel := self._kernel(x, rng, queries)) is not None:
            with np.errstate(under="ignore"):
                return kernel.forward(x, self, queries, keep, *(() if gather is None else (gather,)))
        h, cache1 = self.norm1.forward(x, fold(rng, "norm1"), keep)
        only: dict[str, Any] = {} if queries == ALL else {"queries": queries}
        if gather is not None:
            only["gather"] = gather
        h, cache2 = self.attn.forward(h, fold(rng, "attn"), keep, **only)
        h, scale1 = self.ls1.forward(h, fold(rng, "ls1"), keep)
        h, cache3 = self.drop_path1.forward(h, fold(rng, "drop_path1"), keep)
        x = x[:, queries] + h
        h, cache4 = self.norm2.forward(x, fold(rng, "norm2"), keep)
        h, cache5 = self.mlp.forward(h, fold(rng, "mlp"), keep)
        h, scale2 = self.ls2.forward(h, fold(rng, "ls2"), keep)
        h, cache6 = self.drop_path2.forward(h, fold(rng, "drop_path2"), keep)
        return x + h, (cache1, cache2, scale1, cache3, cache4, cache5, scale2, cache6, queries) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx`` (B, N, D) for `dy` (B, M, D): through each branch and its residual connection."""
        if (kernel := kernel_of_cache("EncoderBlock", cache)) is not None:
            with np.errstate(under="ignore"):
                return kernel.backward(native(dy), cache, self)
        cache1, cache2, scale1, cache3, cache4, cache5, scale2, cache6, queries = self.kept(cache)
        dh = self.drop_path2.backward(dy, cache6)
        dh = self.ls2.backward(dh, scale2)
        dh = self.mlp.backward(dh, cache5)
        dh = self.norm2.backward(dh, cache4)
        # Not in place: a layer of a user's own may return the gradient that it was given, or an array of its cache.
        dh = dh + dy
        dx = self.drop_path1.backward(dh, cache3)
        dx = self.ls1.backward(dx, scale1)
        dx = self.attn.backward(dx, cache2)
        dx = self.norm1.backward(dx, cache1)
        dx = dx.copy()
        dx[:, queries] += dh
        return dx

    @property
    def takes_queries(self) -> bool:
        """Whether `forward` and attention take `queries`, and the other layers act on each token alone.

        A layer of a user's own may read all tokens; attention of a user's own that takes `queries` does what it says.
        """
        self._refresh()
        return self._by_token and all("queries" in arguments_of(type(layer).forward) for layer in (self, self.attn))

    def is_standard(self) -> bool:
        """Return whether the block has the layers that `__init__` made, so that workers can share its tokens."""
        self._refresh()
        return self._standard

    def _kernel(self, x: Array, rng: Key | None, queries: slice) -> Kernel | None:
        self._refresh()
        if not self._standard or not self._plain or (self._random and rng is not None):
            return None
        block: BlockLike = self
        return find_kernel("EncoderBlock", x, block, queries)

    def _refresh(self) -> None:
        """Set what depends on the classes of the layers in the block, once after each change of any layer."""
        version = structure_version()
        if self._version == version:
            return
        layers = list(self.named_layers())
        made_of = [(name, type(layer)) for name, layer in layers]
        standard = type(self) is EncoderBlock and made_of == self._made_of
        random = any(isinstance(layer, Dropout) and layer.rate > 0 for _, layer in layers)
        # The version is set last: a thread that sees it sees the other four.
        plain = standard and self._is_plain()
        by_token = self._others(made_of) == self._others(self._made_of)
        vars(self).update(_standard=standard, _plain=plain, _random=random, _by_token=by_token, _version=version)

    def _others(self, classes: list[tuple[str, type]]) -> list[tuple[str, type]]:
        """Return the classes without those of attention of a user's own."""
        own = type(self.attn) is not Attention
        return [(name, kind) for name, kind in classes if not (own and name.split(".")[0] == "attn")]

    def _is_plain(self) -> bool:
        """Return whether a kernel can compute the block: what is optional is absent, and every bias present."""
        unscaled = isinstance(self.ls1, Identity) and isinstance(self.ls2, Identity)
        biases = self.mlp.fc1.bias is not None and self.mlp.fc2.bias is not None
        return unscaled and biases and isinstance(self.mlp.act, GELU) and self.attn.is_plain()

    def costs(self, shape: tuple[int, int], queries: slice = ALL) -> dict[str, Cost]:
        """Return the cost of each part for an image's tokens (N, D): a norm, or a branch with its drop path.

        FLOPs are those of all tokens, as papers count them.
        """
        N, D = shape
        results = len(range(N)[queries]), D
        self._refresh()
        # A kernel does not keep what the norms return; it computes the block where nothing in it is random.
        x1, x2 = (0, 0) if self._random or not self._plain else (N * D, results[0] * D)
        attn, mlp = self.attn.cost(shape, queries), self.mlp.cost(results)
        after1, after2 = self.drop_path1.cost(results).kept, self.drop_path2.cost(results).kept
        return {
            "norm1": self.norm1.cost(shape),
            "attn": Cost(attn.flops, attn.kept - x1 + self.ls1.cost(results).kept + after1),
            "norm2": self.norm2.cost(results),
            "mlp": Cost(self.mlp.cost(shape).flops, mlp.kept - x2 + self.ls2.cost(results).kept + after2),
        }
