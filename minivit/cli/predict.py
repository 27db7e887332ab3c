"""``minivit predict``: classify image files with a trained model."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

import numpy as np

from minivit.arrays import Array, to_host
from minivit.cli.common import (
    CommandResult,
    OpenedModel,
    add_backend,
    add_threads,
    check_backend,
    check_threads,
    enough_memory,
    open_model,
)
from minivit.cli.model_fields import add_set, model_fields
from minivit.cli.reporters import percent
from minivit.cli.terminal import Terminal, complain
from minivit.data.images import Decoding, decode_file, quiet_pillow
from minivit.data.search import images_in
from minivit.engine import Engine
from minivit.engine.machine import cores
from minivit.errors import UserError, count_of, counted
from minivit.files import atomic_write
from minivit.nn.config import ViTConfig
from minivit.ops import softmax
from minivit.train.evaluation import image_transform

HELP = "classify image files with a trained model"
DESCRIPTION = """\
Classify image files with the best model of a run, or with a model file. Of a
folder, all images in it and in its folders are classified. An image is
converted to the model's channels, resized, cropped and normalised as the
model's file says. If a file cannot be read, the others are classified and the
exit status is 2."""
EXAMPLES = """\
examples:
  minivit predict runs/cifar10-1 cat.jpg dog.png --top 3
  minivit predict runs/cifar10-1 photos/ --csv classes.csv"""

PIECE = 128  # images in memory at a time
MANY = 20  # images; of more, only the first class is shown unless --top is given
SHOWN = 5


class Prediction(NamedTuple):
    """The most probable classes of an image, with their probabilities, the most probable first."""

    path: str
    top: list[tuple[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return the object for --json."""
        return {"path": self.path, "top": [{"label": label, "probability": share} for label, share in self.top]}


