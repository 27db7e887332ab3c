"""``minivit inspect``: a page of everything that flows through a model for some images, forward and backward."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from minivit import explorer
from minivit.cli.common import CommandResult, add_backend, enough_memory
from minivit.cli.model_fields import add_set
from minivit.cli.terminal import Terminal
from minivit.cli.traced import open_subject, with_labels
from minivit.errors import UserError
from minivit.nn.presets import PRESETS
from minivit.train.run_folder import RunFolder

HELP = "write a page that shows every activation and gradient of a model"
DESCRIPTION = """\
Run a model forward and backward once for each image, and write one page that
shows what passed through every layer: activations and gradients with their
formulas, their code and their gradient check, attention, depth, the kept steps
of a run, and what typical mistakes would do. The page is one file, which loads
nothing; open it in a browser. MODEL is a run folder, a model file, or the name
of a model, which then has its initial parameters. Without --image, the image is
a test image of the run's data set if it is on this machine, otherwise random
pixels."""
EXAMPLES = """\
examples:
  minivit inspect runs/digits-1
  minivit inspect runs/digits-1 --index 7 --out seven.html
  minivit inspect vit_tiny_patch4_32 --image cat.png --label 3"""

_OUT = "page.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("target", metavar="MODEL", help="a run folder, a model file, or the name of a model")
    parser.add_argument("--image", nargs="+", default=[], metavar="FILE", help="image files; resized and converted")
    parser.add_argument("--label", nargs="+", default=[], metavar="N", help="the class of each image, or of all")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="number of the test image (default: 0)")
    parser.add_argument("--out", default=_OUT, metavar="FILE", help="the page (default: page.html)")
    parser.add_argument("--seed", type=int, default=0, help="seed of a named model and of random pixels (default: 0)")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="model of a run (default: best)")
    parser.add_argument("--data", metavar="DIR", help="folder of CIFAR (default: $MINIVIT_DATA, else ./data)")
    add_set(parser)
    add_backend(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    start = time.perf_counter()
    if len(args.image) > explorer.LIMITS.images:
        raise UserError(f"--image: {len(args.image)} files were given; a page has at most {explorer.LIMITS.images}")
    out = Path(args.out).expanduser()
    if out.is_dir():  # before the work
        raise UserError(f"--out is the folder {args.out}; expected a file, such as {out / _OUT}")
    subject = open_subject(args, terminal)
    opened = subject.opened
    path = Path(args.target).expanduser()
    name = path.name if path.name not in ("", "..") else path.resolve().name  # such as "."
    folder = RunFolder.open(path) if args.target not in PRESETS and RunFolder.exists(path) else None
    predicted = subject.labels is None and not args.label
    with enough_memory(args.backend):
        subject = with_labels(subject, args.label, terminal)
        data = explorer.explore(
            subject.model,
            subject.images,
            subject.labels,
            class_names=opened.class_names or (),
            names=_names(subject.names),
            pixels=subject.pixels,
            predicted=predicted,
            run=folder,
            checkpoint=None if folder is None else args.checkpoint,
            subject=("run" if folder else "name" if args.target in PRESETS else "file", name),
            title=f"{name}: every gradient",
            command=_command(args),
        )
        size = explorer.write_page(data, out)
    seconds = time.perf_counter() - start
    if data["note"]:
        terminal.say(data["note"])
    terminal.say(f"the page is {args.out} ({size / 1e6:.1f} MB)")
    return CommandResult(
        {
            "out": args.out,
            "bytes": size,
            "seconds": round(seconds, 3),
            "full": data["full"],
            "note": data["note"],
            "images": [image["name"] for image in data["images"]],
            "layers": len(data["images"][0]["layers"]),
        }
    )


def _names(files: Sequence[str]) -> list[str]:
    """Return the names of files without their folders; those of the same name as they were given."""
    names = [Path(file).name for file in files]
    return [name if names.count(name) == 1 else file for name, file in zip(names, files, strict=True)]


def _command(args: argparse.Namespace) -> str:
    """Return the command that makes the same page, without the options that have their defaults."""
    words = ["minivit", "inspect", args.target]
    for name in ("image", "label"):
        words += [f"--{name}", *getattr(args, name)] if getattr(args, name) else []
    for name, default in (("index", 0), ("seed", 0), ("checkpoint", "best"), ("data", None), ("backend", "numpy")):
        words += [f"--{name}", str(getattr(args, name))] if getattr(args, name) != default else []
    words += [word for field in args.set for word in ("--set", field)]
    return shlex.join([*words, *(["--out", args.out] if args.out != _OUT else [])])
