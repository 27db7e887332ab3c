"""``minivit prepare``: decode and resize the images of a data set once, into files that training reads in batches."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from minivit.cli.common import CommandResult, add_data, dataset_name, is_folder_of_images
from minivit.cli.model_fields import add_set
from minivit.cli.recipe_options import add_init, add_recipe_options, asked_recipe
from minivit.cli.terminal import Terminal
from minivit.cli.training import command_of, image_size, open_images
from minivit.data.images import Decoding
from minivit.data.load import NAMES
from minivit.data.prepared import expect_new, is_prepared, load_prepared, prepare_dataset, prepare_folder
from minivit.errors import program

HELP = "decode and resize images once, for training from disk"
DESCRIPTION = """\
Decode the images of a data set and resize them as a recipe does, into a new
folder OUT that stands for the data set in every command. Training on it begins
at once, reads one batch after another from the disk, and so works on more
images than fit in memory. The size is that of the model that `minivit train`
would train with the same options."""
EXAMPLES = """\
examples:
  minivit prepare photos/ photos-prepared/
  minivit prepare photos/ photos-224/ --set img_size=224
  minivit prepare photos/ photos-vit/ --init vit_tiny_patch16_224.safetensors
  minivit prepare unlabelled/ prepared/ --recipe pretrain
  minivit train photos-prepared/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("dataset", metavar="DATA", help="digits, cifar10, cifar100, or a path")
    parser.add_argument("out", metavar="OUT", help="the folder to write: a new one, or an empty one")
    add_recipe_options(parser, ["model"])
    add_init(parser)
    add_set(parser, "a field of the model, such as img_size=224; can be repeated")
    add_data(parser)
    parser.set_defaults(backend="numpy", precision=None, threads=None, micro_batch=None)  # nothing is computed


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    name, out = dataset_name(args.dataset), Path(args.out).expanduser()
    expect_new(out)
    recipe, _ = asked_recipe(args)
    decoding = Decoding(image_size(recipe), **recipe.decoding)
    if is_folder_of_images(name) and not is_prepared(Path(name)):
        with terminal.progress() as progress:
            labels = not recipe.task
            prepare_folder(Path(name), out, decoding, skip_bad=args.skip_bad, progress=progress, labels=labels)
    else:
        dataset = open_images(args, recipe, terminal)
        with terminal.progress() as progress:
            prepare_dataset(dataset, out, decoding, progress)
    dataset = load_prepared(out, Decoding(), stream=True, labels=False)
    _, height, width, channels = dataset.train_images.shape
    validation = 0 if dataset.validation_index is None else len(dataset.validation_index)
    train, test = len(dataset.train_images) - validation, len(dataset.test_images)
    size = (out / "images.npy").stat().st_size
    counts = f"{train:,} training{f', {validation:,} validation' if validation else ''} and {test:,} test images"
    terminal.show(f"wrote {out}: {counts} of {height} x {width} x {channels}, {size / 1e6:,.0f} MB")
    if name in NAMES and not args.init:
        args.recipe = args.recipe or name  # otherwise that for a folder
    given = [word for option in ("recipe", "model", "init") if (value := getattr(args, option))
             for word in (f"--{option}", value)]  # fmt: skip
    given += [word for field in args.set or () for word in ("--set", field)]
    terminal.show(f"next: {program()} {command_of(recipe)} {shlex.join([str(out), *given])}")
    images = {"training_images": train, "validation_images": validation, "test_images": test}
    values = {"out": str(out), **images, "bytes": size, "image_size": [height, width], "channels": channels}
    return CommandResult(values)
