"""What a recipe does to training images: crop, flip, auto augmentation, jitter and erasing; and mixing of a batch.

The crop and the flip are the same in every epoch. Of the rest, the strength grows linearly over the first
`augment_ramp` epochs, and is 0 in the last `augment_off_epochs`: it multiplies the magnitudes of auto augmentation and
jitter and the probabilities of erasing and mixing. What happens to an image depends on its key (seed, step, sample)
alone; its partner in mixing depends on the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.ops.augment import augment
from minivit.ops.auto_augment import rand_augment, trivial_augment
from minivit.ops.color import color_jitter
from minivit.ops.erasing import random_erasing
from minivit.ops.mixing import beta, cutmix, cutmix_box, mixed_targets, mixup
from minivit.ops.resized_crop import random_resized_crop
from minivit.ops.some_images import uniform
from minivit.random import Key
from minivit.train.recipe import Recipe


def has_strength(recipe: Recipe) -> bool:
    """Return whether the recipe augments images by anything that has a strength: more than crops and flips."""
    return bool(recipe.auto_augment or recipe.color_jitter or recipe.erase_prob or _mixes(recipe))


def _mixes(recipe: Recipe) -> bool:
    return (recipe.mixup_alpha > 0 or recipe.cutmix_alpha > 0) and recipe.mix_prob > 0


class Augmentation:
    """The augmentation of a run.

    Parameters
    ----------
    recipe : Recipe
        Names what is done.
    steps_per_epoch : int
        The number of steps in an epoch.

    Attributes
    ----------
    is_plain : bool
        Whether there is nothing but the padded crop and the flip.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self._recipe, self._steps_per_epoch = recipe, steps_per_epoch
        self.is_plain = not (recipe.resized_crop or recipe.auto_augment or recipe.color_jitter or recipe.erase_prob)

    def strength(self, step: int) -> float:
        """Return the strength, from 0 to 1, at `step`, from 0."""
        epochs_done = step / self._steps_per_epoch
        if epochs_done >= self._recipe.epochs - self._recipe.augment_off_epochs:
            return 0.0
        ramp = self._recipe.augment_ramp * self._steps_per_epoch
        return min(1.0, (step + 1) / ramp) if ramp else 1.0

    def images(self, images: Array, key: Key) -> Array:
        """Return uint8 `images` (B, H, W, C) augmented for the step and the samples of `key`; they are not changed."""
        recipe, strength = self._recipe, self.strength(key.step)
        if recipe.resized_crop:
            low, high = recipe.resized_crop
            images = random_resized_crop(images, key.fold("augment.resized_crop"), (low, high))
        images = augment(images, key, crop_padding=recipe.crop_padding, flip=recipe.flip)
        if strength == 0.0:
            return images
        if recipe.auto_augment == "trivial":
            images = trivial_augment(images, key.fold("augment.trivial"), strength)
        elif recipe.auto_augment == "rand":
            key_of_ops = key.fold("augment.rand")
            images = rand_augment(images, key_of_ops, recipe.rand_ops, recipe.rand_magnitude, strength)
        if recipe.color_jitter:
            images = color_jitter(images, key.fold("augment.jitter"), recipe.color_jitter * strength)
        if recipe.erase_prob:
            images = random_erasing(images, key.fold("augment.erasing"), recipe.erase_prob * strength)
        return images

    def mixed(self, images: Array, labels: Array, classes: int, step: int) -> tuple[Array, Array]:
        """Return float images (B, H, W, C) mixed by mixup or cutmix, and their soft targets (B, classes).

        Where the recipe does not mix, or not in this step, the `images` and the integer `labels` (B,) are returned.
        """
        recipe = self._recipe
        if not _mixes(recipe):
            return images, labels
        # One number for all images of the step, on the host: the key names one sample.
        key = Key(recipe.seed, step, np.zeros(1, dtype=np.int64)).fold("augment.mixing")
        mixes, which = uniform(key, 2)[0].tolist()
        if mixes >= recipe.mix_prob * self.strength(step):
            return images, labels
        cuts = recipe.cutmix_alpha > 0 and (recipe.mixup_alpha == 0 or which < 0.5)
        share = beta(key.fold("share"), recipe.cutmix_alpha if cuts else recipe.mixup_alpha)
        if cuts:
            box, share = cutmix_box(images.shape[1], images.shape[2], share, key.fold("box"))
            images = cutmix(images, box)
        else:
            images = mixup(images, share)
        dtype: Any = recipe.dtype
        return images, mixed_targets(labels, classes, share, dtype)
