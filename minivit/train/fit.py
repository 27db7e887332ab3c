"""Training from Python, on arrays, without a run folder: ``minivit.fit``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from minivit.arrays import Array, namespace, on_device_of, to_backend
from minivit.data.dataset import TrainingSet, channel_statistics
from minivit.engine import AnyEngine, Engine, LayerEngine
from minivit.errors import UserError
from minivit.nn.layer import Layer
from minivit.nn.masked import MaskedModel
from minivit.nn.masked_patches import MaskedPatches
from minivit.nn.model import Model
from minivit.nn.vit import ViT
from minivit.ops.augment import normalize
from minivit.train.evaluation import predictions
from minivit.train.fit_arrays import as_pixels, training_samples, with_validation, without_labels
from minivit.train.recipe import Recipe, expect_augmentable
from minivit.train.recipes import folder_crop, folder_recipe, recipe_values, with_replaced
from minivit.train.training import Training

# The images and the model determine these fields, whatever the recipe says.
_GIVEN = ("dataset", "model", "model_options", "task", "task_options", "init", "dtype")


class EpochMetrics(NamedTuple):
    """The metrics of an epoch.

    Those of validation are None without validation images, and accuracies are None for a model that gives losses.
    """

    epoch: int
    step: int  # the steps so far
    learning_rate: float
    train_loss: float
    train_accuracy: float | None
    images_per_second: float
    seconds: float  # of all steps so far
    val_loss: float | None = None
    val_accuracy: float | None = None

    def __str__(self) -> str:
        words = f"epoch {self.epoch}: loss {self.train_loss:.4f}{_accuracy(self.train_accuracy)}"
        if self.val_loss is not None:
            words += f"; validation loss {self.val_loss:.4f}{_accuracy(self.val_accuracy)}"
        return f"{words}; {self.images_per_second:,.0f} images/s"


def _accuracy(share: float | None) -> str:
    return "" if share is None else f", accuracy {share:.1%}"


@dataclass(frozen=True)
class FitResult:
    """The result of `fit`.

    Attributes
    ----------
    model : Layer
        The model that was given, with the parameters of the best epoch.
    recipe : Recipe
        All settings of the training.
    epochs : tuple of EpochMetrics
        The metrics of each epoch.
    best_epoch : int
        The epoch, from 1, whose parameters the model has: the best one on the validation images, else the last.
    mean, std : tuple of float
        Mean and deviation of each channel for pixels from 0 to 1, with which images are normalised.
    num_outputs : int
        The number of logits of an image.
    """

    model: Layer
    recipe: Recipe
    epochs: tuple[EpochMetrics, ...]
    best_epoch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_outputs: int

    def __repr__(self) -> str:
        last = self.epochs[-1]
        return f"FitResult({type(self.model).__name__} after epoch {self.best_epoch} of {len(self.epochs)}; {last})"

    def predict(self, images: Array, threads: int | None = None) -> Array:
        """Return the logits (B, classes), or losses (B, 1), of images that are given as to `fit`, on the host.

        Parameters
        ----------
        images : Array
            (B, height, width, C): uint8, or floats from 0 to 1.
        threads : int, optional
            The number of workers of a ViT; the machine's cores by default.

        Raises
        ------
        UserError
            The images have another shape, dtype, range or number of channels.
        """
        pixels = as_pixels(images, "images")
        if pixels.shape[3] != len(self.mean):
            raise UserError(f"images have {pixels.shape[3]} channels; the model was trained on {len(self.mean)}")
        with _engine(self.model, self.recipe, self.num_outputs, threads) as engine:
            return np.concatenate([logits for _, logits in predictions(engine, pixels, self.mean, self.std)])


def fit(
    model: Layer,
    images: Array,
    labels: Array | None = None,
    *,
    recipe: Recipe | str | Mapping[str, Any] | None = None,
    validation: tuple[Array, Array | None] | Array | None = None,
    threads: int | None = None,
    seed: int | None = None,
    verbose: bool = False,
    **overrides: Any,
) -> FitResult:
    """Train a model in place on arrays of images and labels; no file is written.

    With the initial parameters, images and recipe of a run of ``minivit train``, a ViT ends with the same bits as the
    model in that run's best/.

    Parameters
    ----------
    model : Layer
        A ViT, or a masked model of `minivit.layers`, which are trained through `Engine`, or any other layer that turns
        images (B, height, width, C) into logits (B, classes). It determines the dtype and the device.
    images : Array
        (n, height, width, C) on the host: uint8, or floats from 0 to 1, which are rounded to the 256 values of uint8.
    labels : Array, optional
        (n,) integers from 0 to the number of classes - 1. A masked model reads none.
    recipe : Recipe, str or dict, optional
        A recipe; a name or file, as ``minivit train --recipe`` takes it; or fields of `Recipe`, whose defaults fill in
        the rest. By default that for the number of images, see `folder_recipe`, with crops of an eighth of the side;
        for a masked model "pretrain", and for another layer "layer".
        Its data set, model, `init` and dtype are not used.
    validation : tuple of two arrays, or array, optional
        Images and labels, or for a masked model images alone, to choose the best epoch on. By default the recipe's
        share of the training images.
    threads : int, optional
        The number of workers of a ViT, the machine's cores by default; it changes no bit of the result.
    seed : int, optional
        The seed of the validation split, the order of the images, augmentation and dropout; by default the recipe's, 0.
    verbose : bool
        Whether a line is printed after each epoch.
    **overrides
        Fields of `Recipe` that replace those of `recipe`, such as ``epochs=5``. A given kind of random crop
        replaces the other, and ``warmup_epochs`` replaces ``warmup_steps``.

    Returns
    -------
    FitResult
        The metrics of each epoch, and `FitResult.predict`.

    Raises
    ------
    UserError
        The images, the labels, the recipe and the model do not fit each other.
    RunError
        The loss is not finite; the model has the parameters before that step.
    """
    pixels, labels = training_samples(model, images, labels)
    if recipe is None:
        recipe, overrides = _default_recipe(model, pixels, overrides)
    settings = _recipe(model, recipe, seed, overrides)
    expect_augmentable(settings, *pixels.shape[1:])
    mean, std = _mean_and_std(model, settings, pixels)
    held_out = None
    if validation is not None:
        if isinstance(model, MaskedModel):
            validation = without_labels(validation)
        pixels, labels, held_out = with_validation(pixels, labels, validation)
    count = 1 if isinstance(model, MaskedModel) else _number_of_outputs(model, pixels, mean, std)
    names = tuple(map(str, range(count)))
    data = TrainingSet.of("fit", pixels, labels, names, mean, std, held_out)
    if isinstance(model, Model):
        settings = settings.resolved(model)
    with on_device_of(model.parameters.store.values), _engine(model, settings, count, threads) as engine:
        epochs, best_epoch = _train(Training(engine, data, settings), verbose)
    return FitResult(model, settings, tuple(epochs), best_epoch, mean, std, count)


def _train(training: Training, verbose: bool) -> tuple[list[EpochMetrics], int]:
    """Train all epochs; return their metrics, and the epoch whose parameters the model has then."""
    values = training.model.parameters.store.values
    training.averaging.begin()
    epochs, best = [], values.copy()
    for epoch in range(1, training.recipe.epochs + 1):
        for samples in training.batches(epoch - 1):
            training.take_step(samples)
            if training.train_step.metrics.full:
                list(training.read_steps())
        list(training.read_steps())
        epochs.append(EpochMetrics(**{"train_accuracy": None, **training.end_epoch(epoch)}))
        if training.state.best_epoch == epoch:
            with training.averaging.applied():
                best[...] = values
        if verbose:
            sys.stdout.write(f"{epochs[-1]}\n")
    values[...] = best
    return epochs, training.state.best_epoch


def _default_recipe(model: Layer, pixels: Array, overrides: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the recipe of a model that is given none, and the overrides with the crop of its images."""
    if isinstance(model, MaskedModel):
        return "pretrain", overrides
    if not isinstance(model, ViT):
        return "layer", overrides
    crop = 0 if overrides.get("resized_crop") else folder_crop(*pixels.shape[1:3])
    return folder_recipe(len(pixels)), {"crop_padding": crop, **overrides}


