"""The layers of a Vision Transformer: parameters and wiring; the mathematics is in ops/."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from minivit import initializers, ops
from minivit.arrays import Array
from minivit.initializers import SCHEMES, patch_initializers
from minivit.keys import Key, fold
from minivit.layer import Layer, untouched
from minivit.ops.attention import ALL
from minivit.ops.registry import find_rival, open_to_rivals, rival_of_cache
from minivit.parameters import Initializer, Parameter

__all__ = ["GELU", "MLP", "Attention", "DropPath", "Dropout", "EncoderBlock", "LayerNorm", "Linear", "PatchEmbed"]


class Linear(Layer):
    """``x @ weight + bias`` on the last axis: (..., in) to (..., out)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        weight_init: Initializer = initializers.xavier_uniform,
        bias_init: Initializer = initializers.zeros,
        parts: tuple[str, ...] = (),
    ) -> None:
        self.weight = Parameter((in_features, out_features), weight_init, decay=True, parts=parts)
        self.bias = Parameter((out_features,), bias_init, parts=parts)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Map the last axis of `x`."""
        return ops.linear(x, self.weight.value, self.bias.value, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        dx, dweight, dbias = ops.linear_backward(dy, cache)
        self.weight.add_grad(dweight)
        self.bias.add_grad(dbias)
        return dx


class LayerNorm(Layer):
    """Layer normalisation of the last axis, with a weight and a bias."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        self.weight = Parameter((dim,), initializers.ones)
        self.bias = Parameter((dim,), initializers.zeros)
        self.eps = eps

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Normalise the last axis of `x`."""
        return ops.layer_norm(x, self.weight.value, self.bias.value, self.eps, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        dx, dweight, dbias = ops.layer_norm_backward(dy, cache)
        self.weight.add_grad(dweight)
        self.bias.add_grad(dbias)
        return dx


class GELU(Layer):
    """GELU, exact or by tanh."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Apply GELU to each element."""
        return ops.gelu(x, self.approximate, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        return ops.gelu_backward(dy, cache)


class Dropout(Layer):
    """Dropout of elements, or with ``per_sample`` of whole samples; nothing in evaluation or at rate 0."""

    def __init__(self, rate: float, per_sample: bool = False) -> None:
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"a dropout rate is at least 0 and below 1, got {rate}")
        self.rate = rate
        self.per_sample = per_sample

    def mask(self, shape: tuple[int, ...], rng: Key | None, dtype: Any) -> Array | None:
        """Return factors for an array of `shape`, or None where nothing is dropped."""
        if rng is None or self.rate == 0.0:
            return None
        if self.per_sample:
            shape = (shape[0], *(1 for _ in shape[1:]))
        return rng.keep_mask(shape, self.rate, dtype)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Drop elements of `x` (B, ...) and scale the others up."""
        mask = self.mask(x.shape, rng, x.dtype)
        if mask is None:
            return x, () if keep else None
        return ops.dropout(x, mask, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        return dy if cache == () else ops.dropout_backward(dy, cache)


class DropPath(Dropout):
    """Stochastic depth: dropout of a residual branch for whole samples."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate, per_sample=True)


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
        """Map each token by itself."""
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


open_to_rivals("EncoderBlock")


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
        rival = find_rival("EncoderBlock", x, self, rng, queries)  # kernels/encoder_block.py
        if rival is not None:
            result: tuple[Array, Any] = rival.forward(x, self, queries, keep)
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
        """Return whether a rival may take it in one piece: it is as made, and with `rng` nothing in it is random."""
        drops = (attrgetter(name)(self) for name, kind in _MADE_OF.items() if issubclass(kind, Dropout))
        return self.as_made() and (rng is None or all(drop.rate == 0.0 for drop in drops))

    def as_made(self) -> bool:
        """Return whether what it computes stands in this file: nothing in it is another layer, or watched."""
        return untouched(self, EncoderBlock) and all(
            untouched(attrgetter(name)(self), kind) for name, kind in _MADE_OF.items()
        )

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx`` (B, N, D) for `dy` (B, M, D): through each branch, and past it."""
        rival = rival_of_cache("EncoderBlock", cache)
        if rival is not None:
            dx: Array = rival.backward(dy, cache, self)
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


class PatchEmbed(Layer):
    """Patches of images, each mapped to D numbers: (B, height, width, C) to (B, N, D)."""

    def __init__(self, patch_size: tuple[int, int], in_chans: int, embed_dim: int, init: str = "jax") -> None:
        fan_in = patch_size[0] * patch_size[1] * in_chans
        self.patch_size = patch_size
        self.proj = Linear(fan_in, embed_dim, *patch_initializers(init, fan_in))

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Cut images into patches and project them."""
        h, cache1 = ops.patches(x, self.patch_size, keep=keep)
        y, cache2 = self.proj.forward(h, keep=keep)
        return y, (cache1, cache2) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return the gradient of the images."""
        cache1, cache2 = self.kept(cache)
        return ops.patches_backward(self.proj.backward(dy, cache2), cache1)
