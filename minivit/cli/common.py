"""What several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from minivit.arrays import backend, is_out_of_memory
from minivit.cli.terminal import Terminal
from minivit.data import Dataset, load_dataset
from minivit.data.cifar import batches_in
from minivit.data.load import NAMES
from minivit.errors import RunError, UserError
from minivit.nn.vit import ViT
from minivit.train.run_folder import RunFolder
from minivit.weights import load_model, model_metadata

LABELS_MEAN_STD = ("class_names", "mean", "std")


class CommandResult(NamedTuple):
    """The result of a command: the object that --json prints, and the exit status."""

    values: dict[str, Any]
    status: int = 0


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add --backend, for which `check_backend` answers."""
    parser.add_argument(
        "--backend",
        default="numpy",
        metavar="NAME",
        help="numpy, cupy, or cupy:1 for another GPU than the first (default: numpy)",
    )


def check_backend(name: str) -> None:
    """Raise UserError unless there is a backend `name`, with the device that it names, before any other work."""
    backend(name)


@contextmanager
def enough_memory(backend: str) -> Iterator[None]:
    """Say what helps where the device of `backend` runs out of memory in the block; the host's own error goes on.

    Raises
    ------
    RunError
        In the place of the library's error.
    """
    try:
        yield
    except Exception as error:
        if backend == "numpy" or not is_out_of_memory(error):
            raise
        raise RunError(
            f"the device of --backend {backend} has too little free memory; end what else runs on it, or leave "
            "--backend out (--backend numpy takes none of it)"
        ) from error


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add --data."""
    parser.add_argument("--data", metavar="DIR", help="where CIFAR is, or is downloaded to (default: $MINIVIT_DATA)")


def dataset_name(text: str, gone: bool = False) -> str:
    """Return a data set's name, or its absolute path, also if `gone`, which means the same from everywhere."""
    path = Path(text).expanduser()
    is_path = text not in NAMES and (gone or path.exists())
    return os.path.abspath(path) if is_path else text  # noqa: PTH100 - links stay links


def open_dataset(name: str, image_size: tuple[int, int], data: str | None, terminal: Terminal) -> Dataset:
    """Load a data set with a progress bar; the images of a folder, which may have any size, are resized."""
    path = Path(name)
    is_folder = name not in NAMES and path.is_dir() and not batches_in(path)
    with terminal.progress() as progress:
        return load_dataset(name, data_dir=data, progress=progress, image_size=image_size if is_folder else None)


def open_model(text: str, checkpoint: str, backend: str) -> tuple[ViT, dict[str, Any]]:
    """Load the model of a run folder, or a model file or folder, onto a backend, and what was saved with it.

    Raises
    ------
    UserError
        It is missing or damaged, or does not say which class names, mean and std go with it.
    RunError
        The device has too little memory.
    """
    path = Path(text).expanduser()
    if RunFolder.exists(path):
        path = path / checkpoint
    if not path.exists() and RunFolder.exists(path.parent):
        raise UserError(f"{path.parent} has no {checkpoint} model yet; finish it with `minivit train --resume`")
    about = model_metadata(path)
    missing = [key for key in LABELS_MEAN_STD if key not in about]
    if missing:
        raise UserError(f"{path} does not say its {', '.join(missing)}, which minivit.save_model keeps as extra=")
    with enough_memory(backend):
        model = load_model(path, backend=backend)
    if len(about["class_names"]) != model.config.num_classes:
        raise UserError(
            f"{path} names {len(about['class_names'])} classes, but its head has {model.config.num_classes}"
        )
    return model, about
