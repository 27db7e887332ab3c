"""Learning without labels: a ViT that sees some of the patches of an image predicts the others.

    loss of an image = mean over the predicted patches of the error of their prediction

The forward passes of masked models return the loss of each image, and the backward passes take the gradient of the
losses. The gradient of the images is complete: it includes the part that passes through the targets.
`minivit.nn.corrupted` replaces patches, and `minivit.nn.mae` leaves them out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.nn.model import Model
from minivit.nn.reconstruction import Reconstruction, reconstruction
from minivit.nn.vit import ViT
from minivit.random import Key, RngLike, as_key, fold


class MaskedModel(Model):
    """The base class: an encoder, the choice of patches, and the pixels of the chosen ones.

    Parameters
    ----------
    encoder : ViT
        Its head is not used. Patches may not overlap.
    ratio : float
        The part of the patches that is predicted, above 0 and below 1; at least one patch, and not all.

    Attributes
    ----------
    task : str
        The name of the task, as in `minivit.nn.pretraining`.
    """

    gives_losses = True
    task = ""

    def __init__(self, encoder: ViT, ratio: float) -> None:
        config = encoder.config
        if isinstance(ratio, str) or not 0.0 < ratio < 1.0:
            raise ValueError(f"ratio is {ratio!r}; expected above 0 and below 1")
        if config.num_patches < 2:
            raise ValueError("an image of one patch has nothing to predict it from")
        if config.patch_stride:
            raise ValueError(f"patches of {config.patch_size} pixels have a stride of {config.stride}; expected theirs")
        if config.conv_stem or config.resnet:
            raise ValueError("convolutions before the patches see what is masked; use a model without a stem")
        if config.patch_drop_rate:
            raise ValueError(f"patch_drop_rate is {config.patch_drop_rate}; expected 0: the masks choose the patches")
        self.config = config
        self.encoder = encoder
        self.ratio = ratio

    @property
    def options(self) -> dict[str, Any]:
        """The arguments beside the encoder, as `minivit.nn.pretraining.masked_model` takes them."""
        return {"ratio": self.ratio}

    def _adapt(self) -> None:
        """Let `config` follow the encoder."""
        self.encoder._adapt()
        if self.config != self.encoder.config:
            self.config = self.encoder.config

    @property
    def num_masked(self) -> int:
        """The number of patches of an image that are predicted."""
        N = self.encoder.config.num_patches
        return min(N - 1, max(1, round(self.ratio * N)))

    def key(self, rng: RngLike, x: Array) -> tuple[Key | None, Key]:
        """Return the key of the encoder, None in evaluation, and that of the masks, one for all images there."""
        xp = namespace(x)
        key = as_key(rng, len(x), xp)
        return key, fold(key, "mask") or Key(0, 0, xp.zeros(len(x), dtype=xp.uint32)).fold("mask")

    def order(self, masks: Key) -> Array:
        """Return the numbers (B, N) of the patches of each image in random order; the first are predicted."""
        bits = masks.fold("order").bits((len(masks.sample_ids), self.encoder.config.num_patches))
        order: Array = namespace(bits).argsort(bits, axis=1, kind="stable")
        return order

    def pixels(self, x: Array, masked: Array, keep: bool) -> tuple[Array, Any]:
        """Return the pixels (B, m, P * Q * C) of the patches `masked` (B, m) of images, and the cache."""
        config = self.encoder.config
        y, cache1 = ops.patches(x, (config.patch_height, config.patch_width), keep=keep)
        y, cache2 = ops.take_tokens(y, masked, keep=keep)
        return y, (cache1, cache2) if keep else None

    def pixels_backward(self, dy: Array, cache: Any) -> Array:
        """Return the gradient of the images for that of their pixels."""
        cache1, cache2 = cache
        return ops.patches_backward(ops.take_tokens_backward(dy, cache2), cache1)

    def predictions(self, x: Array, rng: RngLike, keep: bool) -> tuple[Array, Array, Any]:
        """Return the predictions (B, m, outputs), the numbers (B, m) of their patches, and the cache."""
        raise NotImplementedError

    def predicted_pixels(self, y: Array, pixels: Array) -> Array:
        """Return the pixels (B, m, P * Q * C) that predictions `y` (B, m, outputs) stand for.

        `pixels` (B, m, P * Q * C) are the true ones, which a prediction may be relative to.
        """
        return y

    @np.errstate(under="ignore")
    def reconstruct(self, x: Array, rng: RngLike = None) -> Reconstruction:
        """Return images (B, height, width, C) with predictions in place of some patches, in the units of `x`.

        The masks are those of `forward` with the same `rng`; in evaluation all images have one.
        """
        config = self.encoder.config
        y, masked, _ = self.predictions(x, rng, keep=False)
        pixels, _ = self.pixels(x, masked, keep=False)
        return reconstruction(x, self.predicted_pixels(y, pixels), masked, (config.patch_height, config.patch_width))
