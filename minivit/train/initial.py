"""A run that begins with the weights of a file: fine-tuning."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.presets import get_config, nearest_preset
from minivit.nn.vit import ViT
from minivit.train.recipe import Recipe
from minivit.weights import fingerprint, model_metadata
from minivit.weights.adapt import adapted_config
from minivit.weights.layout import TRAINING_FIELDS
from minivit.weights.load import OpenedFile, open_model_file
from minivit.weights.preprocessing import FITS, class_names_of, order_of_classes, preprocessing_of

# What the data set and the run determine, whatever the weights are.
_FREE = {"num_classes", "img_size", "in_chans", "representation_size", "representation_act"} | TRAINING_FIELDS


def begun_with(recipe: Recipe, path: str | os.PathLike[str], model: str | None = None) -> tuple[Recipe, OpenedFile]:
    """Return the recipe of a run that begins with the weights of a file, and this file, of which the headers are read.

    Parameters
    ----------
    recipe : Recipe
        Its `model_options` are passed to `load_model`. Its `model` is not used.
    path : path
        The file, as for `load_model`.
    model : str, optional
        The preset that the weights should be of; it also supplies the number of heads if the file does not define it.

    Returns
    -------
    recipe : Recipe
        The recipe with the model of the file, its preprocessing where the recipe has none of its own, and the
        fingerprint of the file.
    start : OpenedFile
        The file, for `Trainer`.

    Raises
    ------
    UserError
        The file cannot be loaded with these options, or its model is not the preset.
    """
    options = dict(recipe.model_options)
    start = _opened(path, options, model)
    config = start.wanted(options)
    if model is not None and (differ := _differences(get_config(model), config)):
        raise UserError(
            f"{path} does not hold the weights of {model}: {', '.join(differ)}; leave --model out, the model is that "
            "of the weights"
        )
    name, model_options = nearest_preset(replace(config, num_classes=1), model)
    asked = {name: options[name] for name in ("num_classes",) if name in options}  # else as many as the data set has
    model_options = {name: value for name, value in model_options.items() if name != "num_classes"} | asked
    model_options |= {"img_size": _plain(config.img_size), "in_chans": config.in_chans}
    images = preprocessing_of(os.fspath(path), model_metadata(path), config)
    modes = {fit: mode for mode, fit in FITS.items()}
    begun = replace(
        recipe,
        model=name,
        model_options={name: _plain(value) for name, value in model_options.items()},
        init=fingerprint(path),
        mean=recipe.mean or images.mean,
        std=recipe.std or images.std,
        crop_pct=recipe.crop_pct or images.crop_fraction,
        crop_mode=recipe.crop_mode or modes[images.fit],
        interpolation=recipe.interpolation or images.interpolation,
    )
    return begun, start


def begun_again(recipe: Recipe, path: str | os.PathLike[str]) -> OpenedFile:
    """Return the file of weights of a run that has begun, for one that has no checkpoint to go on from.

    Parameters
    ----------
    recipe : Recipe
        The recipe of the run, which `begun_with` returned.
    path : path
        The same file as then.

    Raises
    ------
    UserError
        The file cannot be loaded.
    """
    options = {name: value for name, value in recipe.model_options.items() if name != "representation_size"}
    return _opened(path, options, recipe.model)  # the file has the head that `options_with_head` may have removed


def _opened(path: str | os.PathLike[str], options: dict[str, Any], model: str | None) -> OpenedFile:
    """Open a file, with the number of heads of the preset `model` if neither the file nor an option defines it."""
    try:
        return open_model_file(path, options)
    except UserError:
        if model is None or "num_heads" in options:
            raise
        return open_model_file(path, options | {"num_heads": get_config(model).num_heads})


def options_with_head(recipe: Recipe, start: OpenedFile, classes: int) -> dict[str, Any]:
    """Return the recipe's options of the model, without the hidden layer of a head for another number of classes."""
    replaced = start.config.representation_size and start.config.num_classes != classes
    return dict(recipe.model_options) | ({"representation_size": 0} if replaced else {})


def order_in_head(start: OpenedFile, class_names: Sequence[str]) -> list[int] | None:
    """Return for each of `class_names` its number in the head of `start`, or None if the head is for other classes.

    Classes of the weights that have no names are taken to be as many classes in their order.
    """
    known = class_names_of(start.path, model_metadata(start.path), start.config)
    return list(range(start.config.num_classes)) if known is None else order_of_classes(known, class_names)


def begun_model(start: OpenedFile, config: ViTConfig, class_names: Sequence[str], dtype: str, backend: str) -> ViT:
    """Return a model of `config` with the weights of `start`, and a head of zeros for other classes.

    A head for the same classes in another order is put into the order of `class_names`. Of a head for as many classes
    with other names, a hidden layer is kept.

    Raises
    ------
    UserError
        The models differ in more than the head, the size of images, and what matters in training alone.
    """
    fitting = adapted_config(start.config, {"num_classes": config.num_classes, "img_size": config.img_size})
    if differ := _differences(config, fitting, TRAINING_FIELDS):
        raise UserError(f"the run's model differs from the weights in {start.path}: {', '.join(differ)}")
    model = start.load(config, dtype, backend)
    if model.head is not None and start.config.num_classes == config.num_classes:
        order = order_in_head(start, class_names)
        for parameter in model.head.parameters.values():
            parameter.value[...] = 0 if order is None else parameter.value[..., order]
    return model


def _differences(asked: ViTConfig, found: ViTConfig, free: set[str] = _FREE) -> list[str]:
    """Return "field a and b" for each field in which the configurations differ, except for those that are free."""
    names = [field.name for field in fields(asked) if field.name not in free]
    pairs = {name: (getattr(asked, name), getattr(found, name)) for name in names}
    return [f"{name} {one!r} and {other!r}" for name, (one, other) in pairs.items() if one != other]


def _plain(value: Any) -> Any:
    """Return a field as `--set` and recipe.json have it: one number for a square, a list for a tuple."""
    if isinstance(value, tuple):
        return value[0] if len(value) == 2 and value[0] == value[1] else list(value)
    return value
