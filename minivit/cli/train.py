"""``minivit train``: train a Vision Transformer and store the run in a folder."""

from __future__ import annotations

import argparse

from minivit.cli.common import CommandResult
from minivit.cli.model_fields import add_set
from minivit.cli.recipe_options import SET_WORDS, add_init, add_recipe_options
from minivit.cli.terminal import Terminal
from minivit.cli.training import add_run_options, run_training

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
    add_recipe_options(parser)
    add_init(parser)
    add_set(parser, SET_WORDS)
    add_run_options(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    return run_training(args, terminal, "train")
