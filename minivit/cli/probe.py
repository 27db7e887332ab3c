"""``minivit probe``: how well simple classifiers of a model's frozen features do, with few labelled images or all."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from minivit.cli.common import (
    CommandResult,
    add_backend,
    add_data,
    add_threads,
    check_backend,
    check_figure,
    check_threads,
    dataset_name,
    enough_memory,
    model_path,
)
from minivit.cli.images import dataset_for
from minivit.cli.reporters import percent
from minivit.cli.terminal import Terminal
from minivit.data.dataset import split_validation
from minivit.errors import UserError
from minivit.nn.vit import ViT
from minivit.tracing.figures import save_figure
from minivit.train.probe import KINDS, ProbeAccuracy, linear_probe, plot_probes
from minivit.train.probe_features import HEAD, layer_names
from minivit.weights import load_model, model_metadata
from minivit.weights.preprocessing import preprocessing_of

HELP = "probe the features of a model with few labels or all"
DESCRIPTION = """\
Fit simple classifiers to the frozen features of a model, and count the test
images that they recognise: the few-shot evaluation of the ViT paper. Nothing
of the model is trained, and its own head and classes are not used.
least-squares is the paper's, in closed form; knn a vote of the 20 nearest
neighbours; linear a layer that is trained on cross-entropy. Each number is
the mean and the deviation over draws of the images that are learnt from,
which are the same for every model."""
EXAMPLES = """\
examples:
  minivit probe runs/cifar10-1 cifar10
  minivit probe vit_tiny_patch16_224.safetensors photos/ --shots 1 5 10 all
  minivit probe runs/cifar10-1 cifar10 --layers all --out layers.png
  minivit probe runs/cifar10-1 cifar10 --random"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="a run, or a model file or folder of any format")
    parser.add_argument("dataset", metavar="DATA", help="digits, cifar10, cifar100, or a path")
    parser.add_argument(
        "--shots",
        nargs="+",
        default=["1", "5", "10", "all"],
        metavar="N",
        help="numbers of labelled images of each class, or all (default: 1 5 10 all)",
    )
    parser.add_argument("--draws", type=int, default=5, metavar="N", help="draws of the shots (default: 5)")
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=["least-squares"],
        choices=KINDS,
        metavar="KIND",
        help=f"{', '.join(KINDS)} (default: least-squares)",
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        default=[HEAD],
        metavar="LAYER",
        help="head: what the head reads; 0, 1, ...: the tokens after so many blocks; all (default: head)",
    )
    parser.add_argument(
        "--l2",
        type=float,
        metavar="X",
        help="penalty of least squares (default: by cross-validation)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws (default: 0)")
    parser.add_argument(
        "--random", action="store_true", help="probe random parameters of seed --seed in place of the model's"
    )
    parser.add_argument("--out", metavar="FILE", help="draw the accuracy by layer into a file .png or .svg")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="model of a run (default: best)")
    add_threads(parser)
    add_data(parser)
    add_backend(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run the command."""
    check_backend(args.backend)
    check_threads(args.threads)
    check_figure(args.out)
    shots = list(dict.fromkeys(map(_shots, args.shots)))
    path = model_path(args.model, args.checkpoint)
    about = model_metadata(path)
    with enough_memory(args.backend):
        model = load_model(path, backend=args.backend)
        if args.random:
            model = ViT(model.config, args.seed, model.parameters.store.values.dtype, args.backend)
    config = model.config
    preprocessing = preprocessing_of(path, about, config)
    layers = layer_names(model) if "all" in args.layers else list(dict.fromkeys(args.layers))
    dataset = dataset_for(args.model, dataset_name(args.dataset), config, preprocessing, args, terminal)
    index = split_validation(dataset, 0.0, 0)[0]
    with enough_memory(args.backend), terminal.progress() as progress:
        found = linear_probe(
            model,
            dataset.train_images[index],
            dataset.train_labels[index],
            dataset.test_images,
            dataset.test_labels,
            shots=shots,
            draws=args.draws,
            kinds=list(dict.fromkeys(args.kinds)),
            layers=layers,
            l2=args.l2,
            seed=args.seed,
            mean=preprocessing.mean,
            std=preprocessing.std,
            threads=args.threads,
            progress=progress,
            class_names=dataset.class_names,
        )
    if args.out:
        save_figure(plot_probes(found), Path(args.out).expanduser())
        terminal.say(f"wrote {args.out}")
    _show(found, shots, terminal)
    words = "random parameters in the place of those of " if args.random else ""
    terminal.show(f"{words}{args.model} on the {len(dataset.test_images):,} test images of {dataset.name}")
    probes = [
        {
            "layer": row.layer,
            "kind": row.kind,
            "shots": row.shots,
            "accuracy": row.mean,
            "spread": row.spread,
            "accuracies": list(row.accuracies),
        }
        for row in found
    ]
    return CommandResult({"model": args.model, "dataset": dataset.name, "random": args.random, "probes": probes})


def _shots(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--shots {text}: expected whole numbers of at least 1, or all")
    return int(text)


def _show(found: Sequence[ProbeAccuracy], shots: Sequence[int | None], terminal: Terminal) -> None:
    """Show a row for each layer and classifier, with a column for each number of shots."""
    rows: dict[tuple[str, str], list[str]] = {}
    for row in found:
        spread = f" +- {100 * row.spread:.1f}" if len(row.accuracies) > 1 else ""
        rows.setdefault((row.layer, row.kind), []).append(f"{percent(row.mean)}{spread}")
    columns = [">all images" if shot is None else f">{shot} a class" for shot in shots]
    terminal.table(("layer", "classifier", *columns), [(*names, *cells) for names, cells in rows.items()])
