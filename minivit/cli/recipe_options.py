"""The options of `minivit train` that set fields of the recipe, and the recipe that a command line asks for."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from minivit.arrays import backend, check_dtype, dtype_named
from minivit.arrays.precision import PRECISIONS
from minivit.cli.common import check_threads, dataset_name, is_folder_of_images
from minivit.cli.model_fields import model_fields
from minivit.data.cifar import cifar_in
from minivit.data.prepared import is_prepared, training_images
from minivit.data.scan import scan_folder
from minivit.engine.device_step import check_precision
from minivit.errors import UserError
from minivit.nn.presets import get_config
from minivit.train.advice import without_effect
from minivit.train.initial import begun_with
from minivit.train.recipe import Recipe
from minivit.train.recipe_checks import AUTO_AUGMENTS, OPTIMIZERS
from minivit.train.recipes import FINE_TUNING, folder_crop, folder_recipe, load_recipe, with_replaced
from minivit.train.run_folder import RunFolder
from minivit.train.schedules import DECAY_SHAPES, SCHEDULES
from minivit.weights.load import OpenedFile

NO_AUGMENT = "none"  # what the option says for ""
# --set cannot set these: the first argument, --task, --init and --model determine them, and micro_batch is a field on
# the host alone.
_NOT_SET = ("dataset", "model", "model_options", "task", "task_options", "init", "micro_batch")
_DEFAULTS = {field.name: field.default for field in fields(Recipe) if field.name not in _NOT_SET}
SET_WORDS = "a field of the model or the recipe, such as depth=4, img_size=224 or betas=0.9,0.95; can be repeated"

# An option that is not given leaves its field unchanged.
RECIPE_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"help": "name of a model, which has its own sizes in place of the recipe's; `minivit info` lists them"},
    "epochs": {"type": int, "help": "number of passes over the training images"},
    "batch_size": {"type": int, "help": "number of images per step"},
    "lr": {"type": float, "help": "maximum learning rate"},
    "schedule": {"choices": SCHEDULES, "help": "learning rate schedule after the warmup; onecycle includes it"},
    "warmup_epochs": {"type": float, "help": "number of epochs of linear warmup"},
    "warmup_steps": {"type": int, "help": "number of steps of linear warmup, in place of --warmup-epochs"},
    "decay_epochs": {"type": float, "help": "number of epochs of decay at the end of wsd; 0: a fifth of all"},
    "decay_shape": {"choices": DECAY_SHAPES, "help": "how the learning rate of wsd falls"},
    "optimizer": {"choices": OPTIMIZERS, "help": "the optimizer"},
    "weight_decay": {"type": float, "help": "weight decay of matrices; biases, norms, tokens and positions have none"},
    "momentum": {"type": float, "help": "momentum of sgd"},
    "muon_momentum": {"type": float, "help": "momentum of muon"},
    "layer_decay": {
        "type": float,
        "help": "factor of the learning rate from a layer to the one before it; 1: none",
    },
    "freeze": {
        "action": "append",
        "metavar": "PATTERN",
        "help": "parameters that are not trained, such as 'blocks.[0-5].*'; can be repeated",
    },
    "clip_norm": {"type": float, "help": "maximum global norm of the gradients; 0: no clipping"},
    "ema_decay": {"type": float, "help": "factor of Polyak averaging, such as 0.9999; 0: none"},
    "swa_start": {"type": float, "help": "fraction of the epochs before stochastic weight averaging; 0: none"},
    "swa_lr": {"type": float, "help": "learning rate of stochastic weight averaging; 0: the schedule's"},
    "on_nan": {
        "choices": ("stop", "rollback"),
        "help": "what NaN does: stop the run, or go back to the end of the last epoch and halve the learning rate, "
        "five times at most",
    },
    "crop_padding": {"type": int, "help": "padding of random crops in pixels; 0: no random crops"},
    "flip": {"action": argparse.BooleanOptionalAction, "help": "flip training images at random"},
    "resized_crop": {
        "type": float,
        "nargs": 2,
        "metavar": ("MIN", "MAX"),
        "help": "smallest and largest fraction of the area of random crops that are resized; replaces --crop-padding",
    },
    "auto_augment": {
        "choices": (*AUTO_AUGMENTS, NO_AUGMENT),
        "help": "TrivialAugment or RandAugment of the training images",
    },
    "rand_ops": {"type": int, "help": "number of operations of RandAugment per image"},
    "rand_magnitude": {"type": int, "help": "magnitude of RandAugment, 0 to 30"},
    "color_jitter": {"type": float, "help": "maximum change of brightness, contrast and saturation; 0: none"},
    "erase_prob": {"type": float, "help": "probability of random erasing; 0: none"},
    "mixup_alpha": {"type": float, "help": "parameter of mixup; 0: none"},
    "cutmix_alpha": {"type": float, "help": "parameter of CutMix; 0: none"},
    "mix_prob": {"type": float, "help": "probability that mixup or CutMix is applied to a batch"},
    "augment_ramp": {
        "type": float,
        "metavar": "EPOCHS",
        "help": "number of epochs over which the strength of augmentation grows",
    },
    "augment_off_epochs": {"type": int, "help": "number of epochs at the end with nothing but crops and flips"},
    "label_smoothing": {"type": float, "help": "label smoothing of the loss"},
    "validation": {
        "type": float,
        "help": "fraction of the training images held out for validation; 0: none. "
        "It has no effect on images with a validation part of their own",
    },
    "micro_batch": {
        "type": int,
        "help": "images per micro-batch of a worker; 0: chosen by the size of the model. On a GPU it is only needed if "
        "the memory is too small for the whole batch",
    },
    "dtype": {"choices": ("float32", "float64"), "help": "dtype of parameters and arithmetic"},
    "seed": {"type": int, "help": "seed of all random numbers"},
}


def add_recipe_options(
    parser: argparse.ArgumentParser, names: Iterable[str] = RECIPE_OPTIONS, usual: str = "that of the data set"
) -> None:
    """Add --recipe and the options of `RECIPE_OPTIONS`, or those called `names`; `usual` is the recipe without one."""
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"name of a recipe, or a file.toml; docs/systems.md lists them (default: {usual})",
    )
    add_fields(parser, names)


def add_fields(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add the options of `RECIPE_OPTIONS` called `names`."""
    for name in names:
        options = RECIPE_OPTIONS[name]
        if not {"choices", "action", "nargs"} & set(options):
            options = {"metavar": name.rpartition("_")[2].upper(), **options}
        parser.add_argument(f"--{name.replace('_', '-')}", **options)


