"""``minivit eval``: the accuracy and the loss of a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.cli.common import (
    CommandResult,
    add_backend,
    add_data,
    check_backend,
    dataset_name,
    enough_memory,
    open_dataset,
    open_model,
)
from minivit.cli.reporters import percent
from minivit.cli.terminal import Terminal
from minivit.data import Dataset, split_validation
from minivit.engine import Engine
from minivit.errors import RunError, UserError, counted
from minivit.train.evaluation import evaluate
from minivit.train.run_folder import RunFolder

HELP = "measure accuracy and loss of a trained model"
DESCRIPTION = """\
Evaluate the model of a run, or a model file, on the test images: accuracy, mean
cross-entropy loss, and for each class its accuracy and its most frequent wrong
prediction. Every image counts once."""
EXAMPLES = """\
examples:
  minivit eval runs/digits-1
  minivit eval runs/digits-1 --checkpoint last --split validation"""


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
    add_data(parser)
    add_backend(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    check_backend(args.backend)
    path = Path(args.run).expanduser()
    recipe = RunFolder.open(path).recipe if RunFolder.exists(path) else None
    if not path.exists():
        raise UserError(f"there is no run or model {args.run}")
    if args.dataset is None and recipe is None:
        raise UserError(f"{args.run} is not a run and has no data set; give one with --dataset")
    model, about = open_model(args.run, args.checkpoint, args.backend)
    config = model.config
    name = dataset_name(args.dataset) if args.dataset is not None or recipe is None else recipe.dataset
    dataset = open_dataset(name, (config.height, config.width), args.data, terminal)
    channels = dataset.test_images.shape[3]
    if channels != config.in_chans:
        raise UserError(f"{args.run} expects images of {config.in_chans} channels, but {dataset.name} has {channels}")
    if list(dataset.class_names) != about["class_names"]:
        raise UserError(
            f"{args.run} has {counted('classes', about['class_names'])}, "
            f"but {dataset.name} has {counted('classes', dataset.class_names)}"
        )
    own = recipe if recipe is not None and recipe.dataset == name else None
    images, labels = _part(dataset, args.split, (own.validation, own.seed) if own else None)
    with enough_memory(args.backend), Engine(model) as engine:
        measured = evaluate(engine, images, labels, about["mean"], about["std"])
    if not np.isfinite(measured.loss):
        raise RunError(f"the loss of {args.run} is not finite: use another checkpoint")
    classes = _classes(measured.confusion, dataset.class_names)
    _show(classes, terminal)
    what = f"{measured.images:,} {args.split} images of {dataset.name}"
    terminal.show("", f"accuracy {percent(measured.accuracy)}   loss {measured.loss:.4f}   {what}")
    values = {"accuracy": measured.accuracy, "loss": measured.loss, "images": measured.images}
    return CommandResult(values | {"dataset": dataset.name, "split": args.split, "classes": classes})


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
