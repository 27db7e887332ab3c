"""``minivit augment``: a contact sheet of training images as the steps of a recipe see them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minivit.cli.common import CommandResult, add_data, dataset_name
from minivit.cli.recipe_options import add_fields, given_options, warn_without_effect
from minivit.cli.terminal import Terminal
from minivit.cli.training import open_images
from minivit.data import Dataset
from minivit.data.dataset import split_validation
from minivit.data.load import NAMES, NotOnDiskError
from minivit.errors import UserError, count_of, expect_whole
from minivit.files import atomic_write
from minivit.random import Key
from minivit.train.augmentation import Augmentation
from minivit.train.recipe import Recipe, expect_augmentable
from minivit.train.recipes import load_recipe

HELP = "draw training images as a recipe augments them"
DESCRIPTION = """\
Draw a contact sheet. Each row is a training image. The first column shows the
image as it is, each other column as a step of the run sees it, from the first
step to the last. The rows are one batch: with mixup or CutMix, row i from the
top is mixed with row i from the bottom. --dataset names the images. Without it
they are those of the data set whose name begins that of the recipe, or the
digits if that data set is not on disk."""
EXAMPLES = """\
examples:
  minivit augment cifar10 --out sheet.png
  minivit augment cifar10 --auto-augment trivial --cutmix-alpha 1
  minivit augment my.toml --dataset photos/ --rows 4 --columns 12"""

FIELDS = (
    "crop_padding", "flip", "resized_crop", "auto_augment", "rand_ops", "rand_magnitude", "color_jitter", "erase_prob",
    "mixup_alpha", "cutmix_alpha", "mix_prob", "augment_ramp", "augment_off_epochs", "epochs", "batch_size", "seed",
)  # fmt: skip
_SIDE = 64  # pixels that the side of a small image is enlarged to
_GAP = 4
_WHITE = 255


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("recipe", metavar="RECIPE", help="name of a recipe, or a file.toml")
    parser.add_argument("--out", metavar="FILE", default="augment.png", help="the file .png (default: augment.png)")
    parser.add_argument("--dataset", metavar="DATA", help="digits, cifar10, cifar100, or a path")
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="number of images (default: 8)")
    parser.add_argument("--columns", type=int, default=10, metavar="N", help="number of steps (default: 10)")
    add_fields(parser, FIELDS)
    add_data(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    expect_whole("rows", args.rows)
    expect_whole("columns", args.columns)
    out = Path(args.out).expanduser()
    if out.suffix.lower() != ".png":
        raise UserError(f"--out is {args.out}; expected a file .png")
    name = dataset_name(args.dataset) if args.dataset else _named_by(args.recipe)
    given = given_options(args)
    recipe = load_recipe(name, args.recipe, **given)
    warn_without_effect(recipe, given)
    dataset, recipe = _opened(args, recipe, terminal)
    expect_augmentable(recipe, *dataset.train_images.shape[1:])
    index = split_validation(dataset, recipe.validation, recipe.seed)[0]
    steps_per_epoch = -(-len(index) // recipe.batch_size)
    steps = np.linspace(0, recipe.epochs * steps_per_epoch - 1, args.columns).round().astype(int).tolist()
    augmentation = Augmentation(recipe, steps_per_epoch)
    rows = index[np.linspace(0, len(index) - 1, min(args.rows, len(index))).astype(int)]  # of several classes
    sheet = contact_sheet(dataset, rows, augmentation, recipe.seed, steps)
    _write(sheet, out)
    strengths = [augmentation.strength(step) for step in steps]
    epochs = [step // steps_per_epoch + 1 for step in steps]
    count = len(rows)
    terminal.say(f"{count_of(count, 'training image')} of {dataset.name}, as they are and at {len(steps)} steps")
    shown = ", ".join(f"{epoch} ({strength:.0%})" for epoch, strength in zip(epochs, strengths, strict=True))
    terminal.say(f"epochs and strengths of the columns: {shown}")
    terminal.show(f"wrote {out}")
    values: dict[str, Any] = {"sheet": str(out), "dataset": dataset.name, "rows": count}
    return CommandResult({**values, "epochs": epochs, "strengths": strengths})


def contact_sheet(
    dataset: Dataset, index: NDArray[np.int64], augmentation: Augmentation, seed: int, steps: list[int]
) -> NDArray[np.uint8]:
    """Return the training images `index` (B,), and at each of `steps`, side by side: uint8 (height, width, C)."""
    images = np.asarray(dataset.train_images[index])
    labels = dataset.train_labels[index]
    columns = [images]
    for step in steps:
        augmented = augmentation.images(images, Key(seed, step, index)).astype(np.float32)
        mixed, _ = augmentation.mixed(augmented, labels, len(dataset.class_names), step)
        columns.append(np.rint(mixed).astype(np.uint8))
    times = max(1, _SIDE // max(images.shape[1:3]))
    tiles = np.stack(columns, axis=1).repeat(times, axis=2).repeat(times, axis=3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=_WHITE)
    B, count, height, width, C = tiles.shape
    sheet: NDArray[np.uint8] = tiles.swapaxes(1, 2).reshape(B * height, count * width, C)
    return sheet[:-_GAP, :-_GAP]


def _named_by(recipe: str) -> str:
    """Return the data set whose name begins that of a recipe, or digits."""
    fitting = [name for name in NAMES if Path(recipe).stem.startswith(name)]
    return max(fitting, key=len, default="digits")


def _opened(args: argparse.Namespace, recipe: Recipe, terminal: Terminal) -> tuple[Dataset, Recipe]:
    """Return the data set and the recipe for it: the digits if that of the recipe's name is not on disk."""
    if args.dataset is None:
        try:
            return open_images(args, recipe, terminal, download=False), recipe
        except NotOnDiskError:
            if args.data is not None:
                raise
            terminal.say(f"{recipe.dataset} is not on disk; the images are the digits")
            recipe = replace(recipe, dataset="digits")
    return open_images(args, recipe, terminal), recipe


def _write(sheet: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    image = Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet)
    atomic_write(path, lambda file: image.save(file, format="png"))
