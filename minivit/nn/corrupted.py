"""Models that see learned tokens in place of some patches, and predict these patches by a linear head.

The patch tokens are corrupted before positions are added, and the head reads the tokens after the last block. `SimMIM`
is that of Xie et al. 2021; `minivit.nn.masked_patches` has that of the ViT paper.
"""

from __future__ import annotations

from typing import Any

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.nn.initializers import normal, scheme_named
from minivit.nn.linear import Linear
from minivit.nn.masked import MaskedModel
from minivit.nn.parameters import Parameter
from minivit.nn.reconstruction import marked
from minivit.nn.vit import ViT
from minivit.random import Key, RngLike, fold


class Corrupted(MaskedModel):
    """An encoder of corrupted patch tokens, and a linear head for those that are predicted."""

    def __init__(self, encoder: ViT, ratio: float, outputs: int) -> None:
        super().__init__(encoder, ratio)
        config = encoder.config
        scheme = scheme_named(config.init)
        self.mask_token = Parameter((1, 1, config.embed_dim), normal(0.02))
        self.head = Linear(config.embed_dim, outputs, scheme.weight, scheme.bias)

    def corruption(self, masks: Key, order: Array) -> Array:
        """Return for each patch (B, N) the number of the patch that is seen in its place, or -1 for the mask token."""
        raise NotImplementedError

    def places(self, order: Array) -> tuple[Array, Array]:
        """Return the numbers (B, N) of the patches at their places, and whether each is predicted."""
        xp = namespace(order)
        own = xp.arange(order.shape[1]) + xp.zeros_like(order)
        return own, marked(order[:, : self.num_masked], order.shape[1])

    def predictions(self, x: Array, rng: RngLike, keep: bool) -> tuple[Array, Array, Any]:
        """Return the predictions (B, m, outputs), the numbers (B, m) of their patches, and the cache."""
        self.encoder.check_images(x)
        key, masks = self.key(rng, x)
        own = fold(key, "encoder")
        order = self.order(masks)
        masked, prefix = order[:, : self.num_masked], self.encoder.config.num_prefix_tokens
        y, cache1 = self.encoder.patch_embed.forward(x, fold(own, "patch_embed"), keep)
        y, cache2 = ops.fill_tokens(y, self.mask_token.value, self.corruption(masks, order), keep=keep)
        y, cache3 = self.encoder.embed_patches(y, own, keep)
        y, cache4 = self.encoder.encode(y, own, keep, every=True)
        y, cache5 = self.encoder.norm.forward(y, fold(own, "norm"), keep)
        y, cache6 = ops.take_tokens(y, masked + prefix, keep=keep)
        y, cache7 = self.head.forward(y, fold(key, "head"), keep)
        return y, masked, (cache1, cache2, cache3, cache4, cache5, cache6, cache7) if keep else None

    def predictions_backward(self, dy: Array, cache: Any, release: bool = False) -> Array:
        """Return the part of the images' gradient that does not pass the targets."""
        cache1, cache2, cache3, cache4, cache5, cache6, cache7 = cache
        dx = self.head.backward(dy, cache7)
        dx = ops.take_tokens_backward(dx, cache6)
        dx = self.encoder.norm.backward(dx, cache5)
        dx = self.encoder.encode_backward(dx, cache4 if release else list(cache4))
        dx = self.encoder.embed_patches_backward(dx, cache3)
        dx, dtoken = ops.fill_tokens_backward(dx, cache2)
        self.mask_token.add_grad(dtoken)
        return self.encoder.patch_embed.backward(dx, cache1)


class SimMIM(Corrupted):
    """Xie et al. 2021: masked patches are replaced by a learned token, and their pixels predicted by absolute error.

    Parameters
    ----------
    encoder : ViT
        Its head is not used.
    ratio : float
        The part of the patches that is masked.
    """

    task = "simmim"

    def __init__(self, encoder: ViT, ratio: float = 0.6) -> None:
        config = encoder.config
        super().__init__(encoder, ratio, config.patch_height * config.patch_width * config.in_chans)

    def corruption(self, masks: Key, order: Array) -> Array:
        """Return -1 for masked patches, and their own numbers for the others."""
        own, chosen = self.places(order)
        index: Array = namespace(order).where(chosen, -1, own)
        return index

    def forward(self, x: Array, rng: RngLike = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the loss (B,) of images `x` (B, height, width, C); in evaluation all have one mask."""
        y, masked, cache1 = self.predictions(x, rng, keep)
        target, cache2 = self.pixels(x, masked, keep)
        loss, cache3 = ops.pixel_error(y, target, 1, keep=keep)
        return loss, (cache1, cache2, cache3) if keep else None

    def backward(self, dy: Array, cache: Any, release: bool = False) -> Array:
        """Return the gradient of the images for the gradient `dy` (B,) of the losses."""
        cache1, cache2, cache3 = self.kept(cache)
        dprediction, dtarget = ops.pixel_error_backward(dy, cache3)
        return self.predictions_backward(dprediction, cache1, release) + self.pixels_backward(dtarget, cache2)
