"""``minivit predict``: classify image files with a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from minivit.arrays import Array, to_host
from minivit.cli.common import CommandResult, add_backend, check_backend, enough_memory, open_model
from minivit.cli.reporters import percent
from minivit.cli.terminal import Terminal, complain
from minivit.data import read_images
from minivit.engine import Engine
from minivit.errors import UserError
from minivit.ops import softmax
from minivit.train.evaluation import image_transform

HELP = "classify image files with a trained model"
DESCRIPTION = """\
Classify image files with the best model of a run, or with a model file. An image is
converted to the model's channels, resized to its size and normalised as in training.
If a file cannot be read, the others are classified and the exit status is 2."""
EXAMPLES = """\
example:
  minivit predict runs/cifar10-1 cat.jpg dog.png --top 3"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", metavar="RUN", help="a run folder, or a model file or folder")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="number of classes to show (default: 5)")
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which checkpoint (default: best)"
    )
    add_backend(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command; the exit status is 2 if a file could not be read."""
    check_backend(args.backend)
    if args.top < 1:
        raise UserError(f"--top is {args.top}; expected at least 1")
    model, about = open_model(args.run, args.checkpoint, args.backend)
    config = model.config
    paths, images, resized, errors = [], [], [], []
    for name in args.images:
        try:
            images.append(_read(Path(name), (config.height, config.width), config.in_chans))
        except UserError as error:
            errors.append({"path": name, "error": str(error)})
            complain(error)
            continue
        paths.append(name)
        size = _size(Path(name))
        if size != (config.height, config.width):
            resized.append(f"{name} ({size[0]} x {size[1]})")
    predictions = []
    if images:
        # Starting a second worker takes longer than it saves for a few images.
        threads = 1 if len(images) <= config.micro_batch else None
        with enough_memory(args.backend), Engine(model, threads) as engine:
            transform = image_transform(engine, about["mean"], about["std"])
            logits = to_host(engine.predict(transform(np.stack(images))))
        if not np.isfinite(logits).all():
            raise UserError(f"the logits of {args.run} are not finite: use another checkpoint")
        probabilities, _ = softmax(logits, keep=False)
        labels = about["class_names"]
        predictions = [{"path": p, "top": _top(q, labels, args.top)} for p, q in zip(paths, probabilities, strict=True)]
    _show(predictions, terminal)
    if resized:
        terminal.say(f"resized to {config.height} x {config.width}: {', '.join(resized)}", style="dim")
    values: dict[str, Any] = {"predictions": predictions}
    return CommandResult(values | ({"errors": errors} if errors else {}), 2 if errors else 0)


def _read(path: Path, size: tuple[int, int], channels: int) -> Array:
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the image files in it")
    if not path.exists():
        raise UserError(f"there is no file {path}")
    return read_images([path], image_size=size, channels=channels)[0]


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.height, image.width


def _top(probabilities: Array, labels: list[str], count: int) -> list[dict[str, Any]]:
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [{"label": labels[i], "probability": float(probabilities[i])} for i in order]


def _show(predictions: list[dict[str, Any]], terminal: Terminal) -> None:
    rows = []
    for prediction in predictions:
        for rank, top in enumerate(prediction["top"]):
            share = top["probability"]
            bar = "█" * round(20 * share) if terminal.live else ""
            rows.append((prediction["path"] if rank == 0 else "", percent(share), top["label"], bar))
    if rows:
        terminal.table(("image", ">probability", "class", ""), rows)
