"""The images of a command: those of a data set, with labels in the order of a model's classes, and image files."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minivit.arrays import Array
from minivit.cli.common import OpenedModel, dataset_name, open_dataset
from minivit.cli.terminal import Terminal
from minivit.data import Dataset, split_validation
from minivit.data.images import Decoding, decode_file, quiet_pillow
from minivit.data.load import NAMES
from minivit.data.on_demand import Resized, as_on_demand
from minivit.errors import UserError, count_of, counted
from minivit.nn.config import ViTConfig
from minivit.train.run_folder import RunFolder
from minivit.weights.preprocessing import Preprocessing, in_one_form, order_of_classes


class LabelledImages(NamedTuple):
    """Images of a data set, of the size that a model takes, and their labels."""

    dataset: Dataset
    class_names: tuple[str, ...]  # the model's, or the data set's where the model has none
    pixels: Array  # uint8 (n, height, width, C)
    labels: Array  # (n,): the numbers of the classes in the model


def run_folder_of(run: str) -> RunFolder | None:
    """Return the run that an argument names, or None for a model file or folder.

    Raises
    ------
    UserError
        There is neither.
    """
    path = Path(run).expanduser()
    if not path.exists():
        raise UserError(f"there is no run or model {run}")
    return RunFolder.open(path) if RunFolder.exists(path) else None


def dataset_of(run: str, dataset: str | None, folder: RunFolder | None) -> str:
    """Return the name or the path of --dataset, or of the data set of the run.

    Raises
    ------
    UserError
        There is none, or it is gone.
    """
    if dataset is not None:
        return dataset_name(dataset)
    if folder is None:
        raise UserError(f"{run} is not a run and has no data set; give one with --dataset")
    name = folder.recipe.dataset
    if name not in NAMES and not Path(name).exists():
        raise UserError(f"the images of {run} were in {name}, which is gone; give --dataset with their new path")
    return name


def labelled_images(
    run: str, args: argparse.Namespace, opened: OpenedModel, folder: RunFolder | None, split: str, terminal: Terminal
) -> LabelledImages:
    """Return the images of one part, "test", "validation" or "train", of the data set of a run or of --dataset.

    Raises
    ------
    UserError
        There is no such data set or no such part, or its images or classes are not those of the model.

    Warns
    -----
    UserWarning
        The data set of the run has other images than in training.
    """
    name = dataset_of(run, args.dataset, folder)
    dataset = dataset_for(run, name, opened.model.config, opened.preprocessing, args, terminal)
    on_demand = as_on_demand(dataset.test_images)
    if on_demand is not None and isinstance(on_demand.source, Resized):
        source = on_demand.source
        terminal.say(f"the images of {dataset.name} are resized from {_by(source.images.shape)} to {_by(source.shape)}")
    names, order = _class_order(run, opened, dataset)
    own = folder.recipe if folder is not None and _is_trained_on(folder, name, dataset, args, terminal) else None
    if folder is not None and own is None and folder.recipe.dataset == name:
        changed = f"the images or labels of {dataset.name} have changed since {run} was trained on them"
        if split != "test":
            raise UserError(f"{changed}, so that those of --split {split} are not known; leave --split out")
        warnings.warn(f"{changed}; some of the test images may have been training images", stacklevel=2)
    pixels, labels = _part(dataset, split, (own.validation, own.seed) if own else None)
    return LabelledImages(dataset, names, pixels, order[labels])


def _is_trained_on(
    folder: RunFolder, name: str, dataset: Dataset, args: argparse.Namespace, terminal: Terminal
) -> bool:
    """Return whether a run was begun on the images of the data set; where --set changes the model, as trained."""
    if folder.is_trained_on(name, dataset):
        return True
    if folder.recipe.dataset != name or not args.set:
        return False
    from minivit.cli.training import open_images

    return folder.is_trained_on(name, open_images(args, folder.recipe, terminal))


def dataset_for(
    run: str, name: str, config: ViTConfig, preprocessing: Preprocessing, args: argparse.Namespace, terminal: Terminal
) -> Dataset:
    """Return the data set `name` with images as the model of `run` takes them; UserError if it has other channels."""
    size = (config.height, config.width)
    converted = {"channels": config.in_chans} if config.in_chans in (1, 3) else {}
    decoding = {**preprocessing.decoding, **converted}
    dataset = open_dataset(name, size, args.data, terminal, args.skip_bad, args.stream, **decoding)
    channels = dataset.test_images.shape[3]
    if channels != config.in_chans:
        raise UserError(
            f"{run} expects images of {count_of(config.in_chans, 'channel')}, but {dataset.name} has {channels}"
        )
    return dataset


def image_files(paths: Sequence[str], opened: OpenedModel, terminal: Terminal) -> NDArray[np.uint8]:
    """Return the pixels (n, height, width, C) of image files, as the model takes them; say what was done to them.

    Raises
    ------
    UserError
        A file cannot be read as an image.
    """
    config = opened.model.config
    size = (config.height, config.width)
    decoding = Decoding(size, config.in_chans, **opened.preprocessing.decoding)
    images = []
    with quiet_pillow():
        for path in paths:
            file = Path(path).expanduser()
            if not file.exists():
                raise UserError(f"there is no file {path}")
            if file.is_dir():
                raise UserError(f"{path} is a folder; give image files, as --image a.jpg b.jpg")
            pixels, (height, width) = decode_file(file, decoding)
            images.append(pixels)
            done = [f"resized and cropped to {size[0]} x {size[1]}"] if (height, width) != size else []
            mode, needed = _mode(file), "L" if config.in_chans == 1 else "RGB"
            if mode != needed:
                done.append(f"converted from {mode} to {needed}")
            if done:
                terminal.say(f"{path} ({height} x {width}) was {' and '.join(done)}", style="dim")
    return np.stack(images)


def _mode(file: Path) -> str:
    """Return Pillow's name for the channels of an image: L, RGB, RGBA, P, ..."""
    from PIL import Image

    with Image.open(file) as image:
        return image.mode


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[2]}"


