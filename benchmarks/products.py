"""The matrix products that a Vision Transformer's mathematics needs, as arrays ready to be multiplied.

    forward     patch embedding; in each block qkv, scores = q @ k.T, heads = weights @ v, proj, fc1, fc2; head
    backward    dweight = x.T @ dy and dx = dy @ weight.T of each of those with a weight (no dx of the patch embedding);
                dv = weights.T @ dheads, dweights = dheads @ v.T, dq = dproducts @ k, dk = dproducts.T @ q

Where the head reads the class token alone, the last block has M = 1 query. Operands have the layouts of a step: q, k
and v are views of (B, N, 3, H, K), heads one of (B, M, H, K). k.T and v.T are laid out by rows, for which BLAS takes up
to half the time: one array for all blocks, since a step makes such a copy just before it multiplies. In training each
block has arrays of its own for what its backward pass reads, as it must.
"""

from typing import NamedTuple, Self

import numpy as np

from minivit import ViTConfig
from minivit.arrays import Array


class Product(NamedTuple):
    """One call of matmul: a (..., m, k) times b (..., k, n) into out (..., m, n)."""

    op: str  # of `minivit.ops`
    a: Array
    b: Array
    out: Array
    gathers: bool = False  # whether later products read other rows of out than their own

    def run(self) -> None:
        """Multiply."""
        np.matmul(self.a, self.b, out=self.out)

    @property
    def flops(self) -> int:
        """Floating-point operations: a multiplication and an addition for each term."""
        return 2 * self.out.size * self.a.shape[-1]

    def share(self, part: int, parts: int) -> Self:
        """Return the product of one of `parts` nearly equal shares of the rows; the first are the larger ones."""
        first, stop = (-(-self.out.shape[-2] * i // parts) for i in (part, part + 1))
        return self._replace(a=self.a[..., first:stop, :], out=self.out[..., first:stop, :])


class Weights:
    """The matrices of a model, random, in minivit's layout (in, out)."""

    def __init__(self, config: ViTConfig) -> None:
        D, F = config.embed_dim, config.hidden_dim
        self.patch_embed = _random(config.patch_height * config.patch_width * config.in_chans, D)
        self.blocks = [[_random(D, 3 * D), _random(D, D), _random(D, F), _random(F, D)] for _ in range(config.depth)]
        self.head = _random(D, config.num_classes)


def products(config: ViTConfig, weights: Weights, B: int, training: bool) -> list[Product]:
    """Return the products of a prediction of B images, or of a step of training, in their order."""
    queries = [config.num_tokens] * config.depth
    if config.global_pool == "token":
        queries[-1] = 1
    values = {M: _Tokens(config, B, M) for M in set(queries)}
    gradients = {M: _Tokens(config, B, M) for M in set(queries)} if training else {}
    blocks = [
        (_Tokens(config, B, M) if training else values[M], gradients.get(M), matrices)
        for M, matrices in zip(queries, weights.blocks, strict=True)
    ]
    pixels, patches = (_random(B * config.num_patches, width) for width in weights.patch_embed.shape)
    pooled, logits = (_random(B, width) for width in weights.head.shape)
    by_rows = _random(B, config.num_heads, config.embed_dim // config.num_heads, config.num_tokens)  # k.T or v.T

    found = [Product("linear", pixels, weights.patch_embed, np.empty_like(patches), gathers=True)]
    for tokens, _, matrices in blocks:
        found += _forward(tokens, by_rows, *matrices)
    found.append(Product("linear", pooled, weights.head, np.empty_like(logits)))
    if training:
        found += _linear_backward(pooled, weights.head, logits, np.empty_like(pooled))
        for tokens, gradient, matrices in reversed(blocks):
            found += _backward(tokens, gradient, by_rows, *matrices)
        found += _linear_backward(pixels, weights.patch_embed, patches)
    return found


class _Tokens:
    """The arrays of a block for N tokens an image and M queries, or their gradients."""

    def __init__(self, config: ViTConfig, B: int, M: int) -> None:
        D, F, N, H = config.embed_dim, config.hidden_dim, config.num_tokens, config.num_heads
        self.x = _random(B * N, D)  # enters qkv
        # The maps from x: rows of x, columns of the weight, result (B, tokens, which of q k v, H, K).
        every = slice(None)
        if M == N:
            self.maps = [(self.x, every, _random(B, N, 3, H, D // H))]
        else:
            cls_token = self.x.reshape(B, N, D)[:, 0]
            self.maps = [
                (cls_token, slice(D), _random(B, 1, 1, H, D // H)),
                (self.x, slice(D, None), _random(B, N, 2, H, D // H)),
            ]
        self.q, self.k, self.v = (view for *_, y in self.maps for view in y.transpose(2, 0, 3, 1, 4))  # (B, H, -, K)
        self.weights = _random(B, H, M, N)
        self.heads = _random(B, M, H, D // H).transpose(0, 2, 1, 3)  # (B, H, M, K)
        self.mlp_in = _random(B * M, D)
        self.hidden = _random(B * M, F)
        self.y = _random(B * M, D)  # leaves proj, and fc2

    @property
    def joined(self) -> Array:
        """The heads side by side: (B M, D)."""
        return self.heads.transpose(0, 2, 1, 3).reshape(len(self.y), -1)


def _forward(t: _Tokens, k_t: Array, qkv: Array, proj: Array, fc1: Array, fc2: Array) -> list[Product]:
    return [
        *(Product("linear", x, qkv[:, columns], y.reshape(len(x), -1), gathers=True) for x, columns, y in t.maps),
        Product("attention", t.q, k_t, t.weights),
        Product("attention", t.weights, t.v, t.heads),
        Product("linear", t.joined, proj, t.y),
        Product("linear", t.mlp_in, fc1, t.hidden),
        Product("linear", t.hidden, fc2, t.y),
    ]


def _backward(t: _Tokens, d: _Tokens, v_t: Array, qkv: Array, proj: Array, fc1: Array, fc2: Array) -> list[Product]:
    found = [
        *_linear_backward(t.hidden, fc2, d.y, d.hidden),
        *_linear_backward(t.mlp_in, fc1, d.hidden, d.mlp_in),
        *_linear_backward(t.joined, proj, d.y, d.joined),
        Product("attention_backward", t.weights.swapaxes(-1, -2), d.heads, d.v),
        Product("attention_backward", d.heads, v_t, d.weights),
        Product("attention_backward", d.weights, t.k, d.q),
        Product("attention_backward", d.weights.swapaxes(-1, -2), t.q, d.k),
    ]
    for (x, columns, _), (dx, _, dy) in zip(t.maps, d.maps, strict=True):
        found += _linear_backward(x, qkv[:, columns], dy.reshape(len(x), -1), dx)
    return found


def _linear_backward(x: Array, weight: Array, dy: Array, dx: Array | None = None) -> list[Product]:
    dweight = Product("linear_backward", x.T, dy, np.empty(weight.shape, dtype=weight.dtype))
    return [dweight] if dx is None else [dweight, Product("linear_backward", dy, weight.T, dx)]


def _random(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
