"""What pre-training is worth with few labels: python -m benchmarks.pretraining runs/cifar10-pretrain-1 cifar10

Trains the encoder of a run of `minivit pretrain` on a share of the labelled images, and the same model from random
parameters, with the same recipe, seeds and images. With --same-time a third model trains from random parameters for as
long as pre-training and fine-tuning take together; the steps of both are timed in turn, before all else. Accuracies are
those on all test images; pairs share the draw of their images, and the gain is that of the pairs.
"""

import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.command import at_least_one, check_writable, ended, parser_of, tell, write_json
from benchmarks.masked import median_of_rounds, step_times
from benchmarks.report import heading, records_table, surroundings
from benchmarks.systems import versions
from minivit import Engine, ViT, fit, load_model
from minivit.data import Dataset, load_dataset
from minivit.train.evaluation import evaluate
from minivit.train.recipe import Recipe, initial_model, model_config, normalised
from minivit.train.run_folder import RunFolder
from minivit.train.training import Training

# For all arms: the settings of fine-tuning. Images are mirrored and shifted by an eighth of their side.
RECIPE: dict[str, Any] = {
    "optimizer": "muon",
    "lr": 6e-3,
    "betas": (0.9, 0.99),
    "batch_size": 128,
    "weight_decay": 0.05,
    "warmup_epochs": 1.0,
    "label_smoothing": 0.1,
    "flip": True,
    "crop_padding": 4,
    "validation": 0.0,
}


def drawn(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Return the sorted indices of a share of the images of each class; they depend on `seed` and the labels alone."""
    chosen = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        generator = np.random.default_rng([seed, int(label)])
        chosen.append(generator.permutation(of_class)[: max(1, round(share * len(of_class)))])
    return np.sort(np.concatenate(chosen))


def supervised_images(run: Path, data: Dataset, threads: int | None) -> float:
    """Return how many images fine-tuning takes in the time in which pre-training took all of its own."""
    pretraining = RunFolder.open(run).recipe
    fine = Recipe(pretraining.dataset, pretraining.model, pretraining.model_options, epochs=100, **RECIPE)
    with ExitStack() as stack:
        trainings = []
        for recipe in (pretraining, fine):
            model = initial_model(recipe, model_config(recipe, data), data)
            engine = stack.enter_context(Engine(model, threads))
            trainings.append(Training(engine, normalised(data, recipe), recipe))
        seconds, of_fine = map(median_of_rounds, step_times(trainings, 5, 3, "pre-training and fine-tuning"))
    return trainings[0].total_steps * seconds / of_fine * fine.batch_size


def trained(model: ViT, data: Dataset, index: NDArray[np.int64], recipe: dict[str, Any], threads: int | None) -> float:
    """Train `model` on the images with the indices `index`; return its accuracy on the test images."""
    images, labels = data.train_images[index], data.train_labels[index]
    fit(model, images, labels, recipe=recipe, threads=threads, mean=data.mean, std=data.std)
    with Engine(model, threads) as engine:
        return evaluate(engine, data.test_images, data.test_labels, data.mean, data.std).accuracy


def measure(
    run: Path,
    data: Dataset,
    share: float,
    draws: int,
    epochs: int,
    same_time: int,
    more_images: float,
    threads: int | None,
) -> dict[str, Any]:
    """Return the accuracies of all arms for a share of the labels, a list with a number for each draw.

    The first `same_time` draws have the third arm, whose training takes `more_images` beyond `epochs`.
    """
    found: dict[str, list[float]] = {"pre-trained": [], "from scratch": [], "same time": []}
    for seed in range(draws):
        index = drawn(data.train_labels, share, seed)
        recipe = {**RECIPE, "epochs": epochs, "seed": seed}
        model = load_model(run, num_classes=len(data.class_names))
        arms = {"pre-trained": (model, recipe), "from scratch": (ViT(model.config, seed), recipe)}
        if seed < same_time:
            longer = {**recipe, "epochs": epochs + round(more_images / len(index))}
            arms["same time"] = ViT(model.config, seed), longer
        for arm, (of_arm, settings) in arms.items():
            found[arm].append(trained(of_arm, data, index, settings, threads))
            tell(f"{share:g} of the labels, draw {seed + 1} of {draws}, {arm}: {found[arm][-1]:.2%}")
    return {"labels": share, "images": len(index), "epochs": epochs, "accuracies": found}


def row_of(found: dict[str, Any]) -> dict[str, Any]:
    """Return the row of the table for a share of the labels."""
    accuracies = found["accuracies"]
    row = {name: found[name] for name in ("labels", "images", "epochs")}
    row |= {name: _spread(values) for name, values in accuracies.items() if values}
    for name in ("from scratch", "same time"):
        if accuracies[name]:
            pairs = zip(accuracies["pre-trained"], accuracies[name], strict=False)  # the third arm has fewer draws
            row[f"gain over {name}"] = _spread([one - other for one, other in pairs])
    return row


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else mean


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write its numbers where --json says."""
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run of `minivit pretrain`")
    parser.add_argument("data", metavar="DATA", help="the labelled images, with a test part")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.01, 0.1, 1.0], help="default: 0.01 0.1 1")
    parser.add_argument("--epochs", nargs="+", type=at_least_one, default=[100, 40, 10], help="of each share")
    parser.add_argument("--draws", type=at_least_one, default=3, help="of the images of a share (default: 3)")
    text = "of how many draws a third model trains from scratch for the total time (default: 0)"
    parser.add_argument("--same-time", type=at_least_one, default=0, metavar="DRAWS", help=text)
    parser.add_argument("--threads", type=at_least_one, help="default: the machine's")
    options = parser.parse_args(arguments)
    if len(options.shares) != len(options.epochs):
        parser.error(f"--shares has {len(options.shares)} numbers and --epochs {len(options.epochs)}; expected as many")
    if not all(0 < share <= 1 for share in options.shares):
        parser.error("--shares are above 0 and at most 1")
    check_writable(options.json)
    data = load_dataset(options.data)
    more_images = supervised_images(options.run, data, options.threads) if options.same_time else 0.0
    found = []
    for share, epochs in zip(options.shares, options.epochs, strict=True):
        arms = options.draws, epochs, options.same_time, more_images
        found.append(measure(options.run, data, share, *arms, options.threads))
    print(records_table([row_of(each) for each in found]) + "\n")
    where, used = surroundings(options.threads), versions()
    print(heading(where, used, 1))
    write_json(options.json, {"surroundings": where, "versions": used, "shares": found})


if __name__ == "__main__":
    sys.exit(ended(main))
