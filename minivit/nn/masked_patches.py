"""The masked patch prediction of the ViT paper (Dosovitskiy et al. 2020, appendix B.1.2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.nn.corrupted import Corrupted
from minivit.nn.reconstruction import bin_centres
from minivit.nn.vit import ViT
from minivit.random import Key, RngLike

_COLOURS = 8  # of a channel: 3 bits
_SMALL = 4  # side of a patch that is made small
TARGETS = ("mean", "small", "pixels")


class MaskedPatches(Corrupted):
    """Dosovitskiy et al. 2020, appendix B.1.2: half of the patches are corrupted as in BERT, and predicted.

    Of the corrupted patch tokens some 80 % become a learned token, 10 % that of another patch, and 10 % stay.

    Parameters
    ----------
    encoder : ViT
        Its head is not used.
    target : str
        What is predicted of a patch: "mean", its mean colour in 3 bits a channel, one of 512 classes of RGB; "small",
        the same of each of the 4 x 4 parts of the patch; or "pixels", by squared error.
    ratio : float
        The part of the patches that is corrupted.
    mean, std : tuple of float
        Of each channel: the images are ``(pixels - mean) / std`` for pixels from 0 to 1, whose colours are predicted.
    """

    task = "mpp"

    def __init__(
        self,
        encoder: ViT,
        target: str = "mean",
        ratio: float = 0.5,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
    ) -> None:
        config = encoder.config
        size = (config.patch_height, config.patch_width)
        if target not in TARGETS:
            raise ValueError(f"target is {target!r}; expected one of {', '.join(TARGETS)}")
        if target == "small" and (size[0] % _SMALL or size[1] % _SMALL):
            raise ValueError(f"patches of {size[0]} x {size[1]} pixels have no {_SMALL} x {_SMALL} equal parts")
        classes = _COLOURS**config.in_chans
        outputs = {"mean": classes, "small": _SMALL * _SMALL * classes, "pixels": math.prod(size) * config.in_chans}
        for name, values in (("mean", mean), ("std", std)):
            if np.ndim(values) != 1 or len(values) not in (1, config.in_chans):
                raise ValueError(f"{name} is {values}; expected a number for each channel, or a tuple of one for all")
        if not min(std) > 0:
            raise ValueError(f"std is {std}; expected more than 0")
        super().__init__(encoder, ratio, outputs[target])
        self.target, self.mean, self.std = target, mean, std

    @property
    def options(self) -> dict[str, Any]:
        """The arguments beside the encoder."""
        return {"target": self.target, "ratio": self.ratio, "mean": self.mean, "std": self.std}

    def corruption(self, masks: Key, order: Array) -> Array:
        """Return -1 for four corrupted patches in five, another number for one in ten, and else the patch's own."""
        xp = namespace(order)
        B, N = order.shape
        own, chosen = self.places(order)
        bits = masks.fold("corruption").bits((B, N))
        other = (own + 1 + (bits >> 8).astype(own.dtype) % (N - 1)) % N
        tenth = bits % 10
        seen = xp.where(tenth < 8, -1, xp.where(tenth < 9, other, own))
        index: Array = xp.where(chosen, seen, own)
        return index

    @np.errstate(under="ignore")
    def colours(self, pixels: Array) -> Array:
        """Return the classes (B, m) or (B, m * 16) of the patches with these pixels (B, m, P * Q * C)."""
        config, xp = self.encoder.config, namespace(pixels)
        B, m, _ = pixels.shape
        P, Q, C = config.patch_height, config.patch_width, config.in_chans
        parts = _SMALL if self.target == "small" else 1
        wide = pixels.real if pixels.dtype.itemsize > 2 else pixels.astype(np.float32)
        cells = wide.reshape(B, m, parts, P // parts, parts, Q // parts, C).mean(axis=(3, 5))
        classes: Array = xp.zeros(cells.shape[:-1], dtype=xp.int64)
        for c in range(C):
            mean, std = self._scale(c)
            bits = xp.clip(xp.floor((cells[..., c] * std + mean) * _COLOURS), 0, _COLOURS - 1)
            classes = classes * _COLOURS + bits.astype(xp.int64)
        return classes.reshape(B, -1)

    def predicted_pixels(self, y: Array, pixels: Array) -> Array:
        """Return the pixels (B, m, P * Q * C): of classes, the most probable colour of each part, amid its bin."""
        if self.target == "pixels":
            return y
        config, xp = self.encoder.config, namespace(y)
        B, m, _ = y.shape
        P, Q, C = config.patch_height, config.patch_width, config.in_chans
        parts = _SMALL if self.target == "small" else 1
        classes = y.reshape(B, m, parts, 1, parts, 1, -1).argmax(axis=-1)
        colours = bin_centres(classes, _COLOURS, C).astype(y.dtype)  # (B, m, parts, 1, parts, 1, C)
        for c in range(C):
            mean, std = self._scale(c)
            colours[..., c] = (colours[..., c] - mean) / std
        cells = xp.broadcast_to(colours, (B, m, parts, P // parts, parts, Q // parts, C))
        return cells.reshape(B, m, P * Q * C)

    def _scale(self, c: int) -> tuple[float, float]:
        """Return mean and std of a channel."""
        mean, std = (values[c if len(values) > 1 else 0] for values in (self.mean, self.std))
        return mean, std

    def forward(self, x: Array, rng: RngLike = None, keep: bool = True) -> tuple[Array, Any]:
        """Return the loss (B,) of images `x` (B, height, width, C); in evaluation all have one mask."""
        y, masked, cache1 = self.predictions(x, rng, keep)
        pixels, cache2 = self.pixels(x, masked, keep)
        cache3: Any = None
        if self.target == "pixels":
            loss, cache3 = ops.pixel_error(y, pixels, 2, keep=keep)
        else:
            labels = self.colours(pixels)
            loss, cache3 = ops.token_cross_entropy(y.reshape(*labels.shape, -1), labels, keep=keep)
        return loss, (cache1, cache2, cache3, y.shape) if keep else None

    def backward(self, dy: Array, cache: Any, release: bool = False) -> Array:
        """Return the gradient of the images for the gradient `dy` (B,) of the losses."""
        cache1, cache2, cache3, shape = self.kept(cache)
        if self.target == "pixels":
            dprediction, dtarget = ops.pixel_error_backward(dy, cache3)
            return self.predictions_backward(dprediction, cache1, release) + self.pixels_backward(dtarget, cache2)
        dlogits = ops.token_cross_entropy_backward(dy, cache3)
        return self.predictions_backward(dlogits.reshape(shape), cache1, release)
