"""What is said in one line when a run is likely to learn little: unlikely settings, a loss that does not fall."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.nn.config import ViTConfig
from minivit.nn.presets import get_config
from minivit.train.augmentation import has_strength
from minivit.train.recipe import Recipe

STEPS_TO_LEARN = 100  # fewer steps at the loss of guessing mean nothing
_FEW_PATCHES = 16
_SHARE_OF_THE_START = 0.05
_DEVIATIONS = 4  # standard deviations of the accuracy of guessing

_WSD = ("schedule wsd", lambda recipe: recipe.schedule == "wsd")
_RAND = ("auto_augment rand", lambda recipe: recipe.auto_augment == "rand")
_STRENGTH = ("auto_augment, color_jitter, erase_prob, mixup_alpha or cutmix_alpha", has_strength)
# What a field needs to have an effect.
_NEEDS: dict[str, tuple[str, Callable[[Recipe], object]]] = {
    "decay_epochs": _WSD,
    "decay_shape": _WSD,
    "betas": ("optimizer adamw, adam or muon", lambda recipe: recipe.optimizer != "sgd"),
    "momentum": ("optimizer sgd", lambda recipe: recipe.optimizer == "sgd"),
    "muon_momentum": ("optimizer muon", lambda recipe: recipe.optimizer == "muon"),
    "swa_lr": ("swa_start", lambda recipe: recipe.swa_start),
    "swa_anneal_epochs": ("swa_start and swa_lr", lambda recipe: recipe.swa_start and recipe.swa_lr),
    "rand_ops": _RAND,
    "rand_magnitude": _RAND,
    "mix_prob": ("mixup_alpha or cutmix_alpha", lambda recipe: recipe.mixup_alpha or recipe.cutmix_alpha),
    "augment_ramp": _STRENGTH,
    "augment_off_epochs": _STRENGTH,
    "warmup_epochs": ("warmup_steps 0", lambda recipe: not recipe.warmup_steps),
}


def without_effect(recipe: Recipe, given: Iterable[str]) -> str | None:
    """Return a sentence about the fields of `given` that have no effect in this recipe, or None if all have one."""
    idle = [f"{name} (needs {_NEEDS[name][0]})" for name in given if name in _NEEDS and not _NEEDS[name][1](recipe)]
    return f"without an effect in this recipe: {', '.join(idle)}" if idle else None


def unlikely_settings(recipe: Recipe, config: ViTConfig, total_steps: int) -> Iterator[str]:
    """Yield a sentence for each setting that leaves little to learn with.

    Parameters
    ----------
    recipe : Recipe
        The recipe of a run that begins.
    config : ViTConfig
        Its model, with the size of the images.
    total_steps : int
        The steps of the run.
    """
    steps_per_epoch = total_steps // recipe.epochs
    if recipe.warmup(steps_per_epoch) >= total_steps:
        unit = "steps" if recipe.warmup_steps else "epochs"
        yield (
            f"the warmup of {recipe.warmup_steps or recipe.warmup_epochs:g} {unit} is as long as the run: the learning "
            f"rate only rises; use a smaller --warmup-{unit}, or more --epochs"
        )
    if (share := recipe.ema_decay**total_steps) > _SHARE_OF_THE_START:
        yield (
            f"the initial weights make up {share:.0%} of the Polyak average after the {total_steps:,} steps of the "
            f"run; use a smaller --ema-decay than {recipe.ema_decay:g}, or more --epochs"
        )
    if recipe.swa_start and recipe.epochs - recipe.swa_epochs_before == 1:
        yield "stochastic weight averaging has one epoch, the last; use a smaller --swa-start, or more --epochs"
    if recipe.augment_off_epochs >= recipe.epochs and has_strength(recipe):
        yield (
            f"augmentation is off in the last {recipe.augment_off_epochs} of {recipe.epochs} epochs, which are all; "
            "use a smaller --augment-off-epochs"
        )
    patches = config.num_patches
    remedy = "a larger --set img_size=N" if recipe.init else "a --model with smaller patches, or --set patch_size=N"
    if patches < _FEW_PATCHES and patches < get_config(recipe.model).num_patches:
        yield (
            f"patches of {config.patch_height} x {config.patch_width} cut an image of {config.height} x "
            f"{config.width} into {patches} patches, which is little to learn from; use {remedy}"
        )


def nothing_learnt(
    recipe: Recipe, steps_per_epoch: int, lines: list[dict[str, Any]], labels: Array, held_out: Array, classes: int
) -> tuple[bool, str | None]:
    """Say whether all epochs since the warmup have had the loss and the accuracy of guessing.

    Parameters
    ----------
    recipe : Recipe
        The recipe of the run.
    steps_per_epoch : int
        Its steps in an epoch.
    lines : list of dict
        The metrics of the epochs so far.
    labels, held_out : Array
        The labels of the training images, and of the validation images, of which there may be none.
    classes : int
        The number of classes.

    Returns
    -------
    decided : bool
        Whether there have been enough steps to tell.
    words : str or None
        A sentence if nothing has been learnt.
    """
    epochs = lines[math.ceil(recipe.warmup(steps_per_epoch) / steps_per_epoch) :]
    if len(epochs) * steps_per_epoch < STEPS_TO_LEARN or len(epochs) < min(5, recipe.epochs):
        return False, None
    loss = loss_of_guessing(labels, classes, recipe.label_smoothing)
    if any(line["train_loss"] < 0.98 * loss for line in epochs):
        return True, None
    for part, own in (("train", labels), ("val", held_out)):
        limit = _accuracy_above_guessing(own)
        if any(line.get(f"{part}_accuracy", 0.0) > limit for line in epochs):
            return True, None
    last = lines[-1]["train_loss"]
    state = f"is {last:.4g}, above" if last > 1.02 * loss else "stays at"
    return True, (
        f"nothing has been learnt in {len(lines)} epochs: the loss {state} that of guessing ({loss:.2f}); "
        f"a smaller --lr than {recipe.lr:g} may help, or more epochs"
    )


def loss_of_guessing(labels: Array, classes: int, label_smoothing: float) -> float:
    """Return the smallest mean cross-entropy, with label smoothing, of a prediction that is the same for every image.

    This is the entropy of the mean of the targets.
    """
    shares = np.bincount(labels, minlength=classes) / len(labels)
    targets = (1.0 - label_smoothing) * shares + label_smoothing / classes
    targets = targets[targets > 0]
    return float(-(targets * np.log(targets)).sum())


def _accuracy_above_guessing(labels: Array) -> float:
    """Return an accuracy on images with these labels that guessing does not reach by chance; 1 without images."""
    if not len(labels):
        return 1.0
    share = float(np.bincount(labels).max()) / len(labels)
    return share + _DEVIATIONS * math.sqrt(share * (1.0 - share) / len(labels))