class Files(NamedTuple):
    """The image files that a command names; what happens to them is added to the lists."""

    images: list[str]
    skipped: list[str]  # files in folders that are not images
    errors: list[tuple[str, str]]  # (path, message)
    resized: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", metavar="RUN", help="a run folder, or a model file or folder")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument(
        "--top",
        type=int,
        metavar="K",
        help=f"number of classes to show (default: {SHOWN}, or 1 in a list of more than {MANY} images)",
    )
    parser.add_argument(
        "--csv", metavar="FILE", help="write a line for each image: its path, classes and probabilities; -: print it"
    )
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which checkpoint (default: best)"
    )
    add_set(parser)
    add_threads(parser)
    add_backend(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command; the exit status is 2 if a file could not be read."""
    check_backend(args.backend)
    check_threads(args.threads)
    if args.top is not None and args.top < 1:
        raise UserError(f"--top is {args.top}; expected at least 1")
    if args.csv == "-" and args.json:
        raise UserError("--csv - and --json both print to standard output; leave one of them out")
    if args.csv == "-":
        terminal = Terminal(json=True)  # only the lines of the images go to standard output
    opened = open_model(args.run, args.checkpoint, args.backend, model_fields(args.set))
    files = _files(args.images)
    top = min(SHOWN if args.top is None else args.top, opened.model.config.num_classes)
    predictions = _classify(files, opened, top, args, terminal)
    kept = list(predictions) if args.csv is None or args.json else []
    if args.csv is None:
        many = args.top is None and len(kept) > MANY
        _show(kept, 1 if many else top, terminal)
    else:
        _write(args.csv, kept if args.json else predictions, top)
        if args.csv != "-" and files.images:
            terminal.say(f"the classes are in {args.csv}")
    _say_what_happened(files, opened.model.config, terminal)
    values: dict[str, Any] = {"predictions": [prediction.to_dict() for prediction in kept]}
    if not files.errors:
        return CommandResult(values)
    _complain(files.errors)
    return CommandResult(values | {"errors": [{"path": path, "error": error} for path, error in files.errors]}, 2)


def _files(names: Sequence[str]) -> Files:
    """Return the files among `names`, and those with the suffix of an image in the folders among them."""
    files = Files([], [], [], [])
    for name in map(os.path.expanduser, names):
        if not Path(name).is_dir():
            files.images.append(name)
            continue
        unread = len(files.errors)
        images = images_in(name, files.skipped, files.errors)
        files.images.extend(image.path for image in images)
        if not images and len(files.errors) == unread:
            files.errors.append((name, f"the folder {name} holds no images, files such as x.jpg or x.png"))
    return files


def _classify(
    files: Files, opened: OpenedModel, top: int, args: argparse.Namespace, terminal: Terminal
) -> Iterator[Prediction]:
    """Yield the predictions of the images that can be read; they are decoded in pieces, to bound the memory."""
    model, _, preprocessing = opened
    names = opened.class_names or tuple(map(str, range(model.config.num_classes)))
    # Starting a second worker takes longer than it saves for a few images.
    threads = 1 if len(files.images) <= model.micro_batch else args.threads
    with (
        enough_memory(args.backend),
        Engine(model, threads) as engine,
        terminal.progress() as progress,
    ):
        transform = image_transform(engine, preprocessing.mean, preprocessing.std)
        for start in range(0, len(files.images), PIECE):
            if len(files.images) > PIECE:
                progress("classifying images", start, len(files.images))
            paths, pixels = _read(files, slice(start, start + PIECE), opened, args.threads or cores())
            if not paths:
                continue
            logits = to_host(engine.predict(transform(np.stack(pixels))))
            if not np.isfinite(logits).all():
                raise UserError(f"the logits of {args.run} are not finite: use another checkpoint")
            for path, probabilities in zip(paths, softmax(logits, keep=False)[0], strict=True):
                order = np.argsort(-probabilities, kind="stable")[:top]
                yield Prediction(path, [(names[label], float(probabilities[label])) for label in order])


def _read(files: Files, piece: slice, opened: OpenedModel, threads: int) -> tuple[list[str], list[Array]]:
    """Return the paths and the pixels of those images of a piece that can be read."""
    config = opened.model.config
    size = (config.height, config.width)
    decoding = Decoding(size, config.in_chans, **opened.preprocessing.decoding)

    def read(path: str) -> tuple[Array, tuple[int, int]] | UserError:
        try:
            if not Path(path).exists():
                raise UserError(f"there is no file {path}")
            return decode_file(Path(path), decoding)
        except UserError as error:
            return error

    # The threads end before the engine starts its workers, which are forks of this process.
    with quiet_pillow(), ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(read, files.images[piece]))
    paths, images = [], []
    for path, result in zip(files.images[piece], results, strict=True):
        if isinstance(result, UserError):
            files.errors.append((path, str(result)))
            continue
        pixels, (height, width) = result
        paths.append(path)
        images.append(pixels)
        if (height, width) != size:
            files.resized.append(f"{path} ({height} x {width})")
    return paths, images


def _write(target: str, predictions: Iterable[Prediction], top: int) -> None:
    """Write a line for each prediction to the file `target`, which is opened before any work, or print it for "-"."""

    def rows(text: TextIO) -> None:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", *(f"{what}_{k}" for k in range(1, top + 1) for what in ("class", "probability"))])
        writer.writerows([path, *itertools.chain(*pairs)] for path, pairs in predictions)
        text.flush()

    def into(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        rows(text)
        text.detach()

    if target == "-":
        rows(sys.stdout)
    else:
        atomic_write(Path(target).expanduser(), into)


def _show(predictions: list[Prediction], top: int, terminal: Terminal) -> None:
    width = max(20, terminal.console.width - 50)
    rows = []
    for path, pairs in predictions:
        name = path if len(path) <= width else f"...{path[3 - width :]}"
        for rank, (label, share) in enumerate(pairs[:top]):
            bar = "█" * round(20 * share) if terminal.live else ""
            rows.append((name if rank == 0 else "", percent(share), label, bar))
    if rows:
        terminal.table(("image", ">probability", "class", ""), rows)


def _say_what_happened(files: Files, config: ViTConfig, terminal: Terminal) -> None:
    """Say in a line each how many images were resized and how many files of folders were skipped."""
    if files.resized:
        what = files.resized[0] if len(files.resized) == 1 else count_of(len(files.resized), "image")
        were = "was" if len(files.resized) == 1 else "were"
        terminal.say(f"{what} {were} resized and cropped to {config.height} x {config.width}", style="dim")
    if files.skipped:
        what = counted(files.skipped, "file that is not an image", "files that are not images")
        terminal.say(f"skipped {what}", style="dim")


def _complain(errors: list[tuple[str, str]]) -> None:
    """Print one line about all files that could not be read."""
    if len(errors) == 1:
        complain(errors[0][1])
    else:
        paths = [path for path, _ in errors]
        complain(f"{counted(paths, 'file cannot be read', 'files cannot be read')}; the first: {errors[0][1]}")
