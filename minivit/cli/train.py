"""``minivit train``: train a Vision Transformer and store the run in a folder."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from minivit.cli.common import (
    CommandResult,
    add_backend,
    add_data,
    add_threads,
    check_backend,
    dataset_name,
    is_folder_of_images,
    open_dataset,
)
from minivit.cli.model_fields import add_set
from minivit.cli.recipe_options import (
    add_init,
    add_precision,
    add_recipe_options,
    asked_recipe,
    check_device_options,
    given_fields,
)
from minivit.cli.reporters import duration, percent
from minivit.cli.terminal import Terminal
from minivit.data import Dataset
from minivit.data.load import NAMES
from minivit.errors import RunError, UserError, install, program
from minivit.nn.presets import get_config
from minivit.train.curves import draw_curves
from minivit.train.interrupt import Interrupted
from minivit.train.memory import OutOfMemoryError
from minivit.train.recipe import Recipe
from minivit.train.recipes import recipe_values
from minivit.train.run_folder import RunFolder
from minivit.train.run_paths import claimed_run, latest_run_path
from minivit.train.trainer import Trainer
from minivit.train.watch_options import WatchOptions
from minivit.weights import fingerprint
from minivit.weights.load import OpenedModel

HELP = "train a Vision Transformer"
DESCRIPTION = """\
Train on digits, cifar10 or cifar100, or on the images in PATH/CLASS/, or in
PATH/train/, test/ and val/ with folders of classes. The recipe of the data set,
or --recipe, supplies the options that are not given. The run folder holds the
model, the metrics and a plot. Ctrl-C saves a checkpoint, and --resume continues
from it; the result has the same bits as without interruption. --resume with
more --epochs makes a run longer."""
EXAMPLES = """\
examples:
  minivit train digits
  minivit train cifar10 --epochs 30 --run runs/long
  minivit train cifar10 --run runs/long --resume
  minivit train cifar10 --run runs/long --resume --epochs 60
  minivit train cifar10 --backend cupy --precision bfloat16
  minivit train cifar10 --recipe labml
  minivit train photos/ --init vit_tiny_patch16_224.safetensors
  minivit train photos/ --model vit_tiny_patch16_224 --set drop_path_rate=0.1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("dataset", metavar="DATA", help="digits, cifar10, cifar100, or a path")
    parser.add_argument("--run", metavar="DIR", help="the run folder (default: runs/DATA-1, -2, ...)")
    parser.add_argument("--resume", action="store_true", help="continue a run (default: the newest of DATA)")
    add_recipe_options(parser)
    add_init(parser)
    add_set(parser, "a field of the model, such as depth=4, drop_path_rate=0.1 or img_size=224; can be repeated")
    add_threads(parser)
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="maximum time between two checkpoints (default: 60)",
    )
    parser.add_argument(
        "--keep-every",
        type=int,
        metavar="N",
        help="keep the weights of every N-th step in RUN/steps/; 0: none (default)",
    )
    parser.add_argument(
        "--watch",
        type=int,
        metavar="N",
        help="log statistics of every layer at every N-th step into RUN/watch.jsonl, and warn of gradients that vanish "
        "or explode and of layers that do not learn; 0: never (default)",
    )
    parser.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        help="write metrics for TensorBoard into RUN/tensorboard/ too",
    )
    add_data(parser)
    add_backend(parser)
    add_precision(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    check_backend(args.backend)
    WatchOptions(args.keep_every or 0, args.watch or 0)
    if not args.checkpoint_seconds >= 0:
        raise UserError(f"--checkpoint-seconds is {args.checkpoint_seconds}; expected 0 or more")
    if RunFolder.exists(run := Path(args.dataset).expanduser()):
        command = shlex.join(["minivit", "train", RunFolder.open(run).recipe.dataset, "--run", str(run), "--resume"])
        raise UserError(f"{args.dataset} is a run, not a data set; to continue it: {command}")
    if args.resume:
        opened = _resumed(args)
        if opened.is_as_on_disk() and (result := opened.result()) is not None:
            terminal.say(f"{opened.path} is finished")
            return _finished(opened, _with_curves(opened, result), terminal)
        with opened.locked():
            return _train(args, opened, terminal)
    recipe, start = asked_recipe(args)
    get_config(recipe.model, **recipe.model_options)
    with claimed_run(Path(args.run).expanduser() if args.run is not None else None, recipe) as opened:
        return _train(args, opened, terminal, start)


def _train(
    args: argparse.Namespace, opened: RunFolder, terminal: Terminal, start: OpenedModel | None = None
) -> CommandResult:
    """Train a run whose lock is held."""
    recipe = opened.recipe
    check_device_options(args, recipe)
    dataset = _open_dataset(args, opened, terminal)
    if opened.is_extended():
        terminal.say(f"from here on the learning rate follows the schedule of {recipe.epochs} epochs")
    elif args.resume and (result := opened.result()) is not None:  # the images have moved
        opened.go_on(0)
        terminal.say(f"{opened.path} is finished")
        return _finished(opened, result, terminal)
    micro_batch = args.micro_batch or None if _has_device(args) else None  # on the host the recipe holds it
    watch = _watch_options(args, opened)
    trainer = Trainer(opened, dataset, args.threads, args.backend, args.precision, micro_batch, start, watch)
    for line in _about_run(args, trainer, start):
        terminal.say(line)
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


def _watch_options(args: argparse.Namespace, run: RunFolder) -> WatchOptions:
    """Return what is recorded: the options that were given, and otherwise those of a run that is resumed."""
    given = {"keep_every": args.keep_every, "every": args.watch, "tensorboard": args.tensorboard}
    return replace(run.watch_options, **{name: value for name, value in given.items() if value is not None})


def _about_run(args: argparse.Namespace, trainer: Trainer, start: OpenedModel | None) -> Iterator[str]:
    """Yield the lines that are printed before training."""
    recipe, dataset, images = trainer.recipe, trainer.dataset, len(trainer.train_index)
    classes = len(dataset.class_names)
    yield (
        f"{dataset.name}: {images:,} training, {len(trainer.validation_index):,} validation and "
        f"{len(dataset.test_images):,} test images, {classes} class{'es' * (classes > 1)}"
    )
    epochs = f"{recipe.epochs} epoch{'s' * (recipe.epochs > 1)}"
    name = recipe.model
    if recipe.init and not recipe.model_options.keys() <= {"img_size", "in_chans"}:
        blocks = f"{trainer.model.config.depth} block{'s' * (trainer.model.config.depth > 1)}"
        name = f"width {trainer.model.config.embed_dim}, {blocks}, nearest to {name}"
    yield f"{name}: {trainer.model.parameters.count:,} parameters, {epochs}, {_where(args, trainer)}"
    if start is not None:
        config, classes = trainer.model.config, start.config.num_classes
        head = f"a head of zeros replaces that of {classes:,} classes" if classes else "a head of zeros is added"
        head = "their head" if classes == config.num_classes else head
        yield f"begins with the weights of {args.init}, for images of {config.height} x {config.width}; {head}"
    if recipe.freeze:
        yield f"frozen: {', '.join(recipe.freeze)}; {trainer.optimizer.count:,} parameters are trained"
    if recipe.ema_decay or recipe.swa_start:
        name = f"factor {recipe.ema_decay:g}" if recipe.ema_decay else f"from epoch {recipe.swa_epochs_before + 1} on"
        yield f"the averaged weights ({name}) are evaluated and saved"
    yield f"into {trainer.run.path}"
    if every := trainer.watch.options.keep_every:
        kept = trainer.total_steps // every + 1
        size = kept * trainer.model.parameters.store.values.nbytes / 1e6
        yield f"the weights of {kept:,} steps are kept in steps/, some {size:,.0f} MB"
    if recipe.batch_size >= 2 * images:
        yield f"a batch of {recipe.batch_size} holds all of them: one step an epoch; see --batch-size"
    if recipe.flip and args.flip is None and recipe.dataset not in NAMES:
        yield "training images are mirrored at random: --no-flip where left and right differ"


def open_images(args: argparse.Namespace, recipe: Recipe, terminal: Terminal) -> Dataset:
    """Load the data set of a recipe, with images of the size of the model where images of any size are resized."""
    config = get_config(recipe.model, **recipe.model_options)
    wanted = is_folder_of_images(recipe.dataset) or "img_size" in recipe.model_options
    size = (config.height, config.width) if wanted else None
    return open_dataset(recipe.dataset, size, args.data, terminal, args.skip_bad, **recipe.decoding)


def _open_dataset(args: argparse.Namespace, run: RunFolder, terminal: Terminal) -> Dataset:
    name = run.recipe.dataset
    try:
        dataset = open_images(args, run.recipe, terminal)
    except UserError as error:
        if args.resume and name not in NAMES and not Path(name).exists():
            where = shlex.quote(str(run.path))
            raise UserError(
                f"{error}; if the images were moved: {program()} train NEW-PATH --run {where} --resume"
            ) from error
        raise
    if args.resume and name != RunFolder.open(run.path).recipe.dataset:
        run.expect_data(dataset.fingerprint())
    return dataset


def _has_device(args: argparse.Namespace) -> bool:
    return bool(args.backend != "numpy")


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
    if args.skip_bad:
        options.append("--skip-bad")
    return shlex.join(["minivit", "train", args.dataset, "--run", str(stopped.path), *options, "--resume"])


def _resumed(args: argparse.Namespace) -> RunFolder:
    """Return the run to resume: with the path of its images now, and with more epochs if they were asked for."""
    name = dataset_name(args.dataset, gone=True)
    opened = RunFolder.open(Path(args.run).expanduser() if args.run is not None else latest_run_path(name))
    given = given_fields(args, opened.recipe.model_options)
    if args.init is not None:
        given["init"] = fingerprint(Path(args.init).expanduser())
    epochs, on_nan = (given.pop(name, getattr(opened.recipe, name)) for name in ("epochs", "on_nan"))
    if args.recipe is not None:
        begun = {name: value for name, value in recipe_values(args.recipe).items() if name not in ("epochs", "on_nan")}
        begun["model_options"] = opened.recipe.model_options | begun.get("model_options", {})
        if opened.recipe.init:  # the weights determine the model
            begun = {name: value for name, value in begun.items() if name not in ("model", "model_options")}
        given = begun | given
    if differences := opened.recipe.differences(given):
        raise UserError(
            f"{opened.path} was started with other options: {'; '.join(differences)}. Leave these options out to "
            "continue it, or leave --resume out to start a new run"
        )
    if epochs < opened.recipe.epochs:
        raise UserError(
            f"{opened.path} is a run of {opened.recipe.epochs} epochs; --resume can make it longer, not shorter: "
            "leave --epochs out"
        )
    return opened.replaced(dataset=name, epochs=epochs, on_nan=on_nan)


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
        f"run:  {path}",
        "      the model is in best/; metrics.jsonl; " + _curves(result),
        f"next: {program()} eval {path}",
        f"      {program()} predict {path} image.png",
    )
    return CommandResult(result)


def _with_curves(finished: RunFolder, result: dict[str, Any]) -> dict[str, Any]:
    """Draw curves.png of a finished run if it is missing, and return the result with its path."""
    return result if result["curves"] else {**result, "curves": draw_curves(finished)}


def _curves(result: dict[str, Any]) -> str:
    if result["curves"]:
        return "curves.png"
    return f"no curves.png, which needs matplotlib: {install('matplotlib')}"
