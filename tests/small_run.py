"""A small data set, a recipe that trains on it within a second, and reporters that record or disturb such a run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from minivit.data import Dataset
from minivit.nn.model import Model
from minivit.train import curves, reconstructions
from minivit.train.interrupt import Interrupted
from minivit.train.recipe import Recipe
from minivit.train.run_folder import RunFolder
from minivit.train.trainer import Reporter, StepReport, Trainer
from minivit.weights import read_tensors, write_tensors

RATES = dict.fromkeys(("pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"), 0.2)
SMALL: dict[str, Any] = {"patch_size": 2, "depth": 2, "embed_dim": 8, "num_heads": 2, **RATES}
RECIPE = Recipe(
    dataset="squares",
    model="vit_micro_patch4_8",
    model_options=SMALL,
    epochs=3,
    batch_size=8,
    validation=0.2,
    crop_padding=1,
    flip=True,
    label_smoothing=0.1,
    micro_batch=3,
)

FIGURES: dict[tuple[ModuleType, str], Callable[..., object]] = {
    (curves, "save_curves"): curves.save_curves,
    (reconstructions, "draw_reconstructions"): reconstructions.draw_reconstructions,
}


@contextmanager
def figures_drawn() -> Iterator[None]:
    """Let runs draw their figures, which they do not in tests."""
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), draw in FIGURES.items():
            patch.setattr(module, name, draw)
        yield


def make_dataset(count: int = 35, test: int = 13) -> Dataset:
    """Return noise with a bright half, left or right: 28 training images and 7 validation images."""
    generator = np.random.default_rng(0)

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        images = generator.integers(0, 128, (n, 4, 4, 1), dtype=np.uint8)
        labels = np.arange(n) % 2
        for image, label in zip(images, labels, strict=True):
            image[:, 2 * label : 2 * label + 2] += 100
        return images, labels

    return Dataset("squares", *part(count), *part(test), ("left", "right"), (0.5,), (0.25,))


class Listener:
    """A reporter that records its calls, and calls `then` after step `at`."""

    def __init__(self, at: int = 0, then: Callable[[], None] = lambda: None) -> None:
        self.at, self.then = at, then
        self.reports: list[StepReport] = []
        self.epochs: list[dict[str, Any]] = []
        self.started_with: list[Any] = []

    def started(self, run: RunFolder, model: Model, first_step: int, total_steps: int, steps_per_epoch: int) -> None:
        self.started_with = [first_step, total_steps, steps_per_epoch]

    def stepped(self, report: StepReport) -> None:
        self.reports.append(report)
        if report.step == self.at:
            self.then()

    def epoch_ended(self, metrics: dict[str, Any]) -> None:
        self.epochs.append(metrics)


class Killed(Exception):  # noqa: N818 - it is no error
    """Simulates a killed process: nothing is saved after it."""


def kill() -> None:
    raise Killed


def ask_to_stop() -> None:
    signal.raise_signal(signal.SIGINT)


def run_at(path: Path, recipe: Recipe = RECIPE) -> RunFolder:
    return RunFolder.create(path, recipe)


def train(
    run: RunFolder,
    dataset: Dataset,
    reporter: Reporter,
    *,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    threads: int = 1,
    **options: Any,
) -> dict[str, Any]:
    """Train a run with the `options` of a trainer; a run so small is faster without worker processes."""
    return Trainer(run, dataset, threads=threads, **options).fit(reporter, resume, checkpoint_seconds)


def stopped_run(path: Path, at: int = 2) -> RunFolder:
    """Return a run on the host that was asked to stop after some step."""
    run = run_at(path)
    with pytest.raises(Interrupted, match=f"step {at}"):
        train(run, make_dataset(), Listener(at, ask_to_stop))
    return run


def edit_state(run: RunFolder, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the state in the checkpoint of a run."""
    path = run.path / "last" / "training.safetensors"
    vectors, about = read_tensors(path)
    state = json.loads(about["progress"])
    edit(state)
    write_tensors(path, vectors, {**about, "progress": json.dumps(state)})


def tensors(run: RunFolder) -> dict[str, bytes]:
    """Return the bytes of every tensor in the run's files."""
    files = sorted(run.path.rglob("*.safetensors"))
    return {f"{file}/{name}"[len(str(run.path)) :]: value.tobytes() for file in files for name, value in read(file)}


def read(file: Path) -> list[tuple[str, np.ndarray]]:
    return sorted(read_tensors(file)[0].items())


def bits(run: RunFolder) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Return the results that must not depend on interruptions, threads and time."""
    return tensors(run), [{k: v for k, v in line.items() if "second" not in k} for line in run.metrics()]