def _class_order(run: str, opened: OpenedModel, dataset: Dataset) -> tuple[tuple[str, ...], Array]:
    """Return the model's names of the classes, and for each class of the data set its number in the model.

    Raises
    ------
    UserError
        The model and the data set have different classes.
    """
    known, names = opened.class_names, dataset.class_names
    if known is None:
        if len(names) != opened.model.config.num_classes:
            raise UserError(
                f"{run} has {opened.model.config.num_classes} classes without names, "
                f"but {dataset.name} has {counted(names, 'class', 'classes')}"
            )
        words = f"its classes are taken to be those of {dataset.name} in their order"
        warnings.warn(f"{run} does not name its classes; {words}", stacklevel=2)
        return names, np.arange(len(names))
    order = order_of_classes(known, names)
    if order is None:
        ours, theirs = in_one_form(known), in_one_form(names)
        differ = [f"{name} only {where}" for where, names, others in (("there", ours, theirs), ("here", theirs, ours))
                  for name in names if name not in others]  # fmt: skip
        raise UserError(
            f"{run} has {counted(known, 'class', 'classes')}, but {dataset.name} has "
            f"{counted(names, 'class', 'classes')}: {counted(differ, 'differs', 'differ')}"
        )
    return known, np.array(order)


def _part(dataset: Dataset, split: str, validation: tuple[float, int] | None) -> tuple[Array, Array]:
    if split == "test":
        return dataset.test_images, dataset.test_labels
    if validation is None:
        raise UserError(f"--split {split} needs a run and the data set that it was trained on; leave --split out")
    train_index, validation_index = split_validation(dataset, *validation)
    index = train_index if split == "train" else validation_index
    if not len(index):
        raise UserError("the run has no validation images; leave --split out")
    return dataset.train_images[index], dataset.train_labels[index]
