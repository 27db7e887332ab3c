"""The masked autoencoder (He et al. 2021): the encoder sees some of the patches, a light decoder predicts the others.

The encoder takes a quarter of the patches by default: a step is two to three times as fast as with all
(docs/pretraining.md). The decoder gets the encoder's tokens at their places, a learned token at all others, and fixed
positions.
"""

from __future__ import annotations

import math
from typing import Any

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.errors import expect_whole
from minivit.nn.encoder_block import EncoderBlock
from minivit.nn.initializers import normal, scheme_named
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.linear import Linear
from minivit.nn.masked import MaskedModel
from minivit.nn.parameters import Parameter
from minivit.nn.vit import ViT
from minivit.random import RngLike, fold

_PIXEL_EPS = 1e-6  # added to the variance of a patch's pixels


class MAE(MaskedModel):
    """A masked autoencoder: images (B, height, width, C) to the loss (B,) of each, the squared error of masked patches.

    Parameters
    ----------
    encoder : ViT
        Its head is not used.
    ratio : float
        The part of the patches that the encoder does not see.
    decoder_dim, decoder_depth, decoder_heads : int, optional
        Of the decoder, which may have no blocks; by default half of the encoder's width, 2 blocks and the encoder's
        number of heads.
    decoder_mlp : int, optional
        Width of the hidden layer of the decoder's MLP; by default four times `decoder_dim`.
    norm_pixels : bool
        Whether the pixels of each patch are predicted with mean 0 and variance 1 (unbiased).
    eps : float, optional
        Of the decoder's layer norms; by default the encoder's.
    """

    task = "mae"

    def __init__(
        self,
        encoder: ViT,
        ratio: float = 0.75,
        decoder_dim: int | None = None,
        decoder_depth: int = 2,
        decoder_heads: int | None = None,
        decoder_mlp: int | None = None,
        norm_pixels: bool = False,
        eps: float | None = None,
    ) -> None:
        super().__init__(encoder, ratio)
        config = encoder.config
        scheme, eps = scheme_named(config.init), config.norm_eps if eps is None else eps
        Dd = config.embed_dim // 2 if decoder_dim is None else decoder_dim
        heads = config.num_heads if decoder_heads is None else decoder_heads
        pixels = config.patch_height * config.patch_width * config.in_chans
        expect_whole("decoder_depth", decoder_depth, least=0)
        hidden = 4 * Dd if decoder_mlp is None else decoder_mlp
        for name, size in (("decoder_dim", Dd), ("decoder_heads", heads), ("decoder_mlp", hidden)):
            expect_whole(name, size)
        if not 0 <= eps < math.inf:
            raise ValueError(f"eps is {eps}; expected at least 0")
        if Dd % 4:
            raise ValueError(f"decoder_dim is {Dd}; expected a multiple of 4, for the sines of the positions")
        if norm_pixels and pixels < 2:
            raise ValueError("a patch of one number has no variance; use norm_pixels=False")
        if config.pos_embed == "relative" or config.pos_embed_layers != "first":
            raise ValueError("each block of the encoder adds the positions of all patches; it sees some of them here")
        self.norm_pixels = norm_pixels
        self.decoder_dim, self.decoder_depth, self.decoder_heads = Dd, decoder_depth, heads
        self.decoder_mlp, self.decoder_eps = hidden, eps
        self.decoder_embed = Linear(config.embed_dim, Dd, scheme.weight, scheme.bias)
        self.mask_token = Parameter((1, 1, Dd), normal(0.02))
        self.decoder_blocks = [
            EncoderBlock(Dd, heads, hidden, eps=eps, act_layer=config.act_layer, init=config.init)
            for _ in range(decoder_depth)
        ]
        self.decoder_norm = LayerNorm(Dd, eps)
        self.decoder_pred = Linear(Dd, pixels, scheme.weight, scheme.bias)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments beside the encoder."""
        return {
            "ratio": self.ratio,
            "decoder_dim": self.decoder_dim,
            "decoder_depth": self.decoder_depth,
            "decoder_heads": self.decoder_heads,
            "decoder_mlp": self.decoder_mlp,
            "norm_pixels": self.norm_pixels,
            "eps": self.decoder_eps,
        }

    @property
    def micro_batch(self) -> int:
        """Twice that of the encoder with all tokens."""
        return 2 * self.config.micro_batch

    def predictions(self, x: Array, rng: RngLike, keep: bool) -> tuple[Array, Array, Any]:
        """Return the predictions (B, m, P * Q * C), the numbers (B, m) of their patches, and the cache."""
        self.encoder.check_images(x)
        key, masks = self.key(rng, x)
        order, prefix, own = self.order(masks), self.encoder.config.num_prefix_tokens, fold(key, "encoder")
        xp = namespace(x, order)
        B, N = order.shape
        masked, seen = order[:, : self.num_masked], order[:, self.num_masked :]
        front = xp.arange(prefix, dtype=order.dtype) + xp.zeros((B, 1), dtype=order.dtype)
        # The place of each token among those of the encoder, -1 if it has not seen it.
        places = xp.full((B, N), -1, dtype=order.dtype)
        places[xp.arange(B)[:, None], seen] = xp.arange(prefix, prefix + seen.shape[1], dtype=order.dtype)
        y, cache1 = self.encoder.embed(x, own, keep)
        y, cache2 = ops.take_tokens(y, xp.concatenate([front, seen + prefix], axis=1), keep=keep)
        y, cache3 = self.encoder.encode(y, own, keep, every=True)
        y, cache4 = self.encoder.norm.forward(y, fold(own, "norm"), keep)
        y, cache5 = self.decoder_embed.forward(y, fold(key, "decoder_embed"), keep)
        y, cache6 = ops.fill_tokens(y, self.mask_token.value, xp.concatenate([front, places], axis=1), keep=keep)
        patches, positions = ops.sincos_positions(y[:, prefix:], self.encoder.config.grid, "mae", keep=keep)
        y = xp.concatenate([y[:, :prefix], patches], axis=1)
        caches = []
        for i, block in enumerate(self.decoder_blocks):
            y, cache = block.forward(y, fold(key, f"decoder_blocks.{i}"), keep)
            caches.append(cache)
        y, cache7 = ops.take_tokens(y, masked + prefix, keep=keep)
        y, cache8 = self.decoder_norm.forward(y, fold(key, "decoder_norm"), keep)
        y, cache9 = self.decoder_pred.forward(y, fold(key, "decoder_pred"), keep)
        encoded, decoded = (cache1, cache2, cache3, cache4), (cache5, cache6, positions, caches, cache7, cache8, cache9)
        return y, masked, (encoded, decoded) if keep else None

    def predictions_backward(self, dy: Array, cache: Any, release: bool = False) -> Array:
        """Return the part of the images' gradient that does not pass the targets."""
        (cache1, cache2, cache3, cache4), decoded = cache
        cache5, cache6, positions, caches, cache7, cache8, cache9 = decoded
        dx = self.decoder_pred.backward(dy, cache9)
        dx = self.decoder_norm.backward(dx, cache8)
        dx = ops.take_tokens_backward(dx, cache7)
        for block, block_cache in zip(reversed(self.decoder_blocks), reversed(caches), strict=True):
            dx = block.backward(dx, block_cache)
        prefix = self.encoder.config.num_prefix_tokens
        dpatches = ops.sincos_positions_backward(dx[:, prefix:], positions)
        dx = namespace(dx).concatenate([dx[:, :prefix], dpatches], axis=1)
        dx, dtoken = ops.fill_tokens_backward(dx, cache6)
        self.mask_token.add_grad(dtoken)
        dx = self.decoder_embed.backward(dx, cache5)
        dx = self.encoder.norm.backward(dx, cache4)
        dx = self.encoder.encode_backward(dx, cache3 if release else list(cache3))
        dx = ops.take_tokens_backward(dx, cache2)
        return self.encoder.embed_backward(dx, cache1)

    def forward(self, x: Array, rng: RngLike = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the loss (B,) of images `x`; in evaluation all have one mask."""
        y, masked, cache1 = self.predictions(x, rng, keep)
        target, cache2 = self.pixels(x, masked, keep)
        cache3 = None
        if self.norm_pixels:
            target, cache3 = ops.layer_norm(target, *self._unit_variance(target), keep=keep)
        loss, cache4 = ops.pixel_error(y, target, 2, keep=keep)
        return loss, (cache1, cache2, cache3, cache4) if keep else None

    def backward(self, dy: Array, cache: Any, release: bool = False) -> Array:
        """Return the gradient of the images for the gradient `dy` (B,) of the losses."""
        cache1, cache2, cache3, cache4 = self.kept(cache)
        dprediction, dtarget = ops.pixel_error_backward(dy, cache4)
        if self.norm_pixels:
            dtarget, _, _ = ops.layer_norm_backward(dtarget, cache3)
        return self.predictions_backward(dprediction, cache1, release) + self.pixels_backward(dtarget, cache2)

    def predicted_pixels(self, y: Array, pixels: Array) -> Array:
        """Return the pixels (B, m, P * Q * C): with `norm_pixels`, with the mean and deviation of the true patch."""
        if not self.norm_pixels:
            return y
        variance = pixels.var(axis=2, ddof=1, keepdims=True)
        return y * namespace(y).sqrt(variance + _PIXEL_EPS) + pixels.mean(axis=2, keepdims=True)

    def _unit_variance(self, target: Array) -> tuple[Array, Array, float]:
        """Return weight, bias and eps with which layer norm divides by the unbiased deviation."""
        xp, S = namespace(target), target.shape[2]
        weight = xp.full((S,), ((S - 1) / S) ** 0.5, dtype=target.dtype)
        return weight, xp.zeros((S,), dtype=target.dtype), _PIXEL_EPS * (S - 1) / S