def _mean_and_std(model: Layer, recipe: Recipe, pixels: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return those of the recipe, else those of the training images; a model that predicts colours has its own."""
    if not isinstance(model, MaskedPatches):
        return (recipe.mean, recipe.std) if recipe.mean else channel_statistics(pixels)
    if recipe.mean:
        raise UserError("mean and std are those of the model; leave them out of the recipe")
    channels = pixels.shape[3]
    if len(model.mean) not in (1, channels):
        raise UserError(f"the model has {len(model.mean)} channels, and the images {channels}")
    mean, std = (tuple(np.broadcast_to(values, channels).tolist()) for values in (model.mean, model.std))
    return mean, std


def _engine(model: Layer, recipe: Recipe, num_outputs: int, threads: int | None) -> AnyEngine:
    on_host = namespace(model.parameters.store.values) is np
    micro_batch = recipe.micro_batch or None if on_host else None  # on a device it has no effect, as in a run
    if isinstance(model, Model):
        return Engine(model, threads, micro_batch, None, recipe.reduction_groups or None)
    return LayerEngine(model, num_outputs, micro_batch)


def _recipe(model: Layer, recipe: Any, seed: int | None, overrides: Mapping[str, Any]) -> Recipe:
    if wrong := sorted({*overrides} & {*_GIVEN}):
        raise UserError(f"{', '.join(wrong)} cannot be given to fit: the images and the model determine it")
    if isinstance(recipe, str):
        fields = recipe_values(recipe)
    elif isinstance(recipe, Recipe):
        fields = recipe.to_dict()
    elif isinstance(recipe, Mapping):
        fields = dict(recipe)
    else:
        raise UserError(f"recipe is a {type(recipe).__name__}; expected a Recipe, the name of one or a dict of fields")
    fields = {name: value for name, value in fields.items() if name not in _GIVEN} | with_replaced(overrides)
    if seed is not None:
        fields["seed"] = seed
    if fields.get("on_nan", "stop") != "stop":
        raise UserError("on_nan goes back to a checkpoint, which fit does not write; leave it out, or use a run folder")
    dtype = str(model.parameters.store.values.dtype)
    task = model.task if isinstance(model, MaskedModel) else ""
    return Recipe.from_dict(
        {**fields, "dataset": "arrays", "model": type(model).__name__, "task": task, "dtype": dtype}
    )


def _number_of_outputs(model: Layer, pixels: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> int:
    """Return the number of logits of an image, after a prediction of the first one."""
    values = model.parameters.store.values
    with on_device_of(values):
        first = model(to_backend(normalize(pixels[:1], mean, std, values.dtype), namespace(values)))
    if first.ndim != 2 or len(first) != 1:
        raise UserError(
            f"{type(model).__name__} turns one image into an array of shape {first.shape}; expected logits (1, classes)"
        )
    return cast("int", first.shape[1])
