"""``minivit lr-find``: the loss while the learning rate rises, and the rates that it suggests."""

from __future__ import annotations

import argparse
import shlex
import warnings
from pathlib import Path
from typing import Any

from minivit.cli.common import (
    CommandResult,
    add_backend,
    add_data,
    add_threads,
    check_backend,
    check_figure,
    device_micro_batch,
    enough_memory,
)
from minivit.cli.model_fields import add_set
from minivit.cli.recipe_options import (
    RECIPE_OPTIONS,
    SET_WORDS,
    add_init,
    add_precision,
    add_recipe_options,
    asked_recipe,
    recipe_fields,
)
from minivit.cli.terminal import Terminal
from minivit.cli.training import command_of, open_images
from minivit.errors import program
from minivit.tracing.figures import save_figure
from minivit.train.lr_find import FIRST, LAST, STEPS, LearningRateSearch, find_learning_rate, plot_learning_rates
from minivit.train.run_folder import RunFolder
from minivit.train.trainer import Trainer

HELP = "find a learning rate"
DESCRIPTION = """\
Train for 100 steps (--steps) while the learning rate rises exponentially, and
suggest two rates from the loss: the rate at which it falls fastest, and a tenth
of the rate at which it is smallest. Use the first as --lr of a run with a
warmup. Use the second if training is unstable. The other options are those of
`minivit train` that apply. The model is discarded; no run folder is written."""
EXAMPLES = """\
examples:
  minivit lr-find digits
  minivit lr-find cifar10 --out lr.png
  minivit lr-find cifar10 --optimizer sgd --max-lr 10 --steps 200"""

# Fields of the schedule and of whole runs, which have no effect on a search.
_UNUSED = (
    "lr", "schedule", "warmup_epochs", "warmup_steps", "decay_epochs", "decay_shape", "ema_decay", "on_nan",
    "swa_start", "swa_lr",
)  # fmt: skip
# The recipe gives these: the strength of augmentation at each step depends on them.
_GIVEN = ("epochs", "augment_ramp", "augment_off_epochs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("dataset", metavar="DATA", help="digits, cifar10, cifar100, or a path")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"number of steps (default: {STEPS})")
    parser.add_argument(
        "--min-lr", type=float, default=FIRST, metavar="LR", help=f"the first rate (default: {FIRST:g})"
    )
    parser.add_argument("--max-lr", type=float, default=LAST, metavar="LR", help=f"the last rate (default: {LAST:g})")
    parser.add_argument("--out", metavar="FILE", help="draw the losses into a file .png or .svg")
    add_recipe_options(parser, [name for name in RECIPE_OPTIONS if name not in (*_UNUSED, *_GIVEN)])
    add_init(parser)
    add_set(parser, SET_WORDS)
    add_threads(parser)
    add_data(parser)
    add_backend(parser)
    add_precision(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    check_backend(args.backend)
    check_figure(args.out)
    recipe, start = asked_recipe(args)
    if unused := [name for name in recipe_fields(args.set) if name in _UNUSED]:
        have = "has" if len(unused) == 1 else "have"
        warnings.warn(f"{', '.join(unused)} {have} no effect on a search for a learning rate", stacklevel=2)
    dataset = open_images(args, recipe, terminal)
    micro_batch = device_micro_batch(args)
    with enough_memory(args.backend), terminal.progress() as progress:
        folder = RunFolder(Path("lr-find"), recipe)  # nothing is written there
        trainer = Trainer(folder, dataset, args.threads, args.backend, args.precision, micro_batch, start)
        found = find_learning_rate(
            trainer, args.steps, args.min_lr, args.max_lr,
            lambda step, lr, loss: progress(f"{recipe.model} on {dataset.name}", step, args.steps),
        )  # fmt: skip
    if args.out:
        save_figure(plot_learning_rates(found, not recipe.task), Path(args.out).expanduser())
    smoothed, best = found.smoothed, found.best
    terminal.show(
        f"the smoothed loss is {smoothed[0]:.4g} at first, and {smoothed[best]:.4g} at {found.rates[best]:.2g}"
    )
    if found.diverged is None:
        terminal.show(f"it does not diverge up to {found.rates[-1]:.2g}")
    else:
        terminal.show(f"it diverges at {found.diverged:.2g}, after {len(found.losses)} steps")
    if found.steepest is None or found.tenth is None:
        terminal.show("it does not fall; there is no suggestion. Try a smaller --min-lr, or more --steps")
    else:
        command = f"{program()} {command_of(recipe)} {shlex.quote(args.dataset)} --lr {found.steepest:.2g}"
        terminal.table(
            ["suggestion", ">learning rate"],
            [("steepest descent", f"{found.steepest:.2g}"), ("a tenth of the minimum's", f"{found.tenth:.2g}")],
        )
        terminal.show(f"next: {command} with the same options")
    if args.out:
        terminal.show(f"the figure is {args.out}")
    return CommandResult(_values(args, found, smoothed))


def _values(args: argparse.Namespace, found: LearningRateSearch, smoothed: list[float]) -> dict[str, Any]:
    """Return the object for --json."""
    return {
        "steepest": found.steepest,
        "tenth_of_minimum": found.tenth,
        "diverged": found.diverged,
        "rates": found.rates,
        "losses": found.losses,
        "smoothed": smoothed,
        "figure": args.out,
    }
