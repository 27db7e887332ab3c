"""The time of a recipe, and what its augmentation costs: python -m benchmarks.recipes cifar10 cifar100

Takes real training steps of a recipe, optimiser included, on images of noise, 50,000 as in CIFAR. The time of the
recipe is the number of its steps times the median step. Steps of the recipe without augmentation are taken in between;
the share of augmentation is what the step takes longer, as a part of the step.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks import command
from benchmarks.ratios import ratio_of_times
from benchmarks.report import records_table, surroundings
from minivit import ViT
from minivit.data import Dataset
from minivit.engine import Engine
from minivit.nn.presets import get_config
from minivit.train.recipe import Recipe, model_config
from minivit.train.recipes import load_recipe
from minivit.train.training import Training

PLAIN: dict[str, Any] = {
    "flip": False,
    "crop_padding": 0,
    "resized_crop": (),
    "auto_augment": "",
    "color_jitter": 0.0,
    "erase_prob": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
}
_STEPS = 5  # of a round


@dataclass(frozen=True)
class RecipeTime:
    """The times of a recipe."""

    recipe: str
    parameters: int
    epochs: int
    steps: int
    milliseconds: float  # of the median step
    minutes: float  # steps * milliseconds
    augmentation: float  # its share of a step
    interval: str  # of the share, 95 percent


def noise(shape: tuple[int, int, int, int], classes: int) -> Dataset:
    """Return training images of noise, (n, height, width, C)."""
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels, channels = np.arange(len(images)) % classes, shape[-1]
    names = tuple(f"class {i}" for i in range(classes))
    mean, std = (0.5,) * channels, (0.25,) * channels
    return Dataset("noise", images, labels, images[:classes], labels[:classes], names, mean, std)


def time_recipe(name: str, dataset: Dataset, rounds: int, threads: int | None) -> RecipeTime:
    """Return the times of the recipe called `name`."""
    asked = load_recipe("cifar10", name)
    config = model_config(asked, dataset)
    with ExitStack() as stack:

        def training(asked: Recipe) -> Training:
            model = ViT(config, seed=asked.seed)
            recipe = asked.resolved(model)
            engine = Engine(model, threads, recipe.micro_batch, None, recipe.reduction_groups)
            return Training(stack.enter_context(engine), dataset, recipe)

        both = [training(asked), training(replace(asked, **PLAIN))]
        seconds: list[list[list[float]]] = [[], []]
        order, size = both[0].train_index, asked.batch_size
        batches = [order[np.arange(i * size, (i + 1) * size) % len(order)] for i in range(_STEPS)]
        for number in range(-1, rounds):  # the first round is not counted
            for each, times in zip(both, seconds, strict=True):
                measured = [step_seconds(each, batch) for batch in batches]
                if number >= 0:
                    times.append(measured)
        ratio = ratio_of_times(*seconds)
        step = statistics.median(second for measured in seconds[0] for second in measured)
        return RecipeTime(
            name,
            both[0].model.parameters.count,
            asked.epochs,
            both[0].total_steps,
            1e3 * step,
            both[0].total_steps * step / 60,
            1 - ratio.of_medians,
            f"{1 - ratio.interval[1]:.3f} to {1 - ratio.interval[0]:.3f}" if ratio.interval else "",
        )


def step_seconds(training: Training, batch: np.ndarray) -> float:
    """Take a training step on the images with the indices `batch`, and return its time."""
    start = time.perf_counter()
    training.take_step(batch)
    list(training.read_steps())
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with command-line arguments and return the exit status."""
    parser = command.parser_of(__doc__)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="name of a recipe, or a file.toml")
    parser.add_argument("--rounds", type=command.at_least_one, default=12, help="rounds of steps; default: 12")
    parser.add_argument("--images", type=command.at_least_one, default=50_000, help="training images; default: 50,000")
    parser.add_argument("--threads", type=command.at_least_one, help="workers; default: one for each core")
    options = parser.parse_args(arguments)
    command.check_writable(options.json)
    where = surroundings(options.threads)
    about = f"{where['processor']}, {where['cores']} cores used, numpy {np.__version__}, commit {where['commit']}"
    print(f"{about}; {options.rounds} rounds of {_STEPS} steps")
    rows = []
    for name in options.recipes:
        asked = load_recipe("cifar10", name)
        config = get_config(asked.model, **asked.model_options)
        shape = (options.images, config.height, config.width, config.in_chans)
        dataset = noise(shape, 100 if name == "cifar100" else 10)
        rows.append(vars(time_recipe(name, dataset, options.rounds, options.threads)))
        print(records_table(rows[-1:]), flush=True)
    command.write_json(options.json, {"where": where, "recipes": rows})
    return 0


if __name__ == "__main__":
    sys.exit(command.ended(main))
