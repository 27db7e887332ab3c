"""What augmentation costs: python -m benchmarks.augmentation [--model NAME] [--set FIELD=VALUE ...] [--json FILE]

Training steps on random pixels of 32 x 32, one after another with each augmentation in turn: the time until a batch is
ready, and its share of the step. "nothing" selects images and normalises them, as every step does.
"""

import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.command import at_least_one, check_writable, ended, parser_of, write_json
from benchmarks.recipes import noise
from benchmarks.report import heading, percent, records_table, surroundings
from benchmarks.systems import versions
from minivit import Engine, ViT
from minivit.cli.model_fields import model_fields
from minivit.data.dataset import Dataset
from minivit.engine.machine import cores
from minivit.train.recipe import Recipe, model_config
from minivit.train.training import Training

MODEL, OPTIONS = "vit_mini_patch4_32", ("depth=6",)
CROPPED: dict[str, Any] = {"crop_padding": 4, "flip": True}
ALL = {**CROPPED, "auto_augment": "trivial", "erase_prob": 0.25, "cutmix_alpha": 1.0}
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "crop and flip": CROPPED,
    "and TrivialAugment": CROPPED | {"auto_augment": "trivial"},
    "and RandAugment, 2 ops": CROPPED | {"auto_augment": "rand"},
    "and erasing of a quarter": CROPPED | {"erase_prob": 0.25},
    "and mixup": CROPPED | {"mixup_alpha": 0.8},
    "and CutMix": CROPPED | {"cutmix_alpha": 1.0},
    "crop, flip, TrivialAugment, erasing, CutMix": ALL,
}


class Timed:
    """Training with one augmentation, of which the batches are timed."""

    def __init__(self, engine: Engine, dataset: Dataset, recipe: Recipe) -> None:
        self._training = Training(engine, dataset, recipe)
        self._make_batch = self._training.data_loader.batch
        setattr(self._training.data_loader, "batch", self._timed_batch)  # noqa: B010 - mypy refuses the assignment
        self._of_batch = 0.0
        self.batches: list[float] = []
        self.steps: list[float] = []

    def _timed_batch(self, *arguments: Any) -> Any:
        begun = time.perf_counter()
        batch = self._make_batch(*arguments)
        self._of_batch = time.perf_counter() - begun
        return batch

    def step(self, samples: np.ndarray) -> None:
        """Take a step and keep its times."""
        begun = time.perf_counter()
        self._training.take_step(samples)
        self.steps.append(time.perf_counter() - begun)
        self.batches.append(self._of_batch)
        list(self._training.read_steps())


def measure(model: str, fields: dict[str, Any], threads: int, batch_size: int, steps: int) -> list[dict[str, Any]]:
    """Return a row for each augmentation: medians over `steps`, after a first one that is not counted."""
    dataset, generator = noise((4096, 32, 32, 3), 10), np.random.default_rng(1)
    recipes = [
        Recipe("noise", model, fields, batch_size=batch_size, epochs=100, warmup_epochs=0.0, **augmentation)
        for augmentation in AUGMENTATIONS.values()
    ]
    config = model_config(recipes[0], dataset)
    draw = random.Random(0)
    with Engine(ViT(config, seed=0), threads) as engine:
        timed = [Timed(engine, dataset, recipe.resolved(engine.model)) for recipe in recipes]
        for _ in range(1 + steps):
            samples = generator.choice(len(dataset.train_images), batch_size, replace=False)
            for each in draw.sample(timed, len(timed)):
                each.step(samples)
    rows = []
    for name, each in zip(AUGMENTATIONS, timed, strict=True):
        batch, step = (statistics.median(seconds[1:]) for seconds in (each.batches, each.steps))
        share = statistics.median(b / s for b, s in zip(each.batches[1:], each.steps[1:], strict=True))
        rows.append({"augmentation": name, "ms a batch": 1e3 * batch, "ms a step": 1e3 * step, "share": percent(share)})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write its numbers where --json says."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default=MODEL, help=f"default: {MODEL}")
    default = f"fields of the model (default: {' '.join(OPTIONS)})"
    parser.add_argument("--set", nargs="*", default=OPTIONS, dest="fields", metavar="FIELD=VALUE", help=default)
    parser.add_argument("--threads", type=at_least_one, default=cores(), help="default: the machine's")
    parser.add_argument("--batch-size", type=at_least_one, default=128, help="default: 128")
    parser.add_argument("--steps", type=at_least_one, default=30, help="of each that are measured (default: 30)")
    options = parser.parse_args(arguments)
    check_writable(options.json)
    where, used = surroundings(options.threads), versions()
    rows = measure(options.model, model_fields(options.fields), options.threads, options.batch_size, options.steps)
    print(f"{options.model} {' '.join(options.fields)}, batch {options.batch_size}, {options.threads} workers\n")
    print(records_table(rows) + "\n")
    print(heading(where, used, 1, "one process, in turn from step to step"))
    write_json(options.json, {"surroundings": where, "versions": used, "augmentations": rows})


if __name__ == "__main__":
    sys.exit(ended(main))
