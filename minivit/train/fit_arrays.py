"""The images and labels that `fit` is given, checked and converted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minivit.arrays import Array
from minivit.data.dataset import check_images
from minivit.errors import UserError
from minivit.nn.layer import Layer
from minivit.nn.masked import MaskedModel
from minivit.nn.vit import ViT

_PIECE = 1024  # images that are converted at a time


def training_samples(model: Layer, images: Array, labels: Array | None) -> tuple[Array, Array]:
    """Return the images as uint8 and the labels as int64, which are zeros for a masked model."""
    pixels = as_pixels(images, "images")
    if isinstance(model, ViT) and not model.config.num_classes:
        raise UserError("the model has no head, and so no classes; make it with num_classes")
    if isinstance(model, MaskedModel):
        labels = np.zeros(len(pixels), np.int64)
    elif labels is None:
        raise UserError(f"a {type(model).__name__} needs labels; models that predict masked patches do without")
    labels = _whole_labels(labels, "labels")
    if len(labels) != len(pixels):
        raise UserError(f"there are {len(labels):,} labels for {len(pixels):,} images; give one label for each image")
    return pixels, labels


def as_pixels(images: Any, name: str) -> NDArray[np.uint8]:
    """Return images as uint8."""
    images = np.asarray(images)
    check_images(images, name)
    if images.dtype == np.uint8:
        return images
    pixels = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), _PIECE):
        some = images[start : start + _PIECE]
        if not (some.min() >= 0 and some.max() <= 1):
            raise UserError(
                f"{name} have values from {images.min():g} to {images.max():g}; expected uint8, or floats from 0 to 1: "
                "use (images - low) / (high - low)"
            )
        pixels[start : start + _PIECE] = np.rint(some.astype(np.float64) * 255.0)
    return pixels


def _whole_labels(labels: Any, name: str) -> NDArray[np.int64]:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(
            f"{name} are {labels.dtype} {labels.shape}; expected (n,) integers from 0: "
            "classes, labels = np.unique(labels, return_inverse=True) makes them"
        )
    return labels.astype(np.int64)


def without_labels(validation: Any) -> tuple[Array, Array]:
    """Return the validation images of a masked model, with zeros for labels."""
    images = validation[0] if isinstance(validation, tuple | list) else validation
    return images, np.zeros(len(images), np.int64)


def with_validation(pixels: Array, labels: Array, validation: Any) -> tuple[Array, Array, Array]:
    """Return the images and labels of both parts, and the indices of those for validation."""
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise UserError("validation is not a pair; expected (images, labels)")
    held_pixels = as_pixels(validation[0], "validation images")
    held_labels = _whole_labels(validation[1], "validation labels")
    if held_pixels.shape[1:] != pixels.shape[1:] or len(held_pixels) != len(held_labels):
        raise UserError(
            f"validation has images {held_pixels.shape} and {len(held_labels)} labels; expected images "
            f"(n, {', '.join(map(str, pixels.shape[1:]))}) as for training, and a label for each"
        )
    index = np.arange(len(pixels), len(pixels) + len(held_pixels))
    return np.concatenate([pixels, held_pixels]), np.concatenate([labels, held_labels]), index
