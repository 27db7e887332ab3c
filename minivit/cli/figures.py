"""``minivit figures``: the figures of a model, of its predictions and of training runs, as PNG or SVG files."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minivit import explorer, tracing
from minivit.arrays import Array, to_host
from minivit.cli.common import (
    CommandResult,
    OpenedModel,
    add_backend,
    add_data,
    add_threads,
    check_backend,
    check_threads,
    enough_memory,
    open_model,
)
from minivit.cli.images import LabelledImages, image_files, labelled_images, run_folder_of
from minivit.cli.model_fields import add_set, model_fields
from minivit.cli.terminal import Terminal
from minivit.engine import Engine
from minivit.errors import UserError, did_you_mean
from minivit.nn.summary import part_costs
from minivit.tracing.figures import FORMATS, save_figure
from minivit.train.evaluation import image_transform, predictions
from minivit.train.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELP = "draw figures of a model or of runs"
DESCRIPTION = """\
Draw the figures of a model and of its training, as far as they exist for it:

  filters      principal components of the filters of the patch embedding
  positions    similarity of the position of each patch to all others
  distance     mean attention distance of each head, by depth
  rollout      attention rollout over some images
  gradients    norms of activations and gradients, by depth
  confusion    confusion matrix, with images of the worst pairs
  calibration  confidence and accuracy
  updates      update-to-weight ratios (of a run with --keep-every)
  curves       loss and accuracy of all runs together

Images are those of --image, or test images of the run's data set."""
EXAMPLES = """\
examples:
  minivit figures runs/cifar10-1
  minivit figures vit_tiny.safetensors --image cat.jpg dog.jpg --only rollout
  minivit figures runs/cifar10-1 runs/cifar10-2 --only curves --format svg"""

MEASURED = 128  # images, as in the paper, or as many as a large model measures in half a minute
_MOST_FLOPS = 1e12
SHOWN = 8
TRACED = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders, or model files or folders")
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the figures (default: RUN/figures for one run, else ./figures)"
    )
    parser.add_argument("--format", choices=FORMATS, default="png", help="file format (default: png)")
    parser.add_argument("--only", metavar="NAMES", help="the figures to draw, such as filters,rollout")
    parser.add_argument("--image", nargs="+", metavar="FILE", help="images for distance and rollout")
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which checkpoint (default: best)"
    )
    parser.add_argument("--dataset", help="name or path of a data set (default: the data set of the run)")
    add_set(parser)
    add_data(parser)
    add_threads(parser)
    add_backend(parser)


class _Subject:
    """One model or run of the command; what a figure needs of it is loaded when it is first used."""

    def __init__(self, name: str, args: argparse.Namespace, terminal: Terminal) -> None:
        self.name, self._args, self._terminal = name, args, terminal
        self.folder = run_folder_of(name)

    @functools.cached_property
    def opened(self) -> OpenedModel:
        fields = model_fields(self._args.set)
        return open_model(self.name, self._args.checkpoint, self._args.backend, fields, needs_head=False)

    @functools.cached_property
    def labelled(self) -> LabelledImages:
        """The test images of the data set."""
        return labelled_images(self.name, self._args, self.opened, self.folder, "test", self._terminal)

    @functools.cached_property
    def pixels(self) -> Array:
        """Some images, uint8: those of --image, or test images of as many classes as there are."""
        if self._args.image:
            return image_files(self._args.image, self.opened, self._terminal)
        flops = sum(cost.flops for cost in part_costs(self.opened.model).values())
        count = min(MEASURED, max(SHOWN, int(_MOST_FLOPS / flops)))
        return self.labelled.pixels[_of_all_classes(self.labelled.labels, count)]

    @functools.cached_property
    def images(self) -> Array:
        """The same as input of the model."""
        return self.transform(self.pixels)

    def transform(self, pixels: Array) -> Array:
        with Engine(self.opened.model, 1) as engine:
            preprocessing = self.opened.preprocessing
            return image_transform(engine, preprocessing.mean, preprocessing.std)(pixels)

    @functools.cached_property
    def logits(self) -> Array:
        """The logits of the test images."""
        images, preprocessing = self.labelled, self.opened.preprocessing
        with Engine(self.opened.model, self._args.threads) as engine:
            found = [logits for _, logits in predictions(engine, images.pixels, preprocessing.mean, preprocessing.std)]
        logits = np.concatenate(found)
        if not np.isfinite(logits).all():
            raise UserError(f"the logits of {self.name} are not finite: use another checkpoint")
        return logits

    @functools.cached_property
    def titles(self) -> list[str]:
        """A title for each of the `images`: the class that the model takes it for."""
        if not self.opened.model.config.num_classes:
            return []
        names = self.opened.class_names or ()
        classes = to_host(self.opened.model(self.images[:SHOWN])).argmax(axis=1).tolist()
        return [names[label] if names else str(label) for label in classes]

    def forget(self) -> None:
        """Free the model and the images: one model is in memory at a time."""
        for name in ("opened", "labelled", "pixels", "images", "logits", "titles"):
            vars(self).pop(name, None)

    def run(self) -> RunFolder:
        """Return the run; UserError if it is a model alone."""
        if self.folder is None:
            raise UserError(f"{self.name} is a model and not a run")
        return self.folder


