"""Training on images that stay on the disk: python -m benchmarks.streaming [--images N] [--size PIXELS] [--json FILE]

Writes JPEG files of smooth random patterns, prepares them as `minivit prepare` does, and takes training steps, with
the optimiser, on images in memory, from the prepared folder, and from the JPEG files. Each is a process of its own;
they take turns. The speed is a part of that with images in memory.
"""

import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.command import at_least_one, check_writable, ended, parser_of, tell, write_json
from benchmarks.harness import Worker
from benchmarks.memory import peak_bytes
from benchmarks.ratios import ratio_of_times
from benchmarks.recipes import step_seconds
from benchmarks.report import heading, records_table, surroundings
from benchmarks.systems import versions
from benchmarks.worker import own_output, time_steps
from minivit import Engine, ViT
from minivit.arrays import Array
from minivit.data import load_dataset
from minivit.data.images import Decoding
from minivit.data.prepared import prepare_folder
from minivit.engine.machine import cores
from minivit.errors import UserError
from minivit.train.recipe import Recipe, model_config
from minivit.train.training import Training

MODEL = "vit_tiny_patch16_224"
SOURCES = {"memory": False, "prepared": True, "files": True}  # whether the images are streamed
_CLASSES = 10


def make_files(folder: Path, images: int, size: int) -> None:
    """Write JPEG files for training, and one of each class for tests, each with a smooth random pattern."""
    generator = np.random.default_rng(0)
    for i in range(images + _CLASSES):
        small = generator.integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((size + 32, size), Image.Resampling.BICUBIC)
        path = folder / ("train" if i < images else "test") / str(i % _CLASSES) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)


def work(source: str, folder: Path, model: str, size: int, batch_size: int, threads: int) -> None:
    """Take training steps on images of one source, as often as the standard input asks."""
    reply = own_output()
    with ExitStack() as stack:
        steps: list[Any] = []

        def begin() -> dict[str, Any]:
            path = folder / ("files" if source == "files" else "prepared")
            dataset = load_dataset(path, image_size=size, stream=SOURCES[source])
            augmentation: dict[str, Any] = {"crop_padding": size // 8, "flip": True}
            recipe = Recipe(str(path), model, {"img_size": size}, batch_size=batch_size, **augmentation)
            config = model_config(recipe, dataset)
            engine = stack.enter_context(Engine(ViT(config, seed=0), threads))
            training = Training(engine, dataset, recipe.resolved(engine.model))
            batches = _endless(training)
            steps.append(lambda: step_seconds(training, next(batches)))
            steps[0]()
            return {}

        def timed(seconds: float) -> dict[str, Any]:
            return {"seconds": time_steps(steps[0], seconds), "peak_bytes": peak_bytes()}

        if reply(begin):
            for line in sys.stdin:
                reply(partial(timed, float(line)))


def _endless(training: Training) -> Iterator[Array]:
    epoch = 0
    while True:
        yield from training.batches(epoch)
        epoch += 1


def measure(folder: Path, arguments: Sequence[str], seconds: float, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Return the replies of each source, one for each round."""
    replies: dict[str, list[dict[str, Any]]] = {source: [] for source in SOURCES}
    with ExitStack() as stack:
        workers = {}
        for source in SOURCES:
            command = ("benchmarks.streaming", "--worker", source, "--folder", str(folder), *arguments)
            workers[source] = stack.enter_context(closing(Worker(*command)))
            workers[source].reply(1800.0)
        for i in range(rounds):
            for source, worker in workers.items():
                said = worker.measure(seconds, 1800.0)
                replies[source].append(said)
                tell(f"round {i + 1} of {rounds}: {source} {1e3 * statistics.median(said['seconds']):.1f} ms")
    return replies


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write its numbers where --json says."""
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=at_least_one, default=20_000, help="default: 20000")
    parser.add_argument("--size", type=at_least_one, default=224, help="side of the images (default: 224)")
    parser.add_argument("--model", default=MODEL, help=f"default: {MODEL}")
    parser.add_argument("--batch-size", type=at_least_one, default=64, help="default: 64")
    parser.add_argument("--threads", type=at_least_one, default=cores(), help="default: the machine's")
    parser.add_argument("--rounds", type=at_least_one, default=5, help="default: 5")
    parser.add_argument("--seconds", type=float, default=10.0, help="of steps of each source in a round (default: 10)")
    parser.add_argument("--folder", type=Path, help="where the files are made, and found again (default: temporary)")
    parser.add_argument("--worker", choices=SOURCES, help="used by the command itself")
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.worker, options.folder, options.model, options.size, options.batch_size, options.threads)
        return
    check_writable(options.json)
    where, used = surroundings(options.threads), versions()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        made = sum(1 for _ in (folder / "files" / "train").glob("*/*.jpg"))
        if made not in (0, options.images):
            raise UserError(f"{folder} has {made:,} training images, not {options.images:,}")
        if not made:
            tell(f"writing {options.images:,} files")
            make_files(folder / "files", options.images, options.size)
        if not (folder / "prepared").exists():
            tell("preparing them")
            prepare_folder(folder / "files", folder / "prepared", Decoding((options.size,) * 2))
        given = [("--model", options.model), ("--size", options.size)]
        given += [("--batch-size", options.batch_size), ("--threads", options.threads)]
        words = [str(word) for pair in given for word in pair]
        replies = measure(folder, words, options.seconds, options.rounds)
    base = [said["seconds"] for said in replies["memory"]]
    rows = []
    for source, said in replies.items():
        seconds = [one["seconds"] for one in said]
        ratio = ratio_of_times(seconds, base)
        median = statistics.median(statistics.median(some) for some in seconds)
        row = {"images": source, "ms a step": 1e3 * median, "peak MB": max(one["peak_bytes"] for one in said) / 1e6}
        rows.append({**row, "speed": f"{ratio.of_medians:.3f}", "95 % interval": ratio.interval_text})
    pixels = options.images * math.prod((options.size, options.size, 3))
    print(f"{options.model}, batch {options.batch_size}, {options.images:,} images of {pixels / 1e9:.2f} GB\n")
    print(records_table(rows) + "\n")
    print(heading(where, used, 1, f"one process per source, {options.rounds} turns"))
    write_json(options.json, {"surroundings": where, "versions": used, "sources": rows})


if __name__ == "__main__":
    sys.exit(ended(main))
