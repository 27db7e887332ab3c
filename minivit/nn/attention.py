"""Multi-head self-attention with its input and output maps."""

from __future__ import annotations

from typing import Any

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.nn.cost import Cost, total_cost
from minivit.nn.dropout import Dropout
from minivit.nn.initializers import scheme_named
from minivit.nn.layer import Layer
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.linear import Linear
from minivit.nn.parameters import Parameter
from minivit.ops.attention import ALL
from minivit.ops.encoder_block import Gather
from minivit.random import Key, fold


class Attention(Layer):
    """Multi-head self-attention with its input and output maps: (B, N, D) to (B, N, D).

    Parameters
    ----------
    dim, num_heads : int
        Width D and number of heads H.
    attn_drop_rate, proj_drop_rate : float
        Dropout rates of the attention weights and of the result.
    init : str
        "timm" or "jax": the initialisation of the parameters.
    head_dim : int
        Width K of a head; 0 for D / H.
    qkv_bias, proj_bias : bool
        Whether the two maps have biases.
    qk_norm : bool
        Whether queries and keys pass a layer norm in each head.
    eps : float
        Of these layer norms.
    num_tokens : int
        Number of tokens N for which relative positions are learned; 0 for none.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        init: str = "jax",
        *,
        head_dim: int = 0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        qk_norm: bool = False,
        eps: float = 1e-6,
        num_tokens: int = 0,
    ) -> None:
        if num_heads < 1 or (not head_dim and dim % num_heads):
            raise ValueError(f"a width of {dim} cannot be split evenly among {num_heads} heads")
        K = head_dim or dim // num_heads
        scheme = scheme_named(init)
        self.num_heads = num_heads
        parts = ("q", "k", "v")
        self.qkv = Linear(dim, 3 * num_heads * K, scheme.qkv_weight, scheme.bias, parts, bias=qkv_bias)
        self.q_norm = LayerNorm(K, eps) if qk_norm else None
        self.k_norm = LayerNorm(K, eps) if qk_norm else None
        self.rel_pos = Parameter((2 * num_tokens - 1, K), scheme.pos_embed) if num_tokens else None
        self.attn_drop = Dropout(attn_drop_rate)
        self.proj = Linear(num_heads * K, dim, scheme.weight, scheme.bias, bias=proj_bias)
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
        qkv, cache1 = self.qkv.forward(x, fold(rng, "qkv"), keep)
        qkv, norm_caches = self._normed(qkv, rng, keep)
        if gather is not None:
            qkv, queries = gather(qkv, queries)
        B, N, _ = qkv.shape
        mask = self.attn_drop.mask((B, self.num_heads, N, N), fold(rng, "attn_drop"), x.dtype)
        mask = None if mask is None else mask[:, :, queries]
        cache2: Any
        if self.rel_pos is None:
            h, cache2 = ops.attention(qkv, self.num_heads, mask, queries, keep=keep)
        else:
            h, cache2 = ops.relative_attention(qkv, self.rel_pos.value, self.num_heads, mask, queries, keep=keep)
        h, cache3 = self.proj.forward(h, fold(rng, "proj"), keep)
        y, cache4 = self.proj_drop.forward(h, fold(rng, "proj_drop"), keep)
        return y, (cache1, norm_caches, cache2, cache3, cache4) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        cache1, norm_caches, cache2, cache3, cache4 = self.kept(cache)
        dh = self.proj_drop.backward(dy, cache4)
        dh = self.proj.backward(dh, cache3)
        if self.rel_pos is None:
            dqkv = ops.attention_backward(dh, cache2)
        else:
            dqkv, drel_pos = ops.relative_attention_backward(dh, cache2)
            self.rel_pos.add_grad(drel_pos)
        return self.qkv.backward(self._normed_backward(dqkv, norm_caches), cache1)

    def is_plain(self) -> bool:
        """Return whether a kernel can compute it: biases, heads of width D / H, no norms, no relative positions."""
        biases = self.qkv.bias is not None and self.proj.bias is not None
        return (
            biases
            and self.proj.weight.shape[0] == self.proj.weight.shape[1]
            and self.q_norm is None
            and self.k_norm is None
            and self.rel_pos is None
        )

    def _normed(self, qkv: Array, rng: Key | None, keep: bool) -> tuple[Array, Any]:
        """Return `qkv` (B, N, 3 H K) with queries and keys normalised in each head, and the caches of the norms."""
        if self.q_norm is None and self.k_norm is None:
            return qkv, None
        B, N, width = qkv.shape
        parts = qkv.reshape(B, N, 3, self.num_heads, width // (3 * self.num_heads))
        q, k, v = (parts[:, :, i] for i in range(3))
        normed = namespace(qkv).empty_like(parts)
        normed[:, :, 0], cache1 = (
            (q, None) if self.q_norm is None else self.q_norm.forward(q, fold(rng, "q_norm"), keep)
        )
        normed[:, :, 1], cache2 = (
            (k, None) if self.k_norm is None else self.k_norm.forward(k, fold(rng, "k_norm"), keep)
        )
        normed[:, :, 2] = v
        return normed.reshape(qkv.shape), (cache1, cache2)

    def _normed_backward(self, dqkv: Array, caches: Any) -> Array:
        if self.q_norm is None and self.k_norm is None:
            return dqkv
        B, N, width = dqkv.shape
        parts = dqkv.reshape(B, N, 3, self.num_heads, width // (3 * self.num_heads))
        dq, dk, dv = (parts[:, :, i] for i in range(3))
        d = namespace(dqkv).empty_like(parts)
        d[:, :, 0] = dq if self.q_norm is None else self.q_norm.backward(dq, caches[0])
        d[:, :, 1] = dk if self.k_norm is None else self.k_norm.backward(dk, caches[1])
        d[:, :, 2] = dv
        return d.reshape(dqkv.shape)

    def cost(self, shape: tuple[int, ...], queries: slice = ALL) -> Cost:
        """Return the cost for one image's tokens (N, D); FLOPs are those of all tokens, as papers count them."""
        N = shape[0]
        M, H = len(range(N)[queries]), self.num_heads
        width, D = self.proj.weight.shape  # H K and D
        # qkv and the exponentials of the scores with the inverse of their sums; or the weights and their mask.
        kept = 3 * N * width + H * M * N + (H * N * N if self.attn_drop.rate else H * M)
        norms = [norm.cost((N, self.num_heads, width // H)) for norm in (self.q_norm, self.k_norm) if norm is not None]
        products = 4 if self.rel_pos is None else 6
        parts = [self.qkv.cost(shape), *norms, Cost(products * N * N * width, kept)]
        proj = Cost(self.proj.cost((N, width)).flops, M * width)
        return total_cost([*parts, proj, self.proj_drop.cost((M, D))])
