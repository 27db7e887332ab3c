"""``minivit eval``: the accuracy and the loss of a trained model."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.cli.common import (
    CommandResult,
    add_backend,
    add_data,
    add_threads,
    check_backend,
    check_threads,
    enough_memory,
    open_model,
)
from minivit.cli.images import dataset_of, labelled_images, run_folder_of
from minivit.cli.model_fields import add_set, model_fields
from minivit.cli.reporters import percent
from minivit.cli.terminal import Terminal
from minivit.engine import Engine
from minivit.errors import RunError
from minivit.train.evaluation import evaluate

HELP = "measure accuracy and loss of a trained model"
DESCRIPTION = """\
Evaluate the model of a run, or a model file of any format, on the test images:
accuracy, mean cross-entropy loss, and for each class its accuracy and its most
frequent wrong prediction. Every image counts once; images are resized, cropped
and normalised as the model's file says."""
EXAMPLES = """\
examples:
  minivit eval runs/digits-1
  minivit eval runs/cifar10-1 --checkpoint last --split validation
  minivit eval vit_tiny.safetensors --dataset photos/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", metavar="RUN", help="a run folder, or a model file or folder")
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which checkpoint (default: best)"
    )
    parser.add_argument("--dataset", help="name or path of a data set (default: the data set of the run)")
    parser.add_argument(
        "--split", choices=("test", "validation", "train"), default="test", help="images to use (default: test)"
    )
    add_set(parser)
    add_data(parser)
    add_threads(parser)
    add_backend(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    check_backend(args.backend)
    check_threads(args.threads)
    folder = run_folder_of(args.run)
    dataset_of(args.run, args.dataset, folder)  # an error of it before the model is loaded
    opened = open_model(args.run, args.checkpoint, args.backend, model_fields(args.set))
    dataset, names, pixels, labels = labelled_images(args.run, args, opened, folder, args.split, terminal)
    model, mean, std = opened.model, opened.preprocessing.mean, opened.preprocessing.std
    with enough_memory(args.backend), Engine(model, args.threads) as engine:
        measured = evaluate(engine, pixels, labels, mean, std)
    if not np.isfinite(measured.loss):
        raise RunError(f"the loss of {args.run} is not finite: use another checkpoint")
    classes = _classes(measured.confusion, names)
    _show(classes, terminal)
    what = f"{measured.images:,} {args.split} images of {dataset.name}"
    terminal.show("", f"accuracy {percent(measured.accuracy)}   loss {measured.loss:.4f}   {what}")
    values = {"accuracy": measured.accuracy, "loss": measured.loss, "images": measured.images}
    return CommandResult(values | {"dataset": dataset.name, "split": args.split, "classes": classes})


def _classes(confusion: Array, names: tuple[str, ...]) -> list[dict[str, Any]]:
    classes = []
    for label, (name, row) in enumerate(zip(names, confusion, strict=True)):
        count = int(row.sum())
        wrong = np.where(np.arange(len(row)) == label, 0, row)
        most = int(wrong.argmax())
        classes.append(
            {
                "label": name,
                "images": count,
                "accuracy": int(row[label]) / count if count else None,
                "taken_for": names[most] if wrong[most] else None,
                "times": int(wrong[most]),
            }
        )
    return classes


def _show(classes: list[dict[str, Any]], terminal: Terminal) -> None:
    rows = []
    for c in classes:
        accuracy = "-" if c["accuracy"] is None else percent(c["accuracy"])
        mistake = f"{c['taken_for']} ({c['times']} of {c['images']})" if c["taken_for"] is not None else ""
        rows.append((c["label"], f"{c['images']:,}", accuracy, mistake))
    terminal.table(("class", ">images", ">recognised", "most often taken for"), rows)
