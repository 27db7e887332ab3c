"""``minivit pretrain``: train a Vision Transformer without labels, to predict what was masked."""

from __future__ import annotations

import argparse
from typing import Any

from minivit.cli.common import CommandResult
from minivit.cli.model_fields import add_set
from minivit.cli.recipe_options import RECIPE_OPTIONS, SET_WORDS, add_recipe_options
from minivit.cli.terminal import Terminal
from minivit.cli.training import add_run_options, run_training
from minivit.nn.masked_patches import TARGETS
from minivit.nn.pretraining import TASKS

HELP = "pre-train a Vision Transformer without labels"
DESCRIPTION = """\
Pre-train on images alone: some patches of each image are hidden, and the model
learns to predict them. mpp is the masked patch prediction of the ViT paper,
mae a masked autoencoder, whose encoder sees the other patches only, and simmim
predicts the pixels of masked patches with a linear layer. DATA is as for
`minivit train`, or any folder of images: labels are not read. The run goes on
with --resume in the same bits. Its folder holds the encoder, which
`minivit train --init` fine-tunes and `minivit probe` reads, the whole model,
the loss by epoch, and a picture of reconstructions."""
EXAMPLES = """\
examples:
  minivit pretrain cifar10
  minivit pretrain photos/ --task simmim --mask-ratio 0.5 --epochs 100
  minivit pretrain cifar10 --task mpp --target mean --run runs/mpp
  minivit pretrain cifar10 --run runs/mpp --resume
  minivit train cifar10 --init runs/mpp
  minivit probe runs/mpp cifar10 --shots 1 10"""
_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "mask_ratio": (
        "ratio",
        {
            "type": float,
            "metavar": "X",
            "help": "fraction of the patches that is predicted (default: mpp 0.5, mae 0.75, simmim 0.6)",
        },
    ),
    "target": (
        "target",
        {"choices": TARGETS, "help": "of mpp: the mean colour (default), the colours of 4 x 4 parts, or the pixels"},
    ),
    "norm_pixels": (
        "norm_pixels",
        {
            "action": argparse.BooleanOptionalAction,
            "help": "of mae: predict pixels of mean 0 and variance 1 in each patch (default)",
        },
    ),
    "decoder_dim": (
        "decoder_dim",
        {"type": int, "metavar": "N", "help": "of mae: width of the decoder (default: half of the encoder's)"},
    ),
    "decoder_depth": (
        "decoder_depth",
        {"type": int, "metavar": "N", "help": "of mae: blocks of the decoder (default: 2)"},
    ),
}
# Labels are not read, and the loss chooses the best epoch.
_OF_LABELS = ("label_smoothing", "mixup_alpha", "cutmix_alpha", "mix_prob")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("dataset", metavar="DATA", help="digits, cifar10, cifar100, or a path of images")
    parser.add_argument(
        "--task", choices=list(TASKS), help="what is predicted, and how (default: that of the recipe, mae)"
    )
    for name, (_, options) in _OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    add_recipe_options(parser, [name for name in RECIPE_OPTIONS if name not in _OF_LABELS], "pretrain")
    add_set(parser, SET_WORDS.replace("the model", "the encoder"))
    add_run_options(parser, "runs/DATA-pretrain-1")


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    args.init = None
    args.task_options = _given(args)
    return run_training(args, terminal, "pretrain")


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of the masked model that were given."""
    given = {field: getattr(args, name) for name, (field, _) in _OPTIONS.items()}
    return {field: value for field, value in given.items() if value is not None}
