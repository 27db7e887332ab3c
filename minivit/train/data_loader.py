"""The training images where the model is, and the batches that are made of them there."""

from __future__ import annotations

from typing import Any, NamedTuple

from minivit.arrays import Array, to_backend
from minivit.data.batches import epoch_order
from minivit.data.dataset import Dataset
from minivit.engine import check_labels
from minivit.ops.augment import channel_scale, training_images
from minivit.random import Key
from minivit.train.recipe import Recipe


class TrainingBatch(NamedTuple):
    """What a step is made of."""

    images: Array  # (B, height, width, C)
    labels: Array  # (B,)
    key: Key


class Feed:
    """The uint8 training set, moved to its device once, and the recipe by which batches are made of it.

    Parameters
    ----------
    dataset : Dataset
        Its labels are checked here, on the host.
    index : Array
        The numbers of the images that are trained on.
    recipe : Recipe
        Seed and augmentation.
    library : module
        The array library of the model.
    """

    def __init__(self, dataset: Dataset, index: Array, recipe: Recipe, library: Any) -> None:
        labels = dataset.train_labels
        check_labels(labels, len(labels), len(dataset.class_names), recipe.dtype)
        self._library, self._index, self._recipe = library, index, recipe
        self._images, self._labels = to_backend(dataset.train_images, library), to_backend(labels, library)
        self._scale, self._shift = channel_scale(dataset.mean, dataset.std, recipe.dtype, library)

    def order(self, epoch: int) -> Array:
        """Return the numbers of the training images in the order of an epoch, on the device.

        The order is made on the host, whose sorting is the same everywhere, and crosses once an epoch.
        """
        return to_backend(self._index[epoch_order(len(self._index), self._recipe.seed, epoch)], self._library)

    def batch(self, samples: Array, step: int, dtype: Any) -> TrainingBatch:
        """Return the batch of the images numbered `samples` (B,), augmented as `step` wants it, in `dtype`."""
        recipe, key = self._recipe, Key(self._recipe.seed, step, samples)
        images = training_images(
            self._images,
            key,
            crop_padding=recipe.crop_padding,
            flip=recipe.flip,
            scale=self._scale,
            shift=self._shift,
            dtype=dtype,
        )
        return TrainingBatch(images, self._labels[samples], key)