def add_init(parser: argparse.ArgumentParser) -> None:
    """Add --init, for `begun_with`."""
    parser.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="begin with the weights of a run, model file or model folder of any format; they determine the model",
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add --precision, which `check_precision` checks."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="precision of the arithmetic on a GPU; parameters stay float32 (default: float32, the slowest)",
    )


def recipe_fields(texts: Sequence[str]) -> dict[str, Any]:
    """Return the fields of the recipe in texts such as "betas=0.9,0.95", "flip=false" and "freeze="; "" is not an item.

    Texts with other names are left out. `Recipe` checks the values.
    """
    pairs = [(name, value) for name, _, value in (text.partition("=") for text in texts) if name in _DEFAULTS]
    return {name: _parsed(value, _DEFAULTS[name]) for name, value in pairs}


def _parsed(text: str, default: Any) -> Any:
    if isinstance(default, tuple):
        items = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [_parsed(item.strip(), None) for item in items.split(",") if item]
    if isinstance(default, str):
        return text
    for parse in (json.loads, float):
        with suppress(ValueError):
            return parse(text.lower())
    return text


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of the recipe that options or --set give.

    Raises
    ------
    UserError
        A field is given twice.
    """
    options = {name: getattr(args, name, None) for name in RECIPE_OPTIONS}
    given = {name: value for name, value in options.items() if value is not None}
    by_set = recipe_fields(getattr(args, "set", []))
    if twice := sorted(given.keys() & by_set.keys()):
        raise UserError(f"{', '.join(twice)}: given by --set and by an option; leave one out")
    given |= by_set
    if given.get("auto_augment") == NO_AUGMENT:
        given["auto_augment"] = ""
    return with_replaced(given)


def given_fields(args: argparse.Namespace, recipe: Recipe | None = None) -> dict[str, Any]:
    """Return the fields of the recipe that the command line sets, added to the options of the models of `recipe`."""
    given = given_options(args)
    if args.backend != "numpy":
        given.pop("micro_batch", None)  # it is part of the recipe on the host only, where the bits depend on it
    of_model = [text for text in args.set if text.partition("=")[0] not in _DEFAULTS or "=" not in text]
    options = {"model_options": model_fields(of_model, _DEFAULTS), "task_options": getattr(args, "task_options", {})}
    for name, values in options.items():
        if values:
            given[name] = {**(getattr(recipe, name) if recipe else {}), **values}
    if getattr(args, "task", None) is not None:
        given["task"] = args.task
    return given


def warn_without_effect(recipe: Recipe, given: Iterable[str]) -> None:
    """Warn of fields that the command line gives and that have no effect in the recipe."""
    if words := without_effect(recipe, given):
        warnings.warn(words, UserWarning, stacklevel=3)


def check_device_options(args: argparse.Namespace, recipe: Recipe) -> None:
    """Raise UserError for options that contradict each other, before the data set is read or downloaded."""
    check_precision(args.precision, recipe.dtype, args.backend == "numpy")
    if args.precision == "bfloat16":
        check_dtype(backend(args.backend), dtype_named("bfloat16"))
    check_threads(args.threads)
    if args.micro_batch is not None and args.micro_batch < 0:
        raise UserError(f"micro_batch is {args.micro_batch}; expected at least 0")


def asked_recipe(args: argparse.Namespace, usual: str | None = None) -> tuple[Recipe, OpenedFile | None]:
    """Return the recipe of a new run, and the file of --init.

    Without --recipe it is `usual`, or "finetune" if there is --init, else that of the data set, or that for the number
    of images in a folder.

    Raises
    ------
    UserError
        An option, the folder or the file cannot be used.

    Warns
    -----
    UserWarning
        Options have no effect.
    """
    dataset, name = dataset_name(args.dataset), args.recipe or usual
    if RunFolder.exists(Path(dataset)):
        raise UserError(f"{args.dataset} is a run, not a data set; give images, such as those it was trained on")
    if name is None and args.init is not None:
        name = "finetune"
    of_folder = name is None and is_folder_of_images(dataset)
    if of_folder:
        path = Path(dataset)
        name = folder_recipe(training_images(path) if is_prepared(path) else scan_folder(path).training_images)
    elif name is None:
        name = cifar_in(Path(dataset))
    given = given_fields(args)
    recipe = load_recipe(dataset, name, **given)
    warn_without_effect(recipe, given)
    if of_folder and not {"crop_padding", "resized_crop"} & given.keys():
        config = get_config(recipe.model, **recipe.model_options)
        recipe = replace(recipe, crop_padding=folder_crop(config.height, config.width))
    check_device_options(args, recipe)
    if args.init is not None:
        return begun_with(recipe, Path(args.init).expanduser(), args.model)
    if name in FINE_TUNING:
        words = f"the recipe {name} is for fine-tuning, but the run begins with random parameters: give --init FILE"
        warnings.warn(words, UserWarning, stacklevel=2)
    return recipe, None
