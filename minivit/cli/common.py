"""Options, loading of data sets and models, and the result type that several commands share."""

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
    """Add --backend, which `check_backend` checks."""
    parser.add_argument(
        "--backend",
        default="numpy",
        metavar="NAME",
        help="numpy, cupy, or cupy:1 for the second GPU (default: numpy)",
    )


def check_backend(name: str) -> None:
    """Raise UserError if the backend `name` or its device does not exist; called before any other work."""
    backend(name)


@contextmanager
def enough_memory(backend: str) -> Iterator[None]:
    """Give advice if the device of `backend` runs out of memory in the block; an error of the host is not changed.

    Raises
    ------
    RunError
        Replaces the error of the array library.
    """
    try:
        yield
    except Exception as error:
        if backend == "numpy" or not is_out_of_memory(error):
            raise
        raise RunError(
            f"the device of --backend {backend} has too little free memory; stop other programs on it, or leave "
            "--backend out (--backend numpy uses no device memory)"
        ) from error


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add --data."""
    parser.add_argument("--data", metavar="DIR", help="folder of CIFAR, also for its download (default: $MINIVIT_DATA)")


def dataset_name(text: str, gone: bool = False) -> str:
    """Return the name of a data set, or the absolute path of a folder or file; with `gone`, it need not exist."""
    path = Path(text).expanduser()
    is_path = text not in NAMES and (gone or path.exists())
    return os.path.abspath(path) if is_path else text  # noqa: PTH100 - does not resolve links


def open_dataset(name: str, image_size: tuple[int, int], data: str | None, terminal: Terminal) -> Dataset:
    """Load a data set with a progress bar; the images of a folder are resized to `image_size`."""
    path = Path(name)
    is_folder = name not in NAMES and path.is_dir() and not batches_in(path)
    with terminal.progress() as progress:
        return load_dataset(name, data_dir=data, progress=progress, image_size=image_size if is_folder else None)


def open_model(text: str, checkpoint: str, backend: str) -> tuple[ViT, dict[str, Any]]:
    """Load the model of a run folder, or a model file or folder, onto a backend; return it with its metadata.

    Raises
    ------
    UserError
        The model is missing or damaged, or its metadata lack class names, mean or std.
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
        raise UserError(f"{path} lacks {', '.join(missing)}; pass them to minivit.save_model as extra=")
    with enough_memory(backend):
        model = load_model(path, backend=backend)
    if len(about["class_names"]) != model.config.num_classes:
        raise UserError(
            f"{path} names {len(about['class_names'])} classes, but its head has {model.config.num_classes}"
        )
    return model, about
