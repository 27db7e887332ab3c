"""A run of ``minivit train`` or ``minivit pretrain``: from the options of the command line to its result."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minivit.cli.common import (
    CommandResult,
    add_backend,
    add_data,
    add_threads,
    check_backend,
    dataset_name,
    device_micro_batch,
    is_folder_of_images,
    open_dataset,
)
from minivit.cli.recipe_options import (
    add_precision,
    asked_recipe,
    check_device_options,
    given_fields,
)
from minivit.cli.reporters import duration, percent
from minivit.cli.terminal import Terminal
from minivit.data import Dataset
from minivit.data.load import NAMES
from minivit.data.on_demand import LostImagesError
from minivit.data.prepared import has_labels, is_prepared
from minivit.data.scan import class_names
from minivit.errors import RunError, UserError, count_of, install, program
from minivit.nn.masked import MaskedModel
from minivit.nn.presets import get_config
from minivit.nn.pretraining import with_defaults
from minivit.train.curves import draw_curves
from minivit.train.initial import begun_again, order_in_head
from minivit.train.interrupt import Interrupted
from minivit.train.memory import OutOfMemoryError
from minivit.train.recipe import Recipe
from minivit.train.recipes import recipe_values, values_of_model, values_of_task
from minivit.train.run_folder import RunFolder
from minivit.train.run_paths import claimed_run, latest_run_path
from minivit.train.trainer import Trainer
from minivit.train.watch_options import WatchOptions
from minivit.weights import fingerprint
from minivit.weights.load import OpenedFile


def add_run_options(parser: argparse.ArgumentParser, usual: str = "runs/DATA-1") -> None:
    """Add the options of a run that are not fields of its recipe; `usual` is the default of --run."""
    parser.add_argument("--run", metavar="DIR", help=f"the run folder (default: {usual}, -2, ...)")
    parser.add_argument("--resume", action="store_true", help="continue a run (default: the newest of DATA)")
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


def run_training(args: argparse.Namespace, terminal: Terminal, command: str) -> CommandResult:
    """Begin a run, or go on with one; `command` is "train", or "pretrain" for a recipe with a task.

    Raises
    ------
    UserError
        An option cannot be used, or the run is one of the other command.
    RunError
        The run was stopped, or cannot go on.
    """
    check_backend(args.backend)
    WatchOptions(args.keep_every or 0, args.watch or 0)
    if not args.checkpoint_seconds >= 0:
        raise UserError(f"--checkpoint-seconds is {args.checkpoint_seconds}; expected 0 or more")
    if RunFolder.exists(run := Path(args.dataset).expanduser()):
        recipe = RunFolder.open(run).recipe
        words = shlex.join([command_of(recipe), recipe.dataset, "--run", str(run), "--resume"])
        raise UserError(f"{args.dataset} is a run, not a data set; to continue it: {program()} {words}")
    if args.resume:
        opened = _resumed(args, command)
        if opened.is_as_on_disk() and (result := opened.result()) is not None:
            terminal.say(f"{opened.path} is finished")
            return _finished(opened, _with_curves(opened, result), terminal)
        again = args.init is not None and not opened.has_state()  # it was stopped before its first checkpoint
        start = begun_again(opened.recipe, Path(args.init).expanduser()) if again else None
        with opened.locked():
            return _train(args, opened, terminal, start)
    recipe, start = asked_recipe(args, "pretrain" if command == "pretrain" else None)
    _expect_command(f"the recipe {args.recipe}", recipe, command)
    get_config(recipe.model, **recipe.model_options)
    with claimed_run(Path(args.run).expanduser() if args.run is not None else None, recipe) as opened:
        return _train(args, opened, terminal, start)


def command_of(recipe: Recipe) -> str:
    """Return the command that runs a recipe."""
    return "pretrain" if recipe.task else "train"


def _expect_command(what: str, recipe: Recipe, command: str) -> None:
    if command_of(recipe) != command:
        why = f"it has the task {recipe.task}" if recipe.task else "it has no task"
        raise UserError(f"{what} is for `minivit {command_of(recipe)}`: {why}")


def _train(
    args: argparse.Namespace, opened: RunFolder, terminal: Terminal, start: OpenedFile | None = None
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
    watch = _watch_options(args, opened)
    micro_batch = device_micro_batch(args)
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
    except LostImagesError as stop:
        message = f"{stop}. To continue from the last checkpoint"
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


def _about_run(args: argparse.Namespace, trainer: Trainer, start: OpenedFile | None) -> Iterator[str]:
    """Yield the lines that are printed before training."""
    recipe, dataset, images = trainer.recipe, trainer.dataset, len(trainer.train_index)
    of_classes = count_of(len(dataset.class_names), "class", "classes")
    yield (
        f"{dataset.name}: {images:,} training, {len(trainer.validation_index):,} validation and "
        f"{len(dataset.test_images):,} test images{'; labels are not read' if recipe.task else f', {of_classes}'}"
    )
    epochs = count_of(recipe.epochs, "epoch")
    name = recipe.model
    if recipe.init and not recipe.model_options.keys() <= {"img_size", "in_chans"}:
        blocks = count_of(trainer.model.config.depth, "block")
        name = f"width {trainer.model.config.embed_dim}, {blocks}, nearest to {name}"
    if isinstance(trainer.model, MaskedModel):
        name, masked = f"{recipe.task}, encoder {name}", trainer.model.num_masked
        yield f"{masked} of the {trainer.model.config.num_patches} patches of an image are predicted"
    yield f"{name}: {trainer.model.parameters.count:,} parameters, {epochs}, {_where(args, trainer)}"
    if start is not None:
        config, classes = trainer.model.config, start.config.num_classes
        if not classes:
            head = "a head of zeros is added"
        elif classes != config.num_classes:
            head = f"a head of zeros replaces that of {classes:,} classes"
        elif (order := order_in_head(start, dataset.class_names)) is None:
            head = "a head of zeros replaces that of other classes"
        else:
            head = "their head" + (", its classes put into another order" if order != sorted(order) else "")
        yield f"begins with the weights of {args.init}, for images of {config.height} x {config.width}; {head}"
    if recipe.freeze:
        yield f"frozen: {', '.join(recipe.freeze)}; {trainer.optimizer.count:,} parameters are trained"
    if recipe.ema_decay or recipe.swa_start:
        name = f"factor {recipe.ema_decay:g}" if recipe.ema_decay else f"from epoch {recipe.swa_epochs_before + 1} on"
        yield f"the averaged weights ({name}) are evaluated and saved"
    yield f"into {trainer.run.path}"
    if every := trainer.watch.options.keep_every:
        kept = -(-trainer.total_steps // every) + 1  # the first and the last too
        size = kept * trainer.model.parameters.store.values.nbytes / 1e6
        most = "up to " if args.resume else ""  # those before may not have been kept
        yield f"the weights of {most}{kept:,} steps are kept in steps/, some {size:,.0f} MB"
    if recipe.batch_size >= 2 * images:
        yield f"a batch of {recipe.batch_size} holds all of them: one step an epoch; see --batch-size"
    if args.validation is not None and dataset.validation_index is not None:
        yield "--validation has no effect: the images have a validation part of their own"
    if recipe.flip and args.flip is None and recipe.dataset not in NAMES:
        yield "training images are mirrored at random: --no-flip where left and right differ"


def open_images(args: argparse.Namespace, recipe: Recipe, terminal: Terminal, download: bool = True) -> Dataset:
    """Load the data set of a recipe, with images of `image_size`."""
    return open_dataset(
        recipe.dataset,
        image_size(recipe),
        args.data,
        terminal,
        args.skip_bad,
        args.stream,
        labels=not recipe.task,
        download=download,
        **recipe.decoding,
    )


def image_size(recipe: Recipe) -> tuple[int, int] | None:
    """Return the size of the model's images where images of any size are resized, else None: as they are stored."""
    config = get_config(recipe.model, **recipe.model_options)
    wanted = is_folder_of_images(recipe.dataset) or "img_size" in recipe.model_options
    return (config.height, config.width) if wanted else None


