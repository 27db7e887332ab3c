"""How fast pre-training is beside supervised training of the same encoder: python -m benchmarks.masked [MODEL ...]

Training steps on random pixels, optimiser included, of each task of `minivit pretrain` with its default options and of
a classifier of 10 classes, one after another in each round. The speed is the classifier's time over that of the task.
"""

import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.command import at_least_one, check_writable, ended, parser_of, tell, write_json
from benchmarks.ratios import ratio_of_times
from benchmarks.recipes import noise, step_seconds
from benchmarks.report import heading, records_table, surroundings
from benchmarks.systems import versions
from minivit import Engine, get_config
from minivit.engine.machine import cores
from minivit.nn.pretraining import TASKS
from minivit.train.recipe import Recipe, initial_model, model_config
from minivit.train.training import Training

MODELS = ("vit_tiny_patch4_32", "vit_mini_patch4_32")


def step_times(trainings: Sequence[Training], rounds: int, steps: int, name: str) -> list[list[list[float]]]:
    """Return the seconds of steps by training and round. The trainings take turns; their first round is left out."""
    seconds: list[list[list[float]]] = [[] for _ in trainings]
    for number in range(rounds + 1):
        for training, of_training in zip(trainings, seconds, strict=True):
            samples = training.train_index[: training.recipe.batch_size]
            times = [step_seconds(training, samples) for _ in range(steps)]
            if number:
                of_training.append(times)
        tell(f"{name}: round {number} of {rounds}")
    return seconds


def median_of_rounds(seconds: Sequence[Sequence[float]]) -> float:
    """Return the median of the rounds' medians."""
    return statistics.median(statistics.median(times) for times in seconds)


def measure(model: str, threads: int, batch_size: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Return a row for supervised training of a model, and one for each task with it as the encoder."""
    config = get_config(model)
    data = noise((4 * batch_size, config.height, config.width, config.in_chans), 10)
    with ExitStack() as stack:
        trainings = []
        for task in ("", *TASKS):
            recipe = Recipe("noise", model, task=task, batch_size=batch_size, epochs=100, warmup_epochs=0.0)
            made = initial_model(recipe, model_config(recipe, data), data)
            trainings.append(Training(stack.enter_context(Engine(made, threads)), data, recipe))
        seconds = step_times(trainings, rounds, steps, model)
    rows = []
    for task, of_task in zip(("supervised", *TASKS), seconds, strict=True):
        ratio = ratio_of_times(of_task, seconds[0])
        row = {"encoder": model, "training": task, "images/s": f"{batch_size / median_of_rounds(of_task):,.0f}"}
        rows.append({**row, "speed": f"{ratio.of_medians:.2f}", "95 % interval": ratio.interval_text})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write its numbers where --json says."""
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--batch-size", type=at_least_one, default=128, help="default: 128")
    parser.add_argument("--threads", type=at_least_one, default=cores(), help="default: the machine's")
    parser.add_argument("--rounds", type=at_least_one, default=5, help="default: 5")
    parser.add_argument("--steps", type=at_least_one, default=3, help="of each training in a round (default: 3)")
    options = parser.parse_args(arguments)
    check_writable(options.json)
    where, used = surroundings(options.threads), versions()
    rows = []
    for model in options.models:
        rows += measure(model, options.threads, options.batch_size, options.rounds, options.steps)
    print(records_table(rows) + "\n")
    print(heading(where, used, 1))
    write_json(options.json, {"surroundings": where, "versions": used, "trainings": rows})


if __name__ == "__main__":
    sys.exit(ended(main))
