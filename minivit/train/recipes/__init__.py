"""Recipes by name: that of each data set, and those of published documents, in the TOML files of this folder."""

from __future__ import annotations

import math
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from minivit.errors import UserError, did_you_mean
from minivit.files import read_bytes
from minivit.train.recipe import Recipe

FINE_TUNING = ("finetune", "lightning-tutorial", "paper-finetune")  # the recipes for runs that begin with weights
FOLDERS = {"folder-small": 5_000, "folder": 20_000, "folder-large": math.inf}  # the number of images that is too many
_LARGEST = 1 << 20  # bytes
# The sizes and the stem in `model_options`, which fit the recipe's own model only.
_OF_THE_MODEL = (
    "patch_size", "patch_stride", "conv_stem", "resnet", "embed_dim", "depth", "num_heads", "head_dim", "mlp_ratio",
)  # fmt: skip


def recipe_names() -> list[str]:
    """Return the names that `load_recipe` knows."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def recipe_values(name: str) -> dict[str, Any]:
    """Return the fields that a recipe sets.

    Parameters
    ----------
    name : str
        One of `recipe_names`, or the path of a TOML file, which ends in ".toml".

    Raises
    ------
    UserError
        There is no such recipe, or the file is no TOML or names a data set.
    """
    if name in recipe_names():
        text = (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
    elif name.endswith(".toml"):
        text = read_bytes(Path(name).expanduser(), _LARGEST).decode(errors="replace")
    else:
        known = recipe_names()
        near = did_you_mean(name, known)
        raise UserError(f"there is no recipe {name!r};{near} the recipes are {', '.join(known)}, or a file.toml")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name} is not a recipe: {error}") from error
    if "dataset" in values:
        raise UserError(f"{name} names a data set; leave it out of the recipe and give it to `minivit train`")
    return values


def folder_recipe(images: int) -> str:
    """Return the name of the recipe for a folder, or arrays, with this number of training images.

    It is "folder-small" below 5,000 images, "folder" below 20,000, and "folder-large" from there on.
    """
    return next(name for name, too_many in FOLDERS.items() if images < too_many)


def folder_crop(height: int, width: int) -> int:
    """Return the crops of such a recipe, in pixels, for images of this size: an eighth of the side, 4 of 32."""
    return min(height, width) // 8


def load_recipe(dataset: str, name: str | None = None, **options: Any) -> Recipe:
    """Return a recipe for `dataset` with `options` replaced.

    Parameters
    ----------
    dataset : str
        The data set, or the path of one.
    name : str, optional
        See `recipe_values`; by default the data set's own recipe. For a path it is "folder": `folder_recipe` says which
        recipe is for how many images.
    options
        Fields of the recipe. `model_options` and `task_options` are added to those of the recipe, and `with_replaced`
        is applied to the others. For another `model`, the sizes in the recipe's `model_options` are left out.

    Raises
    ------
    UserError
        There is no such recipe, or a field is unknown or out of range.

    Warns
    -----
    UserWarning
        Fields of the recipe are left out for another model.
    """
    name = name or (dataset if dataset in recipe_names() else "folder")
    of_recipe = recipe_values(name)
    values = values_of_model(values_of_task(of_recipe, options.get("task")), options.get("model"))
    own = options.get("model_options", {}).keys()
    if left := of_recipe.get("model_options", {}).keys() - values.get("model_options", {}).keys() - own:
        warnings.warn(
            f"the recipe {name} sets {', '.join(sorted(left))} for {of_recipe['model']}; {options['model']} keeps its "
            "own",
            UserWarning,
            stacklevel=2,
        )
    options = with_replaced(options)
    for field in {"model_options", "task_options"} & options.keys():
        options[field] = {**values.get(field, {}), **options[field]}
    return replace(Recipe.from_dict({**values, "dataset": dataset}), **options)


def with_replaced(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given fields, and switch off the fields of the recipe that they replace.

    These are the two kinds of random crops, and the steps of the warmup in place of its epochs.
    """
    fields = dict(given)
    if fields.get("resized_crop"):
        fields.setdefault("crop_padding", 0)
    elif fields.get("crop_padding"):
        fields["resized_crop"] = []
    if "warmup_epochs" in fields:
        fields.setdefault("warmup_steps", 0)
    return fields


def values_of_model(values: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """Return the values of a recipe, without the sizes and the stem of its own model if `model` is another.

    A recipe without a model gets `model`.
    """
    own = values.get("model_options", {})
    if model is None or "model" not in values:
        return {**values, **({} if model is None else {"model": model})}
    if not own or values["model"] == model:
        return dict(values)
    return {**values, "model_options": {name: own[name] for name in own if name not in _OF_THE_MODEL}}


def values_of_task(values: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """Return the values of a recipe, without `task_options` if they are those of another task than `task`."""
    other = task is not None and task != values.get("task")
    return {name: value for name, value in values.items() if not (other and name == "task_options")}
