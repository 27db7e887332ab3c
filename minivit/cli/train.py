"""``minivit train``: trains a Vision Transformer into a run folder."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from minivit.arrays import backend, check_dtype, dtype_named
from minivit.arrays.precision import PRECISIONS
from minivit.cli.common import CommandResult, add_backend, add_data, check_backend, dataset_name, open_dataset
from minivit.cli.reporters import duration, percent
from minivit.cli.terminal import Terminal
from minivit.engine.device_step import check_precision
from minivit.errors import RunError, UserError
from minivit.nn.config import ViTConfig
from minivit.nn.presets import get_config
from minivit.train.interrupt import Interrupted
from minivit.train.memory import OutOfMemoryError
from minivit.train.recipe import OPTIMIZERS, Recipe, load_recipe
from minivit.train.run_folder import RunFolder, latest_run_path, next_run_path
from minivit.train.schedules import SCHEDULES
from minivit.train.trainer import Trainer

HELP = "train a Vision Transformer"
DESCRIPTION = """\
Train on digits, cifar10 or cifar100, or on the images in PATH/train/CLASS/ and
PATH/test/CLASS/. What is not asked for is what the data set's recipe says. The run
folder gets the model, the metrics and a plot. Ctrl-C saves, --resume goes on, and
the result has the same bits as if nothing had happened."""
EXAMPLES = """\
examples:
  minivit train digits
  minivit train cifar10 --epochs 30 --run runs/long
  minivit train cifar10 --run runs/long --resume
  minivit train cifar10 --backend cupy --precision bfloat16
  minivit train photos/ --model vit_tiny_patch16_224 --set drop_path_rate=0.1"""

# The options that are fields of the recipe: only those given count.
RECIPE_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"help": "a model's name; `minivit info` lists them"},
    "epochs": {"type": int, "help": "passes over the training images"},
    "batch_size": {"type": int, "help": "images of a step"},
    "lr": {"type": float, "help": "largest learning rate"},
    "schedule": {"choices": SCHEDULES, "help": "of the learning rate after the warmup"},
    "warmup_epochs": {"type": float, "help": "epochs of rising learning rate"},
    "optimizer": {"choices": OPTIMIZERS, "help": "adamw, adam or sgd"},
    "weight_decay": {"type": float, "help": "of matrices, not of biases, norms, tokens and positions"},
    "momentum": {"type": float, "help": "of sgd"},
    "clip_norm": {"type": float, "help": "largest global norm of the gradients; 0: no clipping"},
    "crop_padding": {"type": int, "help": "pixels by which training images are shifted at most; 0: none"},
    "flip": {"action": argparse.BooleanOptionalAction, "help": "whether half of the training images are mirrored"},
    "label_smoothing": {"type": float, "help": "share of the label that goes to all classes"},
    "validation": {"type": float, "help": "share of the training images that choose the best epoch"},
    "micro_batch": {
        "type": int,
        "help": "images that a thread takes at a time, 0: by the model's size; on a GPU, where the memory is too small "
        "for the whole batch, and where it may differ with --resume",
    },
    "dtype": {"choices": ("float32", "float64"), "help": "of parameters and arithmetic"},
    "seed": {"type": int, "help": "of all that is random"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("dataset", metavar="DATA", help="digits, cifar10, cifar100, or a path")
    parser.add_argument("--run", metavar="DIR", help="where the run is kept (default: runs/DATA-1, -2, ...)")
    parser.add_argument("--resume", action="store_true", help="go on with a run (default: the newest of DATA)")
    for name, options in RECIPE_OPTIONS.items():
        if not {"choices", "action"} & set(options):
            options = {"metavar": name.rpartition("_")[2].upper(), **options}
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the model's configuration, such as depth=4 or drop_path_rate=0.1; can be repeated",
    )
    parser.add_argument("--threads", type=int, help="worker threads; they change no bit (default: all cores)")
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=60.0, metavar="S", help="longest time between two (default: 60)"
    )
    add_data(parser)
    add_backend(parser)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of a GPU's arithmetic; parameters stay float32 (default: float32; tf32 and the 16-bit types are faster)",
    )


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    check_backend(args.backend)
    if not args.checkpoint_seconds >= 0:
        raise UserError(f"--checkpoint-seconds is {args.checkpoint_seconds}; expected 0 or more")
    opened = _resumed(args) if args.resume else _new(args)
    if args.resume and (result := opened.result()) is not None:
        terminal.say(f"{opened.path} is finished")
        return _finished(opened, result, terminal)
    recipe = opened.recipe
    _check_device_options(args, recipe)
    preset = get_config(recipe.model)
    size = recipe.model_options.get("img_size", (preset.height, preset.width))
    image_size = (size, size) if isinstance(size, int) else (size[0], size[1])
    dataset = open_dataset(recipe.dataset, image_size, args.data, terminal)
    micro_batch = args.micro_batch or None if _has_device(args) else None  # on the host it is in the recipe
    trainer = Trainer(opened, dataset, args.threads, args.backend, args.precision, micro_batch)
    if not args.resume:
        RunFolder.create(opened.path, trainer.recipe)
    terminal.say(
        f"{dataset.name}: {len(trainer.train_index):,} training, {len(trainer.validation_index):,} validation and "
        f"{len(dataset.test_images):,} test images, {len(dataset.class_names)} classes"
    )
    epochs = f"{recipe.epochs} epoch{'s' * (recipe.epochs > 1)}"
    terminal.say(
        f"{recipe.model}: {trainer.model.parameters.count:,} parameters, {epochs}, "
        f"{_where(args, trainer)}, into {opened.path}"
    )
    try:
        with terminal.training() as reporter:
            result = trainer.fit(reporter, args.resume, args.checkpoint_seconds)
    except Interrupted as stop:
        where = f"stopped after step {stop.step:,} of {trainer.total_steps:,}"
        raise RunError(f"{where}; all is saved. To go on: {_again(args, opened)}") from stop
    except KeyboardInterrupt as stop:
        raise RunError(f"stopped at once. To go on after the last checkpoint: {_again(args, opened)}") from stop
    except OutOfMemoryError as stop:
        if stop.micro_batch is None:
            raise
        args.micro_batch = stop.micro_batch
        raise RunError(f"{stop}: {_again(args, opened)}") from stop
    return _finished(opened, result, terminal)


def _has_device(args: argparse.Namespace) -> bool:
    return bool(args.backend != "numpy")


def _check_device_options(args: argparse.Namespace, recipe: Recipe) -> None:
    """Raise UserError where the options are at odds, before the data set is read or downloaded."""
    check_precision(args.precision, recipe.dtype, not _has_device(args))
    if args.precision == "bfloat16":
        check_dtype(backend(args.backend), dtype_named("bfloat16"))
    for name, least in (("threads", 1), ("micro_batch", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; expected at least {least}")


def _where(args: argparse.Namespace, trainer: Trainer) -> str:
    """Return on what the run is, for people."""
    if not _has_device(args):
        return f"threads: {trainer.engine.threads}"
    return f"on {args.backend}" + (f" in {args.precision}" if args.precision else "")


def _again(args: argparse.Namespace, stopped: RunFolder) -> str:
    """Return the command that goes on with the run where it was."""
    names = ["data", "precision"]
    if _has_device(args):
        names += ["backend", "micro_batch"]
    given = [(f"--{name.replace('_', '-')}", getattr(args, name)) for name in names]
    options = [word for option, value in given if value for word in (option, str(value))]
    return shlex.join(["minivit", "train", args.dataset, "--run", str(stopped.path), *options, "--resume"])


def _new(args: argparse.Namespace) -> RunFolder:
    name = dataset_name(args.dataset)
    recipe = load_recipe(name, **_given(args, {}))
    path = Path(args.run).expanduser() if args.run else next_run_path(name)
    RunFolder.expect_free(path)
    return RunFolder(path, recipe)


def _resumed(args: argparse.Namespace) -> RunFolder:
    name = dataset_name(args.dataset, gone=True)
    opened = RunFolder.open(Path(args.run).expanduser() if args.run else latest_run_path(name))
    differences = opened.recipe.differences({"dataset": name, **_given(args, opened.recipe.model_options)})
    if differences:
        raise UserError(
            f"{opened.path} was begun otherwise: {'; '.join(differences)}. Leave these options out to go on with it, "
            "or leave --resume out to begin a new run"
        )
    return opened


def _given(args: argparse.Namespace, model_options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the recipe that the command line names."""
    given: dict[str, Any] = {name: getattr(args, name) for name in RECIPE_OPTIONS if getattr(args, name) is not None}
    if _has_device(args):
        given.pop("micro_batch", None)  # it decides bits on the host alone
    if args.set:
        given["model_options"] = {**model_options, **dict(_field(text) for text in args.set)}
    return given


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    known = [field.name for field in fields(ViTConfig)]
    if name not in known or not equals:
        raise UserError(f"--set {text}: expected FIELD=VALUE with one of the fields {', '.join(known)}")
    if name.endswith("_size"):
        sizes = value.split("x")
        if len(sizes) > 2 or not all(size.isdecimal() for size in sizes):
            raise UserError(f"--set {text}: expected pixels, such as {name}=32, or {name}=32x48 for height x width")
        return name, int(sizes[0]) if len(sizes) == 1 else [int(size) for size in sizes]
    kind = type(getattr(ViTConfig, name))
    try:
        parsed = value if kind is str else json.loads(value.lower())
    except ValueError:
        parsed = value
    if kind is float and type(parsed) is int:
        parsed = float(parsed)
    if type(parsed) is not kind:
        words = {int: "a whole number", float: "a number", bool: "true or false"}
        raise UserError(f"--set {text}: expected {words[kind]}")
    return name, parsed


def _finished(finished: RunFolder, result: dict[str, Any], terminal: Terminal) -> CommandResult:
    path = shlex.quote(str(finished.path))
    score = f"test accuracy {percent(result['test_accuracy'])} on {result['test_images']:,} images never seen before"
    if not terminal.json:
        terminal.say()
        terminal.say(score, style="bold green")
    chosen = f"best epoch: {result['best_epoch']}"
    if result["best_val_accuracy"] is not None:
        chosen += f", validation accuracy {percent(result['best_val_accuracy'])}"
    terminal.show(
        f"{duration(result['seconds'])} of training, {result['images_per_second']:,.0f} images/s; {chosen}",
        f"run:  {path}, with the model in best/, metrics.jsonl and " + _curves(result),
        f"next: minivit eval {path}",
        f"      minivit predict {path} image.png",
    )
    return CommandResult(result)


def _curves(result: dict[str, Any]) -> str:
    if result.get("curves"):
        return "curves.png"
    return "no plot of the curves: that needs pip install 'minivit[plots]'"
