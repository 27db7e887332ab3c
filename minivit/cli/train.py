"""``minivit train``: train a Vision Transformer and store the run in a folder."""

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
PATH/test/CLASS/. The recipe of the data set supplies the options that are not given.
The run folder holds the model, the metrics and a plot. Ctrl-C saves a checkpoint, and
--resume continues from it; the result has the same bits as without interruption."""
EXAMPLES = """\
examples:
  minivit train digits
  minivit train cifar10 --epochs 30 --run runs/long
  minivit train cifar10 --run runs/long --resume
  minivit train cifar10 --backend cupy --precision bfloat16
  minivit train photos/ --model vit_tiny_patch16_224 --set drop_path_rate=0.1"""

# The options that set fields of the recipe. An option that is not given leaves its field unchanged.
RECIPE_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"help": "name of a model; `minivit info` lists them"},
    "epochs": {"type": int, "help": "number of passes over the training images"},
    "batch_size": {"type": int, "help": "number of images per step"},
    "lr": {"type": float, "help": "maximum learning rate"},
    "schedule": {"choices": SCHEDULES, "help": "learning rate schedule after the warmup"},
    "warmup_epochs": {"type": float, "help": "number of epochs of linear warmup"},
    "optimizer": {"choices": OPTIMIZERS, "help": "the optimizer"},
    "weight_decay": {"type": float, "help": "weight decay of matrices; biases, norms, tokens and positions have none"},
    "momentum": {"type": float, "help": "momentum of sgd"},
    "clip_norm": {"type": float, "help": "maximum global norm of the gradients; 0: no clipping"},
    "crop_padding": {"type": int, "help": "padding of random crops in pixels; 0: no random crops"},
    "flip": {"action": argparse.BooleanOptionalAction, "help": "flip training images at random"},
    "label_smoothing": {"type": float, "help": "label smoothing of the loss"},
    "validation": {"type": float, "help": "fraction of the training images used for validation"},
    "micro_batch": {
        "type": int,
        "help": "images per micro-batch of a worker; 0: a function of the model's size. On a GPU it is only needed if "
        "the memory is too small for the whole batch, and may change with --resume",
    },
    "dtype": {"choices": ("float32", "float64"), "help": "dtype of parameters and arithmetic"},
    "seed": {"type": int, "help": "seed of all random numbers"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("dataset", metavar="DATA", help="digits, cifar10, cifar100, or a path")
    parser.add_argument("--run", metavar="DIR", help="the run folder (default: runs/DATA-1, -2, ...)")
    parser.add_argument("--resume", action="store_true", help="continue a run (default: the newest of DATA)")
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
    parser.add_argument("--threads", type=int, help="number of workers; the result is the same (default: all cores)")
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="maximum time between two checkpoints (default: 60)",
    )
    add_data(parser)
    add_backend(parser)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="precision of the arithmetic on a GPU; parameters stay float32 (default: float32, the slowest)",
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
    micro_batch = args.micro_batch or None if _has_device(args) else None  # on the host the recipe holds it
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
        raise RunError(f"{where}; the run is saved. To continue: {_resume_command(args, opened)}") from stop
    except KeyboardInterrupt as stop:
        message = "stopped at once. To continue from the last checkpoint"
        raise RunError(f"{message}: {_resume_command(args, opened)}") from stop
    except OutOfMemoryError as stop:
        if stop.micro_batch is None:
            raise
        args.micro_batch = stop.micro_batch
        raise RunError(f"{stop}: {_resume_command(args, opened)}") from stop
    return _finished(opened, result, terminal)


def _has_device(args: argparse.Namespace) -> bool:
    return bool(args.backend != "numpy")


def _check_device_options(args: argparse.Namespace, recipe: Recipe) -> None:
    """Raise UserError for options that contradict each other, before the data set is read or downloaded."""
    check_precision(args.precision, recipe.dtype, not _has_device(args))
    if args.precision == "bfloat16":
        check_dtype(backend(args.backend), dtype_named("bfloat16"))
    for name, least in (("threads", 1), ("micro_batch", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; expected at least {least}")


def _where(args: argparse.Namespace, trainer: Trainer) -> str:
    """Return a description of the host or device that the run uses."""
    if not _has_device(args):
        return f"threads: {trainer.engine.threads}"
    return f"on {args.backend}" + (f" in {args.precision}" if args.precision else "")


def _resume_command(args: argparse.Namespace, stopped: RunFolder) -> str:
    """Return the command that continues a stopped run on the same backend."""
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
            f"{opened.path} was started with other options: {'; '.join(differences)}. Leave these options out to "
            "continue it, or leave --resume out to start a new run"
        )
    return opened


def _given(args: argparse.Namespace, model_options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the recipe that the command line sets."""
    given: dict[str, Any] = {name: getattr(args, name) for name in RECIPE_OPTIONS if getattr(args, name) is not None}
    if _has_device(args):
        given.pop("micro_batch", None)  # it is part of the recipe on the host only, where the bits depend on it
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
    score = f"test accuracy {percent(result['test_accuracy'])} on {result['test_images']:,} images"
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
    return "no plot of the curves, which needs matplotlib: pip install 'minivit[plots]'"