def _rollout(subject: _Subject) -> Figure:
    return tracing.plot_attention_rollout(
        subject.opened.model, subject.images[:SHOWN], subject.pixels[:SHOWN], subject.titles
    )


def _gradients(subject: _Subject) -> Figure:
    images = subject.labelled
    some = _of_all_classes(images.labels, TRACED)
    pixels, labels = subject.transform(images.pixels[some]), images.labels[some]
    model = subject.opened.model
    return tracing.plot_gradient_flow(tracing.trace(model, pixels, labels.tolist(), statistics=True))


def _confusion(subject: _Subject) -> Figure:
    images = subject.labelled
    return explorer.plot_confusion(subject.logits, images.labels, images.class_names, images.pixels)


FIGURES: dict[str, Callable[[_Subject], Figure] | None] = {
    "filters": lambda subject: tracing.plot_filter_components(subject.opened.model),
    "positions": lambda subject: tracing.plot_position_similarity(subject.opened.model),
    "distance": lambda subject: tracing.plot_attention_distance(subject.opened.model, subject.images),
    "rollout": _rollout,
    "gradients": _gradients,
    "confusion": _confusion,
    "calibration": lambda subject: explorer.plot_calibration(subject.logits, subject.labelled.labels),
    "updates": lambda subject: explorer.plot_update_ratios(subject.run()),
    "curves": None,  # of all runs together
}


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    check_backend(args.backend)
    check_threads(args.threads)
    chosen = _chosen(args.only)
    subjects = [_Subject(name, args, terminal) for name in args.runs]
    out = _folder(args.out, subjects)
    drawn: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []

    def draw(name: str, of: str, folder: Path, make: Callable[[], Figure]) -> None:
        about = {"figure": name, "run": of}
        try:
            with enough_memory(args.backend):
                figure = make()
        except UserError as error:
            if args.only:
                raise
            left_out.append({**about, "reason": str(error)})
            return
        path = save_figure(figure, folder / f"{name}.{args.format}")
        drawn.append({**about, "path": str(path)})
        terminal.show(str(path))

    for subject, name in zip(subjects, folder_names(args.runs), strict=True):
        folder = out if len(subjects) == 1 else out / name
        for figure in chosen:
            if (make := FIGURES[figure]) is not None:
                draw(figure, subject.name, folder, functools.partial(make, subject))
        subject.forget()
    if "curves" in chosen:
        together = ", ".join(args.runs)
        draw("curves", together, out, lambda: explorer.plot_curves([subject.run() for subject in subjects]))
    if not drawn:
        raise UserError(f"no figure can be drawn: {left_out[0]['reason']}")
    for reason in dict.fromkeys(each["reason"] for each in left_out):
        names = dict.fromkeys(each["figure"] for each in left_out if each["reason"] == reason)
        terminal.say(f"left out: {', '.join(names)}: {reason}", style="dim")
    return CommandResult({"figures": drawn, "left_out": left_out})


def _chosen(only: str | None) -> list[str]:
    if only is None:
        return list(FIGURES)
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in FIGURES:
            near = did_you_mean(name, FIGURES)
            expected = f"{near} Expected" if near else " expected"
            raise UserError(f"there is no figure {name!r};{expected} some of {', '.join(FIGURES)}")
    if not names:
        raise UserError(f"--only names no figure; expected some of {', '.join(FIGURES)}")
    return names


def _folder(out: str | None, subjects: Sequence[_Subject]) -> Path:
    if out is not None:
        return Path(out).expanduser()
    first = subjects[0].folder
    return first.path / "figures" if len(subjects) == 1 and first is not None else Path("figures")


def folder_names(runs: Sequence[str]) -> list[str]:
    """Return a name of a folder for each run, or model, of the command."""
    paths = [Path(run).expanduser().resolve() for run in runs]
    names = [path.name if path.is_dir() else path.stem for path in paths]
    while len(set(names)) < len(names):
        names = [name if names.count(name) == 1 else f"{name}-{i + 1}" for i, name in enumerate(names)]
    return names


def _of_all_classes(labels: Array, count: int) -> Array:
    """Return the numbers of `count` images: the first of each class, then the second of each, and so on."""
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.lexsort((labels, rank))[:count]
