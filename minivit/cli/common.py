"""Options, loading of data sets and models, and the result type that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
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
from minivit.tracing.figures import FORMATS, new_figure
from minivit.train.run_folder import RunFolder
from minivit.weights import load_model, model_metadata
from minivit.weights.preprocessing import Preprocessing, class_names_of, preprocessing_of

_MODEL_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".json", ".onnx")


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


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add --threads, which `check_threads` checks."""
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="workers; any number gives the same result (default: all cores; at most 8 train)",
    )


def check_threads(threads: int | None) -> None:
    """Raise UserError if the number of workers is less than 1."""
    if threads is not None and threads < 1:
        raise UserError(f"--threads is {threads}; expected at least 1")


def check_backend(name: str) -> None:
    """Raise UserError if the backend `name` or its device does not exist; called before any other work."""
    backend(name)


def device_micro_batch(args: argparse.Namespace) -> int | None:
    """Return --micro-batch on a device; None on the host, where the recipe holds it."""
    return None if args.backend == "numpy" else args.micro_batch or None


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


def check_figure(out: str | None) -> None:
    """Raise UserError, before any work, if no figure can be drawn into the file `out`, or for want of Matplotlib."""
    if out:
        new_figure(1.0, 1.0)
        if Path(out).suffix.removeprefix(".").lower() not in FORMATS:
            raise UserError(f"--out is {out}; expected a file .{' or .'.join(FORMATS)}")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add --data, --skip-bad and --stream."""
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="folder of CIFAR, also for its download (default: $MINIVIT_DATA, else ./data)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="read the images of a folder batch by batch (default: if their pixels take more than 1 GB)",
    )


def dataset_name(text: str, gone: bool = False) -> str:
    """Return the name of a data set, or the absolute path of a folder or file; with `gone`, it need not exist."""
    path = Path(text).expanduser()
    is_path = text not in NAMES and (gone or path.exists())
    return os.path.abspath(path) if is_path else text  # noqa: PTH100 - does not resolve links


def open_dataset(
    name: str,
    image_size: tuple[int, int] | None,
    data: str | None,
    terminal: Terminal,
    skip_bad: bool = False,
    stream: bool | None = None,
    labels: bool = True,
    download: bool = True,
    **decoding: Any,
) -> Dataset:
    """Load a data set with a progress bar, with images of `image_size`, resized as `decoding` says; None: as stored.

    Without `labels`, a folder of images needs no class folders; without `download`, CIFAR is not downloaded
    (`load_dataset`).
    """
    with terminal.progress() as progress:
        return load_dataset(
            name,
            data_dir=data,
            progress=progress,
            image_size=image_size,
            skip_bad=skip_bad,
            stream=stream,
            labels=labels,
            download=download,
            **decoding,
        )


def is_path(text: str) -> bool:
    """Return whether a text means a model file or folder, which need not exist, and not the name of a model."""
    path = Path(text).expanduser()
    return path.exists() or path.suffix in _MODEL_SUFFIXES or path.name != text


def is_folder_of_images(name: str) -> bool:
    """Return whether the data set is a folder whose images may have any size."""
    path = Path(name)
    return name not in NAMES and path.is_dir() and not batches_in(path)


class OpenedModel(NamedTuple):
    """A model with what its file says about classes and images."""

    model: ViT
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing


def open_model(
    text: str,
    checkpoint: str,
    backend: str = "numpy",
    fields: Mapping[str, Any] | None = None,
    needs_head: bool = True,
) -> OpenedModel:
    """Load the model of a run folder, or a model file or folder, onto a backend, with `fields` of `load_model`.

    Raises
    ------
    UserError
        The model is missing or damaged, it has no head though `needs_head`, or its class names, mean or std cannot be
        used.
    RunError
        The device has too little memory.
    """
    path = model_path(text, checkpoint)
    about = model_metadata(path)
    with enough_memory(backend):
        model = load_model(path, backend=backend, **(fields or {}))
    if needs_head and model.config.num_classes == 0:
        raise UserError(f"{text} has no head, and so no classes; `minivit train DATA --init {text}` gives it one")
    names = class_names_of(path, about, model.config)
    return OpenedModel(model, names, preprocessing_of(path, about, model.config))


def model_path(text: str, checkpoint: str) -> Path:
    """Return the path of a model for `load_model`: for a run folder, that of its `checkpoint`, "best" or "last".

    Raises
    ------
    UserError
        The path does not exist, or the run has no such checkpoint yet.
    """
    path = Path(text).expanduser()
    if RunFolder.exists(path):
        path = path / checkpoint
    if not path.exists() and RunFolder.exists(path.parent):
        raise UserError(f"{path.parent} has no {checkpoint} model yet; finish it with `minivit train --resume`")
    if not path.exists():
        raise UserError(f"there is no run or model {text}")
    return path