def _open_dataset(args: argparse.Namespace, run: RunFolder, terminal: Terminal) -> Dataset:
    name = run.recipe.dataset
    try:
        dataset = open_images(args, run.recipe, terminal)
    except UserError as error:
        if args.resume and name not in NAMES and not Path(name).exists():
            where = shlex.quote(str(run.path))
            raise UserError(
                f"{error}; if the images were moved: {program()} {command_of(run.recipe)} NEW-PATH --run {where} "
                "--resume"
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
    if args.stream is not None:
        options.append("--stream" if args.stream else "--no-stream")
    words = [command_of(stopped.recipe), args.dataset, "--run", str(stopped.path), *options, "--resume"]
    return f"{program()} {shlex.join(words)}"


def _resumed(args: argparse.Namespace, command: str) -> RunFolder:
    """Return the run to resume: with the path of its images now, and with more epochs if they were asked for."""
    name = dataset_name(args.dataset, gone=True)
    latest = args.run is None
    opened = RunFolder.open(
        latest_run_path(name, pretrains=command == "pretrain") if latest else Path(args.run).expanduser()
    )
    run = opened.recipe
    _expect_command(str(opened.path), run, command)
    given = given_fields(args, run)
    options = given.get("model_options")
    if options and get_config(run.model, **options) == get_config(run.model, **run.model_options):
        del given["model_options"]  # what differs is what the preset has too
    options = given.get("task_options")
    if options and with_defaults(run.task, options) == with_defaults(run.task, run.task_options):
        del given["task_options"]
    if given.get("micro_batch") == 0:
        del given["micro_batch"]  # 0 asks for the model's own, which the recipe of a run holds
    if args.init is not None:
        given["init"] = fingerprint(Path(args.init).expanduser())
    epochs, on_nan = (given.pop(name, getattr(run, name)) for name in ("epochs", "on_nan"))
    if args.recipe is not None:
        given = _begun_by(args.recipe, run, given) | given
    if differences := run.differences(given):
        raise UserError(
            f"{opened.path} was started with other options: {'; '.join(differences)}. Leave these options out to "
            "continue it, or leave --resume out to start a new run"
        )
    resumed = opened.replaced(dataset=name, epochs=epochs, on_nan=on_nan)
    if epochs < run.epochs:
        raise UserError(
            f"{opened.path} is a run of {count_of(run.epochs, 'epoch')}; --resume can make it longer, not shorter: "
            "leave --epochs out"
        )
    return resumed


def _begun_by(name: str, run: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a run begun by the recipe `name` has, without those that something else determines.

    `given` are the fields that the command line sets.
    """
    values = values_of_model(values_of_task(recipe_values(name), given.get("task")), given.get("model"))
    begun = Recipe.from_dict({**values, "dataset": run.dataset}).to_dict()
    left = {"dataset", "epochs", "on_nan", "seed", "dtype", "micro_batch", "reduction_groups", "init"}
    if run.init:  # the weights determine the model and how images are resized
        left |= {"model", "model_options", "mean", "std", "crop_pct", "crop_mode", "interpolation"}
    for field in ("model_options", "task_options"):
        begun[field] = getattr(run, field) | begun[field]
    return {field: value for field, value in begun.items() if field not in left}


def _finished(finished: RunFolder, result: dict[str, Any], terminal: Terminal) -> CommandResult:
    path = shlex.quote(str(finished.path))
    pretrained = bool(finished.recipe.task)
    of_images = f"on {result['test_images']:,} images"
    if pretrained:
        score = f"test loss {result['test_loss']:.4f} {of_images}"
    else:
        score = f"test accuracy {percent(result['test_accuracy'])} {of_images}"
    if not terminal.json:
        terminal.say()
        terminal.say(score, style="bold green")
    chosen = f"best epoch: {result['best_epoch']}"
    if result["best_val_accuracy"] is not None:
        chosen += f", validation accuracy {percent(result['best_val_accuracy'])}"
    data = shlex.quote(finished.recipe.dataset)
    if pretrained and is_folder_of_images(finished.recipe.dataset) and not _has_classes(Path(finished.recipe.dataset)):
        data = "LABELLED-DATA"
    following = (
        (f"train {data} --init {path}", f"probe {path} {data}")
        if pretrained
        else (f"eval {path}", f"predict {path} image.png")
    )
    files = "the encoder is in best/; reconstructions.png; " if pretrained else "the model is in best/; "
    terminal.show(
        f"{duration(result['seconds'])} of training, {result['images_per_second']:,.0f} images/s; {chosen}",
        f"run:  {path}",
        f"      {files}metrics.jsonl{'; curves.png' if result['curves'] else ''}",
        *([] if result["curves"] or find_spec("matplotlib") else [f"      curves.png needs {install('matplotlib')}"]),
        f"next: {program()} {following[0]}",
        f"      {program()} {following[1]}",
    )
    return CommandResult(result)


def _has_classes(folder: Path) -> bool:
    """Return whether a folder of images, which may be prepared, has classes; of one that is damaged, False."""
    with suppress(UserError):
        return has_labels(folder) if is_prepared(folder) else bool(class_names(folder))
    return False


def _with_curves(finished: RunFolder, result: dict[str, Any]) -> dict[str, Any]:
    """Draw curves.png of a finished run if it is missing, and return the result with its path."""
    return result if result["curves"] else {**result, "curves": draw_curves(finished)}
